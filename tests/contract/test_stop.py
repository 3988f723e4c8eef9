"""How a run ends before its total: signals and time limits here, `hpo stop` wherever workers are."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import torch
from optuna.trial import TrialState

import hpo.worker.worker
from hpo.database.connection import Database
from hpo.errors import StorageError
from hpo.executors.stop import Stop, StopLevel
from hpo.home import Home
from hpo.study.search_space import suggest
from hpo.sweep.slots import SlotCounts, Slots
from hpo.sweep.sweep import Sweep
from hpo.worker.messages import Event, WorkerSpec
from hpo.worker.worker import work
from hpo_model.data.tokens import TokenizedCorpus
from hpo_reports.records.names import TRIAL_CONTINUED
from tests.support.sweeps import COMPLETE, TINY_RUN, lost_connection, make_sweep, run_slot


def test_no_stop_is_requested_at_first() -> None:
    stop = Stop()
    assert stop.level is StopLevel.NONE
    assert stop.reason == ""


def test_a_level_never_falls_and_the_first_reason_stands() -> None:
    stop = Stop()
    stop.request_stop(StopLevel.GRACEFUL, "a fault")
    stop.request_stop(StopLevel.IMMEDIATE, "Ctrl-C")
    stop.request_stop(StopLevel.GRACEFUL, "SIGTERM")
    assert stop.level is StopLevel.IMMEDIATE
    assert stop.reason == "a fault"


def test_a_time_limit_that_has_passed_is_a_graceful_stop() -> None:
    stop = Stop(timeout_s=-1.0)
    assert stop.level is StopLevel.GRACEFUL
    assert stop.reason == "the time limit is over"


def test_a_time_limit_ahead_is_no_stop() -> None:
    assert Stop(timeout_s=3600.0).level is StopLevel.NONE


def test_a_time_limit_does_not_soften_an_immediate_stop() -> None:
    stop = Stop(timeout_s=-1.0)
    stop.request_stop(StopLevel.IMMEDIATE, "Ctrl-C")
    assert stop.level is StopLevel.IMMEDIATE
    assert stop.reason == "Ctrl-C"


@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_the_first_signal_is_graceful_and_the_second_immediate(
    number: signal.Signals, name: str, log: list[str]
) -> None:
    stop = Stop()
    with stop.on_signals():
        signal.raise_signal(number)
        assert stop.level is StopLevel.GRACEFUL
        signal.raise_signal(number)
        assert stop.level is StopLevel.IMMEDIATE
        signal.raise_signal(number)
    assert stop.level is StopLevel.IMMEDIATE
    assert stop.reason == name
    assert len(log) == 1
    assert log[0].startswith(f"{name}: workers leave at their next evaluation")


def test_signals_of_two_kinds_add_up() -> None:
    stop = Stop()
    with stop.on_signals():
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
    assert stop.level is StopLevel.IMMEDIATE
    assert stop.reason == "SIGTERM"


def test_ctrl_c_after_the_time_limit_is_immediate() -> None:
    stop = Stop(timeout_s=-1.0)
    assert stop.level is StopLevel.GRACEFUL
    with stop.on_signals():
        signal.raise_signal(signal.SIGINT)
    assert stop.level is StopLevel.IMMEDIATE


def test_signals_mean_what_they_did_before_once_the_run_is_over() -> None:
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    during = []

    def run() -> None:
        with Stop().on_signals():
            during.extend(signal.getsignal(number) for number in numbers)
            raise RuntimeError("in the run")

    with pytest.raises(RuntimeError, match="in the run"):
        run()
    assert not set(during) & set(before)
    assert [signal.getsignal(number) for number in numbers] == before


# ---------------------------------------------------------------------------------------------- hpo stop


class Site:
    """A study that really trains, its workers in this process, and what they tell."""

    def __init__(self, database: Database, url: str, root: Path, corpus: TokenizedCorpus) -> None:
        self.sweep: Sweep = make_sweep(database, trials=3, run=TINY_RUN, pruner={"kind": "none"})
        self.url, self.root, self.corpus = url, root, corpus
        self.heard: list[Event] = []
        self.at: dict[str, Callable[[], object]] = {}  # a kind of event: what happens when it is told first

    def send(self, event: Event) -> None:
        self.heard.append(event)
        self.at.pop(event.kind, lambda: None)()

    def stop_wanted(self) -> bool:
        return False

    def kinds(self) -> list[str]:
        return [event.kind for event in self.heard]

    def work(self, stop_requests: int | None = None) -> None:
        facts: dict[str, Any] = {"study_name": self.sweep.spec.name, "total": None, "tokens": self.corpus.folder}
        work(
            WorkerSpec(
                **facts,
                storage_url=self.url,
                home=Home(self.root),
                device="cpu",
                threads=1,
                name="worker-0",
                owner=f"worker-{len(self.heard)}",
                stop_requests=stop_requests,
                lease_s=0.3,  # renewed every tenth of a second, which is when a worker looks for a stop
            ),
            self,
        )


@pytest.fixture
def site(
    sqlite_url: str, open_url: Callable[..., Database], tmp_path: Path, small_corpus: TokenizedCorpus
) -> Iterator[Site]:
    threads = torch.get_num_threads()
    yield Site(open_url(sqlite_url), sqlite_url, tmp_path / "home", small_corpus)
    torch.set_num_threads(threads)  # a worker sets its own


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """Set when a worker has seen that a stop was asked for."""
    found, look = threading.Event(), hpo.worker.worker._Worker.look_for_stop

    def look_and_tell(worker: Any, *slots: Any) -> None:
        look(worker, *slots)
        if worker.stop_requested:
            found.set()

    monkeypatch.setattr(hpo.worker.worker._Worker, "look_for_stop", look_and_tell)
    return found


def test_a_worker_leaves_at_the_evaluation_after_the_stop(site: Site, seen: threading.Event) -> None:
    def stop() -> None:
        site.sweep.row.request_stop()
        assert seen.wait(30)

    site.at["evaluated"] = stop
    site.work()
    assert site.kinds() == ["started", "evaluated"]
    assert site.sweep.slots.counts(None) == SlotCounts(released=1, open=2)
    (trial,) = site.sweep.study.get_trials()
    assert sorted(trial.intermediate_values) == [1]


def test_a_worker_that_starts_after_the_stop_continues_the_trial_that_was_left(
    site: Site, seen: threading.Event
) -> None:
    test_a_worker_leaves_at_the_evaluation_after_the_stop(site, seen)
    site.work()
    assert site.sweep.slots.counts(None) == SlotCounts(done=3)
    first = site.sweep.study.get_trials()[0]
    assert sorted(first.intermediate_values) == [1, 2, 3, 4, 5]
    assert first.user_attrs[TRIAL_CONTINUED] == 1


def test_a_worker_launched_after_the_stop_works(site: Site) -> None:
    site.sweep.row.request_stop()
    site.work(stop_requests=site.sweep.row.stop_requests())
    assert site.sweep.slots.counts(None) == SlotCounts(done=3)


def test_a_worker_launched_before_the_stop_begins_no_trial(site: Site) -> None:
    before = site.sweep.row.stop_requests()
    site.sweep.row.request_stop()
    site.work(stop_requests=before)
    assert site.kinds() == []
    assert site.sweep.slots.counts(None) == SlotCounts(open=3)


def test_a_worker_that_waits_for_others_leaves_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpo.worker.worker, "WAIT_S", 0.001)
    for slot in range(3):
        lease = site.sweep.slots.claim(f"other-{slot}", None)
        assert lease is not None
    site.at["waiting"] = site.sweep.row.request_stop
    site.work()
    assert set(site.kinds()) == {"waiting"}
    assert site.sweep.slots.counts(None) == SlotCounts(leased=3)


def test_a_stop_of_one_study_is_none_of_another(site: Site) -> None:
    other = make_sweep(site.sweep.slots.database, trials=1)
    run_slot(other, COMPLETE)
    site.at["evaluated"] = other.row.request_stop
    site.work()
    assert site.sweep.slots.counts(None) == SlotCounts(done=3)


# ---------------------------------------------------------------------------------------------- ended by somebody else


@pytest.mark.parametrize("begun", ["created", "with its values", "with a report"])
def test_a_trial_that_somebody_else_has_ended_meanwhile_fills_its_slot(site: Site, begun: str) -> None:
    lease = site.sweep.slots.claim("before", None)
    assert lease is not None
    trial = site.sweep.start(lease)
    if begun != "created":
        suggest(site.sweep.spec, trial)
    if begun == "with a report":
        trial.report(5.0, 1)
    site.sweep.slots.release(lease)
    site.sweep.study.tell(0, state=TrialState.FAIL)  # as from the dashboard
    site.work()
    assert site.sweep.slots.counts(None) == SlotCounts(done=3)
    states = [each.state.name for each in site.sweep.study.get_trials()]
    assert states == ["FAIL", "COMPLETE", "COMPLETE"]


# ---------------------------------------------------------------------------------------------- without the database


def test_a_worker_whose_database_was_replaced_does_not_go_on_unseen(site: Site, tmp_path: Path) -> None:
    def replace() -> None:
        (tmp_path / "studies.db").rename(tmp_path / "away.db")

    site.at["finished"] = replace
    with pytest.raises(StorageError, match="was removed or replaced meanwhile"):
        site.work()
    assert site.kinds().count("started") == 1


@pytest.mark.parametrize("wanted", [True, False])
def test_a_worker_that_is_to_leave_does_so_without_the_database_too(
    site: Site, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped = []

    def away(*_: object, **__: object) -> None:
        stopped.append(wanted)
        raise sa.exc.OperationalError("UPDATE", {}, lost_connection(site.sweep.slots.database.engine))

    monkeypatch.setattr(site, "stop_wanted", lambda: any(stopped))
    monkeypatch.setattr(Slots, "claim", away)
    with contextlib.nullcontext() if wanted else pytest.raises(StorageError, match="database is locked"):
        site.work()
    assert stopped
