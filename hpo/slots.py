"""The sweep's slots and leases: what makes totals exact and lets a trial survive its worker.

A study that is to end with N trials has N rows here, in its own database. A worker claims a slot by a lease: owner,
epoch, expiry. It renews the lease on a timer; a lease that expired is claimed by the next worker under epoch + 1, which
continues the same Optuna trial. Every later write of a worker compares owner and epoch first, so that one which lost
its lease changes nothing.

    open ──claim──▶ leased ──finishing──▶ finishing ──(tell Optuna)──▶ done
      ◀──release───   │  ▲                    │  ▲
                      └──┘ claim when expired └──┘ claim when expired: tell again, with the stored outcome

Times are the database's, so that machines need not agree on the clock.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite

LEASE_S = 30.0  # an unrenewed lease is another worker's after this
RENEWALS = 3  # per lease

_CLOCKS = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch from clock_timestamp())",
}
_metadata = sa.MetaData()
_slots = sa.Table(
    "hpo_slots",
    _metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("state", sa.String(16), nullable=False, default="open"),
    sa.Column("owner", sa.String(200)),
    sa.Column("epoch", sa.Integer, nullable=False, default=0),
    sa.Column("expires_at", sa.Double),  # seconds since 1970 on the database's clock
    sa.Column("trial_number", sa.Integer),
    sa.Column("deaths", sa.Integer, nullable=False, default=0),  # processes that died over this trial
    sa.Column("outcome", sa.Text),  # JSON, from `finishing` on
)
_studies = sa.Table(
    "hpo_studies",
    _metadata,
    sa.Column("study_id", sa.Integer, primary_key=True),
    sa.Column("record", sa.Text, nullable=False),  # JSON: what the study was made from; the first writer's stands
)


@dataclass(frozen=True, kw_only=True)
class TrialOutcome:
    """How a trial ended, in the form in which it waits in its slot until Optuna has been told."""

    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    values: tuple[float, ...] = ()  # final validation loss, nats per token; of complete trials alone
    violations: tuple[str, ...] = ()  # constraints that the trial breaks, so that the sampler avoids its region
    attributes: dict[str, Any] = field(default_factory=dict)  # Optuna user attributes

    def to_json(self) -> str:
        """The text that is stored."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrialOutcome:
        """The outcome that `to_json` gave."""
        content = json.loads(text)
        return cls(**{**content, "values": tuple(content["values"]), "violations": tuple(content["violations"])})


@dataclass(frozen=True, kw_only=True)
class Lease:
    """A worker's right to one slot, until it expires or another worker's epoch begins."""

    slot: int
    owner: str
    epoch: int
    trial_number: int | None  # of the trial to continue; None: not begun
    deaths: int = 0  # processes that died over it
    outcome: TrialOutcome | None  # set where only telling Optuna is left


class LeaseLost(Exception):
    """Another worker holds the slot now: write nothing more."""


@dataclass(frozen=True, kw_only=True)
class SlotCounts:
    """How many of the first N slots are in which state."""

    done: int = 0
    leased: int = 0  # finishing ones included; their workers may be dead until the lease has expired
    released: int = 0  # begun, left at a checkpoint, for anyone to continue
    open: int = 0  # not begun

    @property
    def begun(self) -> int:
        """Slots whose trial has begun and has not ended."""
        return self.leased + self.released


