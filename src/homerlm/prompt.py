"""A document and a question as prefix, context and suffix: the split that HOMER needs, chat template included.

Text that enters (document, instruction, question, the answer's start) is text: where it holds the name of a special
token, as `<|im_end|>`, that name is spelled out in ordinary tokens. Only the template's own marks are special.
"""

from __future__ import annotations

import re
import weakref
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from homerlm.errors import InputError

NEUTRAL_QUESTION = "Who? What? When? Where? Which number? How many? Which name?"  # docs/experiments.md
INSTRUCTION = "Read the following text. A question about it follows at its end."
ASKS_NOTHING = "N/A"  # a question to compare others with
TEMPLATE_OPTIONS: Mapping[str, Any] = {"enable_thinking": False}  # read by templates of models that can think first
_MARKS = ("\ue000instruction\ue000", "\ue000document\ue000", "\ue000question\ue000")  # private-use characters


@dataclass(frozen=True)
class PromptIds:
    """Token ids (B, tokens) of a prompt's parts. The prefix opens the prompt, the suffix holds the question and the
    start of the answer; neutral: the suffix of a question that asks for nothing, to compare the question's with."""

    prefix: Tensor
    context: Tensor
    suffix: Tensor
    neutral: Tensor | None = None

    def row(self, index: int) -> PromptIds:
        """One row of a batch."""
        one = slice(index, index + 1)
        return PromptIds(self.prefix[one], self.context[one], self.suffix[one], row_of(self.neutral, index))

    @property
    def lengths(self) -> tuple[int, int, int, int]:
        """Tokens of prefix, context, suffix and neutral suffix."""
        neutral = 0 if self.neutral is None else self.neutral.shape[1]
        return self.prefix.shape[1], self.context.shape[1], self.suffix.shape[1], neutral


def row_of(ids: Tensor | None, index: int) -> Tensor | None:
    """(1, N) one row of ids (B, N), where there are any."""
    return None if ids is None else ids[index : index + 1]


@dataclass(frozen=True)
class Text:
    """A part of a prompt. `own`: the spans `[start, stop)` of `text` that are ours (the template's, the tokenizer's
    beginning of a prompt), where names of special tokens mean those tokens."""

    text: str
    own: tuple[tuple[int, int], ...] = ()

    @classmethod
    def join(cls, *pieces: tuple[str, bool]) -> Text:
        """Pieces in order, each with whether it is ours."""
        own, at = [], 0
        for piece, ours in pieces:
            own += [(at, at + len(piece))] if ours and piece else []
            at += len(piece)
        return cls("".join(piece for piece, _ in pieces), tuple(own))


