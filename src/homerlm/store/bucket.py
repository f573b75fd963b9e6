"""The files of a store in a bucket, with copies in the cache of this machine."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from homerlm.index import buckets
from homerlm.model.filecache import cache_folder
from homerlm.store.folder import KINDS, OLD_SECONDS, Folder
from homerlm.store.log import reached


class BucketFiles:
    """documents/ID and files/ID below a URL. A file is there before it is listed, so what is not listed is left over
    only once it has lain there for a day. Raises `Unreachable` where the bucket does not answer as it should.

    The copies are those of all processes of this machine that use the bucket: no more than the bucket holds, and
    nobody's documents but its own.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._copies = Folder(cache_folder() / "stores" / hashlib.sha256(url.encode()).hexdigest()[:32])

    def of(self, kind: str, id: str) -> Path:
        """A copy on this machine, fetched where there is none. Where the bucket has no such file there is none."""
        copy = self._copies.of(kind, id)
        if not copy.exists():
            temporary = self._copies.temporary()
            try:
                with reached():
                    found = buckets.fetch(self._place(kind, id), temporary)
                if found:
                    self._copies.place(temporary, kind, id)
            finally:
                temporary.unlink(missing_ok=True)
        return copy

    def ids(self, kind: str) -> set[str]:
        """Of what the bucket has; copies of anything else go."""
        with reached():
            there = set(buckets.names_in(buckets.inside(self._url, kind), "*"))
        for gone in self._copies.ids(kind) - there:
            self._copies.remove(kind, gone)
        return there

    def left_over(self, kind: str, unlisted: Iterable[str]) -> list[str]:
        """Those that no other machine is about to list."""
        with reached():
            return [id for id in unlisted if buckets.age_of(self._place(kind, id)) > OLD_SECONDS]

    def temporary(self) -> Path:
        """A new name on this machine for a file that is being written."""
        return self._copies.temporary()

    @contextmanager
    def placing(self, temporary: Path, kind: str, id: str) -> Iterator[Callable[[], None]]:
        """Has a complete file in its place during the block, and after it if it ends well."""
        try:
            with reached():
                buckets.put(temporary, self._place(kind, id))
            self._copies.place(temporary, kind, id)
            yield lambda: None
        except BaseException:
            self.remove(kind, id)
            raise

    def remove(self, kind: str, id: str) -> None:
        self._copies.remove(kind, id)
        with reached():
            buckets.remove(self._place(kind, id))

    def clear_incoming(self) -> None:
        self._copies.clear_incoming()

    def close(self) -> None:
        self._copies.close()

    def __iter__(self) -> Iterator[str]:
        """Every complete file."""
        for kind in KINDS:
            yield from self.ids(kind)

    def _place(self, kind: str, id: str) -> str:
        return buckets.inside(self._url, f"{kind}/{id}")
