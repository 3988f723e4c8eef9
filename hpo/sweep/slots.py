"""The slots of a study and their leases: what makes totals exact and lets a trial survive its worker.

A study that is to end with N trials has N rows here, in its own database. A worker claims a slot by a lease: owner,
fencing token, expiry. It renews the lease on a timer; a lease that expired is claimed by the next worker under a higher
token, which continues the same Optuna trial. Every later write of a worker, to these tables or through Optuna, compares
owner and token in its own transaction (`hpo.sweep.fence`), so that a worker which lost its lease changes nothing.

    open ──claim──▶ leased ──finish──▶ finishing ──(tell Optuna)──▶ done
      ◀──release───   │  ▲                 │  ▲
                      └──┘ claim           └──┘ claim when expired: tell again, with the stored result
                           when expired

Times are the database's, so that machines need not agree on the clock. Any statement may be sent twice: a server that
is restarted can have committed what its client never heard of.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from hpo.database import tables
from hpo.database.connection import Database
from hpo.sweep.result import TrialResult

LEASE_S = 30.0  # without renewal; after it another worker may claim the slot

_CLOCKS = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch from clock_timestamp())",
}
_slots = tables.slots.c


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A worker's right to one slot, until it expires or another worker claims the slot under a higher fencing token."""

    slot: int
    owner: str
    fencing_token: int
    trial_number: int | None  # of the trial to continue; None: not started
    crash_count: int = 0  # of this trial: crashes in a row, without progress between them
    result: TrialResult | None  # set once the trial has ended and Optuna has yet to be told


class LeaseLost(Exception):
    """Another worker holds the slot now: write nothing more."""


@dataclass(frozen=True, kw_only=True)
class SlotCounts:
    """How many of the first N slots are in which state."""

    done: int = 0
    leased: int = 0  # finishing ones included; their workers may be dead until the lease has expired
    released: int = 0  # started, left at a checkpoint, for anyone to continue
    open: int = 0  # not started

    @property
    def total(self) -> int:
        """All of them."""
        return self.done + self.leased + self.released + self.open

    @property
    def begun(self) -> int:
        """Slots whose trial has started and has not ended."""
        return self.leased + self.released


