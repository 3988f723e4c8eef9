"""One process on one device: claim a slot, train its trial, finish, again.

The same function serves wherever a worker runs. It tells what it does and hears of a stop through a `Link`; everything
that must not be lost goes through the database and the trial's folder.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from optuna.exceptions import StorageInternalError
from sqlalchemy.exc import SQLAlchemyError

from hpo.errors import WorkerError
from hpo.home import Home
from hpo.objective import Interrupted, TrialSetting, deadly, failed, run_trial, tidy
from hpo.search_space import suggest
from hpo.slots import LEASE_S, Lease, LeaseLost, TrialOutcome, renewed
from hpo.storage import open_database, storage_errors
from hpo.sweep import open_sweep
from model.config import Scalar
from model.errors import ModelError
from model.evaluation import Evaluation
from model.tokens import open_tokens

WAIT_S = 0.5  # between looks for a free slot while other workers hold the rest
DEATHS = 3  # of processes over one trial, after which it is taken to be the cause
FAILURES_IN_A_ROW = 3  # after which a worker takes the fault to be the machine's or the program's
BEYOND_A_TRIAL = (
    ModelError,
    OSError,
    SQLAlchemyError,
    StorageInternalError,
)  # faults that another trial would meet too

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class WorkerOrder:
    """Everything a worker needs to know; plain data, so that it can be sent anywhere."""

    storage_url: str = field(repr=False)
    study_name: str
    total: int  # slots to fill
    home: Home
    tokens: Path  # folder of the token files
    device: str
    threads: int
    name: str  # of this worker, for people: worker-0
    owner: str = ""  # of its leases: different for every process that was ever started
    lease_s: float = LEASE_S


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a worker tells while it works."""

    kind: Literal["started", "evaluated", "finished", "waiting", "restarted", "fatal"]
    worker: str
    trial: int | None = None
    parameters: dict[str, Scalar] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    outcome: TrialOutcome | None = None
    message: str = ""


class Link(Protocol):
    """A worker's line to whoever started it."""

    def tell(self, event: Event) -> None:
        """Pass an event on; an unheard event is no error."""

    def stop_wanted(self) -> bool:
        """Whether to leave at the next evaluation."""


def work(order: WorkerOrder, link: Link) -> None:
    """Fill slots until all are done or a stop is wanted.

    Raises:
        HpoError, ModelError: the worker cannot go on; its trial is kept for another.
    """
    try:
        with storage_errors(order.storage_url):
            _Worker(order, link).fill_slots()
    except OSError as error:
        raise WorkerError(f"{order.name}: {error}; run again to go on") from error


class _Worker:
    def __init__(self, order: WorkerOrder, link: Link) -> None:
        self.order, self.link = order, link
        self.sweep = open_sweep(open_database(order.storage_url, create=False), order.study_name, order.lease_s)
        self.slots = self.sweep.slots
        self.corpus = open_tokens(order.tokens)
        self.log = order.home.worker_log(order.study_name, self.sweep.uid, order.name)
        self.failures = 0

    def folder(self, trial: int) -> Path:
        return self.order.home.trial(self.order.study_name, self.sweep.uid, trial)

    def fill_slots(self) -> None:
        while not self.link.stop_wanted():
            begin_new = not self.sweep.stopped_improving()
            lease = self.slots.claim(self.order.owner, self.order.total, begin_new=begin_new)
            counts = self.slots.counts(self.order.total)
            if lease is not None:
                self.fill(lease)
            elif counts.begun == 0 and (counts.open == 0 or not begin_new):
                return
            else:
                self.tell("waiting")
                time.sleep(WAIT_S)

    def fill(self, lease: Lease) -> None:
        """Take one slot from where it stands to done, or give it back."""
        if lease.outcome is not None:  # whoever ran the trial died before telling Optuna
            assert lease.trial_number is not None, "a trial is bound before it ends"
            self.sweep.settle(lease, lease.trial_number, lease.outcome)
            tidy(self.folder(lease.trial_number), lease.outcome)
            return
        try:
            self.run(lease)
        except LeaseLost:
            logger.warning("slot %d: lease lost to another worker, which goes on with its trial", lease.slot)
        except Interrupted:
            self.slots.release(lease)
        except BEYOND_A_TRIAL:
            self.slots.release(lease)
            raise

    def run(self, lease: Lease) -> None:
        trial = self.sweep.begin(lease)
        parameters = suggest(self.sweep.spec, trial)
        facts: dict[str, Any] = {"trial": trial.number, "parameters": parameters}
        self.tell("started", **facts)
        folder = self.folder(trial.number)
        torch.set_num_threads(self.order.threads)  # a continued trial may have changed it to its own
        setting = TrialSetting(
            spec=self.sweep.spec, corpus=self.corpus, folder=folder, epoch=lease.epoch, device=self.order.device
        )

        def on_evaluation(evaluation: Evaluation) -> bool:
            if not self.slots.renew(lease):
                raise LeaseLost
            self.tell("evaluated", evaluation=evaluation, **facts)
            return not self.link.stop_wanted()

        with renewed(self.slots, lease):
            if lease.deaths >= DEATHS:
                outcome = deadly(lease.deaths, self.log)
            else:
                outcome = self.outcome_of(lambda: run_trial(trial, parameters, setting, on_evaluation))
        if not self.slots.finish(lease, outcome):
            raise LeaseLost
        self.sweep.settle(lease, trial.number, outcome)
        tidy(folder, outcome)
        self.tell("finished", outcome=outcome, **facts)
        if self.failures >= FAILURES_IN_A_ROW:
            raise WorkerError(f"{self.failures} trials in a row failed, the last by {outcome.attributes['hpo:reason']}")

    def outcome_of(self, run: Callable[[], TrialOutcome]) -> TrialOutcome:
        """The trial's outcome; an unforeseen exception is one too, with its traceback in the worker's log."""
        try:
            outcome = run()
        except (LeaseLost, Interrupted, *BEYOND_A_TRIAL):
            raise
        except Exception as error:
            traceback.print_exc()
            self.failures += 1
            return failed(error, self.log)
        self.failures = 0
        return outcome

    def tell(self, kind: Literal["started", "evaluated", "finished", "waiting"], **facts: Any) -> None:
        self.link.tell(Event(kind=kind, worker=self.order.name, **facts))
