"""Studies from one database to another, slots included: SQLite while trying out, PostgreSQL for a fleet."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import sqlalchemy as sa
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial
from sqlalchemy import orm

from hpo.dashboard.notes import remap_ids
from hpo.database import optuna_private, tables
from hpo.database.connection import Database, open_database, storage_errors
from hpo.errors import StudyError
from hpo.home import Home
from hpo.sweep.slots import Slots
from hpo.sweep.study_row import StudyRow
from hpo.sweep.sweep import load_study, study_names
from hpo.worker.artifacts import link_for_copy
from hpo_reports.records.names import FINALISTS_SUFFIX, STUDY_COPYING, STUDY_RECORD


def copy_studies(source_url: str, target_url: str, name: str | None, home: Home) -> Iterator[str]:
    """Copy one study with its finalists, or all; a line for each that is done.

    A copy is a study of its own, with its own uid and checkpoints: those that this machine has are linked, or copied
    where links are not to be had. One that was interrupted is begun again.

    Raises:
        StudyError: unknown, in the target already, or workers are at it.
        StorageError: a database cannot be used.
    """
    with contextlib.ExitStack() as stack:
        with storage_errors(source_url):
            source = stack.enter_context(contextlib.closing(open_database(source_url, create=False)))
            originals = [_read(source, each) for each in _names(source, name)]
        with storage_errors(target_url):
            target = stack.enter_context(contextlib.closing(open_database(target_url, create=True)))
            tables.check(target.engine)
            for original in originals:
                _make_room(target, original.name)
            for original in originals:
                yield _write(target, original, home)


def _names(source: Database, name: str | None) -> list[str]:
    present = study_names(source)
    if name is None:
        return present
    return [name, *(each for each in present if each == name + FINALISTS_SUFFIX)]


@dataclass(frozen=True, kw_only=True)
class _Original:
    """Everything that a study's database has of it."""

    name: str
    directions: list[StudyDirection]
    user_attributes: dict[str, Any]
    system_attributes: dict[str, Any]
    trials: list[FrozenTrial]
    record: dict[str, Any] | None
    slots: list[dict[str, Any]]


def _read(source: Database, name: str) -> _Original:
    study = load_study(source, name)
    if study.user_attrs.get(STUDY_COPYING):
        raise StudyError(f"study {name!r} is half a copy; copy it again from where it came")
    study_id = source.storage.get_study_id_from_name(name)
    record = _stored_record(source, study_id)
    if record is not None and (at_work := Slots(source, study_id).at_work()):
        raise StudyError(f"study {name!r}: {', '.join(at_work[:3])} at work; `hpo stop {name}` first")
    rows: list[dict[str, Any]] = []
    if record is not None:
        mine = sa.select(tables.slots).where(tables.slots.c.study_id == study_id)
        with source.engine.connect() as connection:
            rows = [tables.by_key(tables.slots, row) for row in connection.execute(mine)]
    return _Original(
        name=name,
        directions=study.directions,
        user_attributes={key: value for key, value in study.user_attrs.items() if key != STUDY_COPYING},
        system_attributes=source.storage.get_study_system_attrs(study_id),
        trials=study.get_trials(deepcopy=False),
        record=record,
        slots=rows,
    )


def _stored_record(database: Database, study_id: int) -> dict[str, Any] | None:
    """A study's record as it is stored, which may be of another version of this program."""
    text = StudyRow(database, study_id).record_text()
    return None if text is None else json.loads(text)


def _make_room(target: Database, name: str) -> None:
    """Delete what an interrupted copy left; refuse to touch anything else."""
    if name not in study_names(target):
        return
    study = load_study(target, name)
    untouched = not study.user_attrs and not study.get_trials(deepcopy=False)
    if not untouched and not study.user_attrs.get(STUDY_COPYING):
        raise StudyError(f"study {name!r} is in the target already; nothing was copied")
    optuna.delete_study(study_name=name, storage=target.storage)