class Slots:
    """The slots of one study.

    Args:
        database: the one that holds the study.
        study_id: Optuna's id of the study there.
        lease_s: seconds after which an unrenewed lease may be taken over.
    """

    def __init__(self, database: Database, study_id: int, lease_s: float = LEASE_S) -> None:
        self.database = database
        self.study_id = study_id
        self.lease_s = lease_s
        self._now: sa.ColumnElement[float] = sa.literal_column(_CLOCKS[database.engine.dialect.name], sa.Double)

    def without_retry(self) -> Slots:
        """The same slots, whose calls fail at the first transient error instead of waiting."""
        return Slots(self.database.without_retry(), self.study_id, self.lease_s)

    def ensure(self, total: int) -> None:
        """Add the slots that are missing up to `total`; none is ever removed."""

        def add(connection: sa.Connection) -> None:
            present = set(connection.scalars(sa.select(_slots.number).where(_slots.study_id == self.study_id)))
            rows = [{"study_id": self.study_id, "number": number} for number in range(total) if number not in present]
            if rows:
                connection.execute(tables.insert_if_absent(connection.dialect, tables.slots), rows)

        self.database.transaction(add)

    # --------------------------------------------------------------------------------------------------- leases

    def claim(self, owner: str, total: int | None, *, begin_new: bool = True) -> Lease | None:
        """Lease one of the first `total` slots: an interrupted one before a new one; None where none is free.

        One statement, so that no two workers get the same slot. A lease that expired counts as a crash.

        Args:
            owner: of the lease; a name that no other process has or had.
            total: None: of all slots.
            begin_new: otherwise only slots whose trial has started.
        """
        take = self._take(owner, self._free(total, begin_new))
        attempts = 0

        def take_one(connection: sa.Connection) -> sa.Row[Any] | None:
            nonlocal attempts
            attempts += 1
            if attempts > 1:  # the last attempt may have taken a slot without our hearing of it
                connection.execute(self._give_back(owner, crashed=False))
            return connection.execute(take).one_or_none()

        taken = self.database.transaction(take_one)
        if taken is None:
            return None
        row = tables.by_key(tables.slots, taken)
        return Lease(
            slot=row["number"],
            owner=owner,
            fencing_token=row["fencing_token"],
            trial_number=row["trial_number"],
            crash_count=row["crash_count"],
            result=None if row["result"] is None else TrialResult.from_json(row["result"]),
        )

    def _free(self, total: int | None, begin_new: bool) -> sa.ScalarSelect[int]:
        """The slot to claim next."""
        expired = _slots.state.in_(("leased", "finishing")) & (_slots.expires_at < self._now)
        among = self._among(total) if begin_new else self._among(total) & _slots.trial_number.is_not(None)
        started_first = sa.case((_slots.state == "finishing", 0), (_slots.trial_number.is_not(None), 1), else_=2)
        return (
            sa.select(_slots.number)
            .where(among & ((_slots.state == "open") | expired))
            .order_by(started_first, _slots.number)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )

    def _take(self, owner: str, slot: sa.ScalarSelect[int]) -> sa.UpdateBase:
        return (
            tables.slots.update()
            .where((_slots.study_id == self.study_id) & (_slots.number == slot))
            .values(
                state=sa.case((_slots.state == "finishing", "finishing"), else_="leased"),
                owner=owner,
                fencing_token=_slots.fencing_token + 1,
                expires_at=self._now + self.lease_s,
                crash_count=_slots.crash_count + sa.case((_slots.state == "leased", 1), else_=0),
            )
            .returning(*tables.slots.c)
        )

    def renew(self, lease: Lease) -> bool:
        """Extend a lease, also an expired one that no other worker took. False: the lease is lost."""
        return self._write(lease, expires_at=self._now + self.lease_s)

    def reset_crash_count(self, lease: Lease) -> bool:
        """Forget the crashes over a trial that has come further than ever. False: the lease is lost."""
        return self._write(lease, crash_count=0)

    def finish(self, lease: Lease, result: TrialResult) -> bool:
        """Store how the trial ended; what remains is to tell Optuna. False: the lease is lost."""
        return self._write(lease, state="finishing", result=result.to_json(), expires_at=self._now + self.lease_s)

    def done(self, lease: Lease) -> bool:
        """Note that Optuna has stored the result. False: the lease is lost."""
        return self._write(lease, state="done", owner=None, expires_at=None)

    def is_done(self, slot: int) -> bool:
        """Whether a slot's trial has ended and Optuna has stored its result."""
        return self._count((_slots.number == slot) & (_slots.state == "done")) == 1

    def release(self, lease: Lease) -> bool:
        """Give the slot back, its trial to be continued by anyone. False: the lease is lost."""
        return self._write(lease, state="open", owner=None, expires_at=None)

    def release_owner(self, owner: str, *, crashed: bool) -> None:
        """Give back what a process that ended held, and increment the crash count if it crashed."""
        self.database.transaction(lambda connection: connection.execute(self._give_back(owner, crashed=crashed)))

    def trial_of(self, lease: Lease) -> int | None:
        """Number of the trial that fills the lease's slot; None where none does, or the lease is lost."""
        bound = sa.select(_slots.trial_number).where(self.held(lease))
        return self.database.transaction(lambda connection: connection.scalar(bound))

    # -------------------------------------------------------------------------------------------------- counting

    def counts(self, total: int | None) -> SlotCounts:
        """States of the first `total` slots, or of all."""
        left = (_slots.state == "open") & _slots.trial_number.is_not(None)
        group = sa.case((_slots.state == "finishing", "leased"), (left, "released"), else_=_slots.state)
        count = sa.select(group, sa.func.count()).where(self._among(total)).group_by(group)
        rows = self.database.transaction(lambda connection: connection.execute(count).all())
        return SlotCounts(**{row[0]: row[1] for row in rows})

    def total(self) -> int:
        """How many slots there are: the largest total that was ever asked for."""
        return self._count(sa.true())

    def owners(self) -> dict[int, str]:
        """Owner of each live lease, by trial number."""
        return {trial: owner for trial, owner in self._live_leases() if trial is not None}

    def at_work(self) -> tuple[str, ...]:
        """Owners of live leases, including those whose trial is about to be created."""
        return tuple(sorted({owner for _, owner in self._live_leases()}))

    def _live_leases(self) -> list[tuple[int | None, str]]:
        live = _slots.state.in_(("leased", "finishing")) & (_slots.expires_at >= self._now)
        held = sa.select(_slots.trial_number, _slots.owner).where(self._among(None) & live)
        rows = self.database.transaction(lambda connection: connection.execute(held).all())
        return [(row.trial_number, row.owner) for row in rows]

    # ------------------------------------------------------------------------------------------------------- SQL

    def held(self, lease: Lease) -> sa.ColumnElement[bool]:
        """The condition that a lease is in force on its slot."""
        mine = (_slots.number == lease.slot) & (_slots.owner == lease.owner)
        return self._among(None) & mine & (_slots.fencing_token == lease.fencing_token)

    def next_expiry(self) -> sa.ColumnElement[float]:
        """When a lease that is renewed now will expire."""
        return self._now + self.lease_s

    def _among(self, total: int | None) -> sa.ColumnElement[bool]:
        mine = _slots.study_id == self.study_id
        return mine if total is None else mine & (_slots.number < total)

    def _count(self, condition: sa.ColumnElement[bool]) -> int:
        count = sa.select(sa.func.count()).select_from(tables.slots).where(self._among(None) & condition)
        return self.database.transaction(lambda connection: connection.scalar(count)) or 0

    def _write(self, lease: Lease, **values: Any) -> bool:
        write = tables.slots.update().where(self.held(lease)).values(**values)
        return self.database.transaction(lambda connection: connection.execute(write).rowcount) == 1

    def _give_back(self, owner: str, *, crashed: bool) -> sa.Update:
        """Free what an owner holds; a result that waits for Optuna stays in its slot, whose lease expires now."""
        finishing = _slots.state == "finishing"
        return (
            tables.slots.update()
            .where(self._among(None) & (_slots.owner == owner))
            .values(
                state=sa.case((finishing, "finishing"), else_="open"),
                owner=None,
                expires_at=sa.case((finishing, self._now - 1), else_=None),
                crash_count=_slots.crash_count + int(crashed),
            )
        )
