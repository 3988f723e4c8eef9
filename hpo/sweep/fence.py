"""A fence around what a worker writes through Optuna: no transaction commits unless its lease is in force.

The check runs inside Optuna's own transaction, just before the commit, and changes the slot's row there: what Optuna
wrote and the lease that allowed it are committed together or not at all.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy import orm

from hpo.database import optuna_private, tables
from hpo.sweep.slots import Lease, LeaseLost, Slots

_WROTE = "hpo:wrote"  # mark of a session that has written since its last commit


@dataclass
class Fence:
    """What a transaction must do to a slot before it may commit."""

    hold: sa.Update  # changes one row while the lease is in force, else none
    binds: bool
    created: int | None = None  # number of the trial that a binding transaction made
    passed: bool = False  # whether a transaction committed, or is about to


class FencedSessions:
    """The sessions in which Optuna writes for one study, and the innermost fence around them."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._sessions = slots.database.sessions
        self._fence: Fence | None = None

    @contextlib.contextmanager
    def under(self, lease: Lease, *, binds: bool = False, ends: bool = False) -> Iterator[Fence]:
        """Let Optuna commit nothing but under this lease, which each such transaction renews. Inner fences count first.

        Args:
            lease: of the calling worker.
            binds: the transaction creates the slot's trial: bind the trial to the slot, which must have none.
            ends: the transaction ends the trial: the slot is done.

        Raises:
            LeaseLost: from any write through Optuna; its transaction is rolled back.
        """
        values: dict[str, Any] = {"expires_at": self._slots.next_expiry()}
        held = self._slots.held(lease)
        if binds:
            values["trial_number"] = sa.bindparam("created")
            held &= tables.slots.c.trial_number.is_(None)
        if ends:
            values = {"state": "done", "owner": None, "expires_at": None}
        fence = Fence(tables.slots.update().where(held).values(**values), binds)
        outer, self._fence = self._fence, fence
        if outer is None:
            for event, listener in self._listeners.items():
                sa.event.listen(self._sessions, event, listener)
        try:
            yield fence
        finally:
            self._fence = outer
            if outer is None:
                for event, listener in self._listeners.items():
                    sa.event.remove(self._sessions, event, listener)

    @property
    def _listeners(self) -> dict[str, Callable[..., None]]:
        return {
            "do_orm_execute": self._note_statement,
            "after_flush": self._note_flush,
            "after_rollback": self._note_rollback,
            "before_commit": self._hold,
        }

    def _note_statement(self, statement: orm.ORMExecuteState) -> None:
        if not statement.is_select:
            statement.session.info[_WROTE] = True

    def _note_flush(self, session: orm.Session, context: object) -> None:
        del context
        session.info[_WROTE] = True

    def _note_rollback(self, session: orm.Session) -> None:
        session.info.pop(_WROTE, None)

    def _hold(self, session: orm.Session) -> None:
        """Before a session commits: if it wrote, hold the lease in the same transaction or fail."""
        session.flush()
        fence = self._fence
        if not session.info.pop(_WROTE, False) or fence is None:
            return
        if fence.binds:
            fence.created = optuna_private.new_trial_number(session)
        parameters = {"created": fence.created} if fence.binds else {}
        if session.connection().execute(fence.hold, parameters).rowcount != 1:
            raise LeaseLost
        fence.passed = True
