"""From what a user asked for to a sweep that is ready to run: study file, text, database, slots, places.

Everything that can be wrong is found here, before a worker starts. Nothing is written before but caches of text and an
empty database.
"""

from __future__ import annotations

import platform
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import optuna
import torch

from hpo.errors import StudyError, UsageError
from hpo.executors.local import run_local
from hpo.executors.stop import Stop
from hpo.home import Home
from hpo.placement import Wish, check_wish, places
from hpo.slots import SlotCounts
from hpo.storage import is_missing, masked, open_database, storage_errors
from hpo.study_file import StudySpec, load_study_file
from hpo.sweep import LAST_RUN_ATTRIBUTE, Sweep, create_sweep, find_sweep, open_sweep, publish, take_up
from hpo.text import check_same_text, load_text
from hpo.worker import Event, WorkerOrder
from model.hardware import default_device, describe
from model.tokens import TokenizedCorpus


@dataclass(frozen=True, kw_only=True)
class Request:
    """What the user asked for."""

    study: str  # name of a shipped study, or path of a study file; to join: of a study in the database
    trials: int | None = None  # the total; None: what the study file says
    data: Path | None = None  # folder with the text; None: what the study was made from, or its file says
    wish: Wish = field(default_factory=Wish)


@dataclass(frozen=True, kw_only=True)
class Launch:
    """A sweep that is ready to run."""

    sweep: Sweep
    corpus: TokenizedCorpus
    url: str = field(repr=False)
    total: int | None  # None: all slots that there are, or will be meanwhile
    orders: tuple[tuple[WorkerOrder, Path], ...]

    def describe(self, counts: SlotCounts) -> str:
        """Study, text, workers and database in one line."""
        spec, tokenizer = self.sweep.spec, self.corpus.tokenizer
        return (
            f"study {spec.name}: {counts.done} of {counts.total} trials finished · profile {spec.profile} · "
            f"{self.corpus.corpus_name}, {tokenizer.kind} with {tokenizer.vocabulary:,} tokens · "
            f"{len(self.orders)} worker{'' if len(self.orders) == 1 else 's'} · {masked(self.url)}"
        )


def prepare(request: Request, url: str, home: Home, announce: Callable[[str], None]) -> Launch:
    """Check everything, load the text, and open the study or make it.

    Raises:
        HpoError, ModelError: what is wrong, in one line; no study was changed.
    """
    device = default_device()
    spec = load_study_file(request.study, "cuda" if device == "cuda" else "cpu")
    total = _total(request, spec)
    check_wish(request.wish, device)
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
        orders = _orders(request, total, device, sweep, url, home, corpus, announce)
    return Launch(sweep=sweep, corpus=corpus, url=url, total=total, orders=orders)


def join(request: Request, url: str, home: Home, announce: Callable[[str], None]) -> Launch:
    """Make ready to work on a study that the database has, from its own specification and the same text.

    Raises:
        HpoError, ModelError: what is wrong, in one line; nothing was changed.
    """
    device = default_device()
    check_wish(request.wish, device)
    with storage_errors(url):
        sweep = open_sweep(open_database(url, create=False), request.study)
        corpus = load_text(sweep.spec, request.data, sweep, home, announce)
        check_same_text(sweep, corpus)
        if sweep.spec.profile != ("cuda" if device == "cuda" else "cpu"):
            announce(
                f"study {sweep.spec.name} was made with profile {sweep.spec.profile}; this machine trains on {device}"
            )
        orders = _orders(request, None, device, sweep, url, home, corpus, announce)
    return Launch(sweep=sweep, corpus=corpus, url=url, total=None, orders=orders)


def run_workers(launch: Launch, on_event: Callable[[Event], None], on_pulse: Callable[[], None], stop: Stop) -> None:
    """Run the sweep's workers until its slots are done or a stop is wanted."""
    with storage_errors(launch.url):
        run_local(launch.orders, launch.sweep.slots, on_event, on_pulse, stop)


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
    request: Request,
    total: int | None,
    device: str,
    sweep: Sweep,
    url: str,
    home: Home,
    corpus: TokenizedCorpus,
    announce: Callable[[str], None],
) -> tuple[tuple[WorkerOrder, Path], ...]:
    """One order per worker; none where nothing is left to do."""
    counts = sweep.slots.counts(total)
    if counts.done == counts.total or request.wish.workers == 0:
        return ()
    peak = _peak_memory(sweep) if device == "cuda" else None
    granted = places(request.wish, device, counts.total, sweep.spec, corpus, peak, home.cache, announce)
    stops, orders = sweep.slots.stops(), []
    for number, place in enumerate(granted[: counts.total]):
        name = f"worker-{number}"
        order = WorkerOrder(
            storage_url=url,
            study_name=sweep.spec.name,
            total=total,
            home=home,
            tokens=corpus.folder,
            device=place.device,
            threads=place.threads,
            memory_fraction=place.memory_fraction,
            name=name,
            stops=stops,
        )
        orders.append((order, home.worker_log(sweep.spec.name, sweep.uid, name)))
    return tuple(orders)


def _peak_memory(sweep: Sweep) -> int | None:
    """The most that a trial of the study was seen to hold on a GPU, in bytes."""
    trials = sweep.study.get_trials(deepcopy=False)
    machines = [trial.user_attrs.get("hpo:machine", {}) for trial in trials]
    peaks = [each.get("peak_memory_bytes") for each in machines if str(each.get("device")).startswith("cuda")]
    return max((peak for peak in peaks if peak is not None), default=None)
