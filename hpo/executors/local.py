"""Workers as processes of this machine, watched by the one that started them.

A worker that dies is seen at once: its lease is freed and it is started again, within a limit. A worker whose
supervisor dies notices it on its pipe and leaves at its next evaluation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import multiprocessing
import os
import pickle
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path

from hpo.errors import HpoError, WorkerError
from hpo.executors.stop import Stop, StopLevel
from hpo.executors.supervisor import PULSE_S, Supervisor, note_end
from hpo.sweep.slots import Slots
from hpo.worker.messages import Event, EventSink, WorkerSpec, new_owner
from hpo.worker.worker import work
from hpo_model.errors import ModelError

LOST = 255  # exit code that multiprocessing gives a process whose fork server has died
Work = Callable[[WorkerSpec, EventSink], None]  # what a worker's process runs


class _PipeSink:
    """A worker's end of its pipe: events go out; anything that comes in, or the end of the pipe, means stop."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.stopped = False

    def send(self, event: Event) -> None:
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

    spec: WorkerSpec
    log: Path
    process: BaseProcess
    line: Connection
    restarts: int
    log_began: int  # bytes that the log already held when the process started
    asked_to_stop: bool = False

    def request_stop(self) -> None:
        if not self.asked_to_stop:
            with contextlib.suppress(OSError):
                self.line.send("stop")
            self.asked_to_stop = True

    def events(self) -> list[Event]:
        events = []
        with contextlib.suppress(EOFError, OSError, pickle.UnpicklingError):  # it ended, perhaps while it was sending
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
        if code == LOST:
            cause = "was lost with the process that forks workers"
        last = _last_line(self.log, self.log_began)
        return f"{cause}; its last words: {last} (see {self.log})" if last else f"{cause} (see {self.log})"


def run_local(
    workers: Sequence[tuple[WorkerSpec, Path]],
    slots: Slots,
    on_event: Callable[[Event], None],
    on_pulse: Callable[[], None],
    stop: Stop,
    *,
    work: Work = work,
) -> None:
    """Run workers until all have ended.

    Args:
        workers: a worker's spec and the file for what it prints.
        slots: of the sweep, to free the leases of dead workers.
        on_event: called with each event of a worker.
        on_pulse: called a few times a second.
        stop: raised by signals and time limits; raised here after a fault.
        work: what each process runs; importable, since the process is another one.

    Raises:
        WorkerError: a worker reported that it cannot go on, or died too often. The others left at an evaluation.
    """
    supervisor = _LocalSupervisor(slots, on_event, stop, work)
    supervisor.run(workers, on_pulse)
    if supervisor.faults:
        raise WorkerError(supervisor.faults[0])


class _LocalSupervisor(Supervisor[_Process]):
    """Workers as processes."""

    def __init__(self, slots: Slots, on_event: Callable[[Event], None], stop: Stop, work: Work) -> None:
        super().__init__(slots, on_event, stop)
        self.work = work

    def run(self, workers: Sequence[tuple[WorkerSpec, Path]], on_pulse: Callable[[], None]) -> None:
        """Start the workers and watch them until all have ended or are to end at once."""
        try:
            for spec, log in workers:
                self.running.append(self.start(spec, log, restarts=0))
            while (
                self.running and self.stop.level < StopLevel.IMMEDIATE and not self.only_stragglers(workers[0][0].total)
            ):
                on_pulse()
                if self.leaving():
                    for worker in self.running:
                        worker.request_stop()
                ready = wait([part for each in self.running for part in (each.line, each.process.sentinel)], PULSE_S)
                for worker in [each for each in self.running if {each.line, each.process.sentinel} & set(ready)]:
                    self.poll(worker)
                self.free_leases()
        finally:
            for worker in self.running:
                worker.process.kill()
                worker.process.join()
                self.gone.append((worker.spec.owner, False))
            self.free_leases()

    def poll(self, worker: _Process) -> None:
        """Handle the events that a worker has sent, and its end."""
        ended = worker.process.exitcode is not None  # asked first, so that its last events are read below
        for event in worker.events():
            self.handle_event(worker, event)
        if ended:
            self.running.remove(worker)
            if worker.process.exitcode == 0:
                self.left()
            else:
                self.replace(worker, f"{worker.spec.name} {worker.cause_of_death()}", died=True)

    def start(self, spec: WorkerSpec, log: Path, restarts: int) -> _Process:
        """Start a worker's process."""
        context = process_context()
        ours, theirs = context.Pipe()
        spec = dataclasses.replace(spec, owner=new_owner(spec.name))
        log_began = log.stat().st_size if log.is_file() else 0
        arguments = (spec, log, theirs, self.work)
        process = context.Process(target=_run_worker, args=arguments, name=spec.name, daemon=True)
        start_quietly(process)
        theirs.close()
        return _Process(spec, log, process, ours, restarts, log_began)


def process_context() -> SpawnContext | ForkServerContext:
    """How processes are made: forked from one that has imported everything and runs nothing, where fork exists.

    A successor then works within a tenth of a second rather than after the seconds that the imports take.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():  # Windows
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["hpo.worker.worker"])
    return context


def _last_line(log: Path, begin: int) -> str:
    """The last line that is not empty, after the first `begin` bytes."""
    if not log.is_file():
        return ""
    with log.open("rb") as file:
        file.seek(max(begin, log.stat().st_size - 8192))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def start_quietly(process: BaseProcess) -> None:
    """Start a process that never hears Ctrl-C, not even while it imports; ours waits until it has started."""
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        process.start()
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        process.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _run_worker(spec: WorkerSpec, log: Path, connection: Connection, work: Work) -> None:
    """The process's main function: exit code 0 unless it dies."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the supervisor hears Ctrl-C and passes it on
    sink = _PipeSink(connection)
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
    except OSError as error:
        sink.send(Event(kind="fatal", worker=spec.name, message=f"{log}: cannot be written ({error.strerror})"))
        return
    try:
        work(spec, sink)
    except (HpoError, ModelError) as error:
        note_end(error)
        sink.send(Event(kind="fatal", worker=spec.name, message=str(error)))
