"""From what a user asked for to a sweep that is ready to run: study file, text, database, slots.

Everything that can be wrong is found here, before a worker starts. Nothing is written before but caches of text and an
empty database.
"""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import torch

from hpo.errors import StudyError, UsageError
from hpo.executors.local import run_local
from hpo.executors.stop import Stop
from hpo.home import Home
from hpo.slots import SlotCounts
from hpo.storage import is_missing, masked, open_database, storage_errors
from hpo.study_file import StudySpec, load_study_file
from hpo.sweep import LAST_RUN_ATTRIBUTE, Sweep, create_sweep, find_sweep, publish, take_up
from hpo.worker import Event, WorkerOrder
from model.corpus import load_corpus
from model.errors import CorpusError
from model.hardware import cpu_cores, default_device, describe, gpu_count
from model.tokens import TokenizedCorpus, tokenize_corpus

TRIALS_PER_WORKER = 10  # fewer would leave the sampler little to learn from before all workers have started


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for."""

    study: str  # name of a shipped study, or path of a study file
    trials: int | None = None  # the total; None: what the study file says
    data: Path | None = None  # folder with the text; None: what the study was made from, or its file says
    workers: int | None = None  # None: one per GPU, or what this CPU has cores for


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A sweep that is ready to run."""

    sweep: Sweep
    corpus: TokenizedCorpus
    total: int
    orders: tuple[tuple[WorkerOrder, Path], ...]

    def describe(self, counts: SlotCounts) -> str:
        """Study, text, workers and database in one line."""
        spec, tokenizer = self.sweep.spec, self.corpus.tokenizer
        return (
            f"study {spec.name}: {counts.done} of {self.total} trials finished · profile {spec.profile} · "
            f"{self.corpus.corpus_name}, {tokenizer.kind} with {tokenizer.vocabulary:,} tokens · "
            f"{len(self.orders)} worker{'s' if len(self.orders) > 1 else ''} · {masked(self.orders[0][0].storage_url)}"
        )


def prepare(request: Request, url: str, home: Home, announce: Callable[[str], None]) -> Launch:
    """Check everything, load the text, and open the study or make it.

    Raises:
        HpoError, ModelError: what is wrong, in one line; no study was changed.
    """
    device = default_device()
    spec = load_study_file(request.study, "cuda" if device == "cuda" else "cpu")
    total = _total(request, spec)
    if request.workers is not None and request.workers < 1:
        raise UsageError(f"--workers must be at least 1, got {request.workers}")
    with storage_errors(url):
        database = None if is_missing(url) else open_database(url, create=True)
        sweep = find_sweep(database, spec.name) if database is not None else None
        if sweep is not None:
            _check_same_file(sweep, spec)
        corpus = load_text(spec, request.data, sweep, home, announce)
        if sweep is None:
            database = database or open_database(url, create=True)
            sweep = create_sweep(database, spec.name, _record(spec, corpus, device))
            _check_same_file(sweep, spec)  # another process may have made it meanwhile
        check_same_text(sweep, corpus)
        take_up(sweep, spec)
        publish(sweep)
        sweep.slots.ensure(total)
        sweep.study.set_user_attr(LAST_RUN_ATTRIBUTE, time.time())
    orders = _orders(request.workers, total, device, sweep, url, home, corpus)
    return Launch(sweep=sweep, corpus=corpus, total=total, orders=orders)


def run_workers(launch: Launch, on_event: Callable[[Event], None], on_pulse: Callable[[], None], stop: Stop) -> None:
    """Run the sweep's workers until its slots are done or a stop is wanted."""
    with storage_errors(launch.orders[0][0].storage_url):
        run_local(launch.orders, launch.sweep.slots, on_event, on_pulse, stop)


def load_text(
    spec: StudySpec, data: Path | None, sweep: Sweep | None, home: Home, announce: Callable[[str], None]
) -> TokenizedCorpus:
    """The study's text in tokens: from `--data`, else from where an existing study has it, else as its file says."""
    recorded = None if sweep is None else sweep.record["corpus"]["source"]
    try:
        text = load_corpus(str(data or recorded or spec.text.corpus), home.cache / "corpora", announce)
    except CorpusError as error:
        if data is not None or recorded is None:
            raise
        raise StudyError(f"the text of study {spec.name!r} is gone ({error}); --data says where it is now") from error
    corpus = tokenize_corpus(text, spec.text.choice, home.cache / "tokens")
    corpus.check_length(spec.run_with({}).architecture.sequence_length)
    return corpus


