"""What a worker is given and what it reports.

Plain data without torch, for the processes that only start or follow workers.
"""

from __future__ import annotations

import platform
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from hpo.home import Home
from hpo.sweep.result import TrialResult
from hpo.sweep.slots import LEASE_S
from hpo_model.config import Scalar

if TYPE_CHECKING:
    from hpo_model.training.history import Evaluation

# After so many crashes without progress a trial is taken to be the cause: outcome `failed`, Optuna's state PRUNED.
MAX_CRASHES = 5
# After so many failed trials in a row the fault is taken to be the machine's or the program's.
MAX_FAILURES_IN_A_ROW = 3

EventKind = Literal["started", "evaluated", "finished", "waiting", "warned", "restarted", "fatal"]


@dataclass(frozen=True, kw_only=True)
class WorkerSpec:
    """Everything a worker needs to know; plain data, so that it can be sent anywhere."""

    storage_url: str = field(repr=False)
    study_name: str
    total: int | None  # slots to fill; None: all, also those added later
    home: Home
    tokens: Path | None = None  # folder of token files on this machine; None: made from the study's text
    data: Path | None = None  # folder of that text, if not where the study recorded it
    device: str
    threads: int
    memory_fraction: float = 1.0  # of the GPU's memory, the process's context included
    name: str  # of this worker, for people: worker-0
    owner: str = ""  # of its leases: `new_owner`, for every process anew
    stop_requests: int | None = None  # stop requests on the study so far; None: counted when the worker starts
    lease_s: float = LEASE_S


def new_owner(worker: str) -> str:
    """Return a unique name for the leases of one process."""
    return f"{worker}@{platform.node()}-{uuid.uuid4().hex[:12]}"


@dataclass(frozen=True, kw_only=True)
class Event:
    """What a worker reports while it works."""

    kind: EventKind
    worker: str
    trial: int | None = None
    parameters: dict[str, Scalar] = field(default_factory=dict)
    evaluation: Evaluation | None = None
    result: TrialResult | None = None
    message: str = ""


class EventSink(Protocol):
    """Where a worker sends its events, and where it learns that it is to stop."""

    def send(self, event: Event) -> None:
        """Pass an event on. An event that cannot be delivered is dropped without an error."""

    def stop_wanted(self) -> bool:
        """Whether to leave at the next evaluation."""
