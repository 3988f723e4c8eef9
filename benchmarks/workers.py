"""How throughput grows with workers: trials that sleep half a second and report ten times.

python benchmarks/workers.py [sqlite] [postgresql]

Efficiency is trials per second, from when every worker has finished its first trial until the first one finds no slot
left, over what as many workers would do if nothing but the sleep took time. The sampler is TPE and the pruner is asked,
as in a real study; trials are all equal, so that none is pruned. Sleeping takes no core: what is lost is the search's
own work, for which 32 workers on two cores have 1/16 of a core each.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from measuring import database_url, make_sweep, order_for, server_version, sleeping_work
from results import keep

from hpo.database.connection import open_database
from hpo.executors.local import run_local
from hpo.executors.stop import Stop
from hpo.worker.messages import Event

CREWS = (1, 2, 4, 8, 16, 32)
TRIALS_EACH = 16
SLEEP_S = 0.5


def efficiency(url: str, workers: int) -> dict[str, float]:
    """Of so many workers on a new study."""
    database = open_database(url, create=True)
    sweep = make_sweep(database, f"workers-{workers}", TRIALS_EACH * workers)
    finished: list[float] = []
    first: set[str] = set()
    all_warm: list[float] = []
    idle: list[float] = []

    def hear(event: Event) -> None:
        now = time.perf_counter()
        if event.kind == "finished":
            finished.append(now)
            first.add(event.worker)
            if len(first) == workers and not all_warm:
                all_warm.append(now)
        elif event.kind in ("waiting", "fatal"):
            idle.append(now)

    with tempfile.TemporaryDirectory() as home:
        orders = [
            (order_for(sweep, url, Path(home), f"worker-{number}"), Path(home) / f"{number}.log")
            for number in range(workers)
        ]
        run_local(orders, sweep.slots, hear, lambda: None, Stop(), work=sleeping_work)
    assert sweep.slots.counts(None).done == TRIALS_EACH * workers
    database.engine.dispose()
    end = idle[0] if idle else finished[-1]
    counted = sum(all_warm[0] < moment <= end for moment in finished)
    rate = counted / (end - all_warm[0])
    return {"trials_per_s": round(rate, 2), "efficiency": round(rate * SLEEP_S / workers, 3)}


def main() -> None:
    """Measure all crews on the named storages."""
    figures = {}
    for engine in sys.argv[1:] or ("sqlite", "postgresql"):
        with database_url(engine) as url:
            for workers in CREWS:
                figures[f"{engine}, {workers} workers"] = efficiency(url, workers)
                found = figures[f"{engine}, {workers} workers"]
                print(f"{engine} {server_version(url)}, {workers:2} workers: {found}", flush=True)
    keep("workers", {"sleep_s": SLEEP_S, "reports": 10, "throughput": figures})


if __name__ == "__main__":
    main()