def _total(request: Request, spec: StudySpec) -> int:
    if request.trials is not None and request.trials < 1:
        raise UsageError(f"--trials is the total that the study ends with and must be at least 1, got {request.trials}")
    total = request.trials or spec.default_total()
    most = spec.most_trials()
    if most is not None and total > most:
        raise UsageError(f"--trials {total}: the grid of {spec.name} has {most} points, baseline included")
    return total


def _check_same_file(sweep: Sweep, spec: StudySpec) -> None:
    differences = list(_differences(sweep.spec.identity(), spec.identity()))
    if differences:
        profiles = (sweep.spec.profile, spec.profile)
        hint = (
            f" (it was made with profile {profiles[0]}, this machine takes {profiles[1]})"
            if len(set(profiles)) > 1
            else ""
        )
        raise StudyError(
            f"study {spec.name!r} was made from another study file: {'; '.join(differences[:3])}{hint}; "
            "restore the file, or give it another name"
        )


def _differences(old: dict[str, Any], new: dict[str, Any], path: str = "") -> Iterator[str]:
    for key in sorted(old.keys() | new.keys()):
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            yield from _differences(before, after, f"{path}{key}.")
        elif before != after:
            yield f"{path}{key} was {before!r}, is {after!r}"


def check_same_text(sweep: Sweep, corpus: TokenizedCorpus) -> None:
    """Refuse a corpus or tokenizer other than the study's.

    Raises:
        StudyError: naming both digests.
    """
    for what, old, new in (
        ("corpus", sweep.record["corpus"]["digest"], corpus.corpus_digest),
        ("tokenizer", sweep.record["tokenizer"]["digest"], corpus.tokenizer.digest),
    ):
        if old != new:
            raise StudyError(
                f"study {sweep.spec.name!r} was made with another {what} (of {sweep.record['corpus']['name']}, digest "
                f"{old}; {corpus.corpus_name} gives {new}); its trials would not compare"
            )


def _record(spec: StudySpec, corpus: TokenizedCorpus, device: str) -> dict[str, Any]:
    return {
        "uid": uuid.uuid4().hex[:8],
        "created_at": time.time(),
        "profile": spec.profile,
        "spec": spec.model_dump(mode="json"),
        "corpus": {
            "name": corpus.corpus_name,
            "source": corpus.corpus_source,
            "origin": corpus.corpus_origin,
            "digest": corpus.corpus_digest,
            "tokens": {split: corpus.tokens(split) for split in corpus.splits},
        },
        "tokenizer": {
            "kind": corpus.tokenizer.kind,
            "vocabulary": corpus.tokenizer.vocabulary,
            "digest": corpus.tokenizer.digest,
        },
        "hardware": describe(device),
        "versions": {
            "hpo": version("assay-hpo"),
            "python": platform.python_version(),
            "torch": torch.__version__,
            "optuna": optuna.__version__,
        },
    }


def _orders(
    workers: int | None, total: int, device: str, sweep: Sweep, url: str, home: Home, corpus: TokenizedCorpus
) -> tuple[tuple[WorkerOrder, Path], ...]:
    """One order per worker: on CPUs they share the cores, on GPUs each has one of its own, in turn."""
    places = gpu_count() if device == "cuda" else min(cpu_cores(), max(1, total // TRIALS_PER_WORKER))
    count = min(workers or places, total)
    threads = max(1, cpu_cores() // count)
    orders = []
    for place in range(count):
        name = f"worker-{place}"
        order = WorkerOrder(
            storage_url=url,
            study_name=sweep.spec.name,
            total=total,
            home=home,
            tokens=corpus.folder,
            device=f"cuda:{place % gpu_count()}" if device == "cuda" else "cpu",
            threads=threads,
            name=name,
        )
        orders.append((order, home.worker_log(sweep.spec.name, sweep.uid, name)))
    return tuple(orders)
