"""One process on one device: claim a slot, train its trial, finish, again.

The same function serves wherever a worker runs. It sends events to an `EventSink`, which also carries requests to
stop; everything that must not be lost goes through the database and the trial's folder.
"""

from __future__ import annotations

import contextlib
import logging
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from sqlalchemy.exc import IntegrityError, SQLAlchemyError

from hpo.database.connection import open_database, storage_errors
from hpo.database.retry import RetryPolicy, is_transient
from hpo.errors import WorkerError
from hpo.study.search_space import suggest
from hpo.sweep.checkpoints import delete_after_end, delete_after_lost_lease, kept_after_end
from hpo.sweep.compatibility import check_compatible, check_network
from hpo.sweep.corpus import load_text
from hpo.sweep.result import TrialResult
from hpo.sweep.slots import Lease, LeaseLost
from hpo.sweep.study_row import StudyRow
from hpo.sweep.sweep import open_sweep
from hpo.worker.artifacts import offer
from hpo.worker.gpu_share import limit_memory
from hpo.worker.messages import MAX_CRASHES, MAX_FAILURES_IN_A_ROW, Event, EventKind, EventSink, WorkerSpec
from hpo.worker.objective import (
    Interrupted,
    TrialSetting,
    crash_loop,
    failed,
    reached_before,
    run_trial,
)
from hpo_model.data.tokens import TokenizedCorpus, open_tokens
from hpo_model.errors import ModelError
from hpo_model.training.history import Evaluation
from hpo_reports.records.names import TRIAL_HISTORY, TRIAL_REASON

WAIT_S = 0.5  # between looks for a free slot while other workers hold the rest
MAX_OUTAGE_S = 600.0  # of the database, after which workers give up
FAULTS_BEYOND_A_TRIAL = (
    ModelError,
    OSError,
    MemoryError,  # outside training, where it is a result
    SQLAlchemyError,
    StorageInternalError,
)  # faults that another trial would meet too
ROW_GONE = (KeyError, IntegrityError)  # raised by Optuna and by the database where the study was deleted

logger = logging.getLogger(__name__)


def work(spec: WorkerSpec, sink: EventSink) -> None:
    """Fill slots until all are done or a stop is wanted.

    Raises:
        HpoError, ModelError: the worker cannot go on; its trial is kept for another.
    """
    try:
        with storage_errors(spec.storage_url):
            worker = None
            try:
                worker = _Worker(spec, sink)
                worker.fill_slots()
            except Exception as error:
                if worker is not None and isinstance(error, ROW_GONE):
                    worker.sweep.check_there()
                if not (is_transient(error) and sink.stop_wanted()):
                    raise
                logger.warning("stopped while the database was unreachable; the lease will expire")
    except (OSError, MemoryError) as error:
        raise WorkerError(f"{spec.name}: {error}; run again to go on") from error


