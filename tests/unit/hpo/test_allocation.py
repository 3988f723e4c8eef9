"""How many workers a machine takes: what was asked for, what fits, what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hpo.executors.allocation
from hpo.errors import UsageError, WorkerError
from hpo.executors.allocation import MIN_SPEEDUP, Demand, allocate, best_count, fitting
from hpo.executors.resources import ResourceRequest, WorkerResources, check_resources, parse_gpus, parse_workers
from hpo.home import Home
from hpo.worker.gpu_share import CONTEXT_BYTES
from hpo_model.data.tokens import TokenizedCorpus
from hpo_model.training.loop import Throughput
from tests.support import side_processes
from tests.support.sweeps import TINY_RUN, make_spec

GIB = 2**30
SPEC = make_spec()


def refusal(work: Callable[[], object]) -> str:
    with pytest.raises(UsageError, match=r"\A[^\n]+\Z") as caught:
        work()
    return str(caught.value)


# ---------------------------------------------------------------------------------------------- what was asked for


@pytest.mark.parametrize(("text", "expected"), [("auto", None), ("0", 0), ("1", 1), ("12", 12)])
def test_workers_are_a_number_or_left_to_measurement(text: str, expected: int | None) -> None:
    assert parse_workers(text) == expected


@pytest.mark.parametrize("text", ["", "-1", "two", "1.5", "2 ", "²", "٣", "Auto"])
def test_anything_else_is_refused(text: str) -> None:
    assert refusal(lambda: parse_workers(text)) == f"--workers takes a number or auto, got {text!r}"


@pytest.mark.parametrize(
    ("text", "expected"), [(None, None), ("0", (0,)), ("0,2", (0, 2)), ("3, 1", (3, 1)), ("10,11", (10, 11))]
)
def test_gpus_are_numbers(text: str | None, expected: tuple[int, ...] | None) -> None:
    assert parse_gpus(text) == expected


@pytest.mark.parametrize("text", ["", ",", "0,", "0,,1", "-1", "cuda:0", "all", "0;1", "²"])
def test_gpus_that_are_no_numbers_are_refused(text: str) -> None:
    assert refusal(lambda: parse_gpus(text)) == f"--gpus takes numbers like 0,2, got {text!r}"


@pytest.mark.parametrize("text", ["0,0", "1,2,1", "1,01"])
def test_a_gpu_is_named_once(text: str) -> None:
    assert refusal(lambda: parse_gpus(text)) == f"--gpus names a GPU twice: {text}"


@pytest.fixture
def all_visible(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


@pytest.mark.parametrize(
    ("request_", "device"),
    [
        (ResourceRequest(), "cpu"),
        (ResourceRequest(workers=0), "cpu"),
        (ResourceRequest(workers=100), "cpu"),
        (ResourceRequest(gpus=(0,)), "cuda"),
        (ResourceRequest(gpus=(1, 0), trials_per_gpu=8), "cuda"),
        (ResourceRequest(gpus=(1,), workers=3), "cuda"),
    ],
)
def test_what_a_machine_has_may_be_asked_for(request_: ResourceRequest, device: str) -> None:
    check_resources(request_, device, 2)


@pytest.mark.usefixtures("all_visible")
@pytest.mark.parametrize(
    ("request_", "device", "words"),
    [
        (ResourceRequest(workers=-1), "cpu", "--workers must be at least 0, got -1"),
        (ResourceRequest(trials_per_gpu=0), "cuda", "--trials-per-gpu must be at least 1, got 0"),
        (ResourceRequest(trials_per_gpu=-2), "cpu", "--trials-per-gpu must be at least 1, got -2"),
        (
            ResourceRequest(workers=2, trials_per_gpu=2),
            "cuda",
            "--workers and --trials-per-gpu both say how many: give one of them",
        ),
        (ResourceRequest(gpus=(0,)), "cpu", "--gpus: there is no GPU"),
        (ResourceRequest(trials_per_gpu=1), "cpu", "--trials-per-gpu: there is no GPU"),
        (ResourceRequest(gpus=(0, 2)), "cuda", "--gpus 2: this process sees GPUs 0 to 1"),
    ],
)
def test_what_a_machine_does_not_have_is_refused(request_: ResourceRequest, device: str, words: str) -> None:
    assert refusal(lambda: check_resources(request_, device, 2)) == words


def test_a_refusal_names_what_the_environment_lets_see(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5")
    message = refusal(lambda: check_resources(ResourceRequest(gpus=(4,)), "cuda", 2))
    assert message == "--gpus 4: this process sees GPUs 0 to 1 (CUDA_VISIBLE_DEVICES=4,5)"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert refusal(lambda: check_resources(ResourceRequest(gpus=(0,)), "cpu")).endswith(
        "no GPU (CUDA_VISIBLE_DEVICES=)"
    )


# ---------------------------------------------------------------------------------------------- what fits


@pytest.mark.parametrize(
    ("memory", "peak", "expected"),
    [
        (80 * GIB, 40 * GIB, 1),  # two would leave no place for their contexts
        (80 * GIB, 40 * GIB - CONTEXT_BYTES, 2),
        (80 * GIB, 40 * GIB - CONTEXT_BYTES + 1, 1),
        (80 * GIB, 80 * GIB, 0),
        (80 * GIB, 0, 80 * GIB // CONTEXT_BYTES),
    ],
)
def test_a_process_takes_its_trial_s_peak_and_its_context(memory: int, peak: int, expected: int) -> None:
    assert fitting(memory, peak) == expected


@pytest.mark.parametrize(
    ("speeds", "expected"),
    [
        ({1: 100.0}, 1),
        ({1: 100.0, 2: 100.0, 4: 90.0}, 1),
        ({1: 100.0, 2: 100.0 * MIN_SPEEDUP}, 1),  # not worth it
        ({1: 100.0, 2: 101.0 * MIN_SPEEDUP}, 2),
        ({1: 100.0, 2: 150.0, 4: 155.0}, 2),
        ({1: 100.0, 2: 103.0, 4: 106.0}, 4),
        ({1: 100.0, 2: 90.0, 4: 200.0}, 4),
        ({4: 200.0, 1: 100.0, 2: 195.0}, 2),
    ],
)
def test_more_workers_have_to_be_worth_it(speeds: dict[int, float], expected: int) -> None:
    assert best_count(speeds) == expected


@given(st.dictionaries(st.integers(1, 64), st.floats(1.0, 1e6), min_size=1))
def test_no_larger_number_is_much_faster_than_the_chosen_one(speeds: dict[int, float]) -> None:
    chosen = best_count(speeds)
    assert all(speed <= MIN_SPEEDUP * speeds[chosen] for count, speed in speeds.items() if count > chosen)
    assert all(speed < speeds[chosen] for count, speed in speeds.items() if count < chosen)


# ---------------------------------------------------------------------------------------------- places on GPUs


class Machine:
    """Stands for what a machine has and how fast it is."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, log: list[str]) -> None:
        self.cores, self.gpus, self.memory = 16, 2, {0: 80 * GIB, 1: 80 * GIB, 2: 24 * GIB}
        self.peak: int | None = 10 * GIB
        self.speed: Callable[[int], float] = lambda count: 1000.0 * count
        self.benchmarks: list[list[tuple[str, int]]] = []
        self.said = log
        monkeypatch.setattr(hpo.executors.allocation, "cpu_cores", lambda: self.cores)
        monkeypatch.setattr(hpo.executors.allocation, "gpu_count", lambda: self.gpus)
        monkeypatch.setattr(hpo.executors.allocation, "gpu_memory", lambda gpu: self.memory[gpu])
        monkeypatch.setattr(hpo.executors.allocation, "_benchmark", self.benchmark)

    def benchmark(self, *asked: Any) -> list[Throughput]:
        devices: list[tuple[str, int]] = asked[-1]
        self.benchmarks.append(devices)
        each = self.speed(len(devices)) / len(devices)
        return [Throughput(tokens_per_s=each, peak_memory_bytes=self.peak)] * len(devices)

    def allocate(
        self, cache: Path, device: str = "cuda", peak: int | None = None, **options: Any
    ) -> list[WorkerResources]:
        total, spec = options.pop("total", 100), options.pop("spec", SPEC)
        demand = Demand(trials=total, spec=spec, corpus=CORPUS, peak_memory_bytes=peak)
        return allocate(ResourceRequest(**options), demand, device, Home(cache))


