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
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from hpo.errors import HpoError, WorkerError
from hpo.executors.stop import Stop, StopLevel
from hpo.patience import is_away
from hpo.slots import Slots
from hpo.worker import DEATHS, Event, Link, WorkerOrder, new_owner, work
from model.errors import ModelError

Work = Callable[[WorkerOrder, Link], None]  # what a worker's process runs
RESTARTS = DEATHS  # of each worker in a row, without an evaluation between: a deadly trial is given up before
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
    log_began: int  # bytes of the log that are of processes before
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
        """Signal or exit code, and the last line of what it printed."""
        code = self.process.exitcode or 0
        names = {number.value: number.name for number in signal.Signals}
        cause = f"was killed by {names.get(-code, -code)}" if code < 0 else f"ended with exit code {code}"
        if code == -signal.SIGKILL:
            cause += ", as the system does for want of memory"
        last = _last_line(self.log, self.log_began)
        return f"{cause}; its last words: {last} (see {self.log})" if last else f"{cause} (see {self.log})"


def run_local(
    orders: Sequence[tuple[WorkerOrder, Path]],
    slots: Slots,
    on_event: Callable[[Event], None],
    on_pulse: Callable[[], None],
    stop: Stop,
    *,
    work: Work = work,
) -> None:
    """Run workers until all have ended.

    Args:
        orders: a worker's order and the file for what it prints.
        slots: of the sweep, to free the leases of dead workers.
        on_event: told what workers tell.
        on_pulse: called a few times a second.
        stop: raised by signals and time limits; raised here after a fault.
        work: what each process runs; importable, since the process is another one.

    Raises:
        WorkerError: a worker told that it cannot go on, or died too often. The others have left at an evaluation.
    """
    crew = _Crew(slots.impatient(), on_event, stop, work)
    crew.run(orders, on_pulse)
    if crew.faults:
        raise WorkerError(crew.faults[0])


class _Crew:
    """The workers of one run, from the first start to the last end."""

    def __init__(self, slots: Slots, on_event: Callable[[Event], None], stop: Stop, work: Work) -> None:
        self.slots, self.on_event, self.stop, self.work = slots, on_event, stop, work
        self.running: list[_Process] = []
        self.gone: list[tuple[str, bool]] = []  # owners whose leases are still to be freed, and whether they died
        self.faults: list[str] = []
        self.first_end: float | None = None  # of a worker that found all slots done

    def run(self, orders: Sequence[tuple[WorkerOrder, Path]], on_pulse: Callable[[], None]) -> None:
        """Start the workers and watch them until all have ended or are to end at once."""
        try:
            for order, log in orders:
                self.running.append(_start(order, log, self.work))
            while self.running and self.stop.level < StopLevel.NOW:
                on_pulse()
                if self.first_end is not None and time.monotonic() > self.first_end + STRAGGLERS_S:
                    break  # what still runs hangs: its slots have been finished by others
                if self.stop.level is StopLevel.AT_NEXT_EVALUATION:
                    for worker in self.running:
                        worker.ask_to_stop()
                stirring = wait([part for each in self.running for part in (each.line, each.process.sentinel)], PULSE_S)
                for worker in [each for each in self.running if {each.line, each.process.sentinel} & set(stirring)]:
                    self.look_at(worker)
                self.free_leases()
        finally:
            for worker in self.running:
                worker.process.kill()
                worker.process.join()
                self.gone.append((worker.order.owner, False))
            self.free_leases()

    def look_at(self, worker: _Process) -> None:
        """Take in what a worker has told, and its end."""
        ended = worker.process.exitcode is not None  # asked first: what it said last is read below
        for event in worker.events():
            self.on_event(event)
            if event.kind in ("evaluated", "finished"):
                worker.restarts = 0
            elif event.kind == "fatal":
                self.fault(event.message)
        if ended:
            self.running.remove(worker)
            if worker.process.exitcode != 0:
                self.replace(worker)
            elif self.stop.level is StopLevel.NONE:
                self.first_end = self.first_end or time.monotonic()

    def replace(self, worker: _Process) -> None:
        """Free a dead worker's lease and start its successor, if it may have one."""
        self.gone.append((worker.order.owner, True))
        self.free_leases()
        reason = f"{worker.order.name} {worker.cause_of_death()}"
        if self.stop.level > StopLevel.NONE:
            return
        if worker.restarts == RESTARTS:
            self.fault(f"{reason}; it died {RESTARTS + 1} times, so the run ends here")
            return
        self.on_event(Event(kind="restarted", worker=worker.order.name, message=f"{reason}; it is started again"))
        self.running.append(_start(worker.order, worker.log, self.work, worker.restarts + 1))

    def fault(self, message: str) -> None:
        """Let all leave at their next evaluation, because of this."""
        self.faults.append(message)
        self.stop.wish(StopLevel.AT_NEXT_EVALUATION, "a fault")

    def free_leases(self) -> None:
        """Give back what gone workers held; while the database is away, at a later pulse."""
        for owner, died in list(self.gone):
            try:
                self.slots.release_owner(owner, died=died)
            except Exception as error:
                if not is_away(error):
                    raise
                return
            self.gone.remove((owner, died))


def _start(order: WorkerOrder, log: Path, work: Work, restarts: int = 0) -> _Process:
    context = process_context()
    ours, theirs = context.Pipe()
    order = dataclasses.replace(order, owner=new_owner(order.name))
    log_began = log.stat().st_size if log.is_file() else 0
    process = context.Process(target=_run_worker, args=(order, log, theirs, work), name=order.name, daemon=True)
    with _without_sigint():
        process.start()
    theirs.close()
    return _Process(order, log, process, ours, restarts, log_began)


def process_context() -> SpawnContext | ForkServerContext:
    """How processes are made: forked from one that has imported everything and runs nothing, where that is to be had.

    A successor then works within a tenth of a second rather than after the seconds that the imports take.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hpo.worker"])
    return context


def _last_line(log: Path, begin: int) -> str:
    """The last line that is not empty after so many bytes."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - 8192))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


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


def _run_worker(order: WorkerOrder, log: Path, connection: Connection, work: Work) -> None:
    """The process's main function: exit code 0 unless it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor hears Ctrl-C and passes it on
    link = _PipeLink(connection)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    except OSError as error:
        link.tell(Event(kind="fatal", worker=order.name, message=f"{log}: cannot be written ({error.strerror})"))
        return
    try:
        work(order, link)
    except (HpoError, ModelError) as error:
        traceback.print_exc()
        link.tell(Event(kind="fatal", worker=order.name, message=str(error)))
