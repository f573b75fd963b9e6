"""A tokenizer of whole words for tests: w0, w1, ... and a few English ones."""

from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

CHAT = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


def tokenizer_of(size: int, chat: bool = False) -> PreTrainedTokenizerFast:
    words = ["<unk>", "<eos>", "<user>", "<assistant>", "<end>", *(f"w{i}" for i in range(size - 5))]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>")
    if chat:
        tokenizer.chat_template = CHAT
    return tokenizer