class _Worker:
    def __init__(self, spec: WorkerSpec, sink: EventSink) -> None:
        self.spec, self.sink = spec, sink
        retry = RetryPolicy(max_elapsed_s=MAX_OUTAGE_S, give_up=sink.stop_wanted, announce=lambda line: self.warn(line))
        database = open_database(spec.storage_url, create=False, retry=retry)
        self.sweep = open_sweep(database, spec.study_name, spec.lease_s)
        check_compatible(self.sweep.record)  # a fleet's machines may have different versions
        self.slots, self.row = self.sweep.slots, self.sweep.row
        self.stop_requests = self.row.stop_requests() if spec.stop_requests is None else spec.stop_requests
        self.stop_requested = False
        self.corpus = self.open_corpus()
        self.log = spec.home.worker_log(spec.study_name, self.sweep.uid, spec.name)
        self.failures = 0
        torch.set_num_threads(spec.threads)
        if spec.device.startswith("cuda"):
            limit_memory(spec.device, spec.memory_fraction)

    def open_corpus(self) -> TokenizedCorpus:
        """The token files that a supervisor on this machine has prepared, else the study's text."""
        record = self.sweep.record
        if self.spec.tokens is not None:
            check_network(record)
            return open_tokens(self.spec.tokens)
        corpus = load_text(self.sweep.spec, self.spec.data, record, self.spec.home, logger.info)
        check_compatible(record, corpus=corpus)
        return corpus

    def folder(self, trial: int) -> Path:
        return self.spec.home.trial(self.spec.study_name, self.sweep.uid, trial)

    def fill_slots(self) -> None:
        total = self.spec.total
        while True:
            self.look_for_stop()
            if self.stop_wanted():
                return
            self.sweep.database.check_file()
            begin_new = not self.sweep.stopped_improving()
            lease = self.slots.claim(self.spec.owner, total, begin_new=begin_new)
            if lease is not None:
                self.fill(lease)
                continue
            counts = self.slots.counts(total)
            if counts.begun == 0 and (counts.open == 0 or not begin_new):
                return
            self.send("waiting")
            time.sleep(WAIT_S)

    def stop_wanted(self) -> bool:
        return self.stop_requested or self.sink.stop_wanted()

    def look_for_stop(self, row: StudyRow | None = None) -> None:
        """See whether `hpo stop` was called since this worker was started."""
        self.stop_requested = self.stop_requested or (row or self.row).stop_requests() > self.stop_requests

    def fill(self, lease: Lease) -> None:
        """Take one slot from where it stands to done, or give it back."""
        row = StudyRow(self.sweep.database.without_retry(), self.sweep.study_id)
        try:
            with self.sweep.holding(lease, on_renewal=lambda: self.look_for_stop(row)):
                if lease.result is None:
                    self.run(lease)
                else:  # the worker that ran the trial crashed before Optuna stored the result
                    assert lease.trial_number is not None, "a trial is bound before it ends"
                    self.finalize(lease, lease.trial_number, lease.result)
        except LeaseLost:
            logger.warning("slot %d: lease lost to another worker, which goes on with its trial", lease.slot)
        except UpdateFinishedTrialError:
            self.warn(f"the trial of slot {lease.slot} was ended by another program, as through Optuna's dashboard")
            self.slots.done(lease)
        except Interrupted:
            self.slots.release(lease)
        except FAULTS_BEYOND_A_TRIAL:
            with contextlib.suppress(SQLAlchemyError):
                self.slots.without_retry().release(lease)
            raise

    def run(self, lease: Lease) -> None:
        trial = self.sweep.start(lease)
        parameters = suggest(self.sweep.spec, trial)
        facts: dict[str, Any] = {"trial": trial.number, "parameters": parameters}
        self.send("started", **facts)
        setting = TrialSetting(
            spec=self.sweep.spec,
            corpus=self.corpus,
            folder=self.folder(trial.number),
            fencing_token=lease.fencing_token,
            device=self.spec.device,
            announce=self.warn,
        )
        furthest = reached_before(trial)
        suspected = lease.crash_count > 0  # the trial may be what crashes its workers

        def on_evaluation(evaluation: Evaluation) -> bool:
            nonlocal suspected
            if suspected and evaluation.milestone > furthest:
                self.slots.reset_crash_count(lease)
                suspected = False
            self.send("evaluated", evaluation=evaluation, **facts)
            return not self.stop_wanted()

        if lease.crash_count >= MAX_CRASHES:
            result = crash_loop(lease.crash_count, self.log)
        else:
            try:
                result = self.result_of(lambda: run_trial(trial, parameters, setting, on_evaluation))
            except LeaseLost:
                ended = self.slots.is_done(lease.slot)
                delete_after_lost_lease(setting.folder, lease.fencing_token, ended=ended)
                raise
        if not self.slots.finish(lease, result):
            raise LeaseLost
        self.finalize(lease, trial.number, result)
        self.send("finished", result=result, **facts)
        if self.failures >= MAX_FAILURES_IN_A_ROW:
            raise WorkerError(f"{self.failures} trials in a row failed, the last by {result.attributes[TRIAL_REASON]}")

    def finalize(self, lease: Lease, trial: int, result: TrialResult) -> None:
        try:
            offer(
                self.sweep.database,
                self.spec.home,
                self.sweep.trial_id(trial),
                self.folder(trial),
                result.attributes.get(TRIAL_HISTORY, ()),
                kept_after_end(self.folder(trial), result),
            )
        except OSError as error:
            self.warn(f"trial {trial}: its files are not shown in the dashboard ({error}); nothing else is lost")
        self.sweep.finalize(lease, trial, result)
        delete_after_end(self.folder(trial), result)

    def result_of(self, run: Callable[[], TrialResult]) -> TrialResult:
        """The trial's result; an unforeseen exception is one too, with its traceback in the worker's log."""
        try:
            result = run()
        except (LeaseLost, Interrupted, UpdateFinishedTrialError, *FAULTS_BEYOND_A_TRIAL):
            raise
        except Exception as error:
            if isinstance(error, ROW_GONE):
                self.sweep.check_there()
            traceback.print_exc()
            self.failures += 1
            return failed(error, self.log)
        self.failures = 0
        return result

    def warn(self, line: str) -> None:
        logger.warning("%s", line)
        self.send("warned", message=line)

    def send(self, kind: EventKind, **facts: Any) -> None:
        self.sink.send(Event(kind=kind, worker=self.spec.name, **facts))
