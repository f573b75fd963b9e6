"""A prompt's ids with what methods need that choose passages by their text."""

from __future__ import annotations

from dataclasses import dataclass

from homerlm.prompt import PromptIds


@dataclass(frozen=True)
class Asked(PromptIds):
    """`question` and `document`: their texts alone, or nothing where there are none but ids. `gold`: indices in the
    prompt of the tokens that answer; only the oracle, and whoever counts what was kept, may use them. `sections`:
    tokens [start, stop) of the document's sections, if it is made of such."""

    question: str = ""
    gold: tuple[int, ...] = ()
    document: str = ""
    sections: tuple[tuple[int, int], ...] = ()
