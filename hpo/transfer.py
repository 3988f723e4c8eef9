"""Studies from one database to another, slots included: SQLite while trying out, PostgreSQL for a fleet."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import optuna
import sqlalchemy as sa

from hpo import tables
from hpo.errors import StudyError
from hpo.slots import Slots
from hpo.storage import Database, open_database, storage_errors
from hpo.sweep import load_study, study_names

COPYING_ATTRIBUTE = "hpo:copying"  # true in a copy until it is whole


def copy_studies(source_url: str, target_url: str, name: str | None) -> Iterator[str]:
    """Copy one study or all; a line for each that is done.

    A copy has the study's uid, so that it goes on from the same checkpoints. One that was interrupted is begun again.

    Raises:
        StudyError: unknown, in the target already, or workers are at it.
        StorageError: a database cannot be used.
    """
    with contextlib.ExitStack() as stack:
        yield from _copy_studies(source_url, target_url, name, stack)


def _copy_studies(source_url: str, target_url: str, name: str | None, stack: contextlib.ExitStack) -> Iterator[str]:
    with storage_errors(source_url):
        source = stack.enter_context(contextlib.closing(open_database(source_url, create=False)))
        names = study_names(source) if name is None else [load_study(source, name).study_name]
        for each in names:
            _check_at_rest(source, each)
    with storage_errors(target_url):
        target = stack.enter_context(contextlib.closing(open_database(target_url, create=True)))
        tables.check(target.engine)
        for each in names:
            _make_room(target, each)
        for each in names:
            yield _copy(source, target, each)


def _check_at_rest(source: Database, name: str) -> None:
    study = load_study(source, name)
    if study.user_attrs.get(COPYING_ATTRIBUTE):
        raise StudyError(f"study {name!r} is half a copy; copy it again from where it came")
    slots = Slots(source, study._study_id)
    if slots.record() is not None and (at_work := slots.at_work()):
        raise StudyError(f"study {name!r}: {', '.join(at_work[:3])} at work; `hpo stop {name}` first")


def _make_room(target: Database, name: str) -> None:
    """Delete what an interrupted copy left; refuse to touch anything else."""
    if name not in study_names(target):
        return
    study = load_study(target, name)
    untouched = not study.user_attrs and not study.get_trials(deepcopy=False)
    if not untouched and not study.user_attrs.get(COPYING_ATTRIBUTE):
        raise StudyError(f"study {name!r} is in the target already; nothing was copied")
    optuna.delete_study(study_name=name, storage=target.storage)


def _copy(source: Database, target: Database, name: str) -> str:
    original = load_study(source, name)
    copy = optuna.create_study(study_name=name, storage=target.storage, directions=original.directions)
    copy.set_user_attr(COPYING_ATTRIBUTE, True)
    for key, value in original._storage.get_study_system_attrs(original._study_id).items():
        target.storage.set_study_system_attr(copy._study_id, key, value)
    for key, value in original.user_attrs.items():
        if key != COPYING_ATTRIBUTE:
            copy.set_user_attr(key, value)
    trials = original.get_trials(deepcopy=False)
    for trial in trials:
        target.storage.create_new_trial(copy._study_id, template_trial=trial)
    slots = _copy_slots(source, target, original._study_id, copy._study_id)
    copy.set_user_attr(COPYING_ATTRIBUTE, False)
    return f"{name}: {len(trials)} trials, {slots} slots"


def _copy_slots(source: Database, target: Database, old: int, new: int) -> int:
    """Record and slots in one transaction, leases given back; how many slots."""
    if not tables.check(source.engine):
        return 0
    tables.create(target.engine)
    with source.engine.connect() as connection:
        record = connection.execute(sa.select(tables.studies).where(tables.studies.c.study_id == old)).mappings().all()
        slots = connection.execute(sa.select(tables.slots).where(tables.slots.c.study_id == old)).mappings().all()
    free = {"study_id": new, "owner": None, "expires_at": None}
    with target.engine.begin() as connection:
        for table in (tables.studies, tables.slots):  # of a deleted study whose number came round again
            connection.execute(table.delete().where(table.c.study_id == new))
        for row in record:
            connection.execute(tables.studies.insert().values({**row, "study_id": new}))
        for row in slots:
            state = "open" if row["state"] == "leased" else row["state"]
            expired = {"expires_at": 0.0} if state == "finishing" else {}
            connection.execute(tables.slots.insert().values({**row, **free, **expired, "state": state}))
    return len(slots)
