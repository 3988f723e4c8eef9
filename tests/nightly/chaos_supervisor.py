"""A supervisor for the chaos campaign, as `hpo run` is one, and what its workers run.

python chaos_supervisor.py '{"url": …, "study": …, "workers": 4, "lease_s": 2.0, "home": …, "real": false}'
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import optuna

from hpo.database.connection import open_database
from hpo.errors import HpoError
from hpo.executors.local import run_local
from hpo.executors.resources import ResourceRequest
from hpo.executors.stop import Stop
from hpo.home import Home
from hpo.search.prepare import join
from hpo.search.request import Request
from hpo.sweep.result import TrialResult
from hpo.sweep.sweep import open_sweep
from hpo.worker import objective
from hpo.worker.messages import Event, EventSink, WorkerSpec
from hpo.worker.worker import work
from hpo_model.config import RunConfig
from hpo_model.training.checkpoint import load_history, save_checkpoint
from hpo_model.training.history import Evaluation
from hpo_model.training.loop import Decision, TrainingResult
from tests.support.sweeps import make_evaluation

TOKEN_UNIT = 1e-6  # of the fencing token that a toy's reported losses carry
EVALUATIONS = 10
STEP_S = (0.05, 0.3)


def toy_loss(digest: str, milestone: int) -> float:
    """A loss of three decimals that falls with the milestone."""
    start = 4.0 + int(hashlib.sha256(digest.encode()).hexdigest()[:4], 16) / 65536
    return round(start - 0.1 * milestone, 3)


def token_of(loss: float) -> int:
    """The fencing token that a toy's loss carries."""
    return round((loss - round(loss, 3)) / TOKEN_UNIT)


def toy_train(
    config: RunConfig,
    corpus: object,
    *,
    device: str,
    save_to: Path,
    resume_from: Path | None,
    on_evaluation: Callable[[Evaluation], Decision],
) -> TrainingResult:
    """What training does to files and observers, without training."""
    del corpus, device
    history = load_history(resume_from) if resume_from else ()
    dice = random.Random()
    for milestone in range(len(history) + 1, EVALUATIONS + 1):
        time.sleep(dice.uniform(*STEP_S))
        evaluation = make_evaluation(milestone, val_loss=toy_loss(config.digest(), milestone))
        history = (*history, evaluation)
        content = {"identity": {"device": "cpu"}, "history": [dataclasses.asdict(each) for each in history]}
        save_checkpoint(save_to, content)
        decision = on_evaluation(evaluation)
        if decision is Decision.PRUNE:
            return TrainingResult(outcome="pruned", reason="behind", history=history)
        if decision is Decision.INTERRUPT and milestone < EVALUATIONS:
            return TrainingResult(outcome="interrupted", reason="stopped", history=history)
    return TrainingResult(outcome="complete", reason="all", history=history)


def toy_work(spec: WorkerSpec, sink: EventSink) -> None:
    """The real worker; its trials do not train, and their reports carry the fencing token that it believes in."""
    believed: list[int] = []

    def run_trial(trial: optuna.Trial, parameters: Any, setting: Any, on_evaluation: Any) -> TrialResult:
        believed[:] = [setting.fencing_token]
        return objective.run_trial(trial, parameters, setting, on_evaluation)

    def report(trial: optuna.Trial, evaluation: Evaluation) -> None:
        loss = round(evaluation.val_loss, 3) + believed[0] * TOKEN_UNIT
        real_report(trial, dataclasses.replace(evaluation, val_loss=loss))

    real_report = objective._report
    with (
        mock.patch("hpo.worker.objective.train", toy_train),
        mock.patch("hpo.worker.objective._report", report),
        mock.patch("hpo.worker.worker.run_trial", run_trial),
        mock.patch("hpo.worker.objective.peak_tensor_bytes", return_value=0),  # there is no text
        mock.patch("hpo.worker.worker.open_tokens"),
    ):
        real_work(spec, sink)


def real_work(spec: WorkerSpec, sink: EventSink) -> None:
    """The real worker, which leaves its process's number where the campaign finds it."""
    pids = spec.home.root / "pids"
    pids.mkdir(parents=True, exist_ok=True)
    (pids / str(os.getpid())).touch()
    work(spec, sink)


def main(setting: dict[str, Any]) -> int:
    """Run workers to the study's end. Exit code 1: they could not go on."""
    home, stop = Home(Path(setting["home"])), Stop()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        if setting["real"]:
            request = Request(study=setting["study"], resources=ResourceRequest(workers=setting["workers"]))
            launch = join(request, setting["url"], home)
            specs = [(dataclasses.replace(spec, lease_s=setting["lease_s"]), log) for spec, log in launch.workers]
            sweep = launch.sweep
        else:
            sweep = open_sweep(open_database(setting["url"], create=False), setting["study"], setting["lease_s"])
            specs = [
                (
                    WorkerSpec(
                        storage_url=setting["url"],
                        study_name=setting["study"],
                        total=None,
                        home=home,
                        tokens=Path(),
                        device="cpu",
                        threads=1,
                        name=f"worker-{number}",
                        lease_s=setting["lease_s"],
                    ),
                    home.worker_log(setting["study"], sweep.uid, f"worker-{number}"),
                )
                for number in range(setting["workers"])
            ]
        run_local(specs, sweep.slots, tell, lambda: None, stop, work=real_work if setting["real"] else toy_work)
    except HpoError as error:
        print(error, flush=True)
        return 1
    return 0


def tell(event: Event) -> None:
    """Print what a person would want to know afterwards."""
    if event.kind in ("restarted", "fatal", "warned"):
        print(event.message, flush=True)


if __name__ == "__main__":
    sys.exit(main(json.loads(sys.argv[1])))
