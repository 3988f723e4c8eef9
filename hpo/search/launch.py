"""From an open study to its workers: how many there are, what each of them gets, and who starts them."""

from __future__ import annotations

import contextlib
import os
import platform
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from hpo.database.connection import storage_errors
from hpo.database.url import masked
from hpo.executors.allocation import Demand, allocate
from hpo.executors.local import run_local
from hpo.executors.ray import run_ray
from hpo.executors.ray_cluster import capacity, connected
from hpo.executors.resources import WorkerResources, max_workers
from hpo.executors.slurm import submit_slurm
from hpo.executors.stop import Stop
from hpo.home import Home
from hpo.search.request import Executor, Request
from hpo.study.sections import Profile
from hpo.sweep.slots import SlotCounts
from hpo.sweep.sweep import Sweep
from hpo.worker.messages import Event, WorkerSpec
from hpo_model.data.tokens import TokenizedCorpus
from hpo_reports.records.names import TRIAL_MACHINE


@dataclass(frozen=True, kw_only=True)
class OpenStudy:
    """A study that may go on here, and its text."""

    request: Request
    url: str = field(repr=False)
    home: Home
    device: Profile  # what its workers train on here
    sweep: Sweep
    corpus: TokenizedCorpus


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A study that is ready to run."""

    study: OpenStudy
    total: int | None  # slots to fill; None: all, also those added later
    workers: tuple[tuple[WorkerSpec, Path], ...]  # with the file for what each prints

    @property
    def sweep(self) -> Sweep:
        """The study with its slots."""
        return self.study.sweep

    @property
    def corpus(self) -> TokenizedCorpus:
        """The study's text."""
        return self.study.corpus

    def describe(self, counts: SlotCounts) -> str:
        """Study, text, workers and database in one line."""
        spec, tokenizer = self.sweep.spec, self.corpus.tokenizer
        return (
            f"study {spec.name}: {counts.done} of {counts.total} trials finished · profile {spec.profile} · "
            f"{self.corpus.corpus_name}, {tokenizer.kind} with {tokenizer.vocabulary:,} tokens · "
            f"{len(self.workers)} worker{'' if len(self.workers) == 1 else 's'} · {masked(self.study.url)}"
        )


def plan_launch(study: OpenStudy, total: int | None, stop_requests: int) -> Launch:
    """Decide which workers a study gets, without starting any; none where nothing is left to do.

    Args:
        study: whose slots they fill.
        total: how many of them; None: all, also those added later.
        stop_requests: on the study so far; a later one stops these workers too.

    Raises:
        WorkerError: a trial does not fit into a GPU's memory, or a benchmark failed.
    """
    sweep, counts = study.sweep, study.sweep.slots.counts(total)
    request, resources = study.request, list[WorkerResources]()
    if counts.done < counts.total and request.resources.workers != 0:
        resources = _resources(study, counts)[: counts.total]
    prefix = "worker" if total is not None else f"{platform.node()}-{os.getpid()}"
    workers = []
    for number, each in enumerate(resources):
        name = f"{prefix}-{number}"
        spec = WorkerSpec(
            storage_url=study.url,
            study_name=sweep.spec.name,
            total=total,
            home=study.home,
            tokens=study.corpus.folder if request.executor.kind == "local" else None,
            data=request.data and request.data.absolute(),
            device=each.device,
            threads=each.threads,
            memory_fraction=each.memory_fraction,
            name=name,
            stop_requests=stop_requests,
        )
        workers.append((spec, study.home.worker_log(sweep.spec.name, sweep.uid, name)))
    return Launch(study=study, total=total, workers=tuple(workers))


def connected_to(executor: Executor) -> contextlib.AbstractContextManager[None]:
    """Keep one connection to a Ray cluster open for the duration of the block; other executors need none."""
    return connected(executor.ray_address) if executor.kind == "ray" else contextlib.nullcontext()


def run_workers(launch: Launch, on_event: Callable[[Event], None], on_pulse: Callable[[], None], stop: Stop) -> None:
    """Run the workers, here or on a Ray cluster, until the slots are done or a stop is requested."""
    request, slots = launch.study.request, launch.sweep.slots
    with storage_errors(launch.study.url):
        if request.executor.kind == "local":
            run_local(launch.workers, slots, on_event, on_pulse, stop)
            return
        run_ray(
            launch.workers,
            slots,
            on_event,
            on_pulse,
            stop,
            address=request.executor.ray_address,
            cpus_per_worker=request.executor.cpus_per_worker,
            gpus_per_worker=request.gpus_per_worker if launch.study.device == "cuda" else 0.0,
        )


def submit(launch: Launch) -> list[str]:
    """Hand the workers to Slurm, which starts them when it has room; returns the ids of their jobs."""
    study, sweep = launch.study, launch.sweep
    folder = study.home.slurm_jobs(sweep.spec.name, sweep.uid) / uuid.uuid4().hex[:8]
    return submit_slurm(launch.workers, folder, study.request.executor.slurm_options)


def _resources(study: OpenStudy, counts: SlotCounts) -> list[WorkerResources]:
    """What each worker gets: as this machine is measured, or as a cluster is asked."""
    request, spec = study.request, study.sweep.spec
    if request.executor.kind == "local":
        peak = _peak_memory(study.sweep) if study.device == "cuda" else None
        demand = Demand(trials=counts.total, spec=spec, corpus=study.corpus, peak_memory_bytes=peak)
        return allocate(request.resources, demand, study.device, study.home)
    workers, threads = request.resources.workers, request.executor.cpus_per_worker
    if workers is None:  # as many as the cluster holds, but no more than the sampler can use
        gpus = request.gpus_per_worker if study.device == "cuda" else 0.0
        held = capacity(request.executor.ray_address, gpus, cpus_per_worker=threads)
        workers = min(held, max_workers(spec, counts.total))
    return [WorkerResources(device=study.device, threads=threads)] * workers


def _peak_memory(sweep: Sweep) -> int | None:
    """The most that a trial of the study was seen to hold on a GPU, in bytes."""
    trials = sweep.study.get_trials(deepcopy=False)
    machines = [trial.user_attrs.get(TRIAL_MACHINE, {}) for trial in trials]
    peaks = [each.get("peak_memory_bytes") for each in machines if str(each.get("device")).startswith("cuda")]
    return max((peak for peak in peaks if peak is not None), default=None)
