"""What the side processes of tests run; a module of its own, so that they import little."""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import threading
import time
from multiprocessing.synchronize import Barrier

from hpo.database.connection import open_database
from hpo.errors import StorageError
from hpo.executors.supervisor import RESTARTS
from hpo.sweep.slots import Slots
from hpo.sweep.sweep import open_sweep
from hpo.worker.messages import Event, EventSink, WorkerSpec

PROCESSES = 4
_starts: list[Barrier] = []


def share(start: Barrier) -> None:
    """Give a new process the barrier at which all begin together."""
    _starts.append(start)


def claim_all(url: str, study_id: int, total: int, owner: str) -> list[tuple[int, int]]:
    """Claim until nothing is free; slot and epoch of each claim."""
    database = open_database(url, create=False)
    slots = Slots(database, study_id)
    _starts[0].wait(60)
    claimed = []
    while (lease := slots.claim(owner, total)) is not None:
        claimed.append((lease.slot, lease.fencing_token))
    database.engine.dispose()
    return claimed


def fill_all(url: str, name: str, owner: str, seed: int) -> int:
    """Fill slots until none is free, on a connection that loses a third of its answers; how many it lost."""
    from tests.support.sweeps import PATIENT, complete, opened, unheard

    dice = random.Random(seed)
    losses = [number for number in range(1, 10_000) if dice.random() < 0.3]
    with opened(url, PATIENT) as database:
        sweep = open_sweep(database, name)
        _starts[0].wait(60)
        with unheard(database, *losses) as broken:
            while (lease := sweep.slots.claim(owner, None)) is not None:
                with sweep.sessions.under(lease):
                    trial = sweep.start(lease)
                    trial.storage.set_trial_intermediate_value(trial._trial_id, 1, 5.0)
                    assert sweep.slots.finish(lease, complete(4.0))
                    sweep.finalize(lease, trial.number, complete(4.0))
        return len(broken)


def make_study(url: str, name: str) -> str:
    """Open a database that is perhaps not there yet, make a sweep in it, and say whose record stands."""
    from hpo.sweep.sweep import create_sweep
    from tests.support.sweeps import make_record, make_spec

    spec = make_spec(name=name)
    _starts[0].wait(60)
    database = open_database(url, create=True)
    try:
        return create_sweep(database, make_record(spec)).uid
    finally:
        database.engine.dispose()


def benchmark_badly(config: object, tokens: object, device: str, threads: int, start: Barrier, line: object) -> None:
    """Die, or wait for one who does, as a benchmark does where memory is short."""
    if device == "dies":
        os.kill(os.getpid(), signal.SIGKILL)
    start.wait(60)


# ---------------------------------------------------------------------------------------------- what workers do


def leaves(spec: WorkerSpec, sink: EventSink) -> None:
    _note(spec)


def waits_for_stop(spec: WorkerSpec, sink: EventSink) -> None:
    _note(spec)
    _wait(spec, sink)


def dies_once(spec: WorkerSpec, sink: EventSink) -> None:
    if _note(spec) == 0:
        print("no memory is left\n\n", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    _wait(spec, sink)


def dies_always(spec: WorkerSpec, sink: EventSink) -> None:
    """The first of a crew: each time in another way. The others wait for a stop."""
    if spec.name != "worker-0":
        waits_for_stop(spec, sink)
        return
    times = _note(spec)
    if times == 0:
        raise ValueError("a defect")
    if times == 1:
        os.kill(os.getpid(), signal.SIGTERM)
    os._exit(3)


def dies_after_progress(spec: WorkerSpec, sink: EventSink) -> None:
    if _note(spec) <= RESTARTS:
        sink.send(Event(kind="evaluated", worker=spec.name, trial=0))
        os.kill(os.getpid(), signal.SIGKILL)


def dies_when_stopped(spec: WorkerSpec, sink: EventSink) -> None:
    waits_for_stop(spec, sink)
    os.kill(os.getpid(), signal.SIGKILL)


def cannot_go_on(spec: WorkerSpec, sink: EventSink) -> None:
    """The first of a crew. The others wait for a stop."""
    if spec.name != "worker-0":
        waits_for_stop(spec, sink)
        return
    raise StorageError("the database is gone")


def dies_over_its_trial(spec: WorkerSpec, sink: EventSink) -> None:
    if _note(spec) == 0:
        database = open_database(spec.storage_url, create=False)
        sweep = open_sweep(database, spec.study_name)
        lease = sweep.slots.claim(spec.owner, None)
        assert lease is not None
        sweep.start(lease)
        os.kill(os.getpid(), signal.SIGKILL)
    _wait(spec, sink)


def hangs(spec: WorkerSpec, sink: EventSink) -> None:
    """The first of a crew. The others leave."""
    _note(spec)
    if spec.name == "worker-0":
        threading.Event().wait()


def works_on(spec: WorkerSpec, sink: EventSink) -> None:
    """The first of a crew: on its trial, until a file is there. The others leave as soon as it has begun."""
    _note(spec)
    began = spec.home.root / "began"
    if spec.name != "worker-0":
        while not began.exists():
            time.sleep(0.01)
        return
    database = open_database(spec.storage_url, create=False)
    sweep = open_sweep(database, spec.study_name)
    lease = sweep.slots.claim(spec.owner, None)
    assert lease is not None
    with sweep.holding(lease):
        sweep.start(lease)
        sink.send(Event(kind="started", worker=spec.name, trial=0))
        began.touch()
        while not (spec.home.root / "evaluated").exists():
            time.sleep(0.01)
    sweep.slots.release(lease)
    (spec.home.root / f"left-{spec.name}").touch()


def _wait(spec: WorkerSpec, sink: EventSink) -> None:
    while not sink.stop_wanted():
        time.sleep(0.01)
    (spec.home.root / f"left-{spec.name}").touch()


def _note(spec: WorkerSpec) -> int:
    """Leave a trace of this process; how many of this worker there were before it."""
    before = len(list(spec.home.root.glob(f"{spec.name}-*")))
    facts = {
        "pid": os.getpid(),
        "parent": os.getppid(),
        "module": id(sys.modules["hpo.worker.worker"]),
        "owner": spec.owner,
    }
    draft = spec.home.root / f"draft-{spec.name}"
    draft.write_text(json.dumps(facts))
    draft.rename(spec.home.root / f"{spec.name}-{before}")
    return before
