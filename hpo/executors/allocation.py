"""How many workers a machine takes, and what each of them gets: measured, not guessed."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError

import torch

from hpo.errors import WorkerError, one_line
from hpo.executors.local import process_context, start_quietly
from hpo.executors.resources import ResourceRequest, WorkerResources, max_workers
from hpo.files import replace_text
from hpo.home import Home
from hpo.study.spec import StudySpec
from hpo.worker.gpu_share import CONTEXT_BYTES
from hpo_model.config import RunConfig
from hpo_model.data.tokens import TokenizedCorpus, open_tokens
from hpo_model.errors import ModelError
from hpo_model.hardware import cpu_cores, describe, gpu_count, gpu_memory
from hpo_model.training.loop import Throughput, benchmark

BENCHMARK_S = 1.5
MIN_SPEEDUP = 1.05  # that more workers must bring, since with more of them the sampler knows less at each trial
BENCHMARK_TIMEOUT_S = 300.0  # for a benchmark, which runs a few steps
ANOTHER_FAILED = "another benchmark failed"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What is to be trained."""

    trials: int  # slots that are to be filled
    spec: StudySpec
    corpus: TokenizedCorpus
    peak_memory_bytes: int | None = None  # the most that a trial of the study held on a GPU; None: not known yet


def allocate(request: ResourceRequest, demand: Demand, device: str, home: Home) -> list[WorkerResources]:
    """Decide how many workers run on this machine, and what each of them gets.

    Args:
        request: what the user asked for, checked.
        demand: what is to be trained.
        device: "cuda" or "cpu".
        home: where measurements are kept.

    Raises:
        WorkerError: not even one trial fits into a GPU's memory.
    """
    if device == "cuda":
        return _on_gpus(request, demand)
    cores = cpu_cores()
    workers = request.workers
    if workers is None:
        most = min(cores, max_workers(demand.spec, demand.trials))
        workers = 1 if most == 1 else _best_on_cpu(demand, most, cores, home.throughputs)
    workers = min(workers, demand.trials)
    return [WorkerResources(device="cpu", threads=max(1, cores // workers))] * workers


def _on_gpus(request: ResourceRequest, demand: Demand) -> list[WorkerResources]:
    gpus = request.gpus or tuple(range(gpu_count()))
    each = request.trials_per_gpu or 1
    if request.workers is not None:
        each = -(-min(request.workers, demand.trials) // len(gpus))
    if each > 1:
        peak_memory_bytes = demand.peak_memory_bytes
        if peak_memory_bytes is None:
            (measured,) = _benchmark(demand, [(f"cuda:{gpus[0]}", cpu_cores())])
            peak_memory_bytes = measured.peak_memory_bytes or 0
        fit = min(fitting(gpu_memory(gpu), peak_memory_bytes) for gpu in gpus)
        if fit == 0:
            raise WorkerError(f"a trial holds {_gib(peak_memory_bytes)} at its peak: more than a GPU here has")
        if fit < each:
            logger.info(
                "%d instead of %d trials per GPU: one holds %s at its peak, and a GPU here has %s",
                *(fit, each, _gib(peak_memory_bytes), _gib(min(gpu_memory(gpu) for gpu in gpus))),
            )
            each = fit
    devices = [f"cuda:{gpu}" for _ in range(each) for gpu in gpus]
    devices = devices[: request.workers]
    threads = max(1, cpu_cores() // max(1, len(devices)))
    return [WorkerResources(device=device, threads=threads, memory_fraction=1 / each) for device in devices]


def fitting(memory_bytes: int, peak_bytes: int) -> int:
    """How many trials of this peak fit into a GPU's memory, each in a process of its own."""
    return memory_bytes // (peak_bytes + CONTEXT_BYTES)


def _best_on_cpu(demand: Demand, most: int, cores: int, path: Path) -> int:
    """The number of workers that together train most tokens per second; measured once per machine and network."""
    known: dict[str, dict[str, float]] = {}
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):  # what is damaged is measured again
        known = json.loads(path.read_text(encoding="utf-8"))
    run = demand.spec.run_with({})
    key = f"{describe('cpu')}; torch {torch.__version__}; run {run.digest()}; up to {most}"
    if key not in known:
        counts = [2**power for power in range(most.bit_length())]
        logger.info("measuring how many workers suit this machine: %s …", ", ".join(map(str, counts)))
        speeds = {}
        for count in counts:
            measured = _benchmark(demand, [("cpu", max(1, cores // count))] * count)
            speeds[str(count)] = sum(each.tokens_per_s for each in measured)
        known[key] = speeds
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(known, indent=1))
    speeds = known[key]
    logger.info("workers: %s", ", ".join(f"{count} train {speed:,.0f} tokens/s" for count, speed in speeds.items()))
    return best_count({int(count): speed for count, speed in speeds.items()})


def best_count(speeds: Mapping[int, float]) -> int:
    """The smallest number of workers that no larger one beats by enough."""
    best = min(speeds)
    for count in sorted(speeds):
        if speeds[count] > MIN_SPEEDUP * speeds[best]:
            best = count
    return best


def _benchmark(demand: Demand, devices: list[tuple[str, int]]) -> list[Throughput]:
    """Throughputs of the run, trained on all of these devices at once, each in a process of its own.

    Raises:
        WorkerError: a process ended without a measurement.
    """
    context = process_context()
    start = context.Barrier(len(devices))
    lines, processes = [], []
    for device, threads in devices:
        ours, theirs = context.Pipe(duplex=False)
        arguments = (demand.spec.run_with({}), demand.corpus.folder, device, threads, start, theirs)
        process = context.Process(target=_benchmark_here, args=arguments, daemon=True)
        start_quietly(process)
        theirs.close()
        lines.append(ours)
        processes.append(process)
    measured: list[Throughput] = []
    try:
        while lines:
            answered = wait(lines, BENCHMARK_TIMEOUT_S)
            if not answered:
                raise WorkerError(f"a benchmark of the trial did not end within {BENCHMARK_TIMEOUT_S:.0f} s")
            for line in answered:
                assert isinstance(line, Connection)
                lines.remove(line)
                answer = line.recv()
                if isinstance(answer, Throughput):
                    measured.append(answer)
                elif answer != ANOTHER_FAILED:  # the one that failed says why
                    raise WorkerError(f"a benchmark of the trial failed: {answer}")
    except EOFError as error:
        raise WorkerError("a benchmark of the trial died, perhaps for want of memory") from error
    finally:
        for process in processes:
            process.kill()
            process.join()
    return measured


def _benchmark_here(
    config: RunConfig, tokens: Path, device: str, threads: int, start: Barrier, line: Connection
) -> None:
    """A side process's main function."""
    try:
        torch.set_num_threads(threads)
        corpus = open_tokens(tokens)
        meet = functools.partial(start.wait, BENCHMARK_TIMEOUT_S)
        line.send(benchmark(config, corpus, device=device, seconds=BENCHMARK_S, on_ready=meet))
    except BrokenBarrierError:
        line.send(ANOTHER_FAILED)
    except (ModelError, RuntimeError) as error:
        start.abort()
        line.send(one_line(error)[:200])


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
