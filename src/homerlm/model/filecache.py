"""Folders derived from a file (a converted model), built once and kept on disk.

A folder appears under its final name complete or not at all: it is built beside, listed in a manifest with sizes and
checksums, and renamed. Interrupted or racing builds leave nothing behind, and a folder damaged later is noticed.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from homerlm.errors import HomerError, ModelLoadError, causes

_MANIFEST = "homerlm-files.json"
_ATTEMPTS = 10  # to move a folder into place while other processes do the same


def cache_folder() -> Path:
    """$HOMERLM_CACHE, or `homerlm` in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get("HOMERLM_CACHE"):
        return Path(chosen).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "homerlm"


def derived_folder(source: Path, build: Callable[[Path], None]) -> Path:
    """The folder `models/<stem>-<checksum of source>` of the cache, filled by `build(folder)` if need be.

    Raises what `build` raises, and `ModelLoadError` if the cache cannot be written, which includes a disk that is full
    inside `build`, whatever that makes of it, or if the source cannot be read.
    """
    try:
        folder = cache_folder() / "models" / f"{source.stem}-{_sha256(source)[:16]}"
        if is_intact(folder):
            return folder
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".building-") as temp:
            fresh = Path(temp) / "fresh"
            build(fresh)
            _write_manifest(fresh)
            _move_into_place(fresh, folder)
    except Exception as error:
        if _disk_is_full(error):
            raise ModelLoadError(
                f"{source} could not be converted and kept in {cache_folder()}: the disk is full. Make room there, or "
                "set the environment variable HOMERLM_CACHE to a folder on another disk"
            ) from error
        if isinstance(error, HomerError) or not isinstance(error, OSError):
            raise
        raise ModelLoadError(
            f"{source} could not be converted and kept in {cache_folder()}: {error}. Allow writing there, or set the "
            "environment variable HOMERLM_CACHE to another folder"
        ) from error
    return folder


def _disk_is_full(error: BaseException) -> bool:
    """Whether it, or what it came from, says so; what is written in Rust says so only in words."""
    return any(
        (isinstance(one, OSError) and one.errno in (errno.ENOSPC, errno.EDQUOT))
        or "No space left on device" in str(one)
        for one in causes(error)
    )


def is_intact(folder: Path, *, contents: bool = False) -> bool:
    """Whether all files are there with the sizes they were built with; with `contents`, their checksums too."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text())
        return all(
            (folder / name).stat().st_size == size and (not contents or _sha256(folder / name) == checksum)
            for name, (size, checksum) in manifest.items()
        )
    except (OSError, ValueError, TypeError, AttributeError):
        return False


def _write_manifest(folder: Path) -> None:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    manifest = {path.name: (path.stat().st_size, _sha256(path)) for path in files}
    (folder / _MANIFEST).write_text(json.dumps(manifest, indent=1))


def _move_into_place(fresh: Path, folder: Path) -> None:
    """Rename `fresh` to `folder`, over a damaged one; an intact one, from a faster process, stays. What another process
    does between two steps of this one makes it look again."""
    for attempt in range(_ATTEMPTS):
        if is_intact(folder):
            return
        try:
            if folder.exists():
                os.replace(folder, fresh.with_name(f"damaged-{attempt}"))
            os.replace(fresh, folder)
            return
        except OSError:
            if attempt == _ATTEMPTS - 1 and not is_intact(folder):
                raise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
