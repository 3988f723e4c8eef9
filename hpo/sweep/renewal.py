"""A lease that is renewed on a timer for as long as its worker runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator

import sqlalchemy as sa

from hpo.sweep.slots import Lease, Slots

RENEWALS = 3  # per lease
RETRY_S = 1.0  # between attempts to renew during an outage


@contextlib.contextmanager
def renewed(slots: Slots, lease: Lease, on_renewal: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Renew a lease from a thread of its own. A lost lease shows at the holder's next write.

    An outage of the database loses nothing: the next renewal may succeed. Once the lease is lost, the timer ends; the
    worker trains on to its next evaluation, whose report the fence refuses (`LeaseLost`), and claims another slot. No
    more than the training since the last evaluation is lost.

    Args:
        slots: of the lease's study.
        lease: of the calling worker.
        on_renewal: called after each renewal, in the timer's thread; its database errors count as an outage.
    """
    ended = threading.Event()
    single_attempt = slots.without_retry()

    def keep() -> None:
        pause_s = slots.lease_s / RENEWALS
        while not ended.wait(pause_s):
            try:
                if not single_attempt.renew(lease):
                    return
                on_renewal()
                pause_s = slots.lease_s / RENEWALS
            except sa.exc.SQLAlchemyError:
                pause_s = min(RETRY_S, slots.lease_s / RENEWALS)

    keeper = threading.Thread(target=keep, name="lease", daemon=True)
    keeper.start()
    try:
        yield
    finally:
        ended.set()
        keeper.join()
