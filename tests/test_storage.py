"""The file format: what was written comes back, and nothing else is ever taken for it."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import time

import pytest
import torch
from safetensors.torch import load_file, save_file

from homerlm import storage
from homerlm.errors import CorruptFileError, HomerError, InputError, MismatchError

TENSORS = {
    "float32": torch.tensor([[0.5, -1.25, 3.0], [float("nan"), float("inf"), -0.0]]),
    "bfloat16": torch.arange(5, dtype=torch.bfloat16),
    "float16": torch.arange(7, dtype=torch.float16).reshape(7, 1),
    "int64": torch.tensor([2**62, -1]),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0, 4),
}
METADATA = {"model": {"name": 'tiny "é\\\n', "revision": None}, "scores": [1, 2.5, True], "text": "\ud800"}


def _write(path, **changes):
    storage.write(path, **{"kind": "context", "version": 3, "tensors": TENSORS, "metadata": METADATA} | changes)


def _read(path, **changes):
    return storage.read(path, **{"kind": "context", "version": 3} | changes)


def _bits(tensor):
    return tensor.reshape(-1).view(torch.uint8).tolist()


@pytest.fixture
def saved(tmp_path):
    path = tmp_path / "saved.homer"
    _write(path)
    return path


class TestRoundTrip:
    def test_every_dtype_comes_back_bit_equal_with_its_metadata(self, saved):
        tensors, metadata = _read(str(saved))
        assert metadata == METADATA
        assert tensors.keys() == TENSORS.keys()
        for name, tensor in TENSORS.items():
            assert (tensors[name].dtype, tensors[name].shape) == (tensor.dtype, tensor.shape)
            assert _bits(tensors[name]) == _bits(tensor)

    def test_views_of_one_tensor_and_transposed_tensors_are_saved_by_value(self, tmp_path):
        whole = torch.arange(12.0, requires_grad=True).reshape(3, 4)
        views = {"whole": whole, "again": whole, "row": whole[1], "turned": whole.T}
        _write(tmp_path / "f", tensors=views)
        tensors, _ = _read(tmp_path / "f")
        assert {name: tensor.tolist() for name, tensor in tensors.items()} == {
            name: view.tolist() for name, view in views.items()
        }

    def test_no_tensors_and_no_metadata(self, tmp_path):
        _write(tmp_path / "f", tensors={}, metadata={})
        assert _read(tmp_path / "f") == ({}, {})

    def test_what_was_read_does_not_change_with_the_file(self, saved):
        tensors, _ = _read(saved)
        with open(saved, "rb+") as file:
            file.write(b"\xff" * saved.stat().st_size)
        assert _bits(tensors["float32"]) == _bits(TENSORS["float32"])


class TestAtomicity:
    @pytest.mark.parametrize("step", ["save_file", "safe_open", "os.fsync", "os.replace"])
    @pytest.mark.parametrize(
        ("error", "raised"),
        [
            (OSError("disk full"), InputError),
            (RuntimeError("bug"), RuntimeError),
            (KeyboardInterrupt(), KeyboardInterrupt),
        ],
    )
    def test_failure_at_any_step_keeps_the_old_file_and_leaves_nothing(self, saved, monkeypatch, step, error, raised):
        before = saved.read_bytes()
        reached = []

        def fail(*args, **_kwargs):
            if step == "save_file":
                args[1].write_bytes(b"half a fi")
            reached.append(step)
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(f"homerlm.storage.{step}", fail)
            with pytest.raises(raised) as caught:
                _write(saved, metadata={"new": True})
        assert reached == [step]
        assert raised is not InputError or str(saved) in str(caught.value)
        assert saved.read_bytes() == before
        assert os.listdir(saved.parent) == [saved.name]

    def test_failure_without_an_old_file_leaves_an_empty_folder(self, tmp_path, monkeypatch):
        monkeypatch.setattr(os, "replace", lambda *_: (_ for _ in ()).throw(OSError("no")))
        with pytest.raises(InputError, match="could not be written"):
            _write(tmp_path / "f")
        assert os.listdir(tmp_path) == []

    def test_target_is_old_or_complete_at_every_moment(self, saved, monkeypatch):
        real, seen = os.replace, []

        def look(temporary, target):
            seen.append((_read(target)[1], _read(temporary)[1]))
            real(temporary, target)

        monkeypatch.setattr(os, "replace", look)
        _write(saved, metadata={"new": True})
        assert seen == [(METADATA, {"new": True})]
        assert _read(saved)[1] == {"new": True}
        assert os.listdir(saved.parent) == [saved.name]

    @pytest.mark.skipif(sys.platform == "win32", reason="no umask")
    def test_a_read_only_file_system_is_one_message(self, tmp_path, monkeypatch):
        def refuse(*_args, **_kwargs):
            raise OSError(errno.EROFS, "Read-only file system")

        monkeypatch.setattr("builtins.open", refuse)
        monkeypatch.setattr(os, "unlink", refuse)
        monkeypatch.setattr("pathlib.Path.unlink", refuse)
        with pytest.raises(InputError, match="Read-only file system") as caught:
            _write(tmp_path / "f")
        assert isinstance(caught.value.__cause__, OSError)
        assert caught.value.__cause__.__context__ is None

    def test_permissions_are_those_of_any_new_file(self, saved):
        (saved.parent / "other").touch()
        assert stat.S_IMODE(saved.stat().st_mode) == stat.S_IMODE((saved.parent / "other").stat().st_mode)

    @pytest.mark.skipif(sys.platform == "win32", reason="links need a privilege")
    def test_a_link_stays_a_link(self, saved, tmp_path):
        link = tmp_path / "link"
        link.symlink_to(saved)
        _write(link, metadata={"new": True})
        assert link.is_symlink()
        assert _read(saved)[1] == {"new": True}


class TestStaleTemporaries:
    """What a killed process left: cleared by the next write into the same folder."""

    def test_those_of_dead_processes_and_old_ones_go(self, tmp_path):
        dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
        left = [
            storage.temporary_name(pid=int(dead.stdout)),
            storage.temporary_name(),
            storage.temporary_name(host="elsewhere"),
            ".homerlm-0123456789abcdef0123456789abcdef.tmp",
        ]
        for name in left:
            (tmp_path / name).write_bytes(b"half a fi")
        for name in left[1:]:
            os.utime(tmp_path / name, (time.time() - 3700,) * 2)
        _write(tmp_path / "f")
        assert os.listdir(tmp_path) == ["f"]

    def test_those_of_living_processes_and_other_files_stay(self, tmp_path):
        stay = {
            storage.temporary_name(),
            storage.temporary_name(pid=os.getppid()),
            storage.temporary_name(host="elsewhere", pid=2**22),  # another machine's processes cannot be seen
            "notes.tmp",
            ".homerlm-notes",
        }
        for name in stay:
            (tmp_path / name).write_bytes(b"")
        _write(tmp_path / "f")
        assert {*os.listdir(tmp_path)} == {"f", *stay}

    def test_one_that_cannot_be_removed_is_left(self, tmp_path):
        stale = tmp_path / storage.temporary_name(pid=2**22)
        stale.mkdir()
        _write(tmp_path / "f")
        assert stale.exists()


class TestReplacing:
    def test_text_is_put_in_place_when_it_is_complete(self, tmp_path):
        path = tmp_path / "page.html"
        path.write_text("old")
        with storage.replacing(path) as temporary:
            temporary.write_text("new")
            assert path.read_text() == "old"
        assert path.read_text() == "new"
        assert os.listdir(tmp_path) == [path.name]

    @pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(143), RuntimeError("bug")])
    def test_a_failure_inside_keeps_the_old_file(self, tmp_path, error):
        path = tmp_path / "page.html"
        path.write_text("old")

        def write():
            with storage.replacing(path) as temporary:
                temporary.write_text("half")
                raise error

        with pytest.raises(type(error)):
            write()
        assert path.read_text() == "old"
        assert os.listdir(tmp_path) == [path.name]

    def test_a_device_is_no_file_to_replace(self):
        with pytest.raises(InputError, match="not a regular file"), storage.replacing(os.devnull):
            pass


class TestDamage:
    """A file small enough to try everything on."""

    @pytest.fixture
    def small(self, tmp_path):
        path = tmp_path / "small"
        _write(path, tensors={"a": torch.arange(3.0), "b": torch.tensor([7])}, metadata={"é": 'x"y'})
        return path

    def test_every_truncation_is_found(self, small):
        content = small.read_bytes()
        for length in range(len(content)):
            small.write_bytes(content[:length])
            with pytest.raises(CorruptFileError, match="small"):
                _read(small)

    def test_appended_bytes_are_found(self, small):
        small.write_bytes(small.read_bytes() + b"\0")
        with pytest.raises(CorruptFileError):
            _read(small)

    def test_every_flipped_bit_is_found(self, small):
        content = small.read_bytes()
        for position in range(len(content)):
            for bit in range(8):
                damaged = bytearray(content)
                damaged[position] ^= 1 << bit
                small.write_bytes(damaged)
                with pytest.raises(HomerError):
                    _read(small)

    @pytest.mark.parametrize(
        "junk", [b"", b"not safetensors", b"\x80\x04K\x01.", b"\xff" * 64, b"\x02" + b"\0" * 7 + b"{}"]
    )
    def test_other_files_are_refused(self, tmp_path, junk):
        (tmp_path / "junk").write_bytes(junk)
        with pytest.raises(CorruptFileError, match="make it again"):
            _read(tmp_path / "junk")

    def test_foreign_safetensors_files_are_refused(self, tmp_path):
        save_file({"a": torch.ones(2)}, tmp_path / "f", metadata={"format": "pt"})
        with pytest.raises(CorruptFileError, match="did not write"):
            _read(tmp_path / "f")

    @pytest.mark.parametrize("field", ["kind", "version", "metadata", "sha256"])
    def test_a_missing_header_field_is_refused(self, tmp_path, field):
        _forge(tmp_path / "f", "{}", drop=field)
        with pytest.raises(CorruptFileError, match="did not write"):
            _read(tmp_path / "f")

    @pytest.mark.parametrize("text", ["", "{", "[1]", "null", "[" * 100_000, "9" * 5000])
    def test_bad_json_under_a_right_digest_is_refused(self, tmp_path, text):
        _forge(tmp_path / "f", text)
        with pytest.raises(CorruptFileError, match="metadata"):
            _read(tmp_path / "f")

    @pytest.mark.parametrize("version", ["", "x", "-1", "3.0", " 3", "٣", "9" * 5000])
    def test_a_version_that_is_no_number_is_refused(self, tmp_path, version):
        _forge(tmp_path / "f", "{}", version=version)
        with pytest.raises(CorruptFileError, match="whole number"):
            _read(tmp_path / "f")

    def test_swapped_tensors_are_found(self, tmp_path):
        """Same bytes in the data section under exchanged names: only a digest over names sees it."""
        for names in ("ab", "ba"):
            _write(tmp_path / names, tensors=dict(zip(names, (torch.ones(2), torch.zeros(2)), strict=True)))
        straight, crossed = (storage._open(tmp_path / names, "context") for names in ("ab", "ba"))
        save_file(crossed[1], tmp_path / "f", metadata=straight[0])
        with pytest.raises(CorruptFileError, match="digest"):
            _read(tmp_path / "f")

    def test_a_changed_shape_or_dtype_of_the_same_bytes_is_found(self, tmp_path):
        _write(tmp_path / "f", tensors={"a": torch.ones(6)})
        header, tensors = storage._open(tmp_path / "f", "context")
        for other in (tensors["a"].reshape(2, 3).clone(), tensors["a"].view(torch.int32).clone()):
            save_file({"a": other}, tmp_path / "g", metadata=header)
            with pytest.raises(CorruptFileError, match="digest"):
                _read(tmp_path / "g")


def _forge(path, text, version="3", drop=None):
    header = {"kind": "context", "version": version, "metadata": text}
    header["sha256"] = storage._digest("context", version, text, {})
    header.pop(drop, None)
    save_file({}, path, metadata=header)


class TestRefusals:
    def test_another_kind(self, saved):
        with pytest.raises(MismatchError, match=r"saved\.homer holds a context, not a calibration"):
            _read(saved, kind="calibration")

    @pytest.mark.parametrize(("version", "fix"), [(2, "upgrade homerlm"), (4, "make it again")])
    def test_another_version(self, saved, version, fix):
        with pytest.raises(MismatchError, match=rf"saved\.homer has format version 3, .* version {version}: {fix}"):
            _read(saved, version=version)

    def test_a_newer_version_wins_over_its_other_digest(self, tmp_path):
        """A future format may compute its digest differently; the reader must say upgrade, not damaged."""
        save_file({}, tmp_path / "f", metadata={"kind": "context", "version": "4", "metadata": "{}", "sha256": "new"})
        with pytest.raises(MismatchError, match="upgrade"):
            _read(tmp_path / "f")

    @pytest.mark.parametrize(
        ("name", "words"), [("none", "does not exist"), ("none/f", "does not exist"), ("", "not a file")]
    )
    def test_reading_what_is_no_file(self, tmp_path, name, words):
        with pytest.raises(InputError, match=words):
            _read(tmp_path / name)

    @pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
    def test_reading_a_pipe_is_refused_instead_of_waiting(self, tmp_path):
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(InputError, match="not a file"):
            _read(tmp_path / "pipe")

    def test_an_unreadable_file(self, saved, monkeypatch):
        def deny(*_args, **_kwargs):
            raise PermissionError("denied")

        monkeypatch.setattr(storage, "safe_open", deny)
        with pytest.raises(InputError, match=r"saved\.homer cannot be read: denied"):
            _read(saved)

    def test_writing_into_a_missing_folder(self, tmp_path):
        with pytest.raises(InputError, match=r"folder .*none does not exist; create it"):
            _write(tmp_path / "none" / "f")
        assert os.listdir(tmp_path) == []

    def test_writing_over_a_folder(self, tmp_path):
        with pytest.raises(InputError, match="is a folder"):
            _write(tmp_path)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("value", [float("nan"), float("inf"), torch.ones(1), {1, 2}])
    def test_metadata_that_is_not_json(self, tmp_path, value):
        with pytest.raises(InputError, match="JSON"):
            _write(tmp_path / "f", metadata={"value": value})
        assert os.listdir(tmp_path) == []

    def test_a_header_too_large_to_read_is_never_put_in_place(self, saved):
        before = saved.read_bytes()
        with pytest.raises(InputError, match="could not be written"):
            _write(saved, tensors={}, metadata={"text": "a" * 100_000_000})
        assert saved.read_bytes() == before
        assert os.listdir(saved.parent) == [saved.name]

    def test_files_hold_no_pickle(self, saved):
        assert load_file(saved).keys() == TENSORS.keys()
        assert b"torch" not in saved.read_bytes()


class TestChecks:
    KEYS = torch.zeros(2, 3, 5)

    def _check(self, shape=(2, 3, 5), dtype=torch.float32, name="keys"):
        return storage.check_tensor({"keys": self.KEYS}, name, shape=shape, dtype=dtype)

    @pytest.mark.parametrize("shape", [(2, 3, 5), (None, 3, 5), (None, None, None)])
    def test_a_fitting_tensor_is_returned(self, shape):
        assert self._check(shape) is self.KEYS

    @pytest.mark.parametrize("shape", [(2, 3, 4), (2, None, 4), (2, 3), (2, 3, 5, 1), ()])
    def test_another_shape(self, shape):
        with pytest.raises(MismatchError, match=r"'keys' has shape \(2, 3, 5\), expected \(") as caught:
            self._check(shape)
        assert ", ".join(str(size) if size is not None else "any" for size in shape) in str(caught.value)

    def test_another_dtype(self):
        with pytest.raises(MismatchError, match=r"'keys' has dtype torch\.float32, expected torch\.bfloat16"):
            self._check(dtype=torch.bfloat16)

    def test_a_missing_tensor(self):
        with pytest.raises(CorruptFileError, match="'values' is missing, the file has 'keys'"):
            self._check(name="values")

    def test_names(self):
        storage.check_names({"keys": self.KEYS}, {"keys"})
        with pytest.raises(CorruptFileError, match="missing 'values', unexpected none"):
            storage.check_names({"keys": self.KEYS}, {"keys", "values"})
        with pytest.raises(CorruptFileError, match="missing none, unexpected 'keys'"):
            storage.check_names({"keys": self.KEYS}, set())
        with pytest.raises(CorruptFileError, match="'k00', 'k01', 'k02', 'k03', 'k04' and 15 more"):
            storage.check_names({}, {f"k{i:02}" for i in range(20)})
