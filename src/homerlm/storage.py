"""One file format for what homerlm saves (calibrations, contexts): safetensors, with JSON in its metadata.

Never pickle: a file from somebody else can be wrong, but it cannot run code. The file holds a SHA-256 digest of its own
content, so damage anywhere is found when it is read, and it is put in place only once it is complete (`replacing`, for
other files too).
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import time
import uuid
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from homerlm.errors import CorruptFileError, InputError, MismatchError

# The safetensors metadata of every file of ours; safetensors wants strings.
_HEADER_KEYS = {"kind", "version", "metadata", "sha256"}
STALE_SECONDS = 3600


def write(
    path: str | os.PathLike[str], *, kind: str, version: int, tensors: dict[str, Tensor], metadata: dict[str, Any]
) -> None:
    """Save named tensors and JSON metadata; a file already there is replaced as a whole, or on any failure kept.

    `metadata` comes back from `read` as JSON leaves it: tuples as lists, keys as strings.
    Raises `InputError` when the folder is missing, the file cannot be written, or `metadata` is not JSON.
    """
    text = to_json(metadata, kind)
    plain = _plain(tensors)
    header = {
        "kind": kind,
        "version": str(version),
        "metadata": text,
        "sha256": _digest(kind, str(version), text, plain),
    }
    with replacing(path) as temporary:
        save_file(plain, temporary, metadata=header)
        with safe_open(temporary, framework="pt"):  # older safetensors write headers larger than they read
            pass


@contextmanager
def replacing(path: str | os.PathLike[str], *, private: bool = False) -> Iterator[Path]:
    """A temporary file beside `path` for the block to fill; it takes the place of `path` once the block is through.

    On any failure what was at `path` before is kept and the temporary file removed. It reaches the disk first, and has
    the permissions of any new file, or is its owner's alone (private). Raises `InputError` when `path` cannot be
    written.
    """
    target = check_target(path)
    _clear_stale(target.parent)
    temporary = target.with_name(temporary_name())
    try:
        with open(temporary, "xb", opener=_open_private if private else None) as file:
            mode = os.fstat(file.fileno()).st_mode  # newer safetensors put a file of mode 0600 in its place
        yield temporary
        os.chmod(temporary, mode)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except (OSError, SafetensorError) as error:
        raise InputError(
            f"{path} could not be written: {error}; what was there before is unchanged. Free space, or check the "
            "permissions of the folder, or choose another path"
        ) from error
    finally:
        with suppress(OSError):  # a file system that refuses even this has already said so
            temporary.unlink(missing_ok=True)


def temporary_name(host: str | None = None, pid: int | None = None) -> str:
    """Name of a new temporary file: whose it is (machine, process), so that others know when it is left over."""
    machine = zlib.crc32((host or platform.node()).encode())
    return f".homerlm-{machine:08x}-{pid or os.getpid()}-{uuid.uuid4().hex[:12]}.tmp"


def read(path: str | os.PathLike[str], *, kind: str, version: int) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors (on the CPU) and metadata of a file of this kind and version, after its digest was checked.

    Raises `InputError` for a path that is no readable file, `CorruptFileError` for a damaged or foreign file,
    `MismatchError` for another kind or another format version.
    """
    path = checked_path(path)
    header, mapped = _open(path, kind)
    _check_header(path, header, kind, version)
    # Mapped tensors are windows on the file, which could still change below us (and could not be replaced on Windows).
    tensors = {name: tensor.clone() for name, tensor in mapped.items()}
    if _digest(kind, header["version"], header["metadata"], tensors) != header["sha256"]:
        raise corrupt(path, kind, "its content does not match its SHA-256 digest")
    return tensors, metadata_of(path, kind, header)


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """What kind of thing a file of ours holds; None for any other file, or none."""
    try:
        with safe_open(path, framework="np") as file:
            return (file.metadata() or {}).get("kind")
    except Exception:  # whoever reads it will say what is wrong
        return None


def header_of(path: Path, kind: str, version: int) -> dict[str, str]:
    """The metadata of a file as it stands in its header, checked as `read` does; the tensors are not read."""
    header, _ = _open(path, kind, tensors=False)
    _check_header(path, header, kind, version)
    return header


def metadata_of(path: Path, kind: str, header: dict[str, str]) -> dict[str, Any]:
    """What `write` was given as metadata."""
    try:
        metadata = json.loads(header["metadata"])
    except (ValueError, RecursionError) as error:
        raise corrupt(path, kind, f"its metadata is not JSON ({error})") from error
    if not isinstance(metadata, dict):
        raise corrupt(path, kind, f"its metadata is a JSON {type(metadata).__name__}, expected an object")
    return metadata


def check_tensor(tensors: dict[str, Tensor], name: str, *, shape: tuple[int | None, ...], dtype: torch.dtype) -> Tensor:
    """`tensors[name]`, if it has this dtype and shape (None: any size on that axis).

    Raises `CorruptFileError` when it is missing, `MismatchError` with both values when it is another one.
    """
    if name not in tensors:
        raise CorruptFileError(f"tensor {name!r} is missing, the file has {_list(tensors)}; make the file again")
    tensor = tensors[name]
    if tensor.dtype != dtype:
        raise MismatchError(f"tensor {name!r} has dtype {tensor.dtype}, expected {dtype}; make the file again")
    fits = len(shape) == tensor.dim() and all(
        want is None or want == got for want, got in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if size is None else str(size) for size in shape)
        raise MismatchError(
            f"tensor {name!r} has shape {tuple(tensor.shape)}, expected ({wanted}); make the file again for this model"
        )
    return tensor


