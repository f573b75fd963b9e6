"""The protocol that both methods fulfil: `homerlm.merge` (HOMER as published) and `homerlm.select` (the default)."""

from __future__ import annotations

from collections.abc import Generator
from typing import Protocol

from torch import Tensor

from homerlm.context import CompactContext
from homerlm.passes import Event, Lengths, Plan
from homerlm.prompt import PromptIds

Compressing = Generator[Event, None, CompactContext]


class Method(Protocol):
    """A way from a prompt to a compact context. Holds the model and settings, nothing of any prompt."""

    @property
    def lengths(self) -> Lengths:
        """Chunk and target length of a prompt whose affixes are short."""
        ...

    def plan(self, prefix_len: int, context_len: int, suffix_len: int, neutral_len: int = 0) -> Plan:
        """What a prompt of these lengths in tokens will run. Raises `ScheduleError`."""

    def compress(self, prompt: PromptIds) -> Compressing:
        """Events of a prompt as its parts are done; the generator's value is the context. Closing the generator stops
        the work."""

    def ask_again(
        self, context: CompactContext, suffix_ids: Tensor, neutral_ids: Tensor | None = None
    ) -> CompactContext:
        """What another suffix, ids (B, S), needs of a document compressed before. neutral_ids: (B, N), as a prompt's
        `neutral`."""
