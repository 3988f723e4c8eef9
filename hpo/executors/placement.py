"""How many workers a machine takes, and what each of them gets: measured, not guessed."""

from __future__ import annotations

import contextlib
import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.synchronize import Barrier
from pathlib import Path
from threading import BrokenBarrierError

import torch

from hpo.errors import UsageError, WorkerError
from hpo.executors.local import process_context, start_quietly
from hpo.study.spec import StudySpec
from hpo_model.config import RunConfig
from hpo_model.data.tokens import TokenizedCorpus, open_tokens
from hpo_model.errors import ModelError
from hpo_model.hardware import cpu_cores, describe, gpu_count, gpu_memory
from hpo_model.training.loop import Throughput, benchmark

TRIALS_PER_WORKER = 10  # fewer would leave the sampler little to learn from before all workers have started
BENCHMARK_S = 1.5
WORTHWHILE = 1.05  # one more worker costs the sampler: it has to bring this much more speed
CONTEXT_BYTES = 700 * 2**20  # of GPU memory that a process takes beside its tensors: CUDA's context and libraries
PATIENCE_S = 300.0  # with a benchmark, which runs a few steps
WAITED_IN_VAIN = "another benchmark failed"


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the user said about places; None: what measures best."""

    workers: int | None = None  # processes in all
    gpus: tuple[int, ...] | None = None  # numbers as this process sees them, after CUDA_VISIBLE_DEVICES; None: all
    trials_per_gpu: int | None = None


@dataclass(frozen=True, kw_only=True)
class Place:
    """What one worker gets."""

    device: str
    threads: int
    memory_fraction: float = 1.0  # of its GPU


def parse_workers(text: str) -> int | None:
    """`auto` (None) or a number.

    Raises:
        UsageError: neither.
    """
    if text == "auto":
        return None
    if not text.isascii() or not text.isdigit():
        raise UsageError(f"--workers takes a number or auto, got {text!r}")
    return int(text)


def parse_gpus(text: str | None) -> tuple[int, ...] | None:
    """`0,2` -> (0, 2).

    Raises:
        UsageError: not numbers, or one of them twice.
    """
    if text is None:
        return None
    numbers = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() for part in numbers):
        raise UsageError(f"--gpus takes numbers like 0,2, got {text!r}")
    gpus = tuple(int(part) for part in numbers)
    if len(set(gpus)) < len(gpus):
        raise UsageError(f"--gpus names a GPU twice: {text}")
    return gpus


def most_workers(spec: StudySpec, total: int) -> int:
    """How many workers a study of so many trials can use before its sampler has little to learn from.

    Finalists have no sampler: there each trial may have its own.
    """
    return total if spec.replication is not None else max(1, total // TRIALS_PER_WORKER)


def check_wish(wish: Wish, device: str, gpus: int = 0) -> None:
    """Refuse what is not there.

    Args:
        wish: what the user said.
        device: "cuda" or "cpu".
        gpus: how many this process sees.

    Raises:
        UsageError: naming what there is.
    """
    if wish.workers is not None and wish.workers < 0:
        raise UsageError(f"--workers must be at least 0, got {wish.workers}")
    if wish.trials_per_gpu is not None and wish.trials_per_gpu < 1:
        raise UsageError(f"--trials-per-gpu must be at least 1, got {wish.trials_per_gpu}")
    if wish.trials_per_gpu is not None and wish.workers is not None:
        raise UsageError("--workers and --trials-per-gpu both say how many: give one of them")
    if device != "cuda":
        for flag, value in (("--gpus", wish.gpus), ("--trials-per-gpu", wish.trials_per_gpu)):
            if value is not None:
                raise UsageError(f"{flag}: there is no GPU{_visible()}")
    for gpu in wish.gpus or ():
        if gpu >= gpus:
            raise UsageError(f"--gpus {gpu}: this process sees GPUs 0 to {gpus - 1}{_visible()}")


def places(
    wish: Wish,
    device: str,
    total: int,
    spec: StudySpec,
    corpus: TokenizedCorpus,
    peak_memory_bytes: int | None,
    cache: Path,
    announce: Callable[[str], None],
) -> list[Place]:
    """Where workers run.

    Args:
        wish: what the user said, checked.
        device: "cuda" or "cpu".
        total: slots that are to be filled.
        spec: of the study.
        corpus: its text.
        peak_memory_bytes: most that a trial of the study was seen to hold on such a device; None: not known yet.
        cache: folder for what was measured.
        announce: told what was measured and decided.

    Raises:
        WorkerError: not even one trial fits into a GPU's memory.
    """
    if device == "cuda":
        return _gpu_places(wish, total, spec, corpus, peak_memory_bytes, announce)
    cores = cpu_cores()
    workers = wish.workers
    if workers is None:
        most = min(cores, most_workers(spec, total))
        workers = 1 if most == 1 else _best_on_cpu(spec, corpus, most, cores, cache, announce)
    workers = min(workers, total)
    return [Place(device="cpu", threads=max(1, cores // workers))] * workers


def _gpu_places(
    wish: Wish,
    total: int,
    spec: StudySpec,
    corpus: TokenizedCorpus,
    peak_memory_bytes: int | None,
    announce: Callable[[str], None],
) -> list[Place]:
    gpus = wish.gpus or tuple(range(gpu_count()))
    each = wish.trials_per_gpu or 1
    if wish.workers is not None:
        each = -(-min(wish.workers, total) // len(gpus))
    if each > 1:
        if peak_memory_bytes is None:
            (measured,) = _benchmark(spec, corpus, [(f"cuda:{gpus[0]}", cpu_cores())])
            peak_memory_bytes = measured.peak_memory_bytes or 0
        fit = min(fitting(gpu_memory(gpu), peak_memory_bytes) for gpu in gpus)
        if fit == 0:
            raise WorkerError(f"a trial holds {_gib(peak_memory_bytes)} at its peak: more than a GPU here has")
        if fit < each:
            announce(
                f"{fit} instead of {each} trials per GPU: one holds {_gib(peak_memory_bytes)} at its peak, "
                f"and a GPU here has {_gib(min(gpu_memory(gpu) for gpu in gpus))}"
            )
            each = fit
    devices = [f"cuda:{gpu}" for _ in range(each) for gpu in gpus]
    devices = devices[: wish.workers]
    threads = max(1, cpu_cores() // max(1, len(devices)))
    return [Place(device=device, threads=threads, memory_fraction=_fraction(device, each)) for device in devices]


def _fraction(device: str, sharers: int) -> float:
    """Of a GPU's memory that one of its workers may fill with tensors, so that all fit beside their contexts."""
    if sharers == 1:
        return 1.0
    return 1 / sharers - CONTEXT_BYTES / gpu_memory(int(device.partition(":")[2]))


