"""From what a user asked for to a sweep that is ready to run: study file, text, database, slots, places.

Everything that can be wrong is found here, before a worker starts. Nothing is written before but caches of text and an
empty database.
"""

from __future__ import annotations

import contextlib
import os
import platform
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Literal

import optuna
import torch

from hpo.database.connection import open_database, storage_errors
from hpo.database.url import is_missing, masked
from hpo.errors import UsageError
from hpo.executors.local import run_local
from hpo.executors.placement import Place, Wish, check_wish, most_workers, places
from hpo.executors.ray import run_ray
from hpo.executors.ray_cluster import connected, has_gpus
from hpo.executors.ray_cluster import places as ray_places
from hpo.executors.slurm import asks_for_gpus, check_slurm, submit_slurm
from hpo.executors.stop import Stop
from hpo.home import Home
from hpo.study.spec import Profile, StudySpec
from hpo.study.toml import load_study_file
from hpo.sweep.compatibility import check_compatible, check_text, network_facts
from hpo.sweep.corpus import load_text
from hpo.sweep.record import CorpusFacts, NetworkFacts, StudyRecord, TokenizerFacts
from hpo.sweep.slots import SlotCounts
from hpo.sweep.sweep import Sweep, create_sweep, find_sweep, open_sweep, update_metadata
from hpo.worker.messages import Event, WorkerSpec
from hpo_model.data.tokens import TokenizedCorpus
from hpo_model.hardware import default_device, describe, gpu_count
from hpo_reports.records.names import STUDY_LAST_RUN, TRIAL_MACHINE


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Who starts workers, and where."""

    kind: Literal["local", "ray", "slurm"] = "local"
    ray_address: str | None = None  # None: as Ray finds its cluster
    slurm_options: Mapping[str, str] = field(default_factory=dict)
    cpus_per_worker: int = 1  # of Ray workers; threads that train


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for."""

    study: str  # name of a shipped study, or path of a study file; to join: of a study in the database
    trials: int | None = None  # the total; None: what the study file says
    data: Path | None = None  # folder with the text; None: what the study was made from, or its file says
    wish: Wish = field(default_factory=Wish)
    executor: Executor = field(default_factory=Executor)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A sweep that is ready to run."""

    request: Request
    sweep: Sweep
    corpus: TokenizedCorpus
    home: Home
    url: str = field(repr=False)
    total: int | None  # None: all slots that there are, or will be meanwhile
    orders: tuple[tuple[WorkerSpec, Path], ...]

    def describe(self, counts: SlotCounts) -> str:
        """Study, text, workers and database in one line."""
        spec, tokenizer = self.sweep.spec, self.corpus.tokenizer
        return (
            f"study {spec.name}: {counts.done} of {counts.total} trials finished · profile {spec.profile} · "
            f"{self.corpus.corpus_name}, {tokenizer.kind} with {tokenizer.vocabulary:,} tokens · "
            f"{len(self.orders)} worker{'' if len(self.orders) == 1 else 's'} · {masked(self.url)}"
        )


def connected_to(executor: Executor) -> contextlib.AbstractContextManager[None]:
    """Within this, a cluster is connected to, or started, once and for all that is asked of it."""
    return connected(executor.ray_address) if executor.kind == "ray" else contextlib.nullcontext()


def prepare(request: Request, url: str, home: Home, announce: Callable[[str], None]) -> Launch:
    """Check everything, load the text, and open the study or make it.

    Raises:
        HpoError, ModelError: what is wrong, in one line; no study was changed.
    """
    device = _device(request, url)
    spec = load_study_file(request.study, device)
    total = _total(request, spec)
    with storage_errors(url):
        database = None if is_missing(url) else open_database(url, create=True)
        sweep = find_sweep(database, spec.name) if database is not None else None
        if sweep is not None:
            check_compatible(sweep.record, spec)
        corpus = load_text(spec, request.data, None if sweep is None else sweep.record, home, announce)
        if sweep is None:
            network = network_facts(spec, corpus)  # before there is a database
            database = database or open_database(url, create=True)
            hardware = describe(device) if request.executor.kind == "local" else f"{request.executor.kind}, {device}"
            sweep = create_sweep(database, _record(spec, corpus, network, hardware))
        stops = sweep.row.stop_requests()  # one that comes from here on is meant for this run too
        check_compatible(sweep.record, spec, corpus)  # another process may have made the study meanwhile
        update_metadata(sweep, spec)
        sweep.slots.ensure(total)
        sweep.study.set_user_attr(STUDY_LAST_RUN, time.time())
        orders = _orders(request, total, device, sweep, stops, url, home, corpus, announce)
    return Launch(request=request, sweep=sweep, corpus=corpus, home=home, url=url, total=total, orders=orders)


def join(request: Request, url: str, home: Home, announce: Callable[[str], None]) -> Launch:
    """Make ready to work on a study that the database has, from its own specification and the same text.

    Raises:
        HpoError, ModelError: what is wrong, in one line; nothing was changed.
    """
    device = _device(request, url)
    if request.wish.workers == 0:
        raise UsageError("--workers 0: a worker that is to join has to work")
    with storage_errors(url):
        sweep = open_sweep(open_database(url, create=False), request.study)
        check_compatible(sweep.record)
        stops = sweep.row.stop_requests()
        corpus = load_text(sweep.spec, request.data, sweep.record, home, announce)
        check_compatible(sweep.record, corpus=corpus)
        if sweep.spec.profile != device:
            announce(f"study {sweep.spec.name} was made with profile {sweep.spec.profile}; here it trains on {device}")
        orders = _orders(request, None, device, sweep, stops, url, home, corpus, announce)
    return Launch(request=request, sweep=sweep, corpus=corpus, home=home, url=url, total=None, orders=orders)


def join_search(request: Request, url: str, home: Home, announce: Callable[[str], None]) -> Launch:
    """Open a study of the database and its text, without workers.

    Raises:
        HpoError, ModelError: what is wrong, in one line; nothing was changed.
    """
    with storage_errors(url):
        sweep = open_sweep(open_database(url, create=False), request.study)
        corpus = load_text(sweep.spec, request.data, sweep.record, home, announce)
        check_text(sweep.record, corpus)
    return Launch(request=request, sweep=sweep, corpus=corpus, home=home, url=url, total=None, orders=())


def launch_finalists(search: Launch, companion: Sweep, announce: Callable[[str], None]) -> Launch:
    """The finalists of a launched search, with workers where it had them.

    Raises:
        HpoError, ModelError: what is wrong, in one line.
    """
    request, url, home, corpus = search.request, search.url, search.home, search.corpus
    device = _device(request, url)
    with storage_errors(url):
        stops = companion.row.stop_requests()
        total = companion.slots.total()
        orders = _orders(request, total, device, companion, stops, url, home, corpus, announce)
    return Launch(request=request, sweep=companion, corpus=corpus, home=home, url=url, total=total, orders=orders)


def run_workers(launch: Launch, on_event: Callable[[Event], None], on_pulse: Callable[[], None], stop: Stop) -> None:
    """Run the sweep's workers, here or on a Ray cluster, until its slots are done or a stop is wanted."""
    executor, slots = launch.request.executor, launch.sweep.slots
    with storage_errors(launch.url):
        if executor.kind == "local":
            run_local(launch.orders, slots, on_event, on_pulse, stop)
            return
        run_ray(
            launch.orders,
            slots,
            on_event,
            on_pulse,
            stop,
            address=executor.ray_address,
            cpus_per_worker=executor.cpus_per_worker,
            gpus_per_worker=_gpus_per_worker(launch.request) if launch.orders[0][0].device == "cuda" else 0.0,
        )