def affixes(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    *,
    instruction: str = INSTRUCTION,
    answer_start: str = "",
    chat: bool | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> tuple[Text, Text]:
    """The parts before and after the document. `chat` asks for the model's chat template; None uses it where there is
    one. `template_options` go to the template; by default models that can think first do not.

    `answer_start` is put into the model's mouth: the answer goes on from there. Without a template it follows the
    question as running text, which a small model continues better than labels (docs/experiments.md).
    Raises `InputError` for an empty question, or options that the tokenizer has no use for.
    """
    if not question.strip():
        raise InputError("the question is empty: ask something")
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if chat and not has_template:
        raise InputError("this model's tokenizer has no chat template: leave chat out, or set it to False")
    if has_template if chat is None else chat:
        return _templated(tokenizer, instruction, question, answer_start, template_options or {})
    if template_options:
        raise InputError(
            f"template_options {dict(template_options)} need a chat template, which is not used: leave them out"
        )
    bos = str(tokenizer.bos_token) if _adds_bos(tokenizer) else ""
    asked = f"{question} {answer_start}" if answer_start else f"Question: {question}\nAnswer:"
    return Text.join((bos, True), (f"{instruction}\n\n", False)), Text(f"\n\n{asked}")


def conversation(
    tokenizer: PreTrainedTokenizerBase,
    turns: Sequence[tuple[str, str]],
    place: tuple[int, int] | None = None,
    *,
    template_options: Mapping[str, Any] | None = None,
) -> tuple[Text, Text]:
    """The parts before and after a document of a whole conversation: its turns, (role, text) each, in the model's chat
    template, or with their roles' names where it has none, up to the beginning of the answer.

    place: where the document stands, the number of a turn and of the character in its text that follows; None for no
    document, so that all is in the second part. A last turn of the assistant is what the answer begins with. Where the
    template does not take the roles as they are, system texts go into the turn after them and neighbours of one role
    become one turn. Raises `InputError` for a template that fails on these, too.
    """
    given, start = list(turns), ""
    if place is not None and not (0 <= place[0] < len(given) and 0 <= place[1] <= len(given[place[0]][1])):
        raise InputError(f"place is {place}, which is nowhere in the conversation's {len(given)} turns")
    if len(given) > 1 and given[-1][0] == "assistant" and (place is None or place[0] < len(given) - 1):
        start = given.pop()[1]
    if getattr(tokenizer, "chat_template", None) is None:
        rendered = _labelled(tokenizer, given)
    else:
        rendered = _in_template(tokenizer, given, template_options or {})
    before: list[tuple[str, bool]] = []
    after: list[tuple[str, bool]] = []
    current = after if place is None else before
    for piece in rendered:
        if isinstance(piece, str):
            current.append((piece, True))
        elif place is not None and piece == place[0]:
            current.append((given[piece][1][: place[1]], False))
            current = after
            current.append((given[piece][1][place[1] :], False))
        else:
            current.append((given[piece][1], False))
    return Text.join(*before), Text.join(*after, (start, False))


def running_text(tokenizer: PreTrainedTokenizerBase, before: str, after: str) -> tuple[Text, Text]:
    """The parts before and after a document of a text that the model goes on with, without any template."""
    bos = str(tokenizer.bos_token) if _adds_bos(tokenizer) else ""
    return Text.join((bos, True), (before, False)), Text(after)


def neutral(
    tokenizer: PreTrainedTokenizerBase,
    *,
    chat: bool | None = None,
    template_options: Mapping[str, Any] | None = None,
) -> Text:
    """The part after the document of a question that asks for nothing."""
    return affixes(tokenizer, ASKS_NOTHING, chat=chat, template_options=template_options)[1]


def encode(
    tokenizer: PreTrainedTokenizerBase, prefix: Text, document: str, suffix: Text, neutral: Text | None = None
) -> PromptIds:
    """Ids of the parts, each tokenised by itself, without special tokens beyond those that are ours."""
    before, context, after = (token_ids(tokenizer, text) for text in (prefix, document, suffix))
    return PromptIds(before, context, after, None if neutral is None else token_ids(tokenizer, neutral))


def token_ids(tokenizer: PreTrainedTokenizerBase, text: Text | str) -> Tensor:
    """(1, tokens) long. Raises `InputError` for text that is no text: lone surrogates."""
    text = Text(text) if isinstance(text, str) else text
    ids: list[int] = []
    for piece in _pieces(text, _special_names(tokenizer)):
        try:
            ids += tokenizer(piece, add_special_tokens=False, verbose=False).input_ids
        except (TypeError, UnicodeEncodeError) as error:
            raise _no_text(error) from error
    return torch.tensor([ids], dtype=torch.long)


def _no_text(error: Exception) -> InputError:
    return InputError(f"the text holds characters that are none (lone surrogates): {error}")


def tokens_within(spans: Sequence[tuple[int, int]], wanted: Sequence[tuple[int, int]]) -> list[int]:
    """Indices of the tokens, of characters `spans`, that hold any of the characters `wanted`; each `[start, end)`."""
    return [at for at, (begin, end) in enumerate(spans) if any(begin < stop and end > start for start, stop in wanted)]


def token_spans(tokenizer: PreTrainedTokenizerBase, text: str) -> list[tuple[int, int]]:
    """Characters `[start, end)` of each of the tokens that `token_ids` makes of a text. Raises `InputError` for a
    tokenizer that does not know them."""
    return ids_and_spans(tokenizer, text)[1]


def ids_and_spans(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[list[int], list[tuple[int, int]]]:
    """What `token_ids` and `token_spans` give, of a text tokenised once. Raises as both."""
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} does not tell where in a text its tokens are: load the model's fast tokenizer"
        )
    ids: list[int] = []
    spans: list[tuple[int, int]] = []
    at = 0
    for piece in _pieces(Text(text), _special_names(tokenizer)):
        try:
            encoded = tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        except (TypeError, UnicodeEncodeError) as error:
            raise _no_text(error) from error
        ids += encoded["input_ids"]
        offsets = encoded["offset_mapping"]
        spans += [(at + start, at + end) for start, end in offsets] if at else offsets
        at += len(piece)
    return ids, spans


def _templated(
    tokenizer: PreTrainedTokenizerBase, instruction: str, question: str, answer_start: str, options: Mapping[str, Any]
) -> tuple[Text, Text]:
    """The template around marks, which then give way to the texts."""
    content = f"{_MARKS[0]}\n\n{_MARKS[1]}\n\n{_MARKS[2]}"
    messages = [{"role": "user", "content": content}]
    settings = {**TEMPLATE_OPTIONS, **options, "tokenize": False, "add_generation_prompt": True}
    try:
        rendered = str(tokenizer.apply_chat_template(messages, **settings))
    except Exception as error:  # a template is a program of the model's makers
        raise InputError(f"the model's chat template failed ({error}): set chat to False") from error
    pieces = re.split("|".join(map(re.escape, _MARKS)), rendered)
    if len(pieces) != 4 or [rendered.count(mark) for mark in _MARKS] != [1, 1, 1]:
        raise InputError("the model's chat template does not pass the message on once: set chat to False")
    before = Text.join((pieces[0], True), (instruction, False), (pieces[1], True))
    return before, Text.join((pieces[2], True), (question, False), (pieces[3], True), (answer_start, False))


