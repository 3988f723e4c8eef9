"""How long a slot stands still when its worker dies: until its trial has been taken up again.

python benchmarks/recovery.py

Same host: a worker is killed (SIGKILL) in the middle of a trial; its supervisor starts a successor, which takes it up.
Another host: a supervisor and its worker are killed together, as with a machine that is gone; a worker of another
supervisor waits for the lease to expire. Trials sleep instead of training; the clock ends at the event "started".
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

from measuring import database_url, idle_train, make_sweep, order_for
from results import keep

from hpo.database.connection import open_database
from hpo.executors.local import run_local
from hpo.executors.stop import Stop, StopLevel
from hpo.sweep.sweep import Sweep, open_sweep
from hpo.worker.messages import Event, EventSink, WorkerSpec
from hpo.worker.worker import work
from hpo_model.config import RunConfig
from hpo_model.training.loop import TrainingResult

STUDY = "recovery"
DEATHS_HERE = 20
LEASES_S = (3.0, 3.0, 3.0, 30.0)  # the last is the default
PAUSE_S = 0.2


def slow_work(order: WorkerSpec, sink: EventSink) -> None:
    """The real worker, whose trials take two seconds, and which tells its process's number first."""

    def train(config: RunConfig, corpus: object, **named: Any) -> TrainingResult:
        return idle_train(config, corpus, pause_s=PAUSE_S, resumes=True, **named)

    sink.send(Event(kind="warned", worker=order.name, message=str(os.getpid())))
    with (
        mock.patch("hpo.worker.objective.train", train),
        mock.patch("hpo.worker.objective.peak_tensor_bytes", return_value=0),  # there is no text
        mock.patch("hpo.worker.worker.open_tokens"),
    ):
        work(order, sink)


def supervise(sweep: Sweep, url: str, name: str, lease_s: float, hear: Callable[[Event], None], stop: Stop) -> None:
    """One worker and its supervisor; all share a folder, as machines with shared storage do."""
    home = Path(tempfile.gettempdir()) / f"hpo-recovery-{url_digest(url)}"
    order = order_for(sweep, url, home, name, lease_s)
    run_local([(order, home / f"{name}.log")], sweep.slots, hear, lambda: None, stop, work=slow_work)


def url_digest(url: str) -> str:
    """A name for what belongs to one database."""
    return hashlib.sha256(url.encode()).hexdigest()[:12]


def on_one_host(url: str) -> list[float]:
    """Seconds from each of many deaths to the trial's going on."""
    database = open_database(url, create=True)
    sweep = make_sweep(database, STUDY, 1000)
    stop, times = Stop(), []
    pid = killed_at = 0.0
    killed: Event | None = None

    def hear(event: Event) -> None:
        nonlocal pid, killed, killed_at
        if event.kind == "warned":
            pid = int(event.message)
        elif event.kind == "evaluated" and killed is None:
            killed, killed_at = event, time.perf_counter()
            os.kill(int(pid), signal.SIGKILL)
        elif event.kind == "started" and killed is not None:
            times.append(time.perf_counter() - killed_at)
            assert event.trial == killed.trial, "another trial was taken up"
            killed = None
            if len(times) == DEATHS_HERE:
                stop.request_stop(StopLevel.IMMEDIATE, "measured")

    supervise(sweep, url, "worker-0", 30.0, hear, stop)
    database.engine.dispose()
    return times


def on_another_host(url: str, lease_s: float) -> float:
    """Seconds from the death of a whole machine to the trial's going on elsewhere."""
    database = open_database(url, create=True)
    name = f"{STUDY}-{time.time_ns()}"
    sweep = make_sweep(database, name, 1, lease_s)
    setting = json.dumps({"url": url, "study": name, "lease_s": lease_s})
    machine = subprocess.Popen(
        [sys.executable, __file__, setting], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    assert machine.stdout is not None
    assert "evaluated" in machine.stdout.readline()
    stop = Stop()

    def hear(event: Event) -> None:
        if event.kind == "waiting" and machine.poll() is None:
            os.killpg(machine.pid, signal.SIGKILL)
            machine.wait()
            moments.append(time.perf_counter())
        elif event.kind == "started":
            moments.append(time.perf_counter())
            stop.request_stop(StopLevel.IMMEDIATE, "measured")

    moments: list[float] = []
    supervise(sweep, url, "other", lease_s, hear, stop)
    database.engine.dispose()
    died, went_on = moments
    return went_on - died


def other_machine(setting: dict[str, Any]) -> None:
    """What the machine that will be gone runs; its worker dies with it."""
    sweep = open_sweep(open_database(setting["url"], create=False), setting["study"], setting["lease_s"])

    def hear(event: Event) -> None:
        if event.kind == "evaluated":
            print(event.kind, flush=True)

    supervise(sweep, setting["url"], "gone", setting["lease_s"], hear, Stop())


def main() -> None:
    """Measure on both storages."""
    if len(sys.argv) > 1:
        other_machine(json.loads(sys.argv[1]))
        return
    figures: dict[str, Any] = {}
    for engine in ("sqlite", "postgresql"):
        with database_url(engine) as url:
            here = on_one_host(url)
            figures[f"{engine}, same host"] = {
                "deaths": len(here),
                "median_s": round(statistics.median(here), 2),
                "max_elapsed_s": round(max(here), 2),
            }
            elsewhere = [
                {"lease_s": lease_s, "seconds": round(on_another_host(url, lease_s), 2)} for lease_s in LEASES_S
            ]
            figures[f"{engine}, another host"] = elsewhere
            shutil.rmtree(Path(tempfile.gettempdir()) / f"hpo-recovery-{url_digest(url)}")
            print(engine, figures[f"{engine}, same host"], elsewhere, flush=True)
    keep("recovery", figures)


if __name__ == "__main__":
    main()