def check_names(tensors: dict[str, Tensor], expected: set[str]) -> None:
    """Raise `CorruptFileError` unless the file holds exactly the expected tensors."""
    missing, unexpected = expected - tensors.keys(), tensors.keys() - expected
    if missing or unexpected:
        raise CorruptFileError(
            f"the file does not hold the expected tensors: missing {_list(missing)}, unexpected {_list(unexpected)}; "
            "make the file again"
        )


def _plain(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Contiguous CPU tensors, each owning its memory where several are views of one (safetensors refuses those)."""
    plain: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        if tensor.untyped_storage().data_ptr() in seen:
            tensor = tensor.clone()
        seen.add(tensor.untyped_storage().data_ptr())
        plain[name] = tensor
    return plain


def check_target(path: str | os.PathLike[str]) -> Path:
    """The file to write for a path: what a link leads to, since `os.replace` would replace the link. Raises
    `InputError` for one that cannot be a file."""
    target = Path(os.path.realpath(checked_path(path)))
    if not target.parent.is_dir():
        raise InputError(f"{path}: the folder {target.parent} does not exist; create it or choose another path")
    if target.is_dir():
        raise InputError(f"{path} is a folder; give the name of a file in it")
    if target.exists() and not target.is_file():
        raise InputError(f"{path} is not a regular file and would be replaced by one; choose another path")
    return target


def checked_path(path: str | os.PathLike[str]) -> Path:
    """A path as given. Raises `InputError` for what is none, or cannot be one of a file."""
    if not isinstance(path, str | os.PathLike) or not isinstance(os.fspath(path), str):
        raise InputError(f"path is {type(path).__name__}; it must be text or a Path")
    try:
        if b"\0" in os.fsencode(path):
            raise InputError(f"path is {os.fspath(path)!r}; it holds a zero character, which no path does")
    except UnicodeEncodeError as error:
        raise InputError(f"path is {os.fspath(path)!r}, which no file can be called: {error.reason}") from error
    return Path(path)


def _open_private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _clear_stale(folder: Path) -> None:
    """Remove temporary files of ours that a killed process left in a folder."""
    for file in folder.glob(".homerlm-*.tmp"):
        with suppress(OSError):  # in use elsewhere, or not ours to remove
            if _is_stale(file):
                file.unlink()


def _is_stale(file: Path) -> bool:
    """Whether nobody writes to it any more: its process on this machine has ended, or it is an hour old."""
    named = re.fullmatch(r"\.homerlm-([0-9a-f]{8})-(\d+)-[0-9a-f]{12}\.tmp", file.name)
    here = named is not None and int(named[1], 16) == zlib.crc32(platform.node().encode())
    if named is not None and here and not psutil.pid_exists(int(named[2])):
        return True
    return time.time() - file.stat().st_mtime > STALE_SECONDS


def _open(path: Path, kind: str, *, tensors: bool = True) -> tuple[dict[str, str], dict[str, Tensor]]:
    """Metadata and, unless left out, memory-mapped tensors; safetensors checks every size against the file before it is
    used."""
    if not path.is_file():
        found = "is not a file" if path.exists() else "does not exist"
        raise InputError(f"{path} {found}; give the path of a saved {kind}")
    try:
        with safe_open(path, framework="pt" if tensors else "np") as file:  # torch's maps the whole file at once
            names = list(file.keys()) if tensors else []
            return file.metadata() or {}, {name: file.get_tensor(name) for name in names}
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error}; check its permissions") from error
    except Exception as error:  # a forged header can raise anything safetensors or torch know
        raise corrupt(path, kind, f"it is damaged, truncated or no safetensors file ({error})") from error


def _check_header(path: Path, header: dict[str, str], kind: str, version: int) -> None:
    if set(header) != _HEADER_KEYS:
        raise corrupt(path, kind, "it is a safetensors file that homerlm did not write")
    if header["kind"] != kind:
        raise MismatchError(
            f"{path} holds {article(header['kind'])}, not {article(kind)}: give the file that holds one"
        )
    _check_version(path, header["version"], kind, version)


def _check_version(path: Path, found: str, kind: str, version: int) -> None:
    if found == str(version):
        return
    if not (found.isascii() and found.isdecimal() and len(found) < 10):
        raise corrupt(path, kind, f"its format version is {found[:20]!r}, expected a whole number")
    fix = "upgrade homerlm to read it" if int(found) > version else "make it again with this homerlm"
    raise MismatchError(f"{path} has format version {found}, this homerlm reads {kind} version {version}: {fix}")


def _digest(kind: str, version: str, text: str, tensors: dict[str, Tensor]) -> str:
    """SHA-256 over kind, version, metadata and every tensor's name, dtype, shape and bytes, in order of the names."""
    names = sorted(tensors)
    layout = [[name, str(tensors[name].dtype), list(tensors[name].shape)] for name in names]
    sha = hashlib.sha256(json.dumps([kind, version, text, layout]).encode())
    for name in names:
        sha.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def to_json(metadata: dict[str, Any], kind: str) -> str:
    try:
        return json.dumps(metadata, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError(f"metadata of {article(kind)} must be JSON without NaN or infinity: {error}") from error


def corrupt(path: Path, kind: str, reason: str) -> CorruptFileError:
    return CorruptFileError(f"{path} cannot be used as {article(kind)}: {reason}; copy it afresh or make it again")


def article(kind: str) -> str:
    """A kind of file in a sentence."""
    return f"{'an' if kind[:1] in 'aeiou' else 'a'} {kind}"


def _list(names: Any) -> str:
    """The first few names in order, for a message."""
    names = sorted(names)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(repr(name) for name in names[:5]) or "none") + more
