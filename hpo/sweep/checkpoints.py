"""The checkpoint files of a trial: their names, which of them a trial continues from, and when they are deleted.

Each lease writes a file of its own, `checkpoint-TOKEN.pt`, named by its fencing token: a worker that lost its lease and
the worker that holds it now never write to the same file.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from hpo.sweep.result import TrialResult
from hpo_model.errors import CheckpointError, OtherDeviceError
from hpo_model.training.checkpoint import load_history
from hpo_model.training.history import Evaluation

logger = logging.getLogger(__name__)


def checkpoint_path(folder: Path, fencing_token: int) -> Path:
    """Where the holder of a lease writes the trial's checkpoint.

    Args:
        folder: the trial's own.
        fencing_token: of the lease.
    """
    return folder / f"checkpoint-{fencing_token}.pt"


def checkpoints_of(folder: Path) -> list[Path]:
    """A trial's checkpoints in the order of the leases that wrote them."""
    return sorted(folder.glob("checkpoint-*.pt"), key=_token)


def newest_checkpoint(folder: Path, device: str) -> tuple[Path | None, tuple[Evaluation, ...]]:
    """The checkpoint of the latest lease that this device can continue, and its evaluations.

    A damaged one is set aside, and one of another kind of device is skipped; both are logged.
    """
    for path in reversed(checkpoints_of(folder)):
        try:
            return path, load_history(path, device)
        except OtherDeviceError as error:
            logger.warning("%s", error)
        except CheckpointError as error:
            logger.warning("%s; set aside as %s.damaged", error, path.name)
            path.rename(path.with_name(f"{path.name}.damaged"))
    return None, ()


def delete_after_lost_lease(folder: Path, fencing_token: int, *, ended: bool) -> None:
    """Delete the checkpoint of a worker that lost its lease, once nobody needs it any more.

    Args:
        folder: the trial's own; deleted too if nothing is left in it.
        fencing_token: of the lost lease.
        ended: whether the trial has ended. If not, the file goes only where a later lease has written one.
    """
    paths = checkpoints_of(folder)
    if ended or (paths and _token(paths[-1]) > fencing_token):
        checkpoint_path(folder, fencing_token).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


def kept_after_end(folder: Path, result: TrialResult) -> list[Path]:
    """What stays of a trial's checkpoints once it has ended: the last one of a complete trial, none of any other."""
    return checkpoints_of(folder)[-1:] if result.state == "COMPLETE" else []


def delete_after_end(folder: Path, result: TrialResult) -> None:
    """Delete all other checkpoints, and of a trial that is not complete the whole folder."""
    if result.state != "COMPLETE":
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in (*checkpoints_of(folder)[:-1], *folder.glob(".checkpoint-*")):
        path.unlink(missing_ok=True)


def _token(checkpoint: Path) -> int:
    return int(checkpoint.stem.rpartition("-")[2])
