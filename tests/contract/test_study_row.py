"""A study's row: its record, which the first writer makes and later ones revise, and the count of stop requests."""

from __future__ import annotations

import dataclasses
import itertools
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa

from hpo.database import tables
from hpo.database.connection import Database
from hpo.errors import StudyError
from hpo.sweep.record import SweepRecord
from hpo.sweep.study_row import StudyRow
from hpo.sweep.sweep import open_sweep, update_metadata
from tests.support.sweeps import (
    COMPLETE,
    ENGINES,
    Crash,
    crash_at_commit,
    make_record,
    make_spec,
    make_sweep,
    opened,
    rewrite_record,
    run_slot,
    unheard,
)

IDS = itertools.count(5000)


def record_of(uid: str) -> SweepRecord:
    return dataclasses.replace(make_record(make_spec()), uid=uid)


class TestRecord:
    def test_the_first_record_stands(self, database: Database) -> None:
        row = StudyRow(database, next(IDS))
        assert row.create(record_of("first")).uid == "first"
        assert row.create(record_of("second")).uid == "first"
        assert row.record() == record_of("first")

    def test_a_record_is_read_as_it_was_written(self, database: Database) -> None:
        record = dataclasses.replace(make_record(make_spec(description="Φ")), versions={"hpo": "0.1.0"}, created_at=1.5)
        assert StudyRow(database, next(IDS)).create(record) == record

    def test_one_of_many_at_once_is_the_first(self, database: Database) -> None:
        StudyRow(database, next(IDS)).create(record_of("tables"))  # they are there
        row = StudyRow(database, next(IDS))
        start = threading.Barrier(6)

        def create(place: int) -> str:
            start.wait(30)
            return row.create(record_of(f"uid-{place}")).uid

        with ThreadPoolExecutor(6) as threads:
            (standing,) = set(threads.map(create, range(6)))
        assert row.record() == record_of(standing)

    def test_a_study_of_another_program_has_no_record(self, database: Database) -> None:
        assert StudyRow(database, next(IDS)).record() is None

    @pytest.mark.parametrize("engine", ENGINES)
    def test_a_database_without_our_tables_has_no_record(self, engine: str, new_url: Callable[[str], str]) -> None:
        with opened(new_url(engine)) as bare:
            assert StudyRow(bare, 1).record() is None
            assert not sa.inspect(bare.engine).has_table("hpo_slots")

    @pytest.mark.parametrize("engine", ENGINES)
    def test_the_tables_may_be_created_by_many_at_once(self, engine: str, new_url: Callable[[str], str]) -> None:
        for _ in range(3):
            start = threading.Barrier(4)
            with opened(new_url(engine)) as bare, ThreadPoolExecutor(4) as threads:

                def create(place: int, bare: Database = bare, start: threading.Barrier = start) -> str:
                    start.wait(30)
                    return StudyRow(bare, 1).create(record_of(f"uid-{place}")).uid

                assert len(set(threads.map(create, range(4)))) == 1

    def test_a_record_of_a_newer_version_is_refused_by_its_name(self, database: Database) -> None:
        row = StudyRow(database, next(IDS))
        row.create(record_of("first"))
        newer = row.record_text().replace('"sampler": {', '"sampler": {"unheard_of": 1, ')  # type: ignore[union-attr]
        write = tables.studies.update().where(tables.studies.c.study_id == row.study_id).values(record=newer)
        database.transaction(lambda connection: connection.execute(write))
        with pytest.raises(StudyError, match="study 'toy' was made by version unknown of this program"):
            row.record()

    def test_a_record_is_stored_under_the_names_that_earlier_versions_read(self, database: Database) -> None:
        row = StudyRow(database, next(IDS))
        row.create(record_of("first"))
        stored = json.loads(row.record_text() or "")["spec"]
        assert "enqueued" not in stored
        assert stored["known"] == []
        assert stored["pruner"].keys() == {"kind", "first_milestone", "reduction", "percentile", "peers"}


