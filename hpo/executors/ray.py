"""Workers as Ray actors, wherever a cluster has room for them, watched by the process that started them.

When a worker dies, with its process or with its node, Ray reports it: its lease is freed and it is started again,
within a limit. Workers whose supervisor dies are ended by Ray, and their trials go on from their last checkpoints.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import queue
import re
import textwrap
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from hpo.errors import HpoError, WorkerError, one_line
from hpo.executors.ray_cluster import NodeShare, amounts, connected, nodes
from hpo.executors.stop import Stop, StopLevel
from hpo.executors.supervisor import PULSE_S, Supervisor, note_end
from hpo.sweep.slots import Slots
from hpo.worker.messages import Event, WorkerSpec, new_owner
from hpo.worker.worker import work
from hpo_model.errors import ModelError

LISTEN_S = 0.25  # for which a worker waits for an event before it answers
ROOM_S = 20.0  # without an answer from a new worker, after which a warning says that it waits for room
MAX_REASON_CHARACTERS = 300  # of what Ray says of a death


@dataclasses.dataclass(frozen=True, kw_only=True)
class Answer:
    """What a worker says when it is asked."""

    node: str  # Ray's name of where it runs
    host: str
    events: tuple[Event, ...]
    ended: bool
    crash: str  # the unforeseen exception that ended it; empty: none


class RayWorker:
    """A worker on its node: one thread works while Ray's answers.

    Args:
        spec: what to work on.
        log: file for what it prints.
        folder: the supervisor's current folder, in which networks of the user's own are looked for.
    """

    def __init__(self, spec: WorkerSpec, log: Path, folder: Path) -> None:
        os.environ["PYTHONSAFEPATH"] = "1"
        with contextlib.suppress(OSError):  # on another node, where networks of the user's own come from PYTHONPATH
            os.chdir(folder)
        self.told: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.stopped = False
        self.ended = threading.Event()
        self.crash = ""
        threading.Thread(target=self._work, args=(spec, log), name="work", daemon=True).start()

    def answer(self, stop: bool) -> Answer:
        """The events since the last answer, as soon as there are any, else none after a moment.

        Args:
            stop: whether to leave at the next evaluation.
        """
        import ray

        self.stopped = self.stopped or stop
        ended = self.ended.is_set()  # asked first, so that the last events are read below
        events = []
        with contextlib.suppress(queue.Empty):
            events.append(self.told.get(timeout=0 if ended else LISTEN_S))
            while True:
                events.append(self.told.get_nowait())
        node = ray.get_runtime_context().get_node_id()
        return Answer(node=node, host=platform.node(), events=tuple(events), ended=ended, crash=self.crash)

    def send(self, event: Event) -> None:
        """Keep an event for the next answer."""
        self.told.put(event)

    def stop_wanted(self) -> bool:
        """Whether to leave at the next evaluation."""
        return self.stopped

    def _work(self, spec: WorkerSpec, log: Path) -> None:
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("a", encoding="utf-8") as file:
                os.dup2(file.fileno(), 1)
                os.dup2(file.fileno(), 2)
            work(spec, self)
        except (HpoError, ModelError) as error:
            note_end(error)
            self.send(Event(kind="fatal", worker=spec.name, message=str(error)))
        except Exception as error:
            traceback.print_exc()
            self.crash = f"{type(error).__name__}: {one_line(error)} (in {log})"
        finally:
            self.ended.set()


def run_ray(
    workers: Sequence[tuple[WorkerSpec, Path]],
    slots: Slots,
    on_event: Callable[[Event], None],
    on_pulse: Callable[[], None],
    stop: Stop,
    *,
    address: str | None,
    cpus_per_worker: int,
    gpus_per_worker: float,
) -> None:
    """Run workers on a Ray cluster until all have ended.

    Args:
        workers: a worker's spec and the file for what it prints, on its node. Device, threads and memory of a spec
            do not count: they follow from what each worker gets.
        slots: of the sweep, to free the leases of dead workers.
        on_event: called with each event of a worker.
        on_pulse: called a few times a second.
        stop: raised by signals and time limits; raised here after a fault.
        address: of the cluster, as `connected` takes it.
        cpus_per_worker: cores, and threads that train.
        gpus_per_worker: 0.5: two workers on each GPU; 0: workers compute on CPUs.

    Raises:
        WorkerError: no cluster, none that can hold a worker, or a worker cannot go on, or died too often.
            The others have left at an evaluation.
    """
    share = NodeShare(cpus=cpus_per_worker, gpus=gpus_per_worker)
    with connected(address):
        resources = [node["Resources"] for node in nodes()]
        if not any(share.fits(each) for each in resources):
            largest = ", ".join(sorted({amounts(each) for each in resources}))
            raise WorkerError(f"no node of the Ray cluster can hold a worker, which takes {share}: they have {largest}")
        supervisor = _RaySupervisor(slots, on_event, stop, share)
        supervisor.run(workers, on_pulse)
    if supervisor.faults:
        raise WorkerError(supervisor.faults[0])


class _Actor:
    """A worker as its supervisor sees it."""

    def __init__(self, spec: WorkerSpec, log: Path, share: NodeShare, restarts: int) -> None:
        import ray

        self.spec = dataclasses.replace(share.apply(spec), owner=new_owner(spec.name))
        self.log = log
        self.restarts = restarts
        self.node = ""  # until it has answered
        self.host = ""
        self.started_at = time.monotonic()
        self.warned_of_waiting = False
        made = ray.remote(RayWorker).options(num_cpus=share.cpus, num_gpus=share.gpus)
        self.handle = made.remote(self.spec, log, Path.cwd())
        self.ask(stop=False)

    def __str__(self) -> str:
        return f"{self.spec.name} on {self.host}" if self.host else self.spec.name

    def ask(self, *, stop: bool) -> None:
        self.answer = self.handle.answer.remote(stop)

    def kill(self) -> None:
        import ray

        ray.kill(self.handle)


class _RaySupervisor(Supervisor[_Actor]):
    """Workers as actors."""

    def __init__(self, slots: Slots, on_event: Callable[[Event], None], stop: Stop, share: NodeShare) -> None:
        super().__init__(slots, on_event, stop)
        self.share = share

    def run(self, workers: Sequence[tuple[WorkerSpec, Path]], on_pulse: Callable[[], None]) -> None:
        """Start the workers and watch them until all have ended or are to end at once."""
        import ray

        try:
            for spec, log in workers:
                self.running.append(self.start(spec, log, restarts=0))
            while (
                self.running and self.stop.level < StopLevel.IMMEDIATE and not self.only_stragglers(workers[0][0].total)
            ):
                on_pulse()
                answers = [worker.answer for worker in self.running]
                ray.wait(answers, num_returns=len(answers), timeout=PULSE_S)
                for worker in list(self.running):
                    self.poll(worker)
                self.free_leases()
        finally:
            for worker in list(self.running):
                self.dismiss(worker)
            self.free_leases()

    def start(self, spec: WorkerSpec, log: Path, restarts: int) -> _Actor:
        """Start a worker's actor, where there is room for it."""
        return _Actor(spec, log, self.share, restarts)

    def poll(self, worker: _Actor) -> None:
        """Handle the events that a worker has sent, and its end."""
        import ray
        from ray.exceptions import ActorUnavailableError, RayError

        if not ray.wait([worker.answer], timeout=0)[0]:
            self.check_pending(worker)
            return
        try:
            answer = ray.get(worker.answer)
        except ActorUnavailableError:  # its network failed, or its node: Ray is finding out
            worker.ask(stop=self.leaving())
        except RayError as error:
            self.running.remove(worker)
            worker.kill()
            if getattr(error, "actor_init_failed", False):
                self.fault(f"{worker.spec.name} cannot begin: {_words(error)}; every node needs this installation")
            else:
                self.replace(worker, f"{worker}: {_words(error)}", died=_is_up(worker.node))
        else:
            self.handle_answer(worker, answer)

    def handle_answer(self, worker: _Actor, answer: Answer) -> None:
        """Handle the events of a worker's answer, and ask again unless it has ended."""
        worker.node, worker.host = answer.node, answer.host
        for event in answer.events:
            self.handle_event(worker, event)
        if not answer.ended:
            worker.ask(stop=self.leaving())
            return
        self.running.remove(worker)
        worker.kill()
        if answer.crash:
            self.replace(worker, f"{worker}: {answer.crash}", died=True)
        else:
            self.left()

    def check_pending(self, worker: _Actor) -> None:
        """End a worker that has not started and is no longer needed; warn once that it waits for room."""
        if worker.node:
            return
        if self.leaving() or self.looked_at is not None:
            self.running.remove(worker)
            self.dismiss(worker)
        elif not worker.warned_of_waiting and time.monotonic() > worker.started_at + ROOM_S:
            import ray

            free = amounts(ray.available_resources())
            message = f"has not begun: it takes {self.share}, and {free} of the Ray cluster are free"
            self.on_event(Event(kind="warned", worker=worker.spec.name, message=message))
            worker.warned_of_waiting = True

    def dismiss(self, worker: _Actor) -> None:
        """End a worker at once; its trial goes on from its last checkpoint."""
        worker.kill()
        self.gone.append((worker.spec.owner, False))


def _is_up(node: str) -> bool:
    """Whether a node is still part of the cluster."""
    return not node or any(each["NodeID"] == node for each in nodes())


def _words(error: Exception) -> str:
    """What Ray says of a death, in one line without the actor's particulars."""
    text = re.sub(r"(?m)^\t(class_name|actor_id|pid|name|namespace|ip): .*$", "", str(error))
    if getattr(error, "actor_init_failed", False):
        text = text.strip().splitlines()[-1]  # of a traceback
    return textwrap.shorten(text, MAX_REASON_CHARACTERS, placeholder=" …")
