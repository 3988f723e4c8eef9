"""The contract of slots and leases, on SQLite and on PostgreSQL."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import optuna
import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from optuna.exceptions import StorageInternalError

from hpo.database import tables
from hpo.database.connection import Database
from hpo.database.retry import RetryPolicy
from hpo.sweep.renewal import renewed
from hpo.sweep.result import TrialResult
from hpo.sweep.slots import Lease, LeaseLost, SlotCounts, Slots
from hpo.sweep.sweep import Sweep, open_sweep
from hpo_reports.records.names import TRIAL_SLOT
from tests.support.side_processes import PROCESSES, claim_all
from tests.support.sweeps import (
    COMPLETE,
    DIVERGED,
    FAIL,
    PATIENT,
    PRUNED,
    Pause,
    contents,
    lost_connection,
    make_sweep,
    opened,
    set_slot,
    slot_row,
    unheard,
)

STUDIES = itertools.count(1000)  # ids; a test's slots are those of a study of its own


class SlotSetting:
    """The slots of one study, seen by workers whose leases last, and by one whose leases expire at once."""

    def __init__(self, database: Database, total: int) -> None:
        self.database, self.total = database, total
        self.slots = self.leasing(60.0, next(STUDIES))
        self.lapsing = self.leasing(-1.0, self.slots.study_id)
        tables.create(database.engine)
        self.slots.ensure(total)

    def leasing(self, lease_s: float, study_id: int | None = None) -> Slots:
        return Slots(self.database, self.slots.study_id if study_id is None else study_id, lease_s)

    def claim(self, owner: str) -> Lease:
        lease = self.slots.claim(owner, self.total)
        assert lease is not None
        return lease

    def claim_and_lapse(self, owner: str) -> Lease:
        lease = self.lapsing.claim(owner, self.total)
        assert lease is not None
        return lease

    def bound(self, lease: Lease, trial_number: int) -> Lease:
        set_slot(self.database, self.slots.study_id, lease.slot, trial_number=trial_number)
        return lease

    def row(self, slot: int) -> dict[str, object]:
        return slot_row(self.database, self.slots.study_id, slot)


@pytest.fixture
def make(database: Database) -> Callable[[int], SlotSetting]:
    return lambda total: SlotSetting(database, total)


class TestClaim:
    def test_new_slots_are_claimed_in_order_and_once(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(3)
        leases = [setting.claim(owner) for owner in ("a", "b", "a")]
        assert leases == [
            Lease(slot=slot, owner=owner, fencing_token=1, trial_number=None, result=None)
            for slot, owner in enumerate("aba")
        ]
        assert setting.slots.claim("c", 3) is None

    def test_a_finishing_slot_comes_first_then_a_begun_one_then_a_new_one(
        self, make: Callable[[int], SlotSetting]
    ) -> None:
        setting = make(5)
        not_begun = setting.claim("stopped")
        begun = setting.bound(setting.claim("stopped"), 10)
        setting.bound(setting.claim("dead"), 11)
        ended = setting.bound(setting.claim("dead"), 12)
        assert setting.slots.finish(ended, COMPLETE)
        assert setting.slots.release(not_begun)
        assert setting.slots.release(begun)
        setting.slots.release_owner("dead", crashed=True)
        claimed = [setting.claim("next") for _ in range(5)]
        assert [(lease.slot, lease.trial_number, lease.result) for lease in claimed] == [
            (3, 12, COMPLETE),
            (1, 10, None),
            (2, 11, None),
            (0, None, None),
            (4, None, None),
        ]

    def test_a_live_lease_is_nobody_else_s(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        setting.claim("a")
        assert setting.slots.claim("b", 1) is None
        assert setting.slots.claim("a", 1) is None

    def test_nothing_is_claimed_beyond_the_total(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(10)
        assert [setting.slots.claim("a", 4).slot for _ in range(4)] == [0, 1, 2, 3]  # type: ignore[union-attr]
        assert setting.slots.claim("a", 4) is None
        assert setting.slots.claim("a", 0) is None

    def test_a_lapsed_slot_beyond_the_total_is_left_alone(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(2)
        setting.claim("a")
        assert setting.claim_and_lapse("a").slot == 1
        assert setting.slots.claim("b", 1) is None
        assert setting.claim("b").slot == 1

    def test_a_done_slot_is_never_claimed_again(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        lease = setting.bound(setting.claim_and_lapse("a"), 0)
        assert setting.slots.finish(lease, COMPLETE)
        assert setting.slots.done(lease)
        setting.slots.release_owner("a", crashed=True)
        assert setting.slots.claim("b", 1) is None

    def test_other_studies_slots_are_not_seen(self, make: Callable[[int], SlotSetting]) -> None:
        one, two = make(1), make(1)
        one.claim("a")
        assert one.slots.claim("b", 1) is None
        assert two.slots.counts(1) == SlotCounts(open=1)
        assert two.claim("a").fencing_token == 1
        one.slots.release_owner("a", crashed=True)
        assert one.claim("b").fencing_token == 2
        assert two.slots.claim("b", 1) is None

    def test_eight_threads_claim_each_slot_once(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(40)
        start = threading.Barrier(8)

        def claim_some(owner: str) -> list[int]:
            start.wait(30)
            claimed = []
            while (lease := setting.slots.claim(owner, 32)) is not None:
                claimed.append(lease.slot)
            return claimed

        with ThreadPoolExecutor(8) as threads:
            claimed = list(threads.map(claim_some, [f"thread-{place}" for place in range(8)]))
        assert sorted(itertools.chain(*claimed)) == list(range(32))
        assert setting.slots.counts(40) == SlotCounts(leased=32, open=8)

    def test_four_processes_claim_each_slot_once(
        self, make: Callable[[int], SlotSetting], database_url: str, processes: ProcessPoolExecutor
    ) -> None:
        setting = make(60)
        owners = [f"process-{place}" for place in range(PROCESSES)]
        jobs = [processes.submit(claim_all, database_url, setting.slots.study_id, 60, owner) for owner in owners]
        claimed = [slot for job in jobs for slot in job.result(timeout=60)]
        assert sorted(claimed) == [(slot, 1) for slot in range(60)]


WRITES: dict[str, Callable[[Slots, Lease], bool]] = {
    "renew": lambda slots, lease: slots.renew(lease),
    "reset_crash_count": lambda slots, lease: slots.reset_crash_count(lease),
    "finish": lambda slots, lease: slots.finish(lease, COMPLETE),
    "done": lambda slots, lease: slots.done(lease),
    "release": lambda slots, lease: slots.release(lease),
}


class TestLease:
    def test_an_expired_lease_is_taken_over_under_the_next_fencing_token(
        self, make: Callable[[int], SlotSetting]
    ) -> None:
        setting = make(1)
        setting.bound(setting.claim_and_lapse("a"), 7)
        assert setting.claim("b") == Lease(
            slot=0, owner="b", fencing_token=2, trial_number=7, crash_count=1, result=None
        )

    @pytest.mark.parametrize("taker", ["b", "a"])  # the same worker may claim again what it has lost
    @pytest.mark.parametrize("write", WRITES)
    def test_a_worker_that_lost_its_lease_writes_nothing(
        self, make: Callable[[int], SlotSetting], write: str, taker: str
    ) -> None:
        setting = make(1)
        stale = setting.claim_and_lapse("a")
        setting.bound(setting.claim(taker), 7)
        before = setting.row(0)
        assert WRITES[write](setting.slots, stale) is False
        assert setting.row(0) == before

    @pytest.mark.parametrize("write", WRITES)
    def test_a_worker_that_released_the_slot_writes_nothing(
        self, make: Callable[[int], SlotSetting], write: str
    ) -> None:
        setting = make(1)
        lease = setting.claim("a")
        assert setting.slots.release(lease)
        before = setting.row(0)
        assert WRITES[write](setting.slots, lease) is False
        assert setting.row(0) == before

    @pytest.mark.parametrize("write", WRITES)
    def test_after_done_nothing_is_written(self, make: Callable[[int], SlotSetting], write: str) -> None:
        setting = make(1)
        lease = setting.claim("a")
        assert setting.slots.finish(lease, COMPLETE)
        assert setting.slots.done(lease)
        before = setting.row(0)
        assert WRITES[write](setting.slots, lease) is False
        assert setting.row(0) == before

    @pytest.mark.parametrize("write", WRITES)
    def test_the_holder_writes_also_after_the_expiry_as_long_as_nobody_took_the_slot(
        self, make: Callable[[int], SlotSetting], write: str
    ) -> None:
        setting = make(1)
        lease = setting.claim_and_lapse("a")
        assert WRITES[write](setting.slots, lease) is True

    def test_a_renewed_lease_is_live_again(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        lease = setting.claim_and_lapse("a")
        assert setting.slots.renew(lease)
        assert setting.slots.claim("b", 1) is None

    def test_a_released_slot_is_continued_by_anyone(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        assert setting.slots.release(setting.bound(setting.claim("a"), 7))
        assert setting.claim("b") == Lease(slot=0, owner="b", fencing_token=2, trial_number=7, result=None)

    def test_a_finishing_slot_keeps_its_result_for_the_next_claimer(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        lease = setting.bound(setting.claim("a"), 7)
        assert setting.slots.finish(lease, DIVERGED)
        assert setting.slots.claim("b", 1) is None
        setting.slots.release_owner("a", crashed=True)
        taken = setting.claim("b")
        assert (taken.fencing_token, taken.trial_number, taken.result) == (2, 7, DIVERGED)
        assert setting.row(0)["state"] == "finishing"
        assert setting.slots.done(lease) is False
        assert setting.slots.done(taken) is True

    def test_finishing_renews_the_lease(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        lease = setting.bound(setting.claim_and_lapse("a"), 7)
        assert setting.slots.finish(lease, COMPLETE)
        assert setting.slots.claim("b", 1) is None

    def test_a_dead_worker_s_leases_are_free_at_once(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(4)
        setting.claim("dead")
        setting.claim("alive")
        finishing = setting.bound(setting.claim("dead"), 1)
        assert setting.slots.finish(finishing, PRUNED)
        finished = setting.bound(setting.claim("dead"), 2)
        assert setting.slots.finish(finished, PRUNED)
        assert setting.slots.done(finished)
        setting.slots.release_owner("dead", crashed=True)
        assert [setting.claim("next").slot for _ in range(2)] == [2, 0]
        assert setting.slots.claim("next", 4) is None

    def test_expiry_is_measured_on_the_database_s_clock(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        before = time.time()
        setting.claim("a")
        expires_at = setting.row(0)["expires_at"]
        assert isinstance(expires_at, float)
        assert before + 59 < expires_at < time.time() + 61  # the test's database runs on this machine


class TestRenewed:
    def test_a_short_lease_lives_as_long_as_its_holder_works(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        short = setting.leasing(0.6)
        lease = short.claim("a", 1)
        assert lease is not None
        with renewed(short, lease):
            until = time.monotonic() + 1.3
            while time.monotonic() < until:
                assert short.claim("b", 1) is None
                time.sleep(0.05)
        wait_until(lambda: short.claim("b", 1) is not None)

    def test_its_thread_ends_with_the_work(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        lease = setting.claim("a")
        alive = []

        def work() -> None:
            with renewed(setting.slots, lease):
                alive.extend(renewers())
                raise RuntimeError("in the trial")

        with pytest.raises(RuntimeError, match="in the trial"):
            work()
        assert len(alive) == 1
        assert not renewers()

    def test_its_thread_ends_when_the_lease_is_lost(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        lease = setting.claim_and_lapse("a")
        setting.claim("b")
        short = setting.leasing(0.03)
        before = setting.row(0)
        with renewed(short, lease):
            wait_until(lambda: not renewers())
        assert setting.row(0) == before

    def test_a_database_that_is_away_for_a_while_ends_nothing(
        self, make: Callable[[int], SlotSetting], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        setting = make(1)
        lease = setting.claim("a")
        short = setting.leasing(0.03)
        answers: list[bool] = []
        renew = Slots.renew

        def sometimes(slots: Slots, lease: Lease) -> bool:
            answers.append(len(answers) >= 2)
            if not answers[-1]:
                raise sa.exc.OperationalError("UPDATE", {}, ConnectionError("server closed the connection"))
            return renew(slots, lease)

        monkeypatch.setattr(Slots, "renew", sometimes)
        with renewed(short, lease):
            wait_until(lambda: answers.count(True) >= 2)
            assert len(renewers()) == 1

    def test_on_renewal_is_called_after_each_renewal_and_may_meet_an_outage(
        self, make: Callable[[int], SlotSetting]
    ) -> None:
        setting = make(1)
        short = setting.leasing(0.03)
        lease = short.claim("a", 1)
        assert lease is not None
        called: list[int] = []

        def on_renewal() -> None:
            called.append(1)
            if len(called) == 1:
                raise sa.exc.OperationalError("SELECT", {}, ConnectionError("server closed the connection"))

        with renewed(short, lease, on_renewal):
            wait_until(lambda: len(called) >= 3)

    def test_its_thread_waits_for_no_database_that_is_away(
        self, make: Callable[[int], SlotSetting], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        setting = make(1)
        lease = setting.claim("a")
        said, asked = list[str](), threading.Event()
        retry = RetryPolicy(max_elapsed_s=60.0, announce=said.append)
        own = dataclasses.replace(setting.database, retry=retry)
        patient = Slots(own, setting.slots.study_id, lease_s=0.03)

        def away(*_: object) -> None:
            asked.set()
            raise sa.exc.OperationalError("UPDATE", {}, lost_connection(setting.database.engine))

        with monkeypatch.context() as patch, renewed(patient, lease):
            patch.setattr(setting.database.engine, "begin", away)
            assert asked.wait(20)
        assert said == [], "it would have been waited for at the end of the trial"


def renewers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lease"]


def wait_until(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until, "nothing happened in 20 s"
        time.sleep(0.01)


class TestTotals:
    def test_counts_are_of_the_first_slots_alone(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(5)
        done, finishing = setting.claim("a"), setting.claim("a")
        assert setting.slots.finish(done, COMPLETE)
        assert setting.slots.done(done)
        assert setting.slots.finish(finishing, FAIL)
        setting.claim("a")
        assert setting.slots.counts(5) == SlotCounts(done=1, leased=2, open=2)
        assert setting.slots.counts(2) == SlotCounts(done=1, leased=1, open=0)
        assert setting.slots.counts(0) == SlotCounts()

    def test_a_begun_slot_that_nobody_holds_is_released_and_not_open(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(3)
        assert setting.slots.release(setting.bound(setting.claim("a"), 5))
        assert setting.slots.counts(None) == SlotCounts(released=1, open=2)
        setting.bound(setting.claim_and_lapse("a"), 5)
        assert setting.slots.counts(None) == SlotCounts(leased=1, open=2)
        setting.slots.release_owner("a", crashed=True)
        assert setting.slots.counts(None) == SlotCounts(released=1, open=2)
        assert (SlotCounts(done=1, leased=2, released=3, open=4).total, SlotCounts(leased=2, released=3).begun) == (
            10,
            5,
        )

    def test_ensure_adds_what_is_missing_and_removes_nothing(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(3)
        lease = setting.bound(setting.claim("a"), 5)
        for total in (3, 5, 2, 5):
            setting.slots.ensure(total)
        assert setting.slots.total() == 5
        assert setting.slots.counts(9) == SlotCounts(leased=1, open=4)
        assert setting.slots.renew(lease)
        assert setting.row(0)["trial_number"] == 5

    def test_ensure_by_many_at_once_makes_each_slot_once(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(2)
        start = threading.Barrier(6)

        def ensure(total: int) -> None:
            start.wait(30)
            setting.slots.ensure(total)

        with ThreadPoolExecutor(6) as threads:
            list(threads.map(ensure, (30, 31, 32, 33, 34, 35)))
        assert setting.slots.total() == 35
        assert setting.slots.counts(35) == SlotCounts(open=35)

    def test_owners_are_those_of_live_leases_with_a_trial(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(5)
        setting.bound(setting.claim("live"), 10)
        finishing = setting.bound(setting.claim("finishing"), 11)
        assert setting.slots.finish(finishing, COMPLETE)
        done = setting.bound(setting.claim("done"), 12)
        assert setting.slots.finish(done, COMPLETE)
        assert setting.slots.done(done)
        setting.claim("not begun")
        assert setting.slots.owners() == {10: "live", 11: "finishing"}
        setting.slots.release_owner("live", crashed=True)
        assert setting.slots.owners() == {11: "finishing"}


class TestCrashCount:
    def test_every_lease_that_expired_counts_as_a_crash(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        assert [setting.claim_and_lapse(owner).crash_count for owner in "abac"] == [0, 1, 2, 3]

    @pytest.mark.parametrize(("crashed", "count"), [(True, 1), (False, 0)])
    def test_the_lease_of_a_worker_that_ended_counts_as_a_crash_if_it_crashed(
        self, make: Callable[[int], SlotSetting], crashed: bool, count: int
    ) -> None:
        setting = make(1)
        setting.claim("a")
        setting.slots.release_owner("a", crashed=crashed)
        assert setting.claim("b").crash_count == count

    def test_no_crash_is_counted_twice(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        setting.claim_and_lapse("a")  # expired, and its supervisor says that it died, and says it again
        for _ in range(2):
            setting.slots.release_owner("a", crashed=True)
        assert setting.claim_and_lapse("b").crash_count == 1
        assert setting.claim("c").crash_count == 2  # before the supervisor of b has spoken
        setting.slots.release_owner("b", crashed=True)
        assert setting.row(0)["crash_count"] == 2

    def test_releasing_a_slot_counts_no_crash(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        assert setting.slots.release(setting.claim_and_lapse("a"))
        assert setting.claim("b").crash_count == 0

    def test_taking_over_a_finishing_slot_counts_no_crash(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        assert setting.lapsing.finish(setting.claim("a"), COMPLETE)
        taken = setting.claim("b")
        assert (taken.result, taken.crash_count) == (COMPLETE, 0)

    def test_progress_resets_the_crash_count(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(2)
        other = setting.claim("other")
        lease = [setting.claim_and_lapse("a") for _ in range(3)][-1]
        assert lease.crash_count == 2
        assert setting.slots.reset_crash_count(lease)
        assert setting.claim("b").crash_count == 1  # that lease has expired as well
        assert setting.slots.renew(other)

    def test_each_slot_counts_its_own_crashes(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(2)
        setting.claim("a")
        setting.claim("b")
        setting.slots.release_owner("b", crashed=True)
        setting.slots.release_owner("a", crashed=False)
        assert [setting.claim("c").crash_count for _ in range(2)] == [0, 1]


Write = Callable[[Slots, Lease], object]
REPEATABLE: dict[str, Write] = {
    **WRITES,
    "release the dead": lambda slots, lease: slots.release_owner(lease.owner, crashed=True),
    "release the stopped": lambda slots, lease: slots.release_owner(lease.owner, crashed=False),
    "more slots": lambda slots, lease: slots.ensure(5),
}


class TestUnheardAnswers:
    """A server that is restarted can have committed what its client never heard of."""

    @pytest.fixture
    def patient(self, database_url: str) -> Iterator[Database]:
        with opened(database_url, PATIENT) as database:
            yield database

    @pytest.mark.parametrize("begin_new", [True, False])
    def test_a_claim_ends_with_one_lease(self, patient: Database, begin_new: bool) -> None:
        setting = SlotSetting(patient, 3)
        setting.slots.release(setting.bound(setting.claim("before"), 7))
        with unheard(patient, 1, 2) as broken:
            lease = setting.slots.claim("a", 3, begin_new=begin_new)
        assert broken == [1, 2]
        assert lease is not None
        assert (lease.slot, lease.trial_number, lease.crash_count) == (0, 7, 0)
        assert setting.slots.counts(3) == SlotCounts(leased=1, open=2)
        assert setting.slots.renew(lease)
        assert setting.slots.claim("b", 3).slot == 1  # type: ignore[union-attr]

    def test_a_claim_of_the_last_slot_does_not_lose_it(self, patient: Database) -> None:
        setting = SlotSetting(patient, 1)
        with unheard(patient, 1):
            assert setting.claim("a").slot == 0

    def test_a_claim_counts_the_crash_before_it_once(self, patient: Database) -> None:
        setting = SlotSetting(patient, 1)
        setting.claim_and_lapse("dead")
        with unheard(patient, 1):
            assert setting.claim("a").crash_count == 1

    def test_a_claim_of_a_finishing_slot_keeps_its_result(self, patient: Database) -> None:
        setting = SlotSetting(patient, 2)
        assert setting.lapsing.finish(setting.bound(setting.claim("dead"), 7), DIVERGED)
        with unheard(patient, 1):
            lease = setting.claim("a")
        assert (lease.slot, lease.trial_number, lease.result) == (0, 7, DIVERGED)
        assert setting.row(0)["state"] == "finishing"
        assert setting.slots.done(lease)

    @pytest.mark.parametrize("write", REPEATABLE)
    def test_a_write_that_was_sent_twice_is_as_one(self, patient: Database, write: str) -> None:
        stored = []
        for times in (1, 2):
            setting = SlotSetting(patient, 3)
            lease = setting.bound(setting.claim("a"), 7)
            with unheard(patient, *range(1, times)) as broken:
                REPEATABLE[write](setting.slots, lease)
            assert len(broken) == times - 1
            stored.append([*(without_times(setting.row(slot)) for slot in present(setting))])
        assert stored[0] == stored[1]

    def test_making_slots_twice_makes_them_once(self, patient: Database) -> None:
        slots = Slots(patient, next(STUDIES))
        with unheard(patient, 1) as broken:
            slots.ensure(4)
        assert broken == [1]
        assert slots.counts(None) == SlotCounts(open=4)


def present(setting: SlotSetting) -> range:
    return range(setting.slots.total())


def without_times(row: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in row.items() if name not in ("expires_at", "study_id")}


# ---------------------------------------------------------------------------------------------- the fence


@pytest.fixture
def own(database_url: str) -> Iterator[Database]:
    """A worker's own view of the database: what it fences there, `database` does not feel."""
    with opened(database_url, PATIENT) as database:
        yield database