def submit(launch: Launch) -> list[str]:
    """Hand the sweep's workers to Slurm, which starts them when it has room; the ids of their jobs."""
    folder = launch.home.study(launch.sweep.spec.name, launch.sweep.uid) / "slurm" / uuid.uuid4().hex[:8]
    return submit_slurm(launch.orders, folder, launch.request.executor.slurm_options)


def _device(request: Request, url: str) -> Profile:
    """What the workers train on, which also decides the study's profile.

    Raises:
        UsageError, WorkerError, StorageError: the machine, or the cluster, does not have what was asked for.
    """
    wish, executor = request.wish, request.executor
    for kind, flag, value in (
        ("ray", "--ray-address", executor.ray_address),
        ("slurm", "--slurm", executor.slurm_options),
    ):
        if value and executor.kind != kind:
            raise UsageError(f"{flag} goes with --executor {kind}")
    if executor.kind == "local":
        device: Profile = "cuda" if default_device() == "cuda" else "cpu"
        check_wish(wish, device, gpu_count())
        return device
    if wish.gpus is not None:
        raise UsageError(
            f"--gpus names GPUs of this machine; with --executor {executor.kind} the cluster hands them out"
        )
    if executor.kind == "ray":
        device = "cuda" if has_gpus(executor.ray_address) else "cpu"
    else:
        if wish.workers is None or wish.trials_per_gpu is not None:
            raise UsageError("--executor slurm needs --workers N, the number of its tasks, and no --trials-per-gpu")
        check_slurm(url, executor.slurm_options)
        device = "cuda" if asks_for_gpus(executor.slurm_options) else "cpu"
    check_wish(wish, device)
    return device


