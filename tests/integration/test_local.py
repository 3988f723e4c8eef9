"""Workers as processes of this machine: what becomes of them when they end, die, hang or are stopped."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

import hpo.executors.supervisor
from hpo.database.connection import Database
from hpo.errors import WorkerError
from hpo.executors.local import Work, run_local
from hpo.executors.stop import Stop, StopLevel
from hpo.executors.supervisor import RESTARTS
from hpo.home import Home
from hpo.sweep.slots import SlotCounts
from hpo.sweep.sweep import Sweep
from hpo.worker.messages import Event, WorkerSpec
from tests.support.side_processes import (
    cannot_go_on,
    dies_after_progress,
    dies_always,
    dies_once,
    dies_over_its_trial,
    dies_when_stopped,
    hangs,
    leaves,
    waits_for_stop,
    works_on,
)
from tests.support.sweeps import lost_connection, make_sweep, slot_row

Open = Callable[..., Database]


class Crew:
    """Workers of one sweep, and what was heard of them."""

    def __init__(self, sweep: Sweep, url: str, root: Path) -> None:
        self.sweep, self.root, self.stop = sweep, root, Stop()
        self.slots: Any = sweep.slots
        self.url = url
        self.heard: list[Event] = []
        self.pulses = 0
        self.at_pulse: Callable[[], object] = lambda: None

    def specs(self, workers: int) -> list[tuple[WorkerSpec, Path]]:
        names = [f"worker-{number}" for number in range(workers)]
        facts = {"storage_url": self.url, "study_name": self.sweep.spec.name, "total": None, "home": Home(self.root)}
        return [
            (WorkerSpec(**facts, device="cpu", threads=1, name=name), self.root / "logs" / f"{name}.log")  # type: ignore[arg-type]
            for name in names
        ]

    def run(self, work: Work, workers: int = 1) -> None:
        run_local(self.specs(workers), self.slots, self.heard.append, self.pulse, self.stop, work=work)

    def pulse(self) -> None:
        self.pulses += 1
        self.at_pulse()

    def processes(self, worker: str = "worker-0") -> list[dict[str, Any]]:
        """Traces of a worker's processes, one after the other."""
        count = len(list(self.root.glob(f"{worker}-*")))
        return [json.loads((self.root / f"{worker}-{number}").read_text()) for number in range(count)]

    def left(self, worker: str) -> bool:
        """Whether a worker left of itself."""
        return (self.root / f"left-{worker}").exists()

    def restarts(self) -> list[str]:
        return [event.message for event in self.heard if event.kind == "restarted"]

    def stop_when(self, condition: Callable[[], bool], level: StopLevel = StopLevel.GRACEFUL) -> None:
        self.at_pulse = lambda: condition() and self.stop.request_stop(level, "enough")


@pytest.fixture
def crew(sqlite_url: str, open_url: Open, tmp_path: Path) -> Crew:
    root = tmp_path / "home"
    root.mkdir()
    return Crew(make_sweep(open_url(sqlite_url)), sqlite_url, root)


# ---------------------------------------------------------------------------------------------- ends


def test_the_run_is_over_when_all_have_left(crew: Crew) -> None:
    crew.run(leaves, workers=3)
    assert [len(crew.processes(f"worker-{number}")) for number in range(3)] == [1, 1, 1]
    assert crew.heard == []
    assert crew.pulses


def test_a_stop_is_passed_on_to_each(crew: Crew) -> None:
    crew.stop_when(lambda: len(crew.processes()) == 1)
    crew.run(waits_for_stop, workers=2)
    assert crew.left("worker-0")
    assert crew.left("worker-1")
    assert crew.restarts() == []


def test_a_second_stop_waits_for_nobody(crew: Crew) -> None:
    crew.stop_when(lambda: len(crew.processes()) == 1, StopLevel.IMMEDIATE)
    crew.run(hangs)
    assert not alive(crew.processes()[0]["pid"])


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_fault_of_the_supervisor_ends_its_workers(crew: Crew) -> None:
    def fail() -> None:
        if crew.processes():
            raise ValueError("a defect")

    crew.at_pulse = fail
    with pytest.raises(ValueError, match="a defect"):
        crew.run(hangs)
    assert not alive(crew.processes()[0]["pid"])


def test_a_worker_that_hangs_after_the_others_have_found_all_done_is_ended(
    crew: Crew, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hpo.executors.supervisor, "STRAGGLERS_S", 0.3)
    crew.run(hangs, workers=2)
    assert not alive(crew.processes()[0]["pid"])
    assert crew.restarts() == []


def test_a_worker_on_a_trial_is_not_ended_because_another_has_left(crew: Crew, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpo.executors.supervisor, "STRAGGLERS_S", 0.3)
    others_left: list[int] = []

    def look() -> None:
        if crew.processes("worker-1") and not alive(crew.processes("worker-1")[0]["pid"]) and crew.heard:
            others_left.append(crew.pulses)
        if len(others_left) > 8:  # two seconds later: as after `hpo stop`, where evaluations are far apart
            (crew.root / "evaluated").touch()

    crew.at_pulse = look
    crew.run(works_on, workers=2)
    assert crew.left("worker-0")


# ---------------------------------------------------------------------------------------------- crashes


def test_a_killed_worker_is_started_again_and_its_signal_and_last_output_are_told(crew: Crew) -> None:
    crew.stop_when(lambda: len(crew.processes()) == 2)
    crew.run(dies_once)
    (message,) = crew.restarts()
    assert message.startswith("worker-0 was killed by SIGKILL")
    assert "its last words: no memory is left" in message
    assert str(crew.root / "logs" / "worker-0.log") in message
    assert message.endswith("; it is started again")
    assert crew.left("worker-0")


