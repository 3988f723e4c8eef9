"""What a user asks for and what a worker gets: processes, GPUs, threads."""

from __future__ import annotations

import os
from dataclasses import dataclass

from hpo.errors import UsageError
from hpo.study.spec import StudySpec

MIN_TRIALS_PER_WORKER = 10  # fewer leave the sampler little to learn from before all workers have started


@dataclass(frozen=True, kw_only=True)
class ResourceRequest:
    """What the user asked for; None: what is measured to be best."""

    workers: int | None = None  # processes in all
    gpus: tuple[int, ...] | None = None  # numbers as this process sees them, after CUDA_VISIBLE_DEVICES; None: all
    trials_per_gpu: int | None = None


@dataclass(frozen=True, kw_only=True)
class WorkerResources:
    """What one worker gets."""

    device: str
    threads: int
    memory_fraction: float = 1.0  # of its GPU, the process's context included


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


def max_workers(spec: StudySpec, total: int) -> int:
    """How many workers a study of so many trials can use before its sampler has little to learn from.

    Finalists have no sampler: there each trial may have its own.
    """
    return total if spec.replication is not None else max(1, total // MIN_TRIALS_PER_WORKER)


def check_resources(request: ResourceRequest, device: str, gpus: int = 0) -> None:
    """Refuse what is not there.

    Args:
        request: what the user asked for.
        device: "cuda" or "cpu".
        gpus: how many this process sees.

    Raises:
        UsageError: naming what there is.
    """
    if request.workers is not None and request.workers < 0:
        raise UsageError(f"--workers must be at least 0, got {request.workers}")
    if request.trials_per_gpu is not None and request.trials_per_gpu < 1:
        raise UsageError(f"--trials-per-gpu must be at least 1, got {request.trials_per_gpu}")
    if request.trials_per_gpu is not None and request.workers is not None:
        raise UsageError("--workers and --trials-per-gpu both say how many: give one of them")
    if device != "cuda":
        for flag, value in (("--gpus", request.gpus), ("--trials-per-gpu", request.trials_per_gpu)):
            if value is not None:
                raise UsageError(f"{flag}: there is no GPU{_visible()}")
    for gpu in request.gpus or ():
        if gpu >= gpus:
            raise UsageError(f"--gpus {gpu}: this process sees GPUs 0 to {gpus - 1}{_visible()}")


def _visible() -> str:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if visible is None else f" (CUDA_VISIBLE_DEVICES={visible})"
