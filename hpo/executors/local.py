"""Workers as processes of this machine, watched by the one that started them.

A worker that dies is seen at once: its lease is freed and it is started again, within a limit. A worker whose
supervisor dies hears it on its line and leaves at its next evaluation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import platform
import signal
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path

from hpo.errors import HpoError, WorkerError
from hpo.executors.stop import Stop, StopLevel
from hpo.slots import Slots
from hpo.worker import Event, WorkerOrder, work
from model.errors import ModelError

RESTARTS = 3  # of each worker in a row, without a finished trial between
STRAGGLERS_S = 15.0  # after all slots are done
PULSE_S = 0.25  # longest time between two looks at clock and signals


class _PipeLink:
    """A worker's end of its line: events go out, and anything that comes in, or its end, means stop."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.stopped = False

    def tell(self, event: Event) -> None:
        try:
            self.connection.send(event)
        except OSError:  # nobody listens any more
            self.stopped = True

    def stop_wanted(self) -> bool:
        try:
            self.stopped = self.stopped or self.connection.poll()
        except OSError:
            self.stopped = True
        return self.stopped


@dataclasses.dataclass
class _Process:
    """A worker's process as its supervisor sees it."""

    order: WorkerOrder
    log: Path
    process: BaseProcess
    line: Connection
    restarts: int
    asked_to_stop: bool = False

    def ask_to_stop(self) -> None:
        if not self.asked_to_stop:
            with contextlib.suppress(OSError):
                self.line.send("stop")
            self.asked_to_stop = True

    def events(self) -> list[Event]:
        events = []
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):  # it ended, perhaps within a word
            while self.line.poll():
                events.append(self.line.recv())
        return events

    def cause_of_death(self) -> str:
        """Signal or exit code, and the last line of the log."""
        code = self.process.exitcode or 0
        names = {number.value: number.name for number in signal.Signals}
        cause = f"was killed by {names.get(-code, -code)}" if code < 0 else f"ended with exit code {code}"
        words = self.log.read_text(encoding="utf-8", errors="replace").split("\n") if self.log.is_file() else []
        last = next((line.strip() for line in reversed(words) if line.strip()), "")
        return f"{cause} ({last}; see {self.log})" if last and code > 0 else f"{cause} (see {self.log})"


def run_local(
    orders: Sequence[tuple[WorkerOrder, Path]],
    slots: Slots,
    on_event: Callable[[Event], None],
    on_pulse: Callable[[], None],
    stop: Stop,
) -> None:
    """Run workers until all have ended.

    Args:
        orders: a worker's order and the file for what it prints.
        slots: of the sweep, to free the leases of dead workers.
        on_event: told what workers tell.
        on_pulse: called a few times a second.
        stop: raised by signals and time limits; raised here after a fault.

    Raises:
        WorkerError: a worker told that it cannot go on, or died too often. The others have left at an evaluation.
    """
    running = [_start(order, log) for order, log in orders]
    faults: list[str] = []
    all_done_at: float | None = None
    try:
        while running and stop.level < StopLevel.NOW:
            on_pulse()
            if all_done_at is not None and time.monotonic() > all_done_at + STRAGGLERS_S:
                break  # what still runs hangs: its slots have been finished by others
            if stop.level is StopLevel.AT_NEXT_EVALUATION:
                for worker in running:
                    worker.ask_to_stop()
            wait([part for worker in running for part in (worker.line, worker.process.sentinel)], PULSE_S)
            for worker in list(running):
                ended = worker.process.exitcode is not None  # asked first: what it said last is read below
                for event in worker.events():
                    on_event(event)
                    if event.kind == "finished":
                        worker.restarts = 0
                    elif event.kind == "fatal":
                        faults.append(event.message)
                        stop.wish(StopLevel.AT_NEXT_EVALUATION, "a fault")
                if ended:
                    running.remove(worker)
                    if worker.process.exitcode == 0 and stop.level is StopLevel.NONE:
                        all_done_at = all_done_at or time.monotonic()
                    running += _after_end(worker, slots, on_event, stop, faults)
    finally:
        for worker in running:
            worker.process.kill()
            worker.process.join()
            slots.release_owner(worker.order.owner, died=False)
    if faults:
        raise WorkerError(faults[0])


def _after_end(
    worker: _Process, slots: Slots, on_event: Callable[[Event], None], stop: Stop, faults: list[str]
) -> list[_Process]:
    """Free a dead worker's lease and start its successor, if it may have one."""
    if worker.process.exitcode == 0:
        return []
    slots.release_owner(worker.order.owner, died=True)
    reason = f"{worker.order.name} {worker.cause_of_death()}"
    if stop.level > StopLevel.NONE:
        return []
    if worker.restarts == RESTARTS:
        faults.append(f"{reason}; it died {RESTARTS + 1} times, so the run ends here")
        stop.wish(StopLevel.AT_NEXT_EVALUATION, "a fault")
        return []
    on_event(Event(kind="restarted", worker=worker.order.name, message=f"{reason}; it is started again"))
    return [_start(worker.order, worker.log, worker.restarts + 1)]


def _start(order: WorkerOrder, log: Path, restarts: int = 0) -> _Process:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    order = dataclasses.replace(order, owner=f"{order.name}@{platform.node()}-{uuid.uuid4().hex[:12]}")
    process = context.Process(target=_run_worker, args=(order, log, theirs), name=order.name, daemon=True)
    with _without_sigint():
        process.start()
    theirs.close()
    return _Process(order, log, process, ours, restarts)


@contextlib.contextmanager
def _without_sigint() -> Iterator[None]:
    """Start a process that never hears Ctrl-C, not even while it imports; ours waits until it has started."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_worker(order: WorkerOrder, log: Path, connection: Connection) -> None:
    """The process's main function: exit code 0 unless it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor hears Ctrl-C and passes it on
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    link = _PipeLink(connection)
    try:
        work(order, link)
    except (HpoError, ModelError) as error:
        traceback.print_exc()
        link.tell(Event(kind="fatal", worker=order.name, message=str(error)))