class Worker:
    """A worker in the middle of the first trial of its sweep."""

    def __init__(self, own: Database, database: Database, lease_s: float = 60.0) -> None:
        self.name = make_sweep(database).spec.name
        self.sweep: Sweep = open_sweep(own, self.name, lease_s)
        self.slots, self.study = self.sweep.slots, self.sweep.study
        self.others = open_sweep(database, self.name).slots
        lease = self.slots.claim("me", 10)
        assert lease is not None
        self.lease = lease
        self.trial = self.sweep.start(lease)
        self.trial.report(4.0, 1)
        self.trial.report(4.0, 3)

    def report(self, loss: float, milestone: int) -> None:
        self.trial.storage.set_trial_intermediate_value(self.trial._trial_id, milestone, loss)

    def losses(self) -> dict[int, float]:
        return self.study.get_trials()[0].intermediate_values

    def row(self) -> dict[str, object]:
        return slot_row(self.slots.database, self.slots.study_id, 0)

    def expire(self) -> None:
        set_slot(self.slots.database, self.slots.study_id, 0, expires_at=0.0)


def suggest_dropout(worker: Worker) -> None:
    worker.trial.suggest_float("dropout", 0.0, 0.4)


THROUGH_OPTUNA: dict[str, Callable[[Worker], object]] = {
    "report": lambda worker: worker.trial.report(3.0, 4),
    "report again": lambda worker: worker.report(3.0, 1),
    "attribute": lambda worker: worker.trial.set_user_attr("hpo:note", "text"),
    "system attribute": lambda worker: worker.trial.storage.set_trial_system_attr(
        worker.trial._trial_id, "note", "text"
    ),
    "parameter": suggest_dropout,
    "constraint": lambda worker: worker.trial.set_constraint("diverged", 1.0),
    "rung": lambda worker: worker.trial.should_prune(),
    "value": lambda worker: worker.study.tell(worker.trial, 4.0),
    "pruned": lambda worker: worker.study.tell(worker.trial, state=optuna.trial.TrialState.PRUNED),
    "finalize": lambda worker: worker.sweep.finalize(worker.lease, worker.trial.number, COMPLETE),
    "another trial": lambda worker: worker.sweep.storage.create_new_trial(worker.sweep.study_id),
    "another trial as the program makes it": lambda worker: worker.sweep.start(
        dataclasses.replace(worker.lease, trial_number=None)
    ),
    "ask": lambda worker: worker.study.ask(),
    "study's attribute": lambda worker: worker.study.set_user_attr("note", "text"),
}


