"""How Optuna's dashboard keeps notes and figures: as attributes of the study. Written here in one transaction.

The dashboard's own functions take a transaction for every two thousand characters. All these attributes are read with
the study each time that anybody lists studies, so there are as few of them as can be: one for a text, however long.
"""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from hpo.database import tables
from hpo.database.connection import Database
from hpo.database.optuna_private import ARTIFACT, DASHBOARD, DASHBOARD_FIGURE, STUDIES, STUDY_SYSTEM_ATTRIBUTES
from hpo_model.digest import short_digest
from hpo_reports.records.names import STUDY_PUBLISHED

FIGURE = f"{DASHBOARD_FIGURE}hpo-"
_TRIAL_NOTE = re.compile(rf"{DASHBOARD}(\d+):note_str:0")
# A link's definition, which Markdown does not show. It holds the text's digest: an edited text belongs to its editor.
_SIGNATURE = re.compile(r"\n\n\[//\]: # \(hpo ([0-9a-f]{16})\)\s*\Z")

_attributes = STUDY_SYSTEM_ATTRIBUTES


@dataclass(frozen=True, kw_only=True)
class PublishedVersion:
    """When notes and figures were written, and of what."""

    finished: int = -1  # trials that had ended; of a later state there are no fewer
    state: str = ""  # digest of what they were written of
    at: float = 0.0  # seconds since 1970
    seconds: float = 0.0  # of processor time that it took


@dataclass(frozen=True, kw_only=True)
class Notes:
    """All that is to be seen of a study in the dashboard beside what Optuna shows."""

    stamp: PublishedVersion
    study: str  # Markdown
    trials: Mapping[int, str] = field(default_factory=dict)  # Markdown by Optuna's id of the trial
    figures: Mapping[str, str] = field(default_factory=dict)  # Plotly's JSON by name


def read_published_versions(database: Database) -> dict[int, PublishedVersion]:
    """When the notes of each study were written last, by Optuna's id; of those that have notes."""
    query = sa.select(_attributes.c.study_id, _attributes.c.value_json).where(_attributes.c.key == STUDY_PUBLISHED)
    with database.engine.connect() as connection:
        return {int(study_id): _stamp(text) for study_id, text in connection.execute(query)}


def write_notes(database: Database, study_id: int, notes: Notes) -> bool:
    """Write what has changed, unless another process has written a later state meanwhile.

    A note that a person edited stays as it is, until it is emptied. Figures and notes of trials that are no longer
    among these are removed.

    Returns:
        Whether it was written.
    """
    with database.engine.begin() as connection:
        if not _take(connection, study_id):
            return False
        mine = sa.select(_attributes.c.key, _attributes.c.value_json).where(_of(study_id))
        stored = {key: json.loads(text) for key, text in connection.execute(mine)}
        if _stamp(json.dumps(stored.get(STUDY_PUBLISHED))).finished > notes.stamp.finished:
            return False
        wanted = {**_note_rows(notes, stored), **_figure_rows(notes), STUDY_PUBLISHED: vars(notes.stamp)}
        changed = {key: value for key, value in wanted.items() if stored.get(key) != value}
        rows = [{"study_id": study_id, "key": key, "value_json": json.dumps(value)} for key, value in changed.items()]
        upsert = tables.upsert(connection.dialect, _attributes, keys=("study_id", "key"), values=("value_json",))
        connection.execute(upsert, rows)
        gone = [*_gone_notes(notes, stored), *(k for k in stored if k.startswith(FIGURE) and k not in wanted)]
        for key in gone:
            connection.execute(_attributes.delete().where(_of(study_id) & (_attributes.c.key == key)))
    return True


def signed(text: str) -> str:
    """A note with the mark by which it is known again as ours, unedited."""
    return f"{text}\n\n[//]: # (hpo {short_digest(text)})\n"


def is_ours(note: str) -> bool:
    """Whether a note may be written anew: it is empty, or ours and unedited."""
    found = _SIGNATURE.search(note)
    return not note.strip() or (found is not None and found[1] == short_digest(note[: found.start()]))


def remap_ids(attributes: Mapping[str, Any], ids: Mapping[int, int]) -> dict[str, Any]:
    """A study's attributes for its copy, in which trials have other ids; what is of no trial of the copy is left out.

    Args:
        attributes: of the original, by name.
        ids: the copy's id of each of the original's trials.
    """
    result = {}
    for key, value in attributes.items():
        found = re.fullmatch(rf"({DASHBOARD}(?:{ARTIFACT})?)(\d+)(:.*)", key, re.DOTALL)
        if found is None:
            result[key] = value
        elif int(found[2]) in ids:
            result[f"{found[1]}{ids[int(found[2])]}{found[3]}"] = value
    return result


def _take(connection: sa.Connection, study_id: int) -> bool:
    """Lock the study's stamp, so that writers come one after the other; False where there is no such study."""
    if connection.scalar(sa.select(STUDIES.c.study_id).where(STUDIES.c.study_id == study_id)) is None:
        return False
    row = {"study_id": study_id, "key": STUDY_PUBLISHED, "value_json": "null"}
    connection.execute(tables.lock_row(connection.dialect, _attributes, ("study_id", "key"), "value_json"), [row])
    return True


def _note_rows(notes: Notes, stored: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of the notes that are to be written."""
    rows: dict[str, Any] = {}
    texts = {DASHBOARD: notes.study, **{f"{DASHBOARD}{number}:": text for number, text in notes.trials.items()}}
    for prefix, text in texts.items():
        note, before = signed(text), _stored_note(prefix, stored)
        if note == before or not is_ours(before):
            continue
        rows[f"{prefix}note_ver"] = int(stored.get(f"{prefix}note_ver") or 0) + 1
        rows[f"{prefix}note_str:0"] = note
        rows |= {key: "" for key in _pieces(prefix, stored) if key not in rows}
    return rows


def _figure_rows(notes: Notes) -> dict[str, str]:
    return {f"{FIGURE}{name}:0": figure for name, figure in notes.figures.items()}


def _gone_notes(notes: Notes, stored: Mapping[str, Any]) -> Iterator[str]:
    """The attributes of our notes of trials that are to have none any more."""
    for key in stored:
        found = _TRIAL_NOTE.fullmatch(key)
        if found is None or int(found[1]) in notes.trials:
            continue
        prefix = f"{DASHBOARD}{found[1]}:"
        note = _stored_note(prefix, stored)
        if note and is_ours(note):
            yield from (*_pieces(prefix, stored), f"{prefix}note_ver")


def _stored_note(prefix: str, stored: Mapping[str, Any]) -> str:
    return "".join(str(stored[key]) for key in _pieces(prefix, stored))


def _pieces(prefix: str, stored: Mapping[str, Any]) -> list[str]:
    """The attributes that hold a note's text, in order: the dashboard cuts what a person writes into many."""
    pieces: list[str] = []
    while (key := f"{prefix}note_str:{len(pieces)}") in stored:
        pieces.append(key)
    return pieces


def _stamp(text: str | None) -> PublishedVersion:
    """A stamp; one that another version of this program has written is none, and what it marks is written anew."""
    content = json.loads(text) if text else None
    known = {each.name for each in dataclasses.fields(PublishedVersion)}
    return PublishedVersion(**content) if isinstance(content, dict) and content.keys() <= known else PublishedVersion()


def _of(study_id: object) -> Any:
    return _attributes.c.study_id == study_id