def _in_template(
    tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]], options: Mapping[str, Any]
) -> list[str | int]:
    """A conversation in the chat template: its own pieces, and the numbers of the turns whose texts stand between."""
    settings = {**TEMPLATE_OPTIONS, **options, "tokenize": False, "add_generation_prompt": True}
    marked = [{"role": role, "content": f"\ue000{number}\ue000"} for number, (role, _) in enumerate(turns)]
    reason = "it does not pass each message on once"
    for messages in (marked, _folded(marked)):
        try:
            rendered = str(tokenizer.apply_chat_template(messages, **settings))
        except Exception as error:  # a template is a program of the model's makers
            reason = str(error)
            continue
        pieces = re.split("\ue000([0-9]+)\ue000", rendered)
        numbers = [int(number) for number in pieces[1::2]]
        if sorted(numbers) == list(range(len(turns))):
            return [int(piece) if at % 2 else piece for at, piece in enumerate(pieces)]
    raise InputError(f"the model's chat template does not take this conversation: {reason}")


def _folded(messages: Sequence[Mapping[str, str]]) -> list[dict[str, str]]:
    """Messages without a system role, those of the assistant and of all others in turn."""
    folded: list[dict[str, str]] = []
    for message in messages:
        role = "assistant" if message["role"] == "assistant" else "user"
        if folded and folded[-1]["role"] == role:
            folded[-1]["content"] += f"\n\n{message['content']}"
        else:
            folded.append({"role": role, "content": message["content"]})
    return folded


def _labelled(tokenizer: PreTrainedTokenizerBase, turns: Sequence[tuple[str, str]]) -> list[str | int]:
    """A conversation for a model without a chat template, as `_in_template`."""
    pieces: list[str | int] = [str(tokenizer.bos_token) if _adds_bos(tokenizer) else ""]
    for number, (role, _) in enumerate(turns):
        label = "" if role == "system" else f"{role.capitalize()}: "
        pieces += [label, number, "\n\n"]
    return [*pieces, "Assistant:"]


def _pieces(text: Text, names: re.Pattern[str] | None) -> Iterator[str]:
    """The text, cut inside every name of a special token that does not lie in a span of ours: tokenised by themselves,
    the pieces cannot become that token. Text without such names stays in one piece."""
    start = 0
    for cut in _cuts(text, names):
        yield text.text[start:cut]
        start = cut
    if start < len(text.text):
        yield text.text[start:]


def _cuts(text: Text, names: re.Pattern[str] | None) -> Iterator[int]:
    """Places after the first character of each such name, overlapping ones included."""
    at = 0
    while names is not None and (found := names.search(text.text, at)):
        ours = next((stop for start, stop in text.own if start <= found.start() and found.end() <= stop), None)
        if ours is None:
            yield found.start() + 1
            at = found.start() + 1
        else:
            at = found.end()


_Names = tuple[object, re.Pattern[str] | None]
_names: weakref.WeakKeyDictionary[PreTrainedTokenizerBase, _Names] = weakref.WeakKeyDictionary()


def _special_names(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str] | None:
    """Names of the tokens that text must not become, found once: listing a vocabulary's added tokens takes 0.2 s where
    there are thousands."""
    special = [str(token) for token in tokenizer.all_special_tokens]
    version = len(tokenizer), special
    known = _names.get(tokenizer)
    if known is None or known[0] != version:
        known = _names[tokenizer] = version, _find_special_names(tokenizer, special)
    return known[1]


def _find_special_names(tokenizer: PreTrainedTokenizerBase, special: Sequence[str]) -> re.Pattern[str] | None:
    """The special tokens, and added ones that look like marks. Longest first. Added tokens that stand for ordinary
    text (runs of spaces, say) stay usable."""
    names = set(special)
    for token in getattr(tokenizer, "added_tokens_decoder", {}).values():
        name = str(token.content)
        if token.special or (len(name) > 2 and name[0] in "<[" and name[-1] in ">]"):
            names.add(name)
    listed = sorted((name for name in names if len(name) > 1), key=lambda name: (-len(name), name))
    return re.compile("|".join(map(re.escape, listed))) if listed else None


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    ids = tokenizer("a").input_ids
    return bool(ids) and tokenizer.bos_token is not None and ids[0] == tokenizer.bos_token_id