class Slots:
    """The slots of one study.

    Args:
        engine: of the database that holds the study.
        study_id: Optuna's id of the study there.
        lease_s: seconds after which an unrenewed lease may be taken over.
    """

    def __init__(self, engine: sa.Engine, study_id: int, lease_s: float = LEASE_S) -> None:
        self.engine = engine
        self.study_id = study_id
        self.lease_s = lease_s
        self._now: sa.ColumnElement[float] = sa.literal_column(_CLOCKS[engine.dialect.name], sa.Double)

    def create(self, record: dict[str, Any]) -> dict[str, Any]:
        """Make the tables and store what the study is made from, unless that was done before.

        Returns:
            The record that stands: this one, or the one of whoever was first.
        """
        already_made = (sa.exc.IntegrityError, sa.exc.ProgrammingError)  # PostgreSQL's IF NOT EXISTS has a race
        with contextlib.suppress(*already_made), self.engine.begin() as connection:
            for table in _metadata.sorted_tables:
                connection.execute(sa.schema.CreateTable(table, if_not_exists=True))
        with self.engine.begin() as connection:
            connection.execute(
                self._insert_if_absent(_studies), [{"study_id": self.study_id, "record": json.dumps(record)}]
            )
        found = self.record()
        assert found is not None
        return found

    def record(self) -> dict[str, Any] | None:
        """What the study was made from; None for a study that another program made."""
        if not sa.inspect(self.engine).has_table("hpo_studies"):
            return None
        with self.engine.connect() as connection:
            text = connection.scalar(sa.select(_studies.c.record).where(_studies.c.study_id == self.study_id))
        return None if text is None else json.loads(text)

    def replace_record(self, record: dict[str, Any]) -> None:
        """Store another record in place of the standing one."""
        mine = _studies.c.study_id == self.study_id
        with self.engine.begin() as connection:
            connection.execute(_studies.update().where(mine).values(record=json.dumps(record)))

    def begun(self) -> bool:
        """Whether any slot has a trial."""
        mine = (_slots.c.study_id == self.study_id) & _slots.c.trial_number.is_not(None)
        with self.engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(_slots).where(mine)) != 0

    def forget(self) -> None:
        """Delete the study's slots and record: SQLite gives a deleted study's number to the next one."""
        with self.engine.begin() as connection:
            for table in (_slots, _studies):
                connection.execute(table.delete().where(table.c.study_id == self.study_id))

    def ensure(self, total: int) -> None:
        """Add the slots that are missing up to `total`; none is ever removed."""
        with self.engine.begin() as connection:
            mine = _slots.c.study_id == self.study_id
            present = set(connection.scalars(sa.select(_slots.c.number).where(mine)))
            rows = [{"study_id": self.study_id, "number": number} for number in range(total) if number not in present]
            if rows:
                connection.execute(self._insert_if_absent(_slots), rows)

    def claim(self, owner: str, total: int, *, begin_new: bool = True) -> Lease | None:
        """Lease one of the first `total` slots: an interrupted one before a new one; None where none is free.

        One statement, so that no two workers get the same slot. Without `begin_new`, only slots whose trial has begun.
        """
        expired = _slots.c.state.in_(("leased", "finishing")) & (_slots.c.expires_at < self._now)
        free = (_slots.c.study_id == self.study_id) & (_slots.c.number < total)
        if not begin_new:
            free &= _slots.c.trial_number.is_not(None)
        begun_first = sa.case((_slots.c.state == "finishing", 0), (_slots.c.trial_number.is_not(None), 1), else_=2)
        chosen = (
            sa.select(_slots.c.number)
            .where(free & ((_slots.c.state == "open") | expired))
            .order_by(begun_first, _slots.c.number)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        take = (
            _slots.update()
            .where((_slots.c.study_id == self.study_id) & (_slots.c.number == chosen))
            .values(
                state=sa.case((_slots.c.state == "finishing", "finishing"), else_="leased"),
                owner=owner,
                epoch=_slots.c.epoch + 1,
                expires_at=self._now + self.lease_s,
            )
            .returning(_slots.c.number, _slots.c.epoch, _slots.c.trial_number, _slots.c.deaths, _slots.c.outcome)
        )
        with self.engine.begin() as connection:
            row = connection.execute(take).one_or_none()
        if row is None:
            return None
        outcome = None if row.outcome is None else TrialOutcome.from_json(row.outcome)
        return Lease(
            slot=row.number,
            owner=owner,
            epoch=row.epoch,
            trial_number=row.trial_number,
            deaths=row.deaths,
            outcome=outcome,
        )

    def bind(self, lease: Lease, trial_number: int) -> bool:
        """Note which Optuna trial fills the slot. False: the lease is lost."""
        return self._write(lease, trial_number=trial_number)

    def renew(self, lease: Lease) -> bool:
        """Push the expiry on, also of an expired lease that nobody took. False: the lease is lost."""
        return self._write(lease, expires_at=self._now + self.lease_s)

    def finish(self, lease: Lease, outcome: TrialOutcome) -> bool:
        """Fix how the trial ended; from here on it only remains to tell Optuna. False: the lease is lost."""
        return self._write(lease, state="finishing", outcome=outcome.to_json(), expires_at=self._now + self.lease_s)

    def done(self, lease: Lease) -> bool:
        """Note that Optuna knows. False: the lease is lost."""
        return self._write(lease, state="done", owner=None, expires_at=None)

    def release(self, lease: Lease) -> bool:
        """Give the slot back, its trial to be continued by anyone. False: the lease is lost."""
        return self._write(lease, state="open", owner=None, expires_at=None)

    def release_owner(self, owner: str, *, died: bool) -> None:
        """Let a gone worker's leases expire now, and count it if it died of itself."""
        held = (_slots.c.study_id == self.study_id) & (_slots.c.owner == owner)
        free = _slots.update().where(held).values(expires_at=self._now - 1, deaths=_slots.c.deaths + int(died))
        with self.engine.begin() as connection:
            connection.execute(free)

    def counts(self, total: int) -> SlotCounts:
        """States of the first `total` slots."""
        left = (_slots.c.state == "open") & _slots.c.trial_number.is_not(None)
        group = sa.case((_slots.c.state == "finishing", "leased"), (left, "released"), else_=_slots.c.state)
        mine = (_slots.c.study_id == self.study_id) & (_slots.c.number < total)
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(group, sa.func.count()).where(mine).group_by(group))
            return SlotCounts(**{row[0]: row[1] for row in rows})

    def total(self) -> int:
        """How many slots there are: the largest total that was ever asked for."""
        mine = _slots.c.study_id == self.study_id
        with self.engine.connect() as connection:
            return connection.scalar(sa.select(sa.func.count()).select_from(_slots).where(mine)) or 0

    def owners(self) -> dict[int, str]:
        """Owner of each live lease, by trial number."""
        live = _slots.c.state.in_(("leased", "finishing")) & (_slots.c.expires_at >= self._now)
        mine = (_slots.c.study_id == self.study_id) & _slots.c.trial_number.is_not(None)
        with self.engine.connect() as connection:
            rows = connection.execute(sa.select(_slots.c.trial_number, _slots.c.owner).where(mine & live))
            return {row.trial_number: row.owner for row in rows}

    def _write(self, lease: Lease, **values: Any) -> bool:
        held = (
            (_slots.c.study_id == self.study_id)
            & (_slots.c.number == lease.slot)
            & (_slots.c.owner == lease.owner)
            & (_slots.c.epoch == lease.epoch)
        )
        with self.engine.begin() as connection:
            return connection.execute(_slots.update().where(held).values(**values)).rowcount == 1

    def _insert_if_absent(self, table: sa.Table) -> sa.Insert:
        dialect = sqlite if self.engine.dialect.name == "sqlite" else postgresql
        statement: sa.Insert = dialect.insert(table).on_conflict_do_nothing()
        return statement


@contextlib.contextmanager
def renewed(slots: Slots, lease: Lease) -> Iterator[None]:
    """Renew a lease on a timer. That it was lost shows at the holder's next write, which compares owner and epoch.

    A database that cannot be reached for a while is no loss: the next renewal may succeed.
    """
    ended = threading.Event()

    def keep() -> None:
        while not ended.wait(slots.lease_s / RENEWALS):
            with contextlib.suppress(sa.exc.SQLAlchemyError):
                if not slots.renew(lease):
                    return

    keeper = threading.Thread(target=keep, name="lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