CORPUS: Any = object()


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, log: list[str]) -> Machine:
    return Machine(monkeypatch, log)


def test_without_a_request_each_gpu_gets_one_worker_and_nothing_is_measured(machine: Machine, tmp_path: Path) -> None:
    assert machine.allocate(tmp_path) == [
        WorkerResources(device="cuda:0", threads=8),
        WorkerResources(device="cuda:1", threads=8),
    ]
    assert machine.benchmarks == []
    assert machine.said == []


def test_named_gpus_are_used_in_the_order_in_which_they_are_named(machine: Machine, tmp_path: Path) -> None:
    machine.gpus = 3
    assert [place.device for place in machine.allocate(tmp_path, gpus=(2, 0))] == ["cuda:2", "cuda:0"]


def test_trials_side_by_side_go_round_the_gpus_and_share_memory_and_cores(machine: Machine, tmp_path: Path) -> None:
    granted = machine.allocate(tmp_path, trials_per_gpu=3)
    assert [place.device for place in granted] == ["cuda:0", "cuda:1"] * 3
    assert {place.threads for place in granted} == {2}
    assert machine.benchmarks == [[("cuda:0", 16)]]
    assert machine.said == []


@pytest.mark.parametrize("each", [2, 3, 7])
def test_what_processes_of_one_gpu_may_take_fits_into_it(each: int, machine: Machine, tmp_path: Path) -> None:
    machine.gpus = 1
    granted = machine.allocate(tmp_path, trials_per_gpu=each)
    assert len(granted) == each
    for place in granted:
        assert place.memory_fraction * machine.memory[0] >= 10 * GIB + CONTEXT_BYTES
    assert sum(place.memory_fraction for place in granted) <= 1