def _write(target: Database, original: _Original, home: Home) -> str:
    made = optuna.create_study(study_name=original.name, storage=target.storage, directions=original.directions)
    study_id = target.storage.get_study_id_from_name(original.name)
    attributes, copier = optuna_private.STUDY_USER_ATTRIBUTES, uuid.uuid4().hex
    made.set_user_attr(STUDY_COPYING, copier)
    mark = (
        attributes.update()
        .where(attributes.c.study_id == study_id, attributes.c.key == STUDY_COPYING)
        .where(attributes.c.value_json == json.dumps(copier))
    )
    try:
        with _guarded(target, mark.values(value_json=json.dumps(copier))):
            for key, value in original.user_attributes.items():
                made.set_user_attr(key, value)
            uid = uuid.uuid4().hex[:8]
            ids = {
                optuna_private.trial_id(trial): target.storage.create_new_trial(
                    study_id, template_trial=_own(trial, home, original, uid)
                )
                for trial in original.trials
            }
            for key, value in remap_ids(original.system_attributes, ids).items():
                target.storage.set_study_system_attr(study_id, key, value)
            if original.record is not None:
                record = {**original.record, "uid": uid}
                made.set_user_attr(STUDY_RECORD, record)
                _write_slots(target, study_id, record, original.slots)
                _link_checkpoints(
                    home.study(original.name, original.record["uid"]), home.study(original.name, record["uid"])
                )
        with target.engine.begin() as connection:
            _hold(connection, mark.values(value_json=json.dumps("")))
    except (_CopiedByAnother, KeyError) as error:  # the latter where the study is gone
        raise StudyError(f"study {original.name!r} was copied by another process at the same time") from error
    return f"{original.name}: {len(original.trials)} trials, {len(original.slots)} slots"


def _own(trial: FrozenTrial, home: Home, original: _Original, uid: str) -> FrozenTrial:
    """The trial as its copy is to be: with files of its own, so that none is lost with the original."""
    if original.record is None:
        return trial
    folder = home.trial(original.name, uid, trial.number)
    attributes = link_for_copy(optuna_private.system_attributes(trial), home, folder)
    return optuna_private.with_system_attributes(trial, attributes)


class _CopiedByAnother(Exception):
    """Another process took the half copy for an abandoned one and began it again."""


def _hold(connection: sa.Connection, mark: sa.Update) -> None:
    if connection.execute(mark).rowcount != 1:
        raise _CopiedByAnother


@contextlib.contextmanager
def _guarded(target: Database, mark: sa.Update) -> Iterator[None]:
    """Let Optuna commit nothing to a copy that is another's now: a deleted study's number may have come round again."""

    def hold(session: orm.Session) -> None:
        session.flush()
        _hold(session.connection(), mark)

    sa.event.listen(target.sessions, "before_commit", hold)
    try:
        yield
    finally:
        sa.event.remove(target.sessions, "before_commit", hold)


def _write_slots(target: Database, study_id: int, record: dict[str, Any], slots: list[dict[str, Any]]) -> None:
    """Record and slots in one transaction, leases given back."""
    tables.create(target.engine)
    rows = []
    for row in slots:
        finishing = row["state"] == "finishing"
        free = {"study_id": study_id, "owner": None, "expires_at": 0.0 if finishing else None}
        rows.append({**row, **free, "state": "open" if row["state"] == "leased" else row["state"]})
    with target.engine.begin() as connection:
        for table in (tables.studies, tables.slots):  # of a deleted study whose number came round again
            connection.execute(table.delete().where(table.c.study_id == study_id))
        connection.execute(tables.studies.insert().values(study_id=study_id, record=json.dumps(record)))
        if rows:
            connection.execute(tables.slots.insert(), rows)


def _link_checkpoints(original: Path, copy: Path) -> None:
    """Give the copy the checkpoints that lie here; they are replaced when they change, never written to."""

    def link(source: str, target: str) -> None:
        try:
            os.link(source, target)
        except OSError:  # a disk without links
            shutil.copy2(source, target)

    if original.is_dir():
        shutil.copytree(original, copy, copy_function=link, ignore=shutil.ignore_patterns("logs", "slurm", ".*"))
