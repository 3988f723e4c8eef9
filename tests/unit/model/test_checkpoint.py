"""Checkpoint files: written whole or not at all, and read without running code."""

from __future__ import annotations

import errno
import os
import pickle
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import torch

from hpo_model.errors import CheckpointError
from hpo_model.training.checkpoint import VERSION, load_checkpoint, save_checkpoint


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "trial-7" / "checkpoint.pt"


def content(size: int = 10) -> dict[str, Any]:
    return {"weights": torch.arange(size), "step": 3, "history": [{"loss": 0.1, "bits": None}], "name": "Φ"}


def test_what_was_saved_comes_back(path: Path) -> None:
    save_checkpoint(path, content())
    loaded = load_checkpoint(path)
    assert torch.equal(loaded.pop("weights"), torch.arange(10))
    assert loaded == {"version": VERSION, "step": 3, "history": [{"loss": 0.1, "bits": None}], "name": "Φ"}


def test_floats_come_back_bit_for_bit(path: Path) -> None:
    values = [0.1, 1e-310, float("inf"), -0.0]
    save_checkpoint(path, {"values": values})
    assert [value.hex() for value in load_checkpoint(path)["values"]] == [value.hex() for value in values]


def test_a_new_checkpoint_replaces_the_old_and_leaves_one_file(path: Path) -> None:
    save_checkpoint(path, content(10))
    save_checkpoint(path, content(20))
    assert len(load_checkpoint(path)["weights"]) == 20
    assert list(path.parent.iterdir()) == [path]


# ---------------------------------------------------------------------------------------------- writing fails


class FullDisk:
    """A file that takes some bytes and then finds the disk full."""

    def __init__(self, file: IO[bytes], room: int) -> None:
        self.file, self.room = file, room

    def write(self, data: bytes) -> int:
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return self.file.write(data)

    def __enter__(self) -> FullDisk:
        return self

    def __exit__(self, *exception: object) -> None:
        self.file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)


@pytest.mark.parametrize("room", [0, 100, 5_000, 39_000], ids=lambda room: f"{room} bytes free")
def test_a_full_disk_leaves_the_old_checkpoint(path: Path, room: int, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(path, content(10))
    old = path.read_bytes()
    real = Path.open
    monkeypatch.setattr(Path, "open", lambda self, mode: FullDisk(real(self, mode), room))
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: checkpoint cannot be written \(.*\); free space"):
        save_checkpoint(path, content(5_000))
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("function", ["fsync", "replace"])
def test_a_failure_in_the_last_moment_leaves_the_old_checkpoint(
    path: Path, function: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(path, content(10))
    old = path.read_bytes()

    def fail(*arguments: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, function, fail)
    with pytest.raises(CheckpointError, match=r"cannot be written \(Input/output error\)"):
        save_checkpoint(path, content(20))
    assert path.read_bytes() == old
    assert list(path.parent.iterdir()) == [path]


def test_a_second_ctrl_c_while_saving_leaves_no_draft(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(descriptor: int) -> None:
        raise KeyboardInterrupt

    save_checkpoint(path, content(10))
    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, content(20))
    assert list(path.parent.iterdir()) == [path]


def test_a_folder_that_cannot_be_made_is_a_checkpoint_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "checkpoint.pt", content())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 256 KiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder]
    mounted = subprocess.run(command, capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("size", [33_000, 60_000, 1_000_000])
def test_a_disk_that_is_really_full_leaves_the_old_checkpoint(small_disk: Path, size: int) -> None:
    path = small_disk / "checkpoint.pt"
    save_checkpoint(path, content(10))
    old = path.read_bytes()
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(path, {"weights": torch.zeros(size, dtype=torch.float64)})
    assert path.read_bytes() == old
    assert list(small_disk.iterdir()) == [path]
    save_checkpoint(path, content(20))  # there is room again
    assert len(load_checkpoint(path)["weights"]) == 20


# ---------------------------------------------------------------------------------------------- reading fails


def test_a_missing_checkpoint_is_refused(path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"checkpoint\.pt: not a readable checkpoint \(FileNotFoundError\)"):
        load_checkpoint(path)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_refused(path: Path, share: float) -> None:
    save_checkpoint(path, content(1000))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(path)


def test_a_file_that_is_no_checkpoint_is_refused(path: Path) -> None:
    path.parent.mkdir()
    path.write_text("learning_rate = 1e-3\n")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("version", [VERSION + 1, 0, None])
def test_another_version_is_refused(path: Path, version: int | None) -> None:
    path.parent.mkdir()
    torch.save({"version": version, "step": 3}, path)
    with pytest.raises(CheckpointError, match=f"checkpoint version {version}, this program reads {VERSION}"):
        load_checkpoint(path)


def test_content_without_a_version_is_refused(path: Path) -> None:
    path.parent.mkdir()
    torch.save([torch.zeros(3)], path)
    with pytest.raises(CheckpointError, match=f"checkpoint version None, this program reads {VERSION}"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_lack_of_memory_is_no_damage(path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*positional: object, **named: object) -> None:
        raise error

    save_checkpoint(path, content())
    monkeypatch.setattr(torch, "load", fail)
    with pytest.raises(MemoryError, match=r"checkpoint\.pt: no memory to read it"):
        load_checkpoint(path)


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch '{self.mark}'",)


@pytest.mark.parametrize("written_by", ["torch", "torch before 1.6", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(path: Path, tmp_path: Path, written_by: str) -> None:
    mark = tmp_path / "executed"
    path.parent.mkdir()
    harmful = {"version": VERSION, "weights": torch.zeros(3), "payload": Payload(mark)}
    if written_by == "pickle":
        path.write_bytes(pickle.dumps(harmful))
    else:
        torch.save(harmful, path, _use_new_zipfile_serialization=written_by == "torch")
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        load_checkpoint(path)
    assert not mark.exists()


def test_the_payload_of_the_test_above_does_run_where_it_is_let(tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    pickle.loads(pickle.dumps(Payload(mark)))
    assert mark.exists()
