"""What the executors that watch their workers share: restarts after crashes, faults, leases of dead workers."""

from __future__ import annotations

import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Generic, Protocol, TypeVar

from hpo.database.retry import is_transient
from hpo.errors import HpoError
from hpo.executors.stop import Stop, StopLevel
from hpo.sweep.slots import Slots
from hpo.worker.messages import MAX_CRASHES, Event, WorkerSpec
from hpo_model.errors import ModelError

RESTARTS = MAX_CRASHES  # of one worker in a row without an evaluation: a trial that crashes it is given up first
STRAGGLERS_S = 15.0  # between two checks for workers that hang, once one has left because nothing was to be done
PULSE_S = 0.25  # longest time between two looks at clock and signals


def note_end(error: HpoError | ModelError) -> None:
    """Write into a worker's log why it ends: a line, or with the traceback where the error has a cause."""
    if error.__cause__ is None:
        print(error, file=sys.stderr, flush=True)
    else:
        traceback.print_exception(error)


class WorkerHandle(Protocol):
    """A worker as its supervisor sees it."""

    spec: WorkerSpec
    log: Path
    restarts: int


_Handle = TypeVar("_Handle", bound=WorkerHandle)


class Supervisor(Generic[_Handle]):
    """The workers of one run, from the first start to the last end.

    Args:
        slots: of the sweep, to free the leases of dead workers.
        on_event: called with each event of a worker.
        stop: raised here after a fault.
    """

    def __init__(self, slots: Slots, on_event: Callable[[Event], None], stop: Stop) -> None:
        self.slots, self.on_event, self.stop = slots.without_retry(), on_event, stop
        self.running: list[_Handle] = []
        self.gone: list[tuple[str, bool]] = []  # owners whose leases are still to be freed, and whether they crashed
        self.faults: list[str] = []
        self.looked_at: float | None = None  # when stragglers were looked for; None until a worker left by itself

    def start(self, spec: WorkerSpec, log: Path, restarts: int) -> _Handle:
        """Start a worker under a new owner's name."""
        raise NotImplementedError

    def leaving(self) -> bool:
        """Whether workers are to leave."""
        return self.stop.level > StopLevel.NONE

    def handle_event(self, worker: _Handle, event: Event) -> None:
        """Pass a worker's event on, and act on it."""
        self.on_event(event)
        if event.kind in ("evaluated", "finished"):
            worker.restarts = 0
        elif event.kind == "fatal":
            self.fault(event.message)

    def fault(self, message: str) -> None:
        """Let all workers leave at their next evaluation, for this reason."""
        self.faults.append(message)
        self.stop.request_stop(StopLevel.GRACEFUL, "a fault")

    def left(self) -> None:
        """Note that a worker has found nothing more to do, or was asked to leave."""
        if not self.leaving():
            self.looked_at = self.looked_at or time.monotonic()

    def replace(self, worker: _Handle, reason: str, *, died: bool) -> None:
        """Free a dead worker's lease and start its successor, if it may have one."""
        self.gone.append((worker.spec.owner, died))
        self.free_leases()
        if self.leaving():
            return
        if worker.restarts == RESTARTS:
            self.fault(f"{reason}; it died {RESTARTS + 1} times, so the run ends here")
            return
        self.on_event(Event(kind="restarted", worker=worker.spec.name, message=f"{reason}; it is started again"))
        self.running.append(self.start(worker.spec, worker.log, worker.restarts + 1))

    def free_leases(self) -> None:
        """Give back what gone workers held; while the database is away, at a later pulse."""
        for owner, died in list(self.gone):
            try:
                self.slots.release_owner(owner, crashed=died)
            except Exception as error:
                if not is_transient(error):
                    raise
                return
            self.gone.remove((owner, died))

    def only_stragglers(self, total: int | None) -> bool:
        """Whether the workers that still run hang: every slot that was begun is done. After `hpo stop` some are not."""
        if self.looked_at is None or time.monotonic() < self.looked_at + STRAGGLERS_S:
            return False
        self.looked_at = time.monotonic()
        try:
            return self.slots.counts(total).begun == 0
        except Exception as error:
            if not is_transient(error):
                raise
            return False
