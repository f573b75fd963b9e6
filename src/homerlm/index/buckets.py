"""Files in a bucket, such as s3://bucket/corpus, through fsspec: read from whole copies on this disk, put there whole.

A place is a path, or a URL of a kind that fsspec knows. A bucket has no lock and nothing is appended to a file in it.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from homerlm.errors import ConfigError, DocumentError, InputError
from homerlm.model.filecache import cache_folder
from homerlm.storage import checked_path, replacing

Place = str | os.PathLike[str]
EXTRA = 'pip install "homerlm[s3]"'
_URL = re.compile(r"[a-z][a-z0-9]+://")


def is_url(place: Place) -> bool:
    return isinstance(place, str) and _URL.match(place) is not None


def inside(folder: Place, name: str) -> str:
    """The place of a name in a folder."""
    return f"{str(folder).rstrip('/')}/{name}" if is_url(folder) else os.path.join(folder, name)


def local(place: Place) -> Path:
    """A file of this machine with a place's content: itself, or a copy in the cache, which is fetched where there is
    none of what the bucket has now. Raises `InputError` for what a bucket does not have."""
    if not is_url(place):
        return checked_path(place)
    with _explained(place):
        files, path = _opened(place)
        state = hashlib.sha256(f"{place}\n{files.ukey(path)}".encode()).hexdigest()
        copy = cache_folder() / "fetched" / state[:32] / os.path.basename(path)
        if not copy.exists():
            copy.parent.mkdir(parents=True, exist_ok=True)
            with replacing(copy) as temporary, _explained(place):
                files.get_file(path, str(temporary))
        return copy


@contextmanager
def written(place: Place) -> Iterator[Path]:
    """A path of this machine for the block to write a file to, which is then at its place. Raises `InputError`."""
    if not is_url(place):
        yield Path(place)
        return
    with TemporaryDirectory(prefix="homerlm-") as folder:
        path = Path(folder) / os.path.basename(str(place))
        yield path
        if path.exists():
            put(path, str(place))


def state_of(place: Place) -> str | None:
    """What changes whenever the file does; None where there is none. Raises `InputError`."""
    with _explained(place):
        files, path = _opened(place)
        return str(files.ukey(path)) if files.exists(path) else None


def size_of(place: Place) -> int:
    """Bytes."""
    if not is_url(place):
        return os.path.getsize(place)
    with _explained(place):
        files, path = _opened(place)
        return int(files.size(path))


def read_bytes(place: Place, start: int = 0, stop: int | None = None) -> bytes:
    """A file's bytes `[start, stop)`. Raises `OSError`, or `InputError` for a URL."""
    if not is_url(place):
        with open(place, "rb") as file:
            file.seek(start)
            return file.read(-1 if stop is None else stop - start)
    with _explained(place):
        files, path = _opened(place)
        content: bytes = files.cat_file(path, start=start, end=stop)
        return content


def write_bytes(place: Place, content: bytes) -> None:
    """Put a whole file in place. Raises `InputError`."""
    with _explained(place):
        files, path = _opened(place)
        files.pipe_file(path, content)


def create(place: str, content: bytes) -> bool:
    """Put a whole file where there is none, as one step of which no other machine is a part; whether there was none.
    Of a store that tries it again by itself False can also mean that this very file is there. Raises `InputError`."""
    with _explained(place):
        files, path = _opened(place)
        try:
            files.pipe_file(path, content, mode="create")
        except Exception:  # each library has its own for a file that is there
            if not files.exists(path):
                raise
            return False
        return True


def read_if_there(place: str) -> bytes | None:
    """All of a file that is not empty; None where there is none. Raises `InputError`."""
    with _explained(place):
        files, path = _opened(place)
        try:
            content: bytes = files.cat_file(path, start=0)  # of the whole s3fs asks the size first
        except FileNotFoundError:
            return None
        return content


def fetch(place: str, path: Path) -> bool:
    """Copy a file to a path of this machine; whether there is one. Raises `InputError`."""
    with _explained(place):
        files, there = _opened(place)
        try:
            files.get_file(there, str(path))
        except FileNotFoundError:
            return False
        return True


def put(path: Path, place: str) -> None:
    """Put a file of this machine in place. Raises `InputError`."""
    with _explained(place):
        files, there = _opened(place)
        files.put_file(str(path), there)


def age_of(place: str) -> float:
    """Seconds since a file was put in place; 0 where there is none. Raises `InputError`."""
    with _explained(place):
        files, path = _opened(place)
        try:
            return max(0.0, time.time() - files.modified(path).timestamp())
        except FileNotFoundError:
            return 0.0


def names_in(folder: Place, pattern: str) -> list[str]:
    """Names of a folder's files that match."""
    if not is_url(folder):
        return [path.name for path in Path(folder).glob(pattern)]
    with _explained(folder):
        files, path = _opened(folder)
        try:
            matches = files.glob(f"{path.rstrip('/')}/{pattern}")
        except FileNotFoundError:  # while others put the first file there
            return []
        return [os.path.basename(match) for match in matches]


def remove(place: Place) -> None:
    """Remove a file, if it is there."""
    if not is_url(place):
        Path(place).unlink(missing_ok=True)
        return
    with _explained(place):
        files, path = _opened(place)
        files.rm_file(path)


def opened(place: str) -> Any:
    """A file to read from, of bytes. Raises `OSError`."""
    if not is_url(place):
        return open(place, "rb")
    files, path = _opened(place)
    return files.open(path, "rb")


def expand(urls: Sequence[str]) -> list[str]:
    """URLs of the files that folders and patterns stand for, sorted within each; no file twice, none that is hidden.
    Raises `DocumentError` for one that stands for nothing."""
    found: dict[str, None] = {}
    for url in urls:
        try:
            files, path = _opened(url)
            matches = files.glob(path) if re.search(r"[*?\[]", path) else [path]
            inner = sorted(file for match in matches for file in files.find(match))
            matching = [files.unstrip_protocol(file) for file in inner if not os.path.basename(file).startswith(".")]
        except Exception as error:
            raise DocumentError(f"{url} cannot be listed: {_reason(error)}") from error
        if not matching:
            raise DocumentError(f"{url}: stands for no file; check the bucket and the pattern")
        found |= dict.fromkeys(matching)
    return list(found)


def _opened(place: Place) -> tuple[Any, str]:
    """The file system of a place and its path there. Raises `ConfigError` where what it needs is missing."""
    if importlib.util.find_spec("fsspec") is None:
        raise ConfigError(f"{place} is in a bucket, and those need fsspec, which is not installed: {EXTRA}")
    from fsspec.core import url_to_fs

    try:
        files, path = url_to_fs(str(place), use_listings_cache=False)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"{place} cannot be used: {error}; s3:// needs {EXTRA}") from error
    files.invalidate_cache()  # others write there too
    return files, path


@contextmanager
def _explained(place: Place) -> Iterator[None]:
    try:
        yield
    except (ConfigError, InputError):
        raise
    except FileNotFoundError as error:
        raise InputError(f"{place} does not exist: check the bucket and the name") from error
    except Exception as error:  # whatever the bucket's library raises
        raise InputError(f"{place} cannot be read or written: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    return str(error) or type(error).__name__
