"""The contract of slots and leases, held by every engine that the program knows."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st
from side_processes import PROCESSES, claim_all
from toy_sweeps import COMPLETE, DIVERGED, ENGINES, FAIL, PRUNED

from hpo.slots import Lease, SlotCounts, Slots, TrialOutcome, renewed
from hpo.storage import Database, open_database

STUDIES = itertools.count(1000)  # ids; a test's slots are those of a study of its own


class SlotSetting:
    """The slots of one study, seen by workers whose leases last, and by one whose leases expire at once."""

    def __init__(self, database: Database, total: int) -> None:
        self.total = total
        self.slots = Slots(database.engine, next(STUDIES), lease_s=60.0)
        self.lapsing = Slots(database.engine, self.slots.study_id, lease_s=-1.0)
        self.slots.create({"uid": "toy"})
        self.slots.ensure(total)

    def claim(self, owner: str) -> Lease:
        lease = self.slots.claim(owner, self.total)
        assert lease is not None
        return lease

    def claim_and_lapse(self, owner: str) -> Lease:
        lease = self.lapsing.claim(owner, self.total)
        assert lease is not None
        return lease

    def bound(self, lease: Lease, trial_number: int) -> Lease:
        assert self.slots.bind(lease, trial_number)
        return lease

    def row(self, slot: int) -> dict[str, object]:
        with self.slots.engine.connect() as connection:
            found = connection.execute(
                sa.text("SELECT * FROM hpo_slots WHERE study_id = :study AND number = :slot"),
                {"study": self.slots.study_id, "slot": slot},
            )
            return dict(found.mappings().one())


@pytest.fixture
def make(database: Database) -> Callable[[int], SlotSetting]:
    return lambda total: SlotSetting(database, total)


class TestClaim:
    def test_new_slots_are_claimed_in_order_and_once(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(3)
        leases = [setting.claim(owner) for owner in ("a", "b", "a")]
        assert leases == [
            Lease(slot=slot, owner=owner, epoch=1, trial_number=None, outcome=None) for slot, owner in enumerate("aba")
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
        setting.slots.release_owner("dead", died=True)
        claimed = [setting.claim("next") for _ in range(5)]
        assert [(lease.slot, lease.trial_number, lease.outcome) for lease in claimed] == [
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
        setting.slots.release_owner("a", died=True)
        assert setting.slots.claim("b", 1) is None

    def test_other_studies_slots_are_not_seen(self, make: Callable[[int], SlotSetting]) -> None:
        one, two = make(1), make(1)
        one.claim("a")
        assert one.slots.claim("b", 1) is None
        assert two.slots.counts(1) == SlotCounts(open=1)
        assert two.claim("a").epoch == 1
        one.slots.release_owner("a", died=True)
        assert one.claim("b").epoch == 2
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
    "bind": lambda slots, lease: slots.bind(lease, 99),
    "renew": lambda slots, lease: slots.renew(lease),
    "finish": lambda slots, lease: slots.finish(lease, COMPLETE),
    "done": lambda slots, lease: slots.done(lease),
    "release": lambda slots, lease: slots.release(lease),
}


class TestLease:
    def test_an_expired_lease_is_taken_over_under_the_next_epoch(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        setting.bound(setting.claim_and_lapse("a"), 7)
        assert setting.claim("b") == Lease(slot=0, owner="b", epoch=2, trial_number=7, outcome=None)

    @pytest.mark.parametrize("taker", ["b", "a"])  # the same worker may claim again what it has lost
    @pytest.mark.parametrize("write", WRITES)
    def test_who_lost_the_lease_writes_nothing(
        self, make: Callable[[int], SlotSetting], write: str, taker: str
    ) -> None:
        setting = make(1)
        stale = setting.claim_and_lapse("a")
        setting.bound(setting.claim(taker), 7)
        before = setting.row(0)
        assert WRITES[write](setting.slots, stale) is False
        assert setting.row(0) == before

    @pytest.mark.parametrize("write", WRITES)
    def test_who_gave_the_slot_back_writes_nothing(self, make: Callable[[int], SlotSetting], write: str) -> None:
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
        assert setting.claim("b") == Lease(slot=0, owner="b", epoch=2, trial_number=7, outcome=None)

    def test_a_finishing_slot_keeps_its_outcome_for_the_next_claimer(self, make: Callable[[int], SlotSetting]) -> None:
        setting = make(1)
        lease = setting.bound(setting.claim("a"), 7)
        assert setting.slots.finish(lease, DIVERGED)
        assert setting.slots.claim("b", 1) is None
        setting.slots.release_owner("a", died=True)
        taken = setting.claim("b")
        assert (taken.epoch, taken.trial_number, taken.outcome) == (2, 7, DIVERGED)
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
        setting.slots.release_owner("dead", died=True)
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
        short = Slots(setting.slots.engine, setting.slots.study_id, lease_s=0.6)
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
        short = Slots(setting.slots.engine, setting.slots.study_id, lease_s=0.03)
        before = setting.row(0)
        with renewed(short, lease):
            wait_until(lambda: not renewers())
        assert setting.row(0) == before

    def test_a_database_that_is_away_for_a_while_ends_nothing(
        self, make: Callable[[int], SlotSetting], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        setting = make(1)
        lease = setting.claim("a")
        short = Slots(setting.slots.engine, setting.slots.study_id, lease_s=0.03)
        answers: list[bool] = []
        renew = short.renew

        def sometimes(lease: Lease) -> bool:
            answers.append(len(answers) >= 2)
            if not answers[-1]:
                raise sa.exc.OperationalError("UPDATE", {}, ConnectionError("server closed the connection"))
            return renew(lease)

        monkeypatch.setattr(short, "renew", sometimes)
        with renewed(short, lease):
            wait_until(lambda: answers.count(True) >= 2)
            assert len(renewers()) == 1


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
        setting.slots.release_owner("live", died=True)
        assert setting.slots.owners() == {11: "finishing"}


class TestRecord:
    def test_the_first_record_stands(self, database: Database) -> None:
        slots = Slots(database.engine, next(STUDIES))
        assert slots.create({"uid": "first", "text": "Φ"}) == {"uid": "first", "text": "Φ"}
        assert slots.create({"uid": "second"}) == {"uid": "first", "text": "Φ"}
        assert slots.record() == {"uid": "first", "text": "Φ"}

    def test_one_of_many_at_once_is_the_first(self, database: Database) -> None:
        slots = Slots(database.engine, next(STUDIES))
        slots.create({})  # the tables are there
        slots = Slots(database.engine, next(STUDIES))
        start = threading.Barrier(6)

        def create(place: int) -> object:
            start.wait(30)
            return slots.create({"place": place})["place"]

        with ThreadPoolExecutor(6) as threads:
            standing = set(threads.map(create, range(6)))
        assert len(standing) == 1
        assert slots.record() == {"place": standing.pop()}

    def test_a_study_of_another_program_has_no_record(self, database: Database) -> None:
        assert Slots(database.engine, next(STUDIES)).record() is None

    @pytest.mark.parametrize("engine", ENGINES)
    def test_a_database_without_our_tables_has_no_record(self, engine: str, new_url: Callable[[str], str]) -> None:
        bare = sa.create_engine(new_url(engine))
        assert Slots(bare, 1).record() is None
        bare.dispose()

    @pytest.mark.parametrize(
        "engine",
        [
            "sqlite",
            "postgresql",
        ],
    )
    def test_the_tables_may_be_made_by_many_at_once(self, engine: str, new_url: Callable[[str], str]) -> None:
        for _ in range(3):
            opened = open_database(new_url(engine), create=True)
            start = threading.Barrier(4)

            def create(place: int, opened: Database = opened, start: threading.Barrier = start) -> object:
                start.wait(30)
                return Slots(opened.engine, 1).create({"place": place})["place"]

            try:
                with ThreadPoolExecutor(4) as threads:
                    assert len(set(threads.map(create, range(4)))) == 1
            finally:
                opened.engine.dispose()


finite = st.floats(allow_nan=False, allow_infinity=False)
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | finite | st.text(), lambda inner: st.lists(inner, max_size=3)
)


@given(
    st.builds(
        TrialOutcome,
        state=st.sampled_from(["COMPLETE", "PRUNED", "FAIL"]),
        values=st.lists(finite, max_size=2).map(tuple),
        violations=st.lists(st.text(max_size=5), max_size=2).map(tuple),
        attributes=st.dictionaries(st.text(max_size=5), plain, max_size=3),
    )
)
def test_an_outcome_waits_unchanged_in_its_slot(outcome: TrialOutcome) -> None:
    assert TrialOutcome.from_json(outcome.to_json()) == outcome