class TestFence:
    @pytest.mark.parametrize("write", THROUGH_OPTUNA)
    def test_a_worker_that_lost_its_lease_changes_nothing_through_optuna(
        self, own: Database, database: Database, write: str
    ) -> None:
        worker = Worker(own, database, lease_s=-1.0)
        assert worker.others.claim("other", 10) is not None
        before = contents(database)
        with worker.sweep.sessions.under(worker.lease):
            for _ in range(2):
                with pytest.raises(LeaseLost):
                    THROUGH_OPTUNA[write](worker)
                assert contents(database) == before

    @pytest.mark.parametrize("write", [each for each in THROUGH_OPTUNA if "as the program" not in each])
    def test_a_write_of_the_holder_through_optuna_renews_the_lease(
        self, own: Database, database: Database, write: str
    ) -> None:
        worker = Worker(own, database)
        worker.expire()
        before = contents(database)
        with worker.sweep.sessions.under(worker.lease):
            THROUGH_OPTUNA[write](worker)
        expires_at = worker.row()["expires_at"]
        assert expires_at is None if write == "finalize" else expires_at > time.time() + 50  # type: ignore[operator]
        changed = {name for name, rows in contents(database).items() if rows != before[name]}
        assert changed > {"hpo_slots"}

    def test_reads_are_free_and_renew_nothing(self, own: Database, database: Database) -> None:
        worker = Worker(own, database, lease_s=-1.0)
        before = worker.row()
        with worker.sweep.sessions.under(worker.lease):
            read(worker)
            assert worker.row() == before
        assert worker.others.claim("other", 10) is not None
        with worker.sweep.sessions.under(worker.lease):
            read(worker)
            with pytest.raises(LeaseLost):
                worker.trial.set_user_attr("note", "text")
            read(worker)

    def test_after_a_write_that_failed_reads_are_as_free_as_before(self, own: Database, database: Database) -> None:
        worker = Worker(own, database, lease_s=-1.0)
        assert worker.others.claim("other", 10) is not None
        with worker.sweep.sessions.under(worker.lease):
            with broken_statement(own, "INSERT INTO trial_user_attributes"), pytest.raises(StorageInternalError):
                worker.trial.set_user_attr("note", "text")
            read(worker)

    def test_nothing_is_fenced_afterwards_nor_elsewhere(self, own: Database, database: Database) -> None:
        worker = Worker(own, database, lease_s=-1.0)
        assert worker.others.claim("other", 10) is not None
        elsewhere = open_sweep(database, worker.name)
        with worker.sweep.sessions.under(worker.lease):
            elsewhere.study.set_user_attr("note", "text")
            with pytest.raises(RuntimeError, match="in the trial"), worker.sweep.sessions.under(worker.lease):
                raise RuntimeError("in the trial")
        worker.report(3.0, 4)
        assert worker.losses() == {1: 4.0, 3: 4.0, 4: 3.0}

    def test_a_fence_may_be_put_up_and_taken_down_again(self, own: Database, database: Database) -> None:
        worker = Worker(own, database)
        for milestone in range(4, 8):
            with worker.sweep.sessions.under(worker.lease):
                worker.report(3.0, milestone)
        assert len(worker.losses()) == 6

    def test_holding_is_the_fence_and_the_timer(self, own: Database, database: Database) -> None:
        worker = Worker(own, database)
        with worker.sweep.holding(worker.lease):
            worker.report(3.0, 4)
            worker.expire()
            assert worker.others.claim("other", 10) is not None
            with pytest.raises(LeaseLost):
                worker.report(3.0, 5)
        assert not renewers()

    def test_what_is_held_is_renewed(self, own: Database, database: Database) -> None:
        worker = Worker(own, database, lease_s=0.3)
        renewed = threading.Event()
        with worker.sweep.holding(worker.lease, on_renewal=renewed.set):
            assert renewed.wait(20)

    def test_a_threads_writes_are_fenced_too(self, own: Database, database: Database) -> None:
        worker = Worker(own, database, lease_s=-1.0)
        assert worker.others.claim("other", 10) is not None
        with worker.sweep.sessions.under(worker.lease), ThreadPoolExecutor(1) as thread:
            assert type(thread.submit(worker.report, 3.0, 4).exception()) is LeaseLost

    def test_a_claim_that_meets_a_report_gets_nothing(self, own: Database, database: Database) -> None:
        worker = Worker(own, database)
        worker.expire()
        with ThreadPoolExecutor(2) as threads, worker.sweep.sessions.under(worker.lease), Pause(own.engine) as pause:
            report = threads.submit(worker.report, 3.0, 4)
            assert pause.reached.wait(30)
            with first_statement(database.engine) as sent:
                claim = threads.submit(worker.others.claim, "other", 1)
                assert sent.wait(30)
            pause.go_on.set()
            assert report.result(30) is None
            assert claim.result(30) is None
        assert worker.losses()[4] == 3.0
        assert worker.row()["owner"] == "me"

    def test_a_report_that_meets_a_claim_is_refused(self, own: Database, database: Database) -> None:
        worker = Worker(own, database)
        worker.expire()
        with (
            ThreadPoolExecutor(2) as threads,
            worker.sweep.sessions.under(worker.lease),
            Pause(database.engine) as pause,
        ):
            claim = threads.submit(worker.others.claim, "other", 1)
            assert pause.reached.wait(30)
            with first_statement(own.engine) as sent:
                report = threads.submit(worker.report, 3.0, 4)
                assert sent.wait(30)
            pause.go_on.set()
            lease = claim.result(30)
            assert type(report.exception(30)) is LeaseLost
        assert lease is not None
        assert lease.fencing_token == 2
        assert worker.losses() == {1: 4.0, 3: 4.0}