def test_fewer_trials_per_gpu_than_asked_for_are_told(machine: Machine, tmp_path: Path) -> None:
    machine.peak = 30 * GIB
    granted = machine.allocate(tmp_path, trials_per_gpu=8)
    assert [place.device for place in granted] == ["cuda:0", "cuda:1"] * 2
    assert machine.said == [
        "2 instead of 8 trials per GPU: one holds 30.0 GiB at its peak, and a GPU here has 80.0 GiB"
    ]


def test_the_smallest_gpu_says_how_many_fit(machine: Machine, tmp_path: Path) -> None:
    granted = machine.allocate(tmp_path, trials_per_gpu=4, gpus=(0, 2))
    assert [place.device for place in granted] == ["cuda:0", "cuda:2"] * 2
    assert machine.said[0].endswith("and a GPU here has 24.0 GiB")


def test_a_trial_that_fits_nowhere_is_refused(machine: Machine, tmp_path: Path) -> None:
    machine.peak = 80 * GIB
    with pytest.raises(WorkerError, match=r"\Aa trial holds 80\.0 GiB at its peak: more than a GPU here has\Z"):
        machine.allocate(tmp_path, trials_per_gpu=2)


def test_a_peak_that_was_seen_before_needs_no_benchmark(machine: Machine, tmp_path: Path) -> None:
    assert len(machine.allocate(tmp_path, peak=39 * GIB, trials_per_gpu=2)) == 4
    assert len(machine.allocate(tmp_path, peak=40 * GIB, trials_per_gpu=2)) == 2
    assert machine.benchmarks == []