def fitting(memory_bytes: int, peak_bytes: int) -> int:
    """How many trials of this peak fit into a GPU's memory, each in a process of its own."""
    return memory_bytes // (peak_bytes + CONTEXT_BYTES)


def _best_on_cpu(
    spec: StudySpec, corpus: TokenizedCorpus, most: int, cores: int, cache: Path, announce: Callable[[str], None]
) -> int:
    """The number of workers that trains most tokens per second, all together; measured once per machine and network."""
    path = cache / "placements.json"
    known: dict[str, dict[str, float]] = {}
    with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):  # what is damaged is measured again
        known = json.loads(path.read_text(encoding="utf-8"))
    key = f"{describe('cpu')}; torch {torch.__version__}; run {spec.run_with({}).digest()}; up to {most}"
    if key not in known:
        counts = [2**power for power in range(most.bit_length())]
        announce(f"measuring how many workers suit this machine: {', '.join(map(str, counts))} …")
        speeds = {}
        for count in counts:
            measured = _benchmark(spec, corpus, [("cpu", max(1, cores // count))] * count)
            speeds[str(count)] = sum(each.tokens_per_s for each in measured)
        known[key] = speeds
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_suffix(f".{os.getpid()}")
        draft.write_text(json.dumps(known, indent=1), encoding="utf-8")
        draft.replace(path)
    speeds = known[key]
    announce("workers: " + ", ".join(f"{count} train {speed:,.0f} tokens/s" for count, speed in speeds.items()))
    return best_count({int(count): speed for count, speed in speeds.items()})


def best_count(speeds: Mapping[int, float]) -> int:
    """The smallest number of workers that no larger one beats by enough."""
    best = min(speeds)
    for count in sorted(speeds):
        if speeds[count] > WORTHWHILE * speeds[best]:
            best = count
    return best


def _benchmark(spec: StudySpec, corpus: TokenizedCorpus, devices: list[tuple[str, int]]) -> list[Throughput]:
    """What training does at once on these devices with so many threads, each in a process of its own.

    Raises:
        WorkerError: a process ended without a measurement.
    """
    context = process_context()
    start = context.Barrier(len(devices))
    lines, processes = [], []
    for device, threads in devices:
        ours, theirs = context.Pipe(duplex=False)
        arguments = (spec.run_with({}), corpus.folder, device, threads, start, theirs)
        process = context.Process(target=_benchmark_here, args=arguments, daemon=True)
        start_quietly(process)
        theirs.close()
        lines.append(ours)
        processes.append(process)
    measured: list[Throughput] = []
    try:
        while lines:
            answered = wait(lines, PATIENCE_S)
            if not answered:
                raise WorkerError(f"a benchmark of the trial did not end within {PATIENCE_S:.0f} s")
            for line in answered:
                assert isinstance(line, Connection)
                lines.remove(line)
                answer = line.recv()
                if isinstance(answer, Throughput):
                    measured.append(answer)
                elif answer != WAITED_IN_VAIN:  # whoever failed says why
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
        meet = functools.partial(start.wait, PATIENCE_S)
        line.send(benchmark(config, corpus, device=device, seconds=BENCHMARK_S, on_ready=meet))
    except BrokenBarrierError:
        line.send(WAITED_IN_VAIN)
    except (ModelError, RuntimeError) as error:
        start.abort()
        line.send(" ".join(str(error).split())[:200])


def _visible() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
