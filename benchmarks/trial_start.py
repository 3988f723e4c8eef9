"""How long stands still what trains between two trials: in a warm worker, and with a process for each trial.

python benchmarks/trial_start.py [--preset NAME ...] [--trials N]

Real trials of a real study (python-docs, SQLite, one worker with all cores), whose budget is two updates for each of
two evaluations. Warm: one worker of `hpo run`, from its event "finished", with which a trial is closed in the database,
to where the first update of the next one begins; and from the end of its training, which adds what closing takes.
Between them lie the claim of a slot, the sampler, the network and the check of its causality. Process per trial: the
same worker started anew (Python, imports, database, token files, the same) until its first update begins; leaving the
one before is not counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

from results import FOLDER, keep
from torch import Tensor

import hpo_model.training.loop
from hpo.executors.local import run_local
from hpo.executors.resources import ResourceRequest
from hpo.executors.stop import Stop
from hpo.home import Home
from hpo.search.launch import Launch
from hpo.search.prepare import prepare
from hpo.search.request import Request
from hpo.worker.messages import Event, EventSink, WorkerSpec
from hpo.worker.worker import work
from hpo_model.config import PRESETS, build_run
from hpo_model.training.loop import TrainingResult, train
from hpo_model.training.run import Run

UPDATES_OF_A_TRIAL = 4
VOCABULARIES = {"nano": 2048}  # as the profile `cpu` of lambda_phi has it; the others 8,192, as `cuda` has
FIRST_UPDATE, TRAINED = "first update", "trained"
STUDY = """
name = "trial-start"
[text]
corpus = "python-docs"
vocabulary = {vocabulary}
[run]
preset = "{preset}"
budget_tokens = {budget}
evaluations = 2
[search]
lambda_phi = {{ low = 0.001, high = 0.3, log = true }}
dropout = {{ low = 0.0, high = 0.4 }}
[baseline]
lambda_phi = 0.05
dropout = 0.1
[pruner]
kind = "none"
"""


class Clocked:
    """A worker's line that puts its moment on every event, and may ask the worker to leave after one trial.

    The clock is one for all processes of a machine.
    """

    def __init__(self, sink: EventSink, *, only_one: bool) -> None:
        self.sink, self.only_one = sink, only_one
        self.finished = False

    def send(self, event: Event) -> None:
        """Pass it on with its moment."""
        self.finished = self.finished or event.kind == "finished"
        self.sink.send(dataclasses.replace(event, message=f"{event.message}@{time.monotonic()}"))

    def stop_wanted(self) -> bool:
        """After one trial, if that was asked for."""
        return (self.only_one and self.finished) or self.sink.stop_wanted()


def clocked_work(order: WorkerSpec, sink: EventSink, *, only_one: bool = False) -> None:
    """The real worker, which also tells when its trials' first updates begin and when their training has ended."""
    line = Clocked(sink, only_one=only_one)
    real_update = hpo_model.training.loop.update

    def update(run: Run, sums: Tensor) -> Tensor:
        if run.step == 0:
            line.send(Event(kind="warned", worker=order.name, message=FIRST_UPDATE))
        return real_update(run, sums)

    def trained(*positional: Any, **named: Any) -> TrainingResult:
        result = train(*positional, **named)
        line.send(Event(kind="warned", worker=order.name, message=TRAINED))
        return result

    with mock.patch("hpo_model.training.loop.update", update), mock.patch("hpo.worker.objective.train", trained):
        work(order, line)


def single_work(order: WorkerSpec, sink: EventSink) -> None:
    """The same, for one trial."""
    clocked_work(order, sink, only_one=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure both ways for each preset."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", action="append", choices=tuple(PRESETS), help="default nano and tiny_iit")
    parser.add_argument("--trials", type=int, default=10, help="measured, of each way")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder for the JSON")
    options = parser.parse_args(arguments)
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as `hpo` does
    figures = {preset: measure(preset, options.trials) for preset in options.preset or ("nano", "tiny_iit")}
    keep("trial_start", {"trials": options.trials, "presets": figures}, folder=options.results)


def measure(preset: str, trials: int) -> dict[str, float]:
    """Medians of both ways on a study of its own, and their ratio."""
    with tempfile.TemporaryDirectory(prefix="hpo-benchmark-") as folder:
        launch = make_study(Path(folder), preset, 2 * trials + 1)
        warm = between_trials(launch, trials + 1)
        alone = [process_per_trial(launch) for _ in range(trials)]
        launch.sweep.database.engine.dispose()
    figures = {
        "warm_s": median(warm[0]),
        "warm_longest_s": round(max(warm[0]), 3),
        "warm_from_end_of_training_s": median(warm[1]),
        "process_per_trial_s": median(alone),
        "ratio": round(statistics.median(alone) / statistics.median(warm[0]), 1),
    }
    print(preset, figures, flush=True)
    return figures


def make_study(folder: Path, preset: str, trials: int) -> Launch:
    """A study with its slots and the order for one worker."""
    budget = UPDATES_OF_A_TRIAL * build_run({"preset": preset}).tokens_per_step
    text = STUDY.format(preset=preset, budget=budget, vocabulary=VOCABULARIES.get(preset, 8192))
    path = folder / "trial-start.toml"
    path.write_text(text, encoding="utf-8")
    request = Request(study=str(path), trials=trials, resources=ResourceRequest(workers=1))
    home = Home(folder / "runs")
    return prepare(request, f"sqlite:///{home.database}", home)


def between_trials(launch: Launch, trials: int) -> tuple[list[float], list[float]]:
    """Seconds from the end of each trial, and of its training, to the first update of the next one, in one worker."""
    moments = run_worker(launch, trials, clocked_work)
    starts = [moment for what, moment in moments if what == FIRST_UPDATE][1:]
    gaps = []
    for mark in ("finished", TRAINED):
        ends = [moment for what, moment in moments if what == mark][:-1]
        gaps.append([start - end for start, end in zip(starts, ends, strict=True)])
    return gaps[0], gaps[1]


def process_per_trial(launch: Launch) -> float:
    """Seconds from the start of a process to the first update of the trial for which it was started."""
    spawn = multiprocessing.get_context("spawn")
    with mock.patch("hpo.executors.local.process_context", return_value=spawn):
        started = time.monotonic()
        moments = run_worker(launch, None, single_work)
    return next(moment for what, moment in moments if what == FIRST_UPDATE) - started


def run_worker(launch: Launch, total: int | None, work: Any) -> list[tuple[str, float]]:
    """Run one worker until it leaves; what it told, and when it happened there."""
    told = []

    def hear(event: Event) -> None:
        what, _, moment = event.message.partition("@")
        told.append((what or event.kind, float(moment)))

    orders = [(dataclasses.replace(order, total=total), log) for order, log in launch.workers]
    run_local(orders, launch.sweep.slots, hear, lambda: None, Stop(), work=work)
    return told


def median(seconds: Sequence[float]) -> float:
    """Rounded to milliseconds."""
    return round(statistics.median(seconds), 3)


if __name__ == "__main__":
    main()