class TestRevision:
    def test_a_record_is_revised_from_the_one_that_stands(self, database: Database) -> None:
        row, other = StudyRow(database, next(IDS)), StudyRow(database, next(IDS))
        first, theirs = row.create(record_of("first")), other.create(record_of("first"))
        assert row.revise(first, dataclasses.replace(first, hardware="another"))
        assert row.record() == dataclasses.replace(first, hardware="another")
        assert other.record() == theirs

    def test_a_revision_of_a_record_that_stands_no_more_changes_nothing(self, database: Database) -> None:
        row = StudyRow(database, next(IDS))
        first = row.create(record_of("first"))
        assert row.revise(first, dataclasses.replace(first, hardware="a"))
        assert not row.revise(first, dataclasses.replace(first, hardware="b"))
        standing = row.record()
        assert standing is not None
        assert standing.hardware == "a"

    def test_the_same_revision_may_be_sent_twice(self, database_url: str) -> None:
        from tests.support.sweeps import PATIENT

        with opened(database_url, PATIENT) as own:
            row = StudyRow(own, next(IDS))
            first = row.create(record_of("first"))
            with unheard(own, 1) as broken:
                assert row.revise(first, dataclasses.replace(first, hardware="another"))
            assert broken == [1]

    @pytest.mark.parametrize("moment", ["before", "after"])
    def test_a_crash_leaves_the_one_or_the_other(self, database_url: str, moment: str) -> None:
        with opened(database_url) as own:
            row = StudyRow(own, next(IDS))
            first = row.create(record_of("first"))
            changed = dataclasses.replace(first, hardware="another")
            with pytest.raises(Crash), crash_at_commit(own, 1, moment):  # type: ignore[arg-type]
                row.revise(first, changed)
        with opened(database_url) as again:
            assert StudyRow(again, row.study_id).record() == (changed if moment == "after" else first)


class TestStaleRows:
    def test_rows_of_a_deleted_study_are_deleted_and_no_others(self, database: Database) -> None:
        deleted, live = make_sweep(database, trials=2), make_sweep(database, trials=2)
        assert run_slot(live, COMPLETE) == 0
        lease = deleted.slots.claim("a", 2)
        assert lease is not None
        with database.engine.begin() as connection:  # a slot that names a trial which is not there
            connection.execute(
                tables.slots.update().where(tables.slots.c.study_id == deleted.study_id).values(trial_number=0)
            )
        assert deleted.row.delete_stale(deleted.spec.name) is True
        assert (deleted.row.record(), deleted.slots.total()) == (None, 0)
        assert deleted.row.delete_stale(deleted.spec.name) is False
        assert live.row.delete_stale(live.spec.name) is False
        assert live.slots.total() == 2

    def test_rows_of_a_study_without_trials_are_stale_only_under_another_name(self, database: Database) -> None:
        sweep = make_sweep(database, trials=2)
        assert sweep.row.delete_stale(sweep.spec.name) is False
        assert sweep.row.delete_stale("another") is True
        assert sweep.row.record() is None


class TestStopRequests:
    def test_they_are_counted_for_their_study_alone(self, database: Database) -> None:
        one, two = make_sweep(database).row, make_sweep(database).row
        assert one.stop_requests() == 0
        for requests in (1, 2):
            one.request_stop()
            assert one.stop_requests() == requests
        assert two.stop_requests() == 0

    def test_a_study_without_a_record_has_none(self, database: Database) -> None:
        assert StudyRow(database, next(IDS)).stop_requests() == 0


class TestRevisionOfASweep:
    def test_what_a_newer_version_has_stored_is_kept(self, database: Database) -> None:
        sweep = make_sweep(database)
        rewrite_record(sweep, lambda record: {**record, "cluster": "a", "corpus": {**record["corpus"], "licence": "b"}})
        update_metadata(open_sweep(database, sweep.spec.name), sweep.spec.model_copy(update={"trials": 99}))
        content = json.loads(sweep.row.record_text() or "")
        assert (content["spec"]["trials"], content["cluster"], content["corpus"]["licence"]) == (99, "a", "b")

    def test_a_study_that_was_deleted_meanwhile_is_not_revised(self, database: Database) -> None:
        sweep = make_sweep(database)
        database.storage.delete_study(sweep.study_id)
        tables.delete_orphans(database.engine)
        with pytest.raises(StudyError, match="was deleted meanwhile: nothing is left to work on"):
            update_metadata(sweep, sweep.spec.model_copy(update={"trials": 99}))

    def test_a_study_whose_id_has_another_record_now_is_not_revised(self, database: Database) -> None:
        sweep = make_sweep(database)
        rewrite_record(sweep, lambda record: {**record, "uid": "other"})
        before = sweep.row.record_text()
        with pytest.raises(StudyError, match="was deleted meanwhile"):
            update_metadata(sweep, sweep.spec.model_copy(update={"trials": 99}))
        assert sweep.row.record_text() == before
