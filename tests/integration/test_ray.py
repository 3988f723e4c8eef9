"""Workers on a real Ray cluster of two nodes on this machine, whose processes and nodes die."""

from __future__ import annotations

import contextlib
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import hpo.executors.ray
import hpo.executors.ray_cluster
import hpo.executors.supervisor
from hpo.errors import WorkerError
from hpo.executors.ray import run_ray
from hpo.executors.ray_cluster import NodeShare, capacity, connected, has_gpus, import_ray
from hpo.executors.stop import Stop, StopLevel
from hpo.sweep.slots import Slots
from hpo.worker.messages import Event, WorkerSpec
from hpo_model.data.tokens import TokenizedCorpus
from tests.support.far_workers import FarStudy, wait_until
from tests.support.own_files import write_own_files

Make = Callable[..., FarStudy]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head of one core; tests add nodes."""
    import_ray()
    from ray.cluster_utils import Cluster

    settings = {
        # Else a node dies for 15 s
        "health_check_initial_delay_ms": 500,
        "health_check_period_ms": 500,
        # Else the other tests, which run beside these, take the processor first
        "worker_niceness": 0,
    }
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": settings}
    made = Cluster(initialize_head=True, head_node_args=head)
    yield made
    made.shutdown()


@pytest.fixture(scope="module")
def second_node(cluster: Any) -> Iterator[Any]:
    """A node of one core for all tests, until the last one loses it."""
    node = cluster.add_node(num_cpus=1)
    yield node
    if node in cluster.worker_nodes:
        cluster.remove_node(node)


@pytest.fixture
def far_study(sqlite_url: str, tmp_path: Path, small_corpus: TokenizedCorpus) -> Iterator[Make]:
    made: list[FarStudy] = []

    def make(
        *, trials: int, lease_s: float = 600.0, **run: Any
    ) -> FarStudy:  # no lease expires: somebody gives it back
        made.append(FarStudy(sqlite_url, tmp_path, small_corpus, trials=trials, lease_s=lease_s, **run))
        return made[-1]

    yield make
    for study in made:
        study.close()


class Run:
    """A run, what it told, and the leases that its supervisor gave back."""

    def __init__(self, cluster: Any, study: FarStudy, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cluster, self.study = cluster, study
        self.stop = Stop()
        self.events: list[Event] = []
        self.freed: list[tuple[str, bool]] = []
        self.pulses = 0
        self.hear: Callable[[Event], None] = lambda event: None
        self.look: Callable[[], None] = lambda: None
        release = Slots.release_owner

        def note(slots: Slots, owner: str, *, crashed: bool) -> None:
            self.freed.append((owner.partition("@")[0], crashed))
            release(slots, owner, crashed=crashed)

        monkeypatch.setattr(Slots, "release_owner", note)

    def go(self, specs: list[tuple[WorkerSpec, Path]], *, cpus_per_worker: int = 1) -> None:
        def on_event(event: Event) -> None:
            self.events.append(event)
            self.hear(event)

        def on_pulse() -> None:
            self.pulses += 1
            self.look()

        run_ray(
            specs,
            self.study.sweep.slots,
            on_event,
            on_pulse,
            self.stop,
            address=self.cluster.address,
            cpus_per_worker=cpus_per_worker,
            gpus_per_worker=0,
        )

    def kinds(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]

    def waited(self, workers: int) -> str:
        """The one of so many workers that never began a trial."""
        (name,) = {f"worker-{number}" for number in range(workers)} - {event.worker for event in self.kinds("started")}
        return name

    def when_both_have_a_checkpoint(self, act: Callable[[], None]) -> None:
        """Do something once, while two trials are under way."""
        done: list[bool] = []

        def look() -> None:
            if not done and self.study.under_way() == 2:
                done.append(True)
                act()

        self.look = look


@pytest.fixture
def start(cluster: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[[FarStudy], Run]:
    return lambda study: Run(cluster, study, monkeypatch)


def processes_on(node: Any) -> list[psutil.Process]:
    """The workers' processes on a node of the cluster."""
    (raylet,) = node.all_processes["raylet"]
    found = []
    for each in psutil.Process(raylet.process.pid).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it has ended meanwhile; a zombie counts as that
            if "RayWorker" in " ".join(each.cmdline()):
                found.append(each)
    return found


