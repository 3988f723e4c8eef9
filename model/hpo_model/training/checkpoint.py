"""Checkpoints that are written whole or not at all, and that hold data, never code."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

from hpo_model.errors import CheckpointError
from hpo_model.hardware import is_out_of_memory

VERSION = 3  # 1: dropout drew other random numbers; 2: without tokenizer, corpus, kind of device
RESUMING = "without it the run starts over"


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write beside the target, flush to the disk, move into place.

    Args:
        path: the file; its folder is created.
        content: tensors, numbers, text, lists and dicts.

    Raises:
        CheckpointError: the disk is full or cannot be written; what was at `path` is untouched.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft.open("wb") as file:
            torch.save({"version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(draft, path)
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        reason = error.strerror if isinstance(error, OSError) else _disk_state(path.parent)
        raise CheckpointError(f"{path}: checkpoint cannot be written ({reason}); free space and run again") from error
    finally:
        with contextlib.suppress(OSError):
            draft.unlink(missing_ok=True)


def _disk_state(folder: Path) -> str:
    usage = os.statvfs(folder) if hasattr(os, "statvfs") else None
    return f"{usage.f_bavail * usage.f_frsize / 2**20:.0f} MiB free" if usage else "short write"


def load_checkpoint(path: Path, device: torch.device | str = "cpu", *, next_step: str = RESUMING) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path: the file.
        device: where its tensors go.
        next_step: what to tell a user whose checkpoint is damaged.

    Raises:
        CheckpointError: truncated, not a checkpoint, or of another version.
        MemoryError: there is none for it now.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # zip, pickle and torch each raise kinds of their own
        if is_out_of_memory(error):  # which says nothing about the file
            raise MemoryError(f"{path}: no memory to read it") from error
        raise CheckpointError(f"{path}: not a readable checkpoint ({_kind(error)}); {next_step}") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        found = content.get("version") if isinstance(content, dict) else None
        raise CheckpointError(f"{path}: checkpoint version {found}, this program reads {VERSION}")
    return content


def _kind(error: Exception) -> str:
    """What is wrong with a file, as far as torch's own words tell."""
    name = type(error).__name__
    return f"{name}: it holds code, which is never run" if "Unsupported global" in str(error) else name
