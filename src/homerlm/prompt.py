"""A document and a question as prefix, context and suffix: the split that HOMER needs, chat template included."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from homerlm.errors import InputError

NEUTRAL_QUESTION = "Who? What? When? Where? Which number? How many? Which name?"  # docs/experiments.md
INSTRUCTION = "Read the following text. A question about it follows at its end."
_DOCUMENT_MARK = "\ue000document\ue000"  # private-use characters: in no template and no question


@dataclass(frozen=True)
class PromptIds:
    """Token ids (1, tokens) of the three parts. The prefix opens the prompt, the suffix holds the question and the
    start of the answer."""

    prefix: Tensor
    context: Tensor
    suffix: Tensor


def affixes(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    *,
    instruction: str = INSTRUCTION,
    answer_start: str = "",
    chat: bool | None = None,
) -> tuple[str, str]:
    """Text before and after the document. `chat` asks for the model's chat template; None uses it where there is one.

    `answer_start` is put into the model's mouth: the answer goes on from there. Without a template it follows the
    question as running text, which a small model continues better than labels (docs/experiments.md).
    """
    if not question.strip():
        raise InputError("the question is empty: ask something")
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if chat and not has_template:
        raise InputError("this model's tokenizer has no chat template: leave chat out, or set it to False")
    if has_template if chat is None else chat:
        content = f"{instruction}\n\n{_DOCUMENT_MARK}\n\n{question}"
        messages = [{"role": "user", "content": content}]
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        parts = str(text).split(_DOCUMENT_MARK)
        if len(parts) != 2:
            raise InputError("the model's chat template does not pass the message on once: set chat to False")
        return parts[0], parts[1] + answer_start
    bos = tokenizer.bos_token if _adds_bos(tokenizer) else ""
    asked = f"{question} {answer_start}" if answer_start else f"Question: {question}\nAnswer:"
    return f"{bos}{instruction}\n\n", f"\n\n{asked}"


def encode(tokenizer: PreTrainedTokenizerBase, prefix: str, document: str, suffix: str) -> PromptIds:
    """Ids of the three parts, each tokenised by itself, without special tokens beyond those in the texts."""
    return PromptIds(*(token_ids(tokenizer, text) for text in (prefix, document, suffix)))


def token_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> Tensor:
    """(1, tokens) long."""
    ids = tokenizer(text, add_special_tokens=False, verbose=False).input_ids
    return torch.tensor([ids], dtype=torch.long)


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a").input_ids
    return bool(ids) and tokenizer.bos_token is not None and ids[0] == tokenizer.bos_token_id