@pytest.mark.parametrize(
    ("workers", "devices"),
    [
        (1, ["cuda:0"]),
        (2, ["cuda:0", "cuda:1"]),
        (3, ["cuda:0", "cuda:1", "cuda:0"]),
        (5, ["cuda:0", "cuda:1", "cuda:0", "cuda:1", "cuda:0"]),
    ],
)
def test_so_many_workers_are_spread_over_the_gpus(
    workers: int, devices: list[str], machine: Machine, tmp_path: Path
) -> None:
    granted = machine.allocate(tmp_path, workers=workers)
    assert [place.device for place in granted] == devices
    assert {place.threads for place in granted} == {16 // workers}
    assert bool(machine.benchmarks) is (workers > 2), "two share a GPU"


def test_more_workers_than_fit_are_cut_to_what_fits(machine: Machine, tmp_path: Path) -> None:
    machine.peak = 60 * GIB
    assert [place.device for place in machine.allocate(tmp_path, workers=5)] == ["cuda:0", "cuda:1"]
    assert machine.said[0].startswith("1 instead of 3 trials per GPU: ")


def test_every_worker_has_a_thread(machine: Machine, tmp_path: Path) -> None:
    machine.cores, machine.peak = 1, GIB
    assert {place.threads for place in machine.allocate(tmp_path, trials_per_gpu=4)} == {1}
    assert {place.threads for place in machine.allocate(tmp_path, device="cpu", workers=4)} == {1}


# ---------------------------------------------------------------------------------------------- places on the CPU


@pytest.mark.parametrize(("workers", "threads"), [(1, 16), (3, 5), (16, 1), (20, 1)])
def test_workers_share_the_cores(workers: int, threads: int, machine: Machine, tmp_path: Path) -> None:
    assert (
        machine.allocate(tmp_path, device="cpu", workers=workers)
        == [WorkerResources(device="cpu", threads=threads)] * workers
    )
    assert machine.benchmarks == []


@pytest.mark.parametrize(
    ("total", "cores", "counts"),
    [(19, 16, []), (20, 16, [1, 2]), (39, 16, [1, 2]), (40, 16, [1, 2, 4]), (500, 6, [1, 2, 4]), (500, 1, [])],
)
def test_powers_of_two_are_measured_up_to_what_the_sampler_bears(
    total: int, cores: int, counts: list[int], machine: Machine, tmp_path: Path
) -> None:
    machine.cores = cores
    granted = machine.allocate(tmp_path, device="cpu", total=total)
    assert machine.benchmarks == [[("cpu", cores // count)] * count for count in counts]
    assert len(granted) == (counts[-1] if counts else 1)


def test_the_fastest_number_is_taken_and_all_are_told(machine: Machine, tmp_path: Path) -> None:
    machine.speed = {1: 1000.0, 2: 1500.0, 4: 1520.0, 8: 800.0}.__getitem__
    assert machine.allocate(tmp_path, device="cpu") == [WorkerResources(device="cpu", threads=8)] * 2
    assert machine.said == [
        "measuring how many workers suit this machine: 1, 2, 4, 8 …",
        "workers: 1 train 1,000 tokens/s, 2 train 1,500 tokens/s, 4 train 1,520 tokens/s, 8 train 800 tokens/s",
    ]


def test_what_was_measured_is_remembered_for_this_machine_and_network(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "not" / "there" / "yet"
    first = machine.allocate(cache, device="cpu", total=40)
    measured = len(machine.benchmarks)
    machine.speed = lambda count: 1.0
    assert machine.allocate(cache, device="cpu", total=40) == first
    assert machine.allocate(cache, device="cpu", total=49, spec=make_spec(search=OTHER_SEARCH)) == first
    assert len(machine.benchmarks) == measured
    changes: list[dict[str, Any]] = [
        {"spec": make_spec(run={"preset": "nano", "batch_size": 64})},
        {"spec": make_spec(run={"preset": "nano", "layers": 3})},
        {"total": 80},
    ]
    for change in changes:
        machine.allocate(cache, **{"device": "cpu", "total": 40, **change})
        assert len(machine.benchmarks) > measured, change
        measured = len(machine.benchmarks)
    monkeypatch.setattr(hpo.executors.allocation, "describe", lambda device: "another machine")
    machine.allocate(cache, device="cpu", total=40)
    assert len(machine.benchmarks) > measured
    file = Home(cache).throughputs
    assert list(file.parent.iterdir()) == [file]
    assert len(json.loads(file.read_text())) == 5


OTHER_SEARCH = {"dropout": {"low": 0.0, "high": 0.3}}


def test_a_measurement_that_failed_is_not_remembered(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> list[Throughput]:
        raise WorkerError("a benchmark of the trial died")

    with monkeypatch.context() as patch:
        patch.setattr(hpo.executors.allocation, "_benchmark", fail)
        with pytest.raises(WorkerError):
            machine.allocate(tmp_path, device="cpu")
    assert list(tmp_path.iterdir()) == []
    machine.allocate(tmp_path, device="cpu")
    assert machine.benchmarks


# ---------------------------------------------------------------------------------------------- real benchmarks


def small_demand(corpus: TokenizedCorpus) -> Demand:
    return Demand(trials=1, spec=make_spec(run=TINY_RUN), corpus=corpus)


class TestBenchmark:
    def test_two_processes_are_benchmarked_at_once(self, small_corpus: TokenizedCorpus) -> None:
        paces = hpo.executors.allocation._benchmark(small_demand(small_corpus), [("cpu", 1), ("cpu", 1)])
        assert len(paces) == 2
        for pace in paces:
            assert pace.tokens_per_s > 100
            assert pace.peak_memory_bytes is not None
            assert pace.peak_memory_bytes > 10 * 2**20

    @pytest.mark.parametrize("devices", [[("cpu", 0)], [("cpu", 1), ("cpu", 0)], [("cpu", 0), ("cpu", 1)]])
    def test_one_that_fails_says_why(self, devices: list[tuple[str, int]], small_corpus: TokenizedCorpus) -> None:
        with pytest.raises(WorkerError, match=r"a benchmark of the trial failed: .*positive"):
            hpo.executors.allocation._benchmark(small_demand(small_corpus), devices)

    @pytest.mark.parametrize("devices", [[("dies", 1)], [("dies", 1), ("waits", 1)], [("waits", 1), ("dies", 1)]])
    def test_one_that_dies_is_not_waited_for(
        self, devices: list[tuple[str, int]], small_corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hpo.executors.allocation, "BENCHMARK_TIMEOUT_S", 10.0)
        monkeypatch.setattr(hpo.executors.allocation, "_benchmark_here", side_processes.benchmark_badly)
        with pytest.raises(WorkerError, match="a benchmark of the trial died, perhaps for want of memory"):
            hpo.executors.allocation._benchmark(small_demand(small_corpus), devices)
