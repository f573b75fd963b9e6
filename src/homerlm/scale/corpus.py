"""A corpus indexed into a collection: streaming, each document once, from where it was stopped."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from homerlm.homer import Homer
from homerlm.index.buckets import Place, inside, names_in, remove
from homerlm.index.manifest import Manifest, ManifestWriter, Member, Shard
from homerlm.passes import Event
from homerlm.scale.listing import Fields, Listed, list_file
from homerlm.scale.shard import TOKEN_BYTES, Planned, ShardWriting, planned, without

SHARD_TOKENS = 1 << 20


class Engine(Protocol):
    """What lists documents and writes files."""

    def listed(self, files: Sequence[tuple[str, str]], fields: Fields) -> Iterable[Listed]:
        """Documents of files, (name, path) each, in order."""
        ...

    def written(self, homer: Homer, writing: ShardWriting, shards: Sequence[Planned]) -> Iterator[Shard | Event]:
        """Each file as it is done, in any order, and events of what is read between."""
        ...


class Here:
    """This process, one file after the other."""

    def listed(self, files: Sequence[tuple[str, str]], fields: Fields) -> Iterable[Listed]:
        for name, path in files:
            yield from list_file(name, path, fields)

    def written(self, homer: Homer, writing: ShardWriting, shards: Sequence[Planned]) -> Iterator[Shard | Event]:
        for shard in shards:
            yield (yield from writing.write(homer, shard))


@dataclass(frozen=True)
class Indexed:
    """What a run did. tokens_read: by it; duplicates: documents with the content of another one, whose name is the
    reason; failed: that could not be read, now."""

    manifest: Manifest
    tokens_read: int
    duplicates: tuple[Member, ...]
    failed: tuple[Member, ...]


def indexing(
    homer: Homer,
    files: Sequence[tuple[str, str]],
    folder: Place,
    *,
    engine: Engine | None = None,
    shard_tokens: int = SHARD_TOKENS,
    fields: Fields | None = None,
    int8: bool = False,
    chat: bool | None = None,
    password: str | None = None,
) -> Generator[Event, None, Indexed]:
    """Events of the files, (name, place) each, that are indexed into a folder; the value is what was done. What the
    folder holds already is left out, by the digest of its content. Closing the generator stops the work; the same call
    goes on with it.

    Raises `InputError` for a folder that cannot be written, `MismatchError` for one that was made otherwise.
    """
    engine, fields = engine or Here(), fields or Fields()
    frame = homer.read_all([], int8=int8, chat=chat).frame
    with ManifestWriter(folder, frame) as writer:
        first: dict[str, str] = {}
        duplicates: list[Member] = []
        unique = _unique(engine.listed(files, fields), first, duplicates)
        shards = without(planned(unique, shard_tokens), writer.manifest.held)
        writing = ShardWriting(str(folder), frame.to_dict(), fields, int8, chat, password)
        done: list[Shard] = []
        with closing(engine.written(homer, writing, shards)) as results:  # type: ignore[type-var]
            progress = _Progress(shards)
            for result in results:
                if isinstance(result, Shard):
                    writer.add(result)
                    done.append(result)
                yield progress.event(result)
        _remove_uncounted(folder, writer.manifest)
    failed = tuple(member for shard in done for member in shard.failed)
    return Indexed(writer.manifest, sum(shard.tokens for shard in done), tuple(duplicates), failed)


class _Progress:
    """Tokens read of all that there are, by what a byte has come to so far."""

    def __init__(self, shards: Sequence[Planned]) -> None:
        self._bytes = {shard.first: shard.bytes for shard in shards}
        self._all = sum(self._bytes.values())
        self._read_bytes = self._tokens = self._shown = 0

    def event(self, result: Shard | Event) -> Event:
        within = 0
        if isinstance(result, Shard):
            self._read_bytes += self._bytes[result.first]
            self._tokens += result.tokens
        else:
            within = result.read
        each = self._tokens / self._read_bytes if self._tokens else 1 / TOKEN_BYTES
        self._shown = max(self._shown, self._tokens + within)
        return Event(self._shown, max(int(self._all * each), self._shown))


def _unique(
    documents: Iterable[Listed], first: dict[str, str], duplicates: list[Member]
) -> Iterator[tuple[int, Listed]]:
    """The documents with their places, but those whose content came before."""
    for place, document in enumerate(documents):
        before = first.get(document.sha256)
        if before is None:
            first[document.sha256] = document.name
            yield place, document
        else:
            reason = f"has the content of {before}"
            duplicates.append(Member(document.name, document.path, document.sha256, reason=reason))


def _remove_uncounted(folder: Place, manifest: Manifest) -> None:
    """Remove files that a stopped run has left and that nothing is known of."""
    counted = set(manifest.files)
    for name in names_in(folder, "shard-*.homer"):
        if name not in counted:
            remove(inside(folder, name))
