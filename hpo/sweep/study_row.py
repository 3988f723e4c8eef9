"""The row of a study in our own table: its record, and how often its workers were asked to stop."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa

from hpo.database import tables
from hpo.database.connection import Database
from hpo.database.optuna_private import TRIALS
from hpo.sweep.record import SweepRecord

_studies, _slots = tables.studies.c, tables.slots.c


class StudyRow:
    """The row of one study.

    Args:
        database: the one that holds the study.
        study_id: Optuna's id of the study there.
    """

    def __init__(self, database: Database, study_id: int) -> None:
        self.database = database
        self.study_id = study_id

    def create(self, record: SweepRecord) -> SweepRecord:
        """Create the tables and store a record, unless there is one.

        Returns:
            The record that stands: this one, or that of the process that was first.
        """
        self.database.retry.call(lambda: tables.create(self.database.engine))
        row = {"study_id": self.study_id, "record": record.to_json()}
        insert = tables.insert_if_absent(self.database.engine.dialect, tables.studies)
        self.database.transaction(lambda connection: connection.execute(insert, [row]))
        found = self.record()
        assert found is not None
        return found

    def record(self) -> SweepRecord | None:
        """What the study was made from; None for a study that another program made.

        Raises:
            StorageError: the tables are of another version of this program.
            StudyError: the record is.
        """
        text = self.record_text()
        return None if text is None else SweepRecord.from_json(text)

    def record_text(self) -> str | None:
        """The record as it is stored.

        Raises:
            StorageError: the tables are of another version of this program.
        """
        if not self.database.retry.call(lambda: tables.check(self.database.engine)):
            return None
        mine = sa.select(_studies.record).where(_studies.study_id == self.study_id)
        text: str | None = self.database.transaction(lambda connection: connection.scalar(mine))
        return text

    def revise(self, old: SweepRecord, new: SweepRecord) -> bool:
        """Store a record in place of the one it was made from. False: another stands there now, and stays."""
        text = new.to_json()
        mine = (_studies.study_id == self.study_id) & (_studies.record.in_([old.stored, text]))
        write = tables.studies.update().where(mine).values(record=text)
        return self.database.transaction(lambda connection: connection.execute(write).rowcount) == 1

    def stop_requests(self) -> int:
        """How often a stop was requested of all workers; one that started at a lower count leaves."""
        mine = sa.select(_studies.stop_requests).where(_studies.study_id == self.study_id)
        return self.database.transaction(lambda connection: connection.scalar(mine)) or 0

    def request_stop(self) -> None:
        """Ask all workers that have started, on every machine, to leave at their next evaluation.

        They see it when they renew their lease, every ten seconds.
        """
        count = tables.studies.update().where(_studies.study_id == self.study_id)
        raised = count.values(stop_requests=_studies.stop_requests + 1)
        self.database.transaction(lambda connection: connection.execute(raised))

    def delete_stale(self, name: str) -> bool:
        """Delete the rows of a deleted study whose id SQLite has reused; whether there were any.

        They are stale where slots have trials and the study of this name has none, or the record has another name. One
        transaction: a trial and its slot are bound in one, too, so that a live study is never taken for a deleted one.
        """
        text = self.record_text()
        if text is None:
            return False
        recorded_name = json.loads(text)["spec"]["name"]
        trials = sa.select(TRIALS.c.trial_id).where(TRIALS.c.study_id == self.study_id)
        mine = _slots.study_id == self.study_id
        bound = sa.select(_slots.number).where(mine & _slots.trial_number.is_not(None))
        stale = ~sa.exists(trials) & (sa.exists(bound) | sa.literal(recorded_name != name))

        def delete(connection: sa.Connection) -> bool:
            gone: Any = connection.execute(tables.studies.delete().where((_studies.study_id == self.study_id) & stale))
            if gone.rowcount:
                connection.execute(tables.slots.delete().where(mine))
            return bool(gone.rowcount)

        return self.database.transaction(delete)
