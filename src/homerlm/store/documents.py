"""Documents read once and kept: recognised by their text, asked alone or several together."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from homerlm.passes import Event
from homerlm.store.store import Store

if TYPE_CHECKING:
    from homerlm.engine import Engine
    from homerlm.homer import Homer
    from homerlm.index.index import Index

OnEvent = Callable[[Event], None]


class Documents:
    """The documents of a store as indexes of one model, for one event loop."""

    def __init__(self, homer: Homer, engine: Engine, store: Store) -> None:
        self.homer, self.engine, self.store = homer, engine, store

    async def index(self, owner: str, name: str, text: str, on_event: OnEvent | None = None) -> tuple[Index, bool]:
        """A text as an index, and whether it was known, so that it was not read anew."""
        raise NotImplementedError

    async def collection(
        self, owner: str, names_and_texts: Iterable[tuple[str, str]], on_event: OnEvent | None = None
    ) -> Index:
        """Several texts as one index, to be asked together."""
        raise NotImplementedError
