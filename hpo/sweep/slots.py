"""The sweep's slots and leases: what makes totals exact and lets a trial survive its worker.

A study that is to end with N trials has N rows here, in its own database. A worker claims a slot by a lease: owner,
epoch, expiry. It renews the lease on a timer; a lease that expired is claimed by the next worker under epoch + 1, which
continues the same Optuna trial. Every later write of a worker, to these tables or through Optuna, compares owner and
epoch in its own transaction, so that one which lost its lease changes nothing.

    open ──claim──▶ leased ──finish──▶ finishing ──(tell Optuna)──▶ done
      ◀──release───   │  ▲                 │  ▲
                      └──┘ claim           └──┘ claim when expired: tell again, with the stored outcome
                           when expired

Times are the database's, so that machines need not agree on the clock. Any statement may be sent twice: a server that
is restarted can have committed what its client never heard of.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import sqlalchemy as sa
from optuna.storages._rdb.models import TrialModel
from sqlalchemy import orm
from sqlalchemy.dialects import postgresql, sqlite

from hpo.database import tables as schema
from hpo.database.connection import Database
from hpo.database.retry import NO_RETRY, RetryPolicy

LEASE_S = 30.0  # an unrenewed lease is another worker's after this
RENEWALS = 3  # per lease
RETRY_S = 1.0  # between attempts to renew while the database is away

_CLOCKS = {
    "sqlite": "(julianday('now') - 2440587.5) * 86400.0",
    "postgresql": "extract(epoch from clock_timestamp())",
}
_slots, _studies = schema.slots.c, schema.studies.c
_WROTE = "hpo:wrote"  # mark of a session that has written since its last commit
_Result = TypeVar("_Result")


@dataclass(frozen=True, kw_only=True)
class TrialResult:
    """How a trial ended, in the form in which it waits in its slot until Optuna has been told."""

    state: Literal["COMPLETE", "PRUNED", "FAIL"]
    values: tuple[float, ...] = ()  # of the study's objectives at the last evaluation; none unless all are finite
    violations: tuple[str, ...] = ()  # constraints that the trial breaks, so that the sampler avoids its region
    attributes: dict[str, Any] = field(default_factory=dict)  # Optuna user attributes

    def to_json(self) -> str:
        """The text that is stored."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TrialResult:
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
    deaths: int = 0  # leases over this trial that ended without a word, in a row and without progress between
    outcome: TrialResult | None  # set where only telling Optuna is left


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
    def total(self) -> int:
        """All of them."""
        return self.done + self.leased + self.released + self.open

    @property
    def begun(self) -> int:
        """Slots whose trial has begun and has not ended."""
        return self.leased + self.released


@dataclass
class Fence:
    """What a transaction must do to a slot before it may commit."""

    hold: sa.Update  # changes one row while the lease is in force, else none
    binds: bool
    created: int | None = None  # number of the trial that a binding transaction made
    passed: bool = False  # whether a transaction committed, or is about to


