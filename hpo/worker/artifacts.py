"""Files of a trial that Optuna's dashboard offers: its history and its checkpoint.

They lie in one folder under the ids that Optuna knows them by, as its own `FileSystemArtifactStore` keeps them, so that
`optuna-dashboard --artifact-dir` shows them too. Checkpoints are linked there, or copied where links are
not to be had: they take their place once.
"""

from __future__ import annotations

import csv
import io
import json
import mimetypes
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpo.database.connection import Database
from hpo.database.optuna_private import ARTIFACT
from hpo.files import replace_bytes, replace_with_link
from hpo.home import Home

_NAMES = uuid.UUID("6f0a2f0e-2f6f-4a57-9c0b-0b6a2d0f5c11")


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A file of a trial. The same file of the same trial has the same id whichever process offers it."""

    id: str
    filename: str

    def describe(self) -> str:
        """What Optuna stores of it."""
        mimetype, encoding = mimetypes.guess_type(self.filename)
        facts = {"artifact_id": self.id, "filename": self.filename, "encoding": encoding}
        return json.dumps({**facts, "mimetype": mimetype or "application/octet-stream"})


def offer(
    database: Database, home: Home, trial_id: int, folder: Path, history: Iterable[Mapping[str, Any]], files: list[Path]
) -> None:
    """Offer a trial's files. Before the trial has ended: Optuna's readers keep an ended trial as they first saw it.

    Args:
        database: that holds the trial.
        home: where the files are to lie.
        trial_id: Optuna's id of the trial.
        folder: the trial's own, which names it among all trials of this home.
        history: its evaluations.
        files: its checkpoint, if it is to be offered; linked.

    Raises:
        OSError: the files cannot be written.
    """
    home.artifacts.mkdir(parents=True, exist_ok=True)
    offered = []
    rows = list(history)
    if rows:
        offered.append(_artifact(folder, "history.csv"))
        replace_bytes(home.artifacts / offered[-1].id, _table(rows))
    for path in files:
        offered.append(_artifact(folder, _shown_name(path)))
        replace_with_link(home.artifacts / offered[-1].id, path)
    database.set_system_attributes(trial_id, {f"{ARTIFACT}{each.id}": each.describe() for each in offered})


def link_for_copy(attributes: Mapping[str, Any], home: Home, folder: Path) -> dict[str, Any]:
    """Link a trial's files for its copy, under ids of the copy's own.

    Args:
        attributes: Optuna's, of the original.
        home: where the files lie.
        folder: of the copy.

    Returns:
        The attributes for the copy.
    """
    result = {key: value for key, value in attributes.items() if not key.startswith(ARTIFACT)}
    for key, value in attributes.items():
        facts = json.loads(value) if key.startswith(ARTIFACT) else None
        if facts is None:  # no file, or one that was removed
            continue
        own = _artifact(folder, facts["artifact_id"]).id
        if (home.artifacts / facts["artifact_id"]).is_file():
            replace_with_link(home.artifacts / own, home.artifacts / facts["artifact_id"])
        result[f"{ARTIFACT}{own}"] = json.dumps({**facts, "artifact_id": own})
    return result


def _artifact(folder: Path, filename: str) -> Artifact:
    return Artifact(id=str(uuid.uuid5(_NAMES, f"{folder.parent.name}/{folder.name}/{filename}")), filename=filename)


def _shown_name(path: Path) -> str:
    """A checkpoint's name without the number of the lease that wrote it."""
    return "checkpoint.pt" if path.name.startswith("checkpoint-") else path.name


def _table(history: list[Mapping[str, Any]]) -> bytes:
    """The evaluations as CSV, a column for each of their values."""
    file = io.StringIO()
    writer = csv.DictWriter(file, list(dict.fromkeys(name for row in history for name in row)), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    return file.getvalue().encode()