@pytest.mark.usefixtures("second_node")
class TestOnTwoNodes:
    def test_a_study_ends_with_its_exact_total(self, far_study: Make, start: Callable[[FarStudy], Run]) -> None:
        study = far_study(trials=4)
        run = start(study)
        handler = signal.getsignal(signal.SIGTERM)
        run.go(study.specs(2))
        study.assert_exact()
        assert {event.worker for event in run.kinds("finished")} == {"worker-0", "worker-1"}
        assert len(run.kinds("evaluated")) == 4 * 5
        assert run.pulses > 3
        assert run.freed == []
        assert signal.getsignal(signal.SIGTERM) is handler

    def test_a_users_own_files_take_the_place_of_no_module(
        self, far_study: Make, start: Callable[[FarStudy], Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        write_own_files(tmp_path)
        monkeypatch.chdir(tmp_path)
        study = far_study(trials=1)
        start(study).go(study.specs(1))
        study.assert_exact()

    def test_a_killed_worker_is_started_again_and_its_trial_goes_on(
        self, far_study: Make, start: Callable[[FarStudy], Run], second_node: Any
    ) -> None:
        study = far_study(trials=3, budget_tokens=20_000)
        run = start(study)

        def kill() -> None:
            (process,) = processes_on(second_node)
            process.kill()

        run.when_both_have_a_checkpoint(kill)
        run.go(study.specs(2))
        study.assert_exact()
        assert study.continued()
        (restarted,) = run.kinds("restarted")
        assert "worker process has died" in restarted.message
        assert "it is started again" in restarted.message
        assert len(restarted.message) < 500
        assert (restarted.worker, True) in run.freed

    def test_a_graceful_stop_lets_workers_leave_at_their_next_evaluation(
        self, far_study: Make, start: Callable[[FarStudy], Run]
    ) -> None:
        study = far_study(trials=4, budget_tokens=40_000)
        run = start(study)
        run.when_both_have_a_checkpoint(lambda: run.stop.request_stop(StopLevel.GRACEFUL, "a test"))
        run.go(study.specs(3))  # one of them waits for room
        counts = study.sweep.slots.counts(4)
        assert (counts.done, counts.leased, counts.released, counts.open) == (0, 0, 2, 2)
        assert run.freed == [(run.waited(3), False)]
        Run.go(start(study), study.specs(2))
        study.assert_exact()
        assert len(study.continued()) == 2

    @pytest.mark.nightly
    def test_an_immediate_stop_ends_workers_and_frees_their_leases(
        self, far_study: Make, start: Callable[[FarStudy], Run], cluster: Any, second_node: Any
    ) -> None:
        study = far_study(trials=4, budget_tokens=400_000)
        run = start(study)
        run.when_both_have_a_checkpoint(lambda: run.stop.request_stop(StopLevel.IMMEDIATE, "a test"))
        run.go(study.specs(2))
        assert sorted(run.freed) == [("worker-0", False), ("worker-1", False)]
        assert study.sweep.slots.counts(4).released == 2
        wait_until("no worker runs", lambda: not processes_on(cluster.head_node) + processes_on(second_node))

    @pytest.mark.nightly
    def test_hpo_stop_lets_each_worker_reach_its_next_evaluation(
        self, far_study: Make, start: Callable[[FarStudy], Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            hpo.executors.supervisor, "STRAGGLERS_S", 0.0
        )  # the first to leave is no sign that all is done
        study = far_study(trials=4, lease_s=3.0, budget_tokens=400_000)
        run = start(study)
        run.when_both_have_a_checkpoint(study.sweep.row.request_stop)
        run.go(study.specs(2))
        assert run.freed == []
        assert study.sweep.slots.counts(4).released == 2

    @pytest.mark.nightly
    def test_a_worker_that_cannot_go_on_ends_the_run_and_the_other_leaves(
        self, far_study: Make, start: Callable[[FarStudy], Run]
    ) -> None:
        study = far_study(trials=4, budget_tokens=100_000)
        run = start(study)
        (spec, log), (other, _) = study.specs(2)
        nowhere = study.home.root / "nowhere"
        faulty = study.specs(2, tokens=nowhere)[1]
        assert faulty[0].name == other.name
        with pytest.raises(WorkerError, match=rf"\A{nowhere}[^\n]*\Z"):
            run.go([(spec, log), faulty])
        assert study.sweep.slots.counts(4).leased == 0
        assert run.kinds("fatal")[0].worker == "worker-1"
        assert "Traceback" in faulty[1].read_text(encoding="utf-8")

    @pytest.mark.nightly
    def test_a_worker_that_dies_again_and_again_ends_the_run(
        self, far_study: Make, start: Callable[[FarStudy], Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hpo.executors.supervisor, "RESTARTS", 1)
        study = far_study(trials=1)
        run = start(study)
        file = study.home.root / "file"
        file.parent.mkdir(parents=True)
        file.touch()
        with pytest.raises(WorkerError, match=r"FileExistsError.*it died 2 times, so the run ends here"):
            run.go([(study.specs(1)[0][0], file / "worker.log")])
        assert len(run.kinds("restarted")) == 1
        assert study.sweep.slots.counts(1).open == 1

    def test_a_node_without_the_installation_ends_the_run(
        self, far_study: Make, start: Callable[[FarStudy], Run], cluster: Any, tmp_path: Path
    ) -> None:
        package = tmp_path / "broken" / "torch"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("raise ModuleNotFoundError('no torch')", encoding="utf-8")
        node = cluster.add_node(num_cpus=2, env_vars={"PYTHONPATH": str(package.parent)})
        try:
            with pytest.raises(
                WorkerError, match=r"\Aworker-0 cannot begin: ModuleNotFoundError: no torch; every node"
            ):
                start(study := far_study(trials=1)).go(study.specs(1), cpus_per_worker=2)
        finally:
            cluster.remove_node(node)

    def test_workers_that_find_no_room_say_so_and_are_dismissed_at_the_end(
        self, far_study: Make, start: Callable[[FarStudy], Run], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hpo.executors.ray, "ROOM_S", 0.5)
        study = far_study(trials=3, budget_tokens=20_000)
        run = start(study)
        run.go(study.specs(3))
        study.assert_exact()
        (said,) = [event.message for event in run.kinds("warned") if event.worker == run.waited(3)]
        assert said == "has not begun: it takes 1 CPU, and 0 CPUs of the Ray cluster are free"

    def test_workers_that_no_node_can_hold_are_refused(self, far_study: Make, start: Callable[[FarStudy], Run]) -> None:
        study = far_study(trials=1)
        with pytest.raises(WorkerError, match=r"can hold a worker, which takes 2 CPUs: they have 1 CPU\Z"):
            start(study).go(study.specs(1), cpus_per_worker=2)

    def test_capacity_is_what_nodes_can_hold(self, cluster: Any) -> None:
        assert capacity(cluster.address, 0.5) == 2
        assert capacity(cluster.address, 0.5, cpus_per_worker=2) == 0
        assert not has_gpus(cluster.address)
        node = cluster.add_node(num_cpus=3, num_gpus=1)
        try:
            assert has_gpus(cluster.address)
            assert capacity(cluster.address, 0.25) == 3
            assert capacity(cluster.address, 0.5) == 2
            assert capacity(cluster.address, 0) == 5
        finally:
            cluster.remove_node(node)

    def test_a_lost_node_costs_no_trial_and_is_not_held_against_one(
        self,
        far_study: Make,
        start: Callable[[FarStudy], Run],
        second_node: Any,
        cluster: Any,
        capfd: pytest.CaptureFixture[str],
    ) -> None:
        study = far_study(trials=4, budget_tokens=20_000)
        run = start(study)
        run.when_both_have_a_checkpoint(lambda: cluster.remove_node(second_node, allow_graceful=False))
        run.go(study.specs(2))
        study.assert_exact()
        assert study.continued()
        (restarted,) = run.kinds("restarted")
        assert "its node has died" in restarted.message
        assert "\n" not in restarted.message
        assert (restarted.worker, False) in run.freed
        assert not any(died for _, died in run.freed)
        assert capfd.readouterr() == ("", "")


def test_a_worker_computes_on_its_share_of_its_node(tmp_path: Path, sqlite_url: str) -> None:
    from hpo.home import Home

    spec = WorkerSpec(
        storage_url=sqlite_url, study_name="toy", total=1, home=Home(tmp_path), device="cuda:5", threads=9, name="w"
    )
    half = NodeShare(cpus=2, gpus=0.5).apply(spec)
    assert (half.device, half.threads, half.memory_fraction) == ("cuda:0", 2, 0.5)
    none = NodeShare(cpus=3, gpus=0).apply(spec)
    assert (none.device, none.threads, none.memory_fraction) == ("cpu", 3, 1.0)


class TestNoCluster:
    """One line, soon."""

    def refusal(self, address: str | None) -> str:
        began = time.monotonic()
        with pytest.raises(WorkerError, match=r"\A[^\n]+\Z") as caught, connected(address):
            pass
        assert time.monotonic() - began < 15
        return str(caught.value)

    def test_an_address_where_nothing_listens(self) -> None:
        with socket.socket() as taken:  # bound, and deaf
            taken.bind(("127.0.0.1", 0))
            assert "no Ray cluster at 127.0.0.1:" in self.refusal(f"127.0.0.1:{taken.getsockname()[1]}")

    def test_an_address_of_something_else(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(hpo.executors.ray_cluster, "PROBE_S", 5.0)
        with socket.create_server(("127.0.0.1", 0)) as other:
            assert "something else listens there" in self.refusal(f"127.0.0.1:{other.getsockname()[1]}")

    def test_an_address_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("RAY_ADDRESS", "nowhere.invalid:6379")
        assert "no Ray cluster at nowhere.invalid:6379" in self.refusal(None)

    @pytest.mark.parametrize("address", ["nonsense", "ray://127.0.0.1:10001"])
    def test_an_address_of_another_kind(self, address: str) -> None:
        assert address in self.refusal(address)

    def test_an_installation_without_the_extra(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setitem(sys.modules, "ray", None)
        assert self.refusal(None) == "the Ray executor needs Ray: pip install 'assay-hpo[ray]'"