class Slots:
    """The slots of one study.

    Args:
        database: the one that holds the study.
        study_id: Optuna's id of the study there.
        lease_s: seconds after which an unrenewed lease may be taken over.
        retry: with a database that is away; the database's own by default.
    """

    def __init__(
        self, database: Database, study_id: int, lease_s: float = LEASE_S, retry: RetryPolicy | None = None
    ) -> None:
        self.database = database
        self.study_id = study_id
        self.lease_s = lease_s
        self.retry = retry or database.retry
        self._fence: Fence | None = None
        self._now: sa.ColumnElement[float] = sa.literal_column(_CLOCKS[database.engine.dialect.name], sa.Double)

    def impatient(self) -> Slots:
        """The same slots for a caller that rather fails than waits."""
        return Slots(self.database, self.study_id, self.lease_s, NO_RETRY)

    # --------------------------------------------------------------------------------------------------- study

    def create(self, record: dict[str, Any]) -> dict[str, Any]:
        """Make the tables and store what the study is made from, unless that was done before.

        Returns:
            The record that stands: this one, or the one of whoever was first.
        """
        self.retry.call(lambda: schema.create(self.database.engine))
        row = {"study_id": self.study_id, "record": json.dumps(record)}
        self._in_transaction(lambda connection: connection.execute(self._insert_if_absent(schema.studies), [row]))
        found = self.record()
        assert found is not None
        return found

    def record(self) -> dict[str, Any] | None:
        """What the study was made from; None for a study that another program made.

        Raises:
            StorageError: the slots are of another version of this program.
        """
        if not self.retry.call(lambda: schema.check(self.database.engine)):
            return None
        mine = sa.select(_studies.record).where(_studies.study_id == self.study_id)
        text: str | None = self._in_transaction(lambda connection: connection.scalar(mine))
        return None if text is None else json.loads(text)

    def replace_record(self, record: dict[str, Any]) -> None:
        """Store another record in place of the standing one."""
        self._write_study(record=json.dumps(record))

    def revise_record(self, old: dict[str, Any], new: dict[str, Any]) -> bool:
        """Store a record that was made from the standing one. False: another is standing, and stays."""
        mine = (_studies.study_id == self.study_id) & (_studies.record.in_([json.dumps(old), json.dumps(new)]))
        write = schema.studies.update().where(mine).values(record=json.dumps(new))
        return self._in_transaction(lambda connection: connection.execute(write).rowcount) == 1

    def stops(self) -> int:
        """How often a stop was asked of all workers; who began at a lower count leaves."""
        mine = sa.select(_studies.stops).where(_studies.study_id == self.study_id)
        return self._in_transaction(lambda connection: connection.scalar(mine)) or 0

    def request_stop(self) -> None:
        """Ask all workers that have begun, wherever they are, to leave at their next evaluation."""
        self._write_study(stops=_studies.stops + 1)

    def forget_deleted(self, name: str) -> bool:
        """Delete what a deleted study left, whose number has come round again; whether there was any.

        Its slots have trials where the study of this name has none, or its record is of another name. One transaction:
        a trial and its slot are bound in one, too, so that a live study is never taken for a deleted one.
        """
        record = self.record()
        if record is None:
            return False
        trials = sa.select(TrialModel.trial_id).where(TrialModel.study_id == self.study_id)
        begun = sa.select(_slots.number).where(self._among(None) & _slots.trial_number.is_not(None))
        stale = ~sa.exists(trials) & (sa.exists(begun) | sa.literal(record["spec"]["name"] != name))

        def delete(connection: sa.Connection) -> bool:
            gone = connection.execute(schema.studies.delete().where((_studies.study_id == self.study_id) & stale))
            if gone.rowcount:
                connection.execute(schema.slots.delete().where(self._among(None)))
            return bool(gone.rowcount)

        return self._in_transaction(delete)

    def ensure(self, total: int) -> None:
        """Add the slots that are missing up to `total`; none is ever removed."""

        def add(connection: sa.Connection) -> None:
            present = set(connection.scalars(sa.select(_slots.number).where(_slots.study_id == self.study_id)))
            rows = [{"study_id": self.study_id, "number": number} for number in range(total) if number not in present]
            if rows:
                connection.execute(self._insert_if_absent(schema.slots), rows)

        self._in_transaction(add)

    # --------------------------------------------------------------------------------------------------- leases

    def claim(self, owner: str, total: int | None, *, begin_new: bool = True) -> Lease | None:
        """Lease one of the first `total` slots: an interrupted one before a new one; None where none is free.

        One statement, so that no two workers get the same slot. A lease that expired ended without a word: a death.

        Args:
            owner: of the lease; a name that no other process has or had.
            total: None: of all slots.
            begin_new: otherwise only slots whose trial has begun.
        """
        expired = _slots.state.in_(("leased", "finishing")) & (_slots.expires_at < self._now)
        free = self._among(total)
        if not begin_new:
            free &= _slots.trial_number.is_not(None)
        begun_first = sa.case((_slots.state == "finishing", 0), (_slots.trial_number.is_not(None), 1), else_=2)
        chosen = (
            sa.select(_slots.number)
            .where(free & ((_slots.state == "open") | expired))
            .order_by(begun_first, _slots.number)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        take = (
            schema.slots.update()
            .where((_slots.study_id == self.study_id) & (_slots.number == chosen))
            .values(
                state=sa.case((_slots.state == "finishing", "finishing"), else_="leased"),
                owner=owner,
                epoch=_slots.epoch + 1,
                expires_at=self._now + self.lease_s,
                deaths=_slots.deaths + sa.case((_slots.state == "leased", 1), else_=0),
            )
            .returning(_slots.number, _slots.epoch, _slots.trial_number, _slots.deaths, _slots.outcome)
        )
        attempts = 0

        def take_one(connection: sa.Connection) -> sa.Row[Any] | None:
            nonlocal attempts
            attempts += 1
            if attempts > 1:  # the last attempt may have taken a slot without our hearing of it
                connection.execute(self._free(owner, died=False))
            return connection.execute(take).one_or_none()

        row = self._in_transaction(take_one)
        if row is None:
            return None
        outcome = None if row.outcome is None else TrialResult.from_json(row.outcome)
        return Lease(
            slot=row.number,
            owner=owner,
            epoch=row.epoch,
            trial_number=row.trial_number,
            deaths=row.deaths,
            outcome=outcome,
        )

    def renew(self, lease: Lease) -> bool:
        """Push the expiry on, also of an expired lease that nobody took. False: the lease is lost."""
        return self._write(lease, expires_at=self._now + self.lease_s)

    def reset_crash_count(self, lease: Lease) -> bool:
        """Forget the deaths over a trial that has come further than ever. False: the lease is lost."""
        return self._write(lease, deaths=0)

    def finish(self, lease: Lease, outcome: TrialResult) -> bool:
        """Fix how the trial ended; from here on it only remains to tell Optuna. False: the lease is lost."""
        return self._write(lease, state="finishing", outcome=outcome.to_json(), expires_at=self._now + self.lease_s)

    def done(self, lease: Lease) -> bool:
        """Note that Optuna knows. False: the lease is lost."""
        return self._write(lease, state="done", owner=None, expires_at=None)

    def is_done(self, slot: int) -> bool:
        """Whether a slot's trial has ended and Optuna knows."""
        return self._count((_slots.number == slot) & (_slots.state == "done")) == 1

    def release(self, lease: Lease) -> bool:
        """Give the slot back, its trial to be continued by anyone. False: the lease is lost."""
        return self._write(lease, state="open", owner=None, expires_at=None)

    def release_owner(self, owner: str, *, died: bool) -> None:
        """Give back what a gone worker held, and count it if it died of itself."""
        self._in_transaction(lambda connection: connection.execute(self._free(owner, died=died)))

    def trial_of(self, lease: Lease) -> int | None:
        """Number of the trial that fills the lease's slot; None where none does, or the lease is lost."""
        bound = sa.select(_slots.trial_number).where(self._held(lease))
        return self._in_transaction(lambda connection: connection.scalar(bound))

    @contextlib.contextmanager
    def fence(self, lease: Lease, *, binds: bool = False, ends: bool = False) -> Iterator[Fence]:
        """Let Optuna commit nothing but under this lease, which each such transaction renews. Inner fences count first.

        Args:
            lease: of the calling worker.
            binds: the transaction creates the slot's trial: bind the trial to the slot, which must have none.
            ends: the transaction ends the trial: the slot is done.

        Raises:
            LeaseLost: from whatever writes through Optuna; that transaction is rolled back.
        """
        values: dict[str, Any] = {"expires_at": self._now + self.lease_s}
        held = self._held(lease)
        if binds:
            values["trial_number"] = sa.bindparam("created")
            held &= _slots.trial_number.is_(None)
        if ends:
            values = {"state": "done", "owner": None, "expires_at": None}
        fence = Fence(schema.slots.update().where(held).values(**values), binds)
        outer, self._fence = self._fence, fence
        if outer is None:
            for event, listener in self._listeners.items():
                sa.event.listen(self.database.sessions, event, listener)
        try:
            yield fence
        finally:
            self._fence = outer
            if outer is None:
                for event, listener in self._listeners.items():
                    sa.event.remove(self.database.sessions, event, listener)

    @property
    def _listeners(self) -> dict[str, Callable[..., None]]:
        return {
            "do_orm_execute": self._note_statement,
            "after_flush": self._note_flush,
            "after_rollback": self._note_rollback,
            "before_commit": self._hold_fence,
        }

    def _note_statement(self, statement: orm.ORMExecuteState) -> None:
        if not statement.is_select:
            statement.session.info[_WROTE] = True

    def _note_flush(self, session: orm.Session, context: object) -> None:
        del context
        session.info[_WROTE] = True

    def _note_rollback(self, session: orm.Session) -> None:
        session.info.pop(_WROTE, None)

    def _hold_fence(self, session: orm.Session) -> None:
        """Before a session commits: if it wrote, hold the lease in the same transaction or fail."""
        session.flush()
        fence = self._fence
        if not session.info.pop(_WROTE, False) or fence is None:
            return
        if fence.binds:
            (trial,) = (each for each in session.identity_map.values() if isinstance(each, TrialModel))
            fence.created = int(trial.number)
        parameters = {"created": fence.created} if fence.binds else {}
        if session.connection().execute(fence.hold, parameters).rowcount != 1:
            raise LeaseLost
        fence.passed = True

    @contextlib.contextmanager
    def renewed(self, lease: Lease, on_renewal: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Renew a lease on a timer. That it was lost shows at the holder's next write.

        A database that cannot be reached for a while is no loss: the next renewal may succeed.

        Args:
            lease: of the calling worker.
            on_renewal: called after each renewal, in the timer's thread; its database errors count as an outage.
        """
        ended = threading.Event()
        slots = self.impatient()

        def keep() -> None:
            pause_s = self.lease_s / RENEWALS
            while not ended.wait(pause_s):
                try:
                    if not slots.renew(lease):
                        return
                    on_renewal()
                    pause_s = self.lease_s / RENEWALS
                except sa.exc.SQLAlchemyError:
                    pause_s = min(RETRY_S, self.lease_s / RENEWALS)

        keeper = threading.Thread(target=keep, name="lease", daemon=True)
        keeper.start()
        try:
            yield
        finally:
            ended.set()
            keeper.join()

    # -------------------------------------------------------------------------------------------------- counting

    def counts(self, total: int | None) -> SlotCounts:
        """States of the first `total` slots, or of all."""
        left = (_slots.state == "open") & _slots.trial_number.is_not(None)
        group = sa.case((_slots.state == "finishing", "leased"), (left, "released"), else_=_slots.state)
        count = sa.select(group, sa.func.count()).where(self._among(total)).group_by(group)
        rows = self._in_transaction(lambda connection: connection.execute(count).all())
        return SlotCounts(**{row[0]: row[1] for row in rows})

    def total(self) -> int:
        """How many slots there are: the largest total that was ever asked for."""
        return self._count(sa.true())

    def owners(self) -> dict[int, str]:
        """Owner of each live lease, by trial number."""
        return {trial: owner for trial, owner in self._live_leases() if trial is not None}

    def at_work(self) -> tuple[str, ...]:
        """Owners of live leases, those included whose trial is about to be made."""
        return tuple(sorted({owner for _, owner in self._live_leases()}))

    def _live_leases(self) -> list[tuple[int | None, str]]:
        live = _slots.state.in_(("leased", "finishing")) & (_slots.expires_at >= self._now)
        held = sa.select(_slots.trial_number, _slots.owner).where(self._among(None) & live)
        rows = self._in_transaction(lambda connection: connection.execute(held).all())
        return [(row.trial_number, row.owner) for row in rows]

    # ------------------------------------------------------------------------------------------------------- SQL

    def _in_transaction(self, work: Callable[[sa.Connection], _Result]) -> _Result:
        def once() -> _Result:
            with self.database.engine.begin() as connection:
                return work(connection)

        return self.retry.call(once)

    def _among(self, total: int | None) -> sa.ColumnElement[bool]:
        mine = _slots.study_id == self.study_id
        return mine if total is None else mine & (_slots.number < total)

    def _held(self, lease: Lease) -> sa.ColumnElement[bool]:
        held = (_slots.number == lease.slot) & (_slots.owner == lease.owner) & (_slots.epoch == lease.epoch)
        return self._among(None) & held

    def _count(self, condition: sa.ColumnElement[bool]) -> int:
        count = sa.select(sa.func.count()).select_from(schema.slots).where(self._among(None) & condition)
        return self._in_transaction(lambda connection: connection.scalar(count)) or 0

    def _write(self, lease: Lease, **values: Any) -> bool:
        write = schema.slots.update().where(self._held(lease)).values(**values)
        return self._in_transaction(lambda connection: connection.execute(write).rowcount) == 1

    def _write_study(self, **values: Any) -> None:
        write = schema.studies.update().where(_studies.study_id == self.study_id).values(**values)
        self._in_transaction(lambda connection: connection.execute(write))

    def _free(self, owner: str, *, died: bool) -> sa.Update:
        """What an owner holds, given back; one that is only to be told is left to expire, which it does now."""
        finishing = _slots.state == "finishing"
        return (
            schema.slots.update()
            .where(self._among(None) & (_slots.owner == owner))
            .values(
                state=sa.case((finishing, "finishing"), else_="open"),
                owner=None,
                expires_at=sa.case((finishing, self._now - 1), else_=None),
                deaths=_slots.deaths + int(died),
            )
        )

    def _insert_if_absent(self, table: sa.Table) -> sa.Insert:
        dialect = sqlite if self.database.engine.dialect.name == "sqlite" else postgresql
        statement: sa.Insert = dialect.insert(table).on_conflict_do_nothing()
        return statement
