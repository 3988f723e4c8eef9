"""Which files a user means, paths or the last checkpoints of studies' trials, and the networks in them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hpo.database.connection import open_database, storage_errors
from hpo.database.url import storage_url
from hpo.errors import StorageError, UsageError
from hpo.home import Home
from hpo.sweep.checkpoints import checkpoints_of
from hpo.sweep.sweep import open_sweep, study_names
from hpo_model.generation.trained import Trained, load_trained
from hpo_model.hardware import default_device


def open_checkpoints(paths: Sequence[Path], own: Sequence[str], device: str | None = None) -> list[Trained]:
    """The trained networks in checkpoints.

    Args:
        paths: the files.
        own: networks as `module:Class` that the user has named: their code is run.
        device: where they go; None: the default device.

    Raises:
        UsageError: a named network is in none of the checkpoints.
        ModelError: one of them cannot be used.
    """
    found = [load_trained(path, device or default_device(), own) for path in paths]
    for network in own:
        if not network or network not in {trained.config.architecture.network for trained in found}:
            names = ", ".join(str(path) for path in paths)
            raise UsageError(f"--network {network}: is not the network of {names}; leave it out")
    return found


def find_checkpoint(named: str, storage: str | None, home: Home) -> Path:
    """The checkpoint at a path, else of `STUDY` (its best trial) or `STUDY:TRIAL`.

    Raises:
        HpoError: neither a file nor a study of the database, or a trial that left no checkpoint.
    """
    path = Path(named)
    if path.is_file():
        return path
    url = storage_url(storage, home)
    study, colon, number = named.rpartition(":")
    if not colon:
        study, number = named, ""
    reads_as_path = bool(path.suffix) or len(path.parts) > 1
    if (colon and not number.isdigit()) or (reads_as_path and not _is_study(url, study)):
        raise UsageError(f"{named}: no such file; a checkpoint is a path, STUDY or STUDY:TRIAL")
    with storage_errors(url):
        sweep = open_sweep(open_database(url, create=False), study)
        best = sweep.best()
    if not number and best is None:
        raise UsageError(f"study {study!r} has no complete trial yet; {study}:TRIAL takes another one's checkpoint")
    trial = int(number) if number else best.number if best is not None else 0
    folder = home.trial(study, sweep.uid, trial)
    found = checkpoints_of(folder)
    if not found:
        raise UsageError(f"trial {trial} of study {study!r} has no checkpoint in {folder}; complete trials keep theirs")
    return found[-1]


def _is_study(url: str, name: str) -> bool:
    """Whether there is a study of this name; where there is no database there is none."""
    try:
        with storage_errors(url):
            return name in study_names(open_database(url, create=False))
    except StorageError:
        return False
