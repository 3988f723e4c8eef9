"""What a report of a large study costs beside Optuna's own loading of it.

python benchmarks/report.py [--trials N] [--rounds N]      # eight minutes, most of it to make the study

A study of ten thousand trials in SQLite, each with ten parameters, up to ten evaluations and the history that a worker
of ours stores. Each way is a process of its own, in turns: Optuna loads all trials; `hpo report` writes each form.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial
from results import FOLDER, keep

from hpo.database.connection import open_database
from hpo_reports.records.names import (
    STUDY_RECORD,
    TRIAL_HISTORY,
    TRIAL_MACHINE,
    TRIAL_OUTCOME,
    TRIAL_REASON,
    TRIAL_ROLE,
    TRIAL_RUN,
    TRIAL_SLOT,
)

PARAMETERS = ("learning_rate", "dropout", "lambda_phi", "weight_decay", "noise", "warmup", "phi_target", "phi_floor",
              "clip_norm", "memory_share")  # fmt: skip
EVALUATIONS = 10
ASKED = 1.5  # times Optuna's own loading
LOAD = """
import optuna, sys
print(len(optuna.load_study(study_name="large", storage=sys.argv[1]).get_trials(deepcopy=False)))
"""
FORMS = {
    "markdown": ("--format", "markdown"),
    "session": ("--template", "session"),
    "html": ("--format", "html"),
    "json": ("--format", "json"),
    "csv": ("--format", "csv"),
}


def make_study(url: str, trials: int) -> None:
    """Trials as workers of ours leave them; seven in ten were pruned."""
    storage = open_database(url, create=True).storage
    study = optuna.create_study(study_name="large", storage=storage)
    study.set_user_attr(STUDY_RECORD, {"uid": "large", "created_at": 0.0, "profile": "cpu", "spec": {"trials": trials}})
    random = np.random.default_rng(1)
    for number in range(trials):
        study.add_trial(_trial(number, random))


def _trial(number: int, random: np.random.Generator) -> FrozenTrial:
    values = {name: float(random.uniform(0.01, 1)) for name in PARAMETERS}
    pruned = number > 1 and random.random() < 0.7
    evaluations = int(random.integers(2, EVALUATIONS)) if pruned else EVALUATIONS
    start = 6 + values["dropout"] + 0.1 * float(random.standard_normal())
    losses = [start - 0.2 * milestone for milestone in range(1, evaluations + 1)]
    history = [
        {"milestone": n, "tokens": 30_000 * n, "step": 30 * n, "epoch": 0.1 * n, "whole_split": n == EVALUATIONS}
        | {"val_ppl": float(np.exp(loss)), "train_ppl": float(np.exp(loss)), "phi": 0.8, "seconds": 2.0 * n}
        for n, loss in enumerate(losses, 1)
    ]
    attributes = {
        TRIAL_SLOT: number,
        TRIAL_ROLE: "baseline" if number == 0 else "search",
        TRIAL_RUN: {**values, "budget_tokens": 300_000, "batch_size": 8, "sequence_length": 128, "seed": 1},
        TRIAL_OUTCOME: "pruned" if pruned else "complete",
        TRIAL_REASON: "behind its peers" if pruned else "all of 300,000 tokens",
        TRIAL_HISTORY: history,
        TRIAL_MACHINE: {"host": "here", "device": "cpu"},
    }
    return create_trial(
        state=TrialState.PRUNED if pruned else TrialState.COMPLETE,
        value=losses[-1],
        params=values,
        distributions=dict.fromkeys(values, FloatDistribution(0.01, 1.0)),
        intermediate_values=dict(enumerate(losses, 1)),
        user_attrs=attributes,
    )


def timed(command: Sequence[str]) -> tuple[float, float]:
    """Seconds of a process, and the most memory that it held, in MiB."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.perf_counter()
    # a process in between, so that the peak is of this one alone
    measure = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); "
    measure += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
    out = subprocess.run([sys.executable, "-c", measure, *command], check=True, capture_output=True, text=True).stdout
    seconds = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return min(seconds, busy), int(out) / 1024  # what other programs take of the machine is not this one's


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each way, in turns")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder for the JSON")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="hpo-benchmark-") as folder:
        url = f"sqlite:///{folder}/studies.db"
        make_study(url, options.trials)
        ways = {"optuna": [sys.executable, "-c", LOAD, url]}
        for form, flags in FORMS.items():
            out = str(Path(folder) / form)
            report = [sys.executable, "-m", "hpo", "report", "large", *flags, "--storage", url, "--out", out]
            ways[form] = report
        runs: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, command in ways.items():
                runs[way].append(timed(command))
    figures = {
        way: {
            "seconds": round(statistics.median(seconds for seconds, _ in each), 2),
            "peak_mib": round(statistics.median(peak for _, peak in each)),
        }
        for way, each in runs.items()
    }
    for way, each in figures.items():
        each["ratio"] = round(each["seconds"] / figures["optuna"]["seconds"], 2)
        print(way, json.dumps(each), flush=True)
    keep("report", {"trials": options.trials, "asked": ASKED, "ways": figures}, folder=options.results)


if __name__ == "__main__":
    main()