def _gpus_per_worker(request: Request) -> float:
    return 1 / (request.wish.trials_per_gpu or 1)


def _total(request: Request, spec: StudySpec) -> int:
    if request.trials is not None and request.trials < 1:
        raise UsageError(f"--trials is the total that the study ends with and must be at least 1, got {request.trials}")
    total = request.trials or spec.default_total()
    most = spec.max_trials()
    if most is not None and total > most:
        raise UsageError(f"--trials {total}: the grid of {spec.name} has {most} points, baseline included")
    return total


def _record(spec: StudySpec, corpus: TokenizedCorpus, network: NetworkFacts | None, hardware: str) -> StudyRecord:
    return StudyRecord(
        uid=uuid.uuid4().hex[:8],
        created_at=time.time(),
        profile=spec.profile,
        spec=spec,
        corpus=CorpusFacts(
            name=corpus.corpus_name,
            source=corpus.corpus_source,
            origin=corpus.corpus_origin,
            digest=corpus.corpus_digest,
            tokens={split: corpus.tokens(split) for split in corpus.splits},
        ),
        tokenizer=TokenizerFacts(
            kind=corpus.tokenizer.kind, vocabulary=corpus.tokenizer.vocabulary, digest=corpus.tokenizer.digest
        ),
        network=network,
        hardware=hardware,
        versions={
            "hpo": version("assay-hpo"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "optuna": optuna.__version__,
        },
    )


def _orders(
    request: Request,
    total: int | None,
    device: Profile,
    sweep: Sweep,
    stops: int,
    url: str,
    home: Home,
    corpus: TokenizedCorpus,
    announce: Callable[[str], None],
) -> tuple[tuple[WorkerSpec, Path], ...]:
    """One order per worker; none where nothing is left to do."""
    counts, executor = sweep.slots.counts(total), request.executor
    if counts.done == counts.total or request.wish.workers == 0:
        return ()
    if executor.kind == "local":
        peak = _peak_memory(sweep) if device == "cuda" else None
        granted = places(request.wish, device, counts.total, sweep.spec, corpus, peak, home.cache, announce)
    else:
        workers = _cluster_workers(request, device, sweep.spec, counts)
        granted = [Place(device=device, threads=executor.cpus_per_worker)] * workers
    crew = "worker" if total is not None else f"{platform.node()}-{os.getpid()}"
    orders = []
    for number, place in enumerate(granted[: counts.total]):
        name = f"{crew}-{number}"
        order = WorkerSpec(
            storage_url=url,
            study_name=sweep.spec.name,
            total=total,
            home=home,
            tokens=corpus.folder if executor.kind == "local" else None,
            data=request.data and request.data.absolute(),
            device=place.device,
            threads=place.threads,
            memory_fraction=place.memory_fraction,
            name=name,
            stop_requests=stops,
        )
        orders.append((order, home.worker_log(sweep.spec.name, sweep.uid, name)))
    return tuple(orders)


def _cluster_workers(request: Request, device: Profile, spec: StudySpec, counts: SlotCounts) -> int:
    """How many workers a cluster is asked for: as many as it holds, on CPUs not more than the sampler can use."""
    if request.wish.workers is not None:
        return request.wish.workers
    address, cpus = request.executor.ray_address, request.executor.cpus_per_worker
    gpus = _gpus_per_worker(request) if device == "cuda" else 0.0
    return min(ray_places(address, gpus, cpus_per_worker=cpus), most_workers(spec, counts.total))


def _peak_memory(sweep: Sweep) -> int | None:
    """The most that a trial of the study was seen to hold on a GPU, in bytes."""
    trials = sweep.study.get_trials(deepcopy=False)
    machines = [trial.user_attrs.get(TRIAL_MACHINE, {}) for trial in trials]
    peaks = [each.get("peak_memory_bytes") for each in machines if str(each.get("device")).startswith("cuda")]
    return max((peak for peak in peaks if peak is not None), default=None)