def read(worker: Worker) -> None:
    """All that a worker reads through Optuna."""
    assert len(worker.study.get_trials()) == 1
    assert worker.trial.storage.get_trial(worker.trial._trial_id).number == 0
    assert worker.trial.user_attrs[TRIAL_SLOT] == 0
    assert worker.study.user_attrs
    assert worker.sweep.best() is None
    assert not worker.sweep.stopped_improving()
    assert worker.sweep.storage.get_all_studies()


@contextlib.contextmanager
def first_statement(engine: sa.Engine) -> Iterator[threading.Event]:
    """Set once the engine sends a statement that writes."""
    sent = threading.Event()

    def note(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith(("INSERT", "UPDATE")):
            sent.set()

    sa.event.listen(engine, "before_cursor_execute", note)
    yield sent
    sa.event.remove(engine, "before_cursor_execute", note)


@contextlib.contextmanager
def broken_statement(database: Database, begin: str) -> Iterator[None]:
    """Let statements that begin so fail for a reason that no repetition mends."""

    def fail(connection: object, cursor: object, statement: str, *rest: object) -> None:
        if statement.startswith(begin):
            raise sa.exc.OperationalError(statement, {}, Exception("disk is full"))

    sa.event.listen(database.engine, "before_cursor_execute", fail)
    yield
    sa.event.remove(database.engine, "before_cursor_execute", fail)


finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@given(
    st.builds(
        TrialResult,
        state=st.sampled_from(["COMPLETE", "PRUNED", "FAIL"]),
        values=st.lists(finite, max_size=2).map(tuple),
        violations=st.lists(st.text(max_size=5), max_size=2).map(tuple),
        attributes=st.dictionaries(st.text(max_size=5), plain, max_size=3),
    )
)
def test_a_result_survives_the_way_through_json(result: TrialResult) -> None:
    assert TrialResult.from_json(result.to_json()) == result