def test_each_process_has_leases_of_its_own(crew: Crew) -> None:
    crew.stop_when(lambda: len(crew.processes()) == 2)
    crew.run(dies_once)
    first, second = crew.processes()
    assert first["owner"] != second["owner"]
    assert first["owner"].startswith("worker-0@")


def test_a_successor_is_forked_from_a_process_that_has_imported_everything(crew: Crew) -> None:
    crew.stop_when(lambda: len(crew.processes()) == 2)
    crew.run(dies_once)
    first, second = crew.processes()
    assert first["pid"] != second["pid"]
    assert first["parent"] == second["parent"] != os.getpid()
    assert first["module"] == second["module"], "at the same address: imported once, in their parent"


def test_a_dead_worker_s_trial_is_free_at_once_and_its_crash_is_counted(crew: Crew) -> None:
    crew.stop_when(lambda: len(crew.processes()) == 2)
    crew.run(dies_over_its_trial)
    assert crew.sweep.slots.counts(None) == SlotCounts(released=1, open=9)
    row = slot_row(crew.sweep.slots.database, crew.sweep.study_id, 0)
    assert (row["state"], row["owner"], row["crash_count"], row["trial_number"]) == ("open", None, 1, 0)


def test_a_worker_that_dies_again_and_again_ends_the_run(crew: Crew) -> None:
    with pytest.raises(WorkerError) as caught:
        crew.run(dies_always, workers=2)
    assert len(crew.processes()) == RESTARTS + 1
    assert len(crew.restarts()) == RESTARTS
    first, second, third = crew.restarts()[:3]
    assert "worker-0 ended with exit code 1; its last words: ValueError: a defect" in first
    assert "worker-0 was killed by SIGTERM" in second
    assert "a defect" not in second, "those were another process's words"
    assert "worker-0 ended with exit code 3" in third
    assert "worker-0 ended with exit code 3" in str(caught.value)
    assert str(caught.value).endswith(f"it died {RESTARTS + 1} times, so the run ends here")
    assert crew.left("worker-1"), "the others leave at their next evaluation"
    assert crew.stop.reason == "a fault"


def test_a_worker_that_makes_progress_may_die_more_often(crew: Crew) -> None:
    crew.run(dies_after_progress)
    assert len(crew.restarts()) == RESTARTS + 1


def test_a_worker_that_dies_after_a_stop_has_no_successor(crew: Crew) -> None:
    crew.stop_when(lambda: len(crew.processes()) == 1)
    crew.run(dies_when_stopped)
    assert len(crew.processes()) == 1
    assert crew.restarts() == []


def test_a_worker_that_cannot_go_on_says_why_and_the_others_leave(crew: Crew) -> None:
    with pytest.raises(WorkerError, match=r"\Athe database is gone\Z"):
        crew.run(cannot_go_on, workers=2)
    assert crew.left("worker-1")
    assert crew.restarts() == []
    assert "the database is gone" in (crew.root / "logs" / "worker-0.log").read_text()


def test_a_log_that_cannot_be_written_ends_the_run_in_one_line(crew: Crew) -> None:
    (crew.root / "logs").touch()
    with pytest.raises(WorkerError, match=r"\A[^\n]*worker-0\.log: cannot be written \([^\n]+\)\Z"):
        crew.run(leaves)
    assert crew.processes() == []


# ---------------------------------------------------------------------------------------------- leases of the gone


class AwaySlots:
    """Slots in a database that is away, for so many calls or for good."""

    def __init__(self, crew: Crew, times: float, error: Exception | None = None) -> None:
        self.times = times
        self.error = error or sa.exc.OperationalError("UPDATE", {}, lost_connection(crew.sweep.slots.database.engine))
        self.asked: list[tuple[str, bool]] = []
        self.freed: list[tuple[str, bool]] = []

    def without_retry(self) -> AwaySlots:
        return self

    def release_owner(self, owner: str, *, crashed: bool) -> None:
        self.asked.append((owner, crashed))
        if len(self.asked) <= self.times:
            raise self.error
        self.freed.append((owner, crashed))


def test_a_lease_is_freed_at_a_later_pulse_where_the_database_is_away(crew: Crew) -> None:
    crew.slots = slots = AwaySlots(crew, times=3)
    crew.stop_when(lambda: bool(slots.freed))
    crew.run(dies_once)
    first, _ = crew.processes()
    assert slots.freed == [(first["owner"], True)]
    assert slots.asked == [(first["owner"], True)] * 4
    assert len(crew.restarts()) == 1, "nobody waited for the database"


def test_a_database_that_stays_away_does_not_keep_the_run_from_ending(crew: Crew) -> None:
    crew.slots = AwaySlots(crew, times=float("inf"))
    crew.stop_when(lambda: len(crew.processes()) == 2)
    crew.run(dies_once)
    assert crew.left("worker-0")


def test_a_worker_that_was_ended_did_not_crash(crew: Crew) -> None:
    crew.slots = slots = AwaySlots(crew, times=0)
    crew.stop_when(lambda: len(crew.processes()) == 1, StopLevel.IMMEDIATE)
    crew.run(hangs)
    assert slots.freed == [(crew.processes()[0]["owner"], False)]


def test_another_error_of_the_database_is_not_hidden(crew: Crew) -> None:
    crew.slots = AwaySlots(crew, times=1, error=ValueError("a defect"))
    with pytest.raises(ValueError, match="a defect"):
        crew.run(dies_once)
