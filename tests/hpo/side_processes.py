"""What the side processes of tests run; a module of its own, so that they import little."""

from __future__ import annotations

from multiprocessing.synchronize import Barrier

import sqlalchemy as sa

from hpo.slots import Slots

PROCESSES = 4
_starts: list[Barrier] = []


def share(start: Barrier) -> None:
    """Give a new process the barrier at which all begin together."""
    _starts.append(start)


def claim_all(url: str, study_id: int, total: int, owner: str) -> list[tuple[int, int]]:
    """Claim until nothing is free; slot and epoch of each claim."""
    engine = sa.create_engine(url)
    slots = Slots(engine, study_id)
    _starts[0].wait(60)
    claimed = []
    while (lease := slots.claim(owner, total)) is not None:
        claimed.append((lease.slot, lease.epoch))
    engine.dispose()
    return claimed


def make_study(url: str, name: str) -> str:
    """Open a database that is perhaps not there yet, make a sweep in it, and say whose record stands."""
    from toy_sweeps import make_record, make_spec

    from hpo.storage import open_database
    from hpo.sweep import create_sweep

    spec = make_spec(name=name)
    _starts[0].wait(60)
    database = open_database(url, create=True)
    try:
        return create_sweep(database, name, make_record(spec)).uid
    finally:
        database.engine.dispose()
