"""What the search costs beside Optuna's own: ask + 10 reports with pruning + tell + slot, against bare Optuna.

python benchmarks/storage.py

Both work in one database file or server, with the same engine options, sampler and pruner, trial by trial in turn.
Bare Optuna is `ask`, three `suggest_*`, ten `report` and `should_prune`, `tell`. Ours is the worker of `hpo run`, whose
training is instant: claim, the same under fences, the trial's attributes (with ten evaluations), done.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from unittest import mock

import optuna
from measuring import database_url, fill, idle_train, make_sweep, order_for, server_version
from results import keep

from hpo.database.connection import open_database
from hpo.study.search_space import make_pruner, make_sampler, suggest
from hpo.worker.messages import Event
from hpo.worker.worker import _Worker

SIZES = (40, 2000)  # finished trials in the study while the next ones are measured
MEASURED = 30
PRUNER = {"kind": "successive_halving", "min_resource": 3, "reduction_factor": 4, "n_min_trials": 3}


class Deaf:
    """A line to nobody."""

    def send(self, event: Event) -> None:
        """Nothing hears it."""

    def stop_wanted(self) -> bool:
        """Never."""
        return False


def bare_trial(study: optuna.Study, spec: object) -> None:
    """One trial as Optuna's users write it."""
    trial = study.ask()
    suggest(spec, trial)  # type: ignore[arg-type]
    for milestone in range(1, 11):
        trial.report(5.0 - 0.1 * milestone, milestone)
        if trial.should_prune():
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
            return
    study.tell(trial, 4.0)


def measure(url: str, size: int) -> dict[str, float]:
    """Median seconds of a trial, ours and bare, in studies of so many trials."""
    database = open_database(url, create=True)
    sweep = make_sweep(database, f"ours-{size}", MEASURED + 5, pruner=PRUNER)
    bare = optuna.create_study(study_name=f"bare-{size}", storage=database.storage)
    bare.sampler, bare.pruner = make_sampler(sweep.spec, 0), make_pruner(sweep.spec)
    with (
        tempfile.TemporaryDirectory() as home,
        mock.patch("hpo.worker.objective.train", idle_train),
        mock.patch("hpo.worker.objective.peak_tensor_bytes", return_value=0),  # there is no text
        mock.patch("hpo.worker.worker.open_tokens"),
    ):
        worker = _Worker(order_for(sweep, url, Path(home), "worker"), Deaf())

        def ours_trial() -> None:
            lease = worker.slots.claim("worker", None)
            assert lease is not None
            worker.fill(lease)
            worker.look_for_stop()

        for _ in range(3):
            ours_trial()
            bare_trial(bare, sweep.spec)
        for study in (sweep.study, bare):  # what each has made itself, again and again
            fill(
                database,
                database.storage.get_study_id_from_name(study.study_name),
                size - 3,
                study.get_trials(deepcopy=False)[1:3],
            )
        times: dict[str, list[float]] = {"ours": [], "bare": []}
        for _ in range(MEASURED):
            for name, run in (("bare", lambda: bare_trial(bare, sweep.spec)), ("ours", ours_trial)):
                started = time.perf_counter()
                run()
                times[name].append(time.perf_counter() - started)
        worker.slots.database.engine.dispose()
    database.engine.dispose()
    ours, plain = (statistics.median(times[name]) for name in ("ours", "bare"))
    return {"ours_ms": round(1000 * ours, 1), "bare_ms": round(1000 * plain, 1), "ratio": round(ours / plain, 2)}


def main() -> None:
    """Measure on both storages and print ratios."""
    figures = {}
    for engine in ("sqlite", "postgresql"):
        with database_url(engine) as url:
            for size in SIZES:
                found = measure(url, size)
                figures[f"{engine}, {size} trials"] = found
                print(f"{engine} {server_version(url)}, {size:5} trials: {found}", flush=True)
    keep("storage", {"per_trial": figures})


if __name__ == "__main__":
    main()
