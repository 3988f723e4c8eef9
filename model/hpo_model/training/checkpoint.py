"""Checkpoints: what is saved of a run, how it is checked, and how a run continues from it.

A checkpoint is written whole or not at all, and holds data, never code.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from hpo_model.errors import CheckpointError, OtherDeviceError, class_and_message
from hpo_model.hardware import is_out_of_memory
from hpo_model.training.history import Evaluation
from hpo_model.training.run import Run, random_state, set_random_state

# 1: dropout drew other random numbers; 2: without tokenizer, corpus, kind of device
VERSION = 3
RESUMING = "without it the run starts over"


def save_run(run: Run, path: Path) -> None:
    """Write everything from which a run continues exactly.

    Raises:
        CheckpointError: as `save_checkpoint`.
    """
    corpus = run.corpus
    content = {
        "identity": _identity(run),
        "config": run.config.parameters(),
        "corpus": {"name": corpus.corpus_name, "source": corpus.corpus_source},
        "tokenizer": {"kind": corpus.tokenizer.kind, "definition": corpus.tokenizer.definition},
        "step": run.step,
        "seconds": run.seconds,
        "history": [dataclasses.asdict(evaluation) for evaluation in run.history],
        "network": run.network.state_dict(),
        "optimizer": run.optimizer.state_dict(),
        "lambda_phi": run.lambda_phi,
        "micro_batch": run.micro_batch,
        "compiled": run.compiled,
        "threads": torch.get_num_threads(),
        "random": random_state(run.device),
    }
    save_checkpoint(path, content)


def restore_run(run: Run, path: Path) -> int:
    """Take a run to where `save_run` wrote a checkpoint of it.

    Returns:
        The number of threads that the run was trained with; with another one it does not continue bit by bit.

    Raises:
        CheckpointError: it cannot be read, is of another run, or does not fit this program.
    """
    content = load_checkpoint(path, run.device)
    for what, expected in _identity(run).items():
        if content.get("identity", {}).get(what) != expected:
            what = "configuration" if what == "run" else what
            raise CheckpointError(f"{path}: written by a run with another {what}; it cannot be continued here")
    try:
        run.network.load_state_dict(content["network"])
        run.optimizer.load_state_dict(content["optimizer"])
        run.lambda_phi.copy_(content["lambda_phi"])
        # Pieces of a batch draw their own random numbers, so they never grow
        sizes = [size for size in (run.micro_batch, content["micro_batch"]) if size is not None]
        run.micro_batch = min(sizes, default=None)
        run.compiled = content["compiled"]  # fused arithmetic rounds elsewhere
        run.step, run.seconds = content["step"], content["seconds"]
        run.history = [Evaluation(**evaluation) for evaluation in content["history"]]
        threads = int(content["threads"])
        if threads < 1:
            raise ValueError(f"{threads} threads")
        set_random_state(run.device, content["random"])
        return threads
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        if is_out_of_memory(error):
            raise
        reason = class_and_message(error, 120)
        raise CheckpointError(f"{path}: does not fit this program ({reason}); {RESUMING}") from error


def load_history(path: Path, device: str | None = None) -> tuple[Evaluation, ...]:
    """Read the evaluations that a run's checkpoint holds.

    Args:
        path: the checkpoint.
        device: where the run is to continue; None: nowhere.

    Raises:
        OtherDeviceError: it cannot continue there.
        CheckpointError: the file cannot be read, or holds no run.
    """
    content = load_checkpoint(path)
    if not {"history", "identity"} <= content.keys():
        raise CheckpointError(f"{path}: holds no run")
    written_on = content["identity"]["device"]
    if device is not None and torch.device(device).type != written_on:
        raise OtherDeviceError(
            f"{path}: written on {written_on}, which {device} cannot continue exactly; go on there, or move the file "
            "away to start over"
        )
    try:
        return tuple(Evaluation(**evaluation) for evaluation in content["history"])
    except TypeError as error:
        raise CheckpointError(f"{path}: its evaluations are of another version of this program ({error})") from error


def _identity(run: Run) -> dict[str, str]:
    """What a checkpoint must share with the run that continues it."""
    return {
        "run": run.config.digest(),
        "corpus": run.corpus.corpus_digest,
        "tokenizer": run.corpus.tokenizer.digest,
        "device": run.device.type,  # each kind rounds in its own way and draws its own random numbers
        **({} if run.source is None else {"network": run.source}),
    }


# ---------------------------------------------------------------------------------------------- files


def save_checkpoint(path: Path, content: dict[str, Any]) -> None:
    """Write a file beside its target, flush it to the disk, move it into place.

    Args:
        path: the file; its folder is created.
        content: tensors, numbers, text, lists and dicts.

    Raises:
        CheckpointError: the disk is full or cannot be written; what was at `path` is untouched.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with unfinished.open("wb") as file:
            torch.save({"version": VERSION, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    except (OSError, RuntimeError) as error:  # torch reports a short write as RuntimeError
        reason = error.strerror if isinstance(error, OSError) else _disk_state(path.parent)
        raise CheckpointError(f"{path}: checkpoint cannot be written ({reason}); free space and run again") from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)


def _disk_state(folder: Path) -> str:
    usage = os.statvfs(folder) if hasattr(os, "statvfs") else None
    return f"{usage.f_bavail * usage.f_frsize / 2**20:.0f} MiB free" if usage else "short write"


def load_checkpoint(path: Path, device: torch.device | str = "cpu", *, next_step: str = RESUMING) -> dict[str, Any]:
    """Read a checkpoint; nothing in it is executed.

    Args:
        path: the file.
        device: where its tensors go.
        next_step: the end of the message where the checkpoint is damaged.

    Raises:
        CheckpointError: truncated, not a checkpoint, or of another version.
        MemoryError: there is not enough of it now.
    """
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except Exception as error:  # zip, pickle and torch each raise classes of their own
        if is_out_of_memory(error):
            raise MemoryError(f"{path}: no memory to read it") from error
        raise CheckpointError(f"{path}: not a readable checkpoint ({_kind(error)}); {next_step}") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        found = content.get("version") if isinstance(content, dict) else None
        raise CheckpointError(f"{path}: checkpoint version {found}, this program reads {VERSION}")
    return content


def _kind(error: Exception) -> str:
    """What is wrong with a file, as far as torch says."""
    name = type(error).__name__
    return f"{name}: it holds code, which is never run" if "Unsupported global" in str(error) else name
