"""A sweep: an Optuna study together with its slots, and how the two are kept in step."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState

from hpo.database import optuna_private, tables
from hpo.database.connection import Database
from hpo.database.optuna_private import SnapshotStudy
from hpo.errors import StudyError
from hpo.study.former_names import stored_role
from hpo.study.search_space import make_pruner, make_sampler
from hpo.study.sections import Role
from hpo.study.spec import Objective, StudySpec
from hpo.sweep.fence import FencedSessions
from hpo.sweep.record import Fingerprint, SweepRecord
from hpo.sweep.renewal import renewed
from hpo.sweep.result import TrialResult
from hpo.sweep.slots import LEASE_S, Lease, LeaseLost, Slots
from hpo.sweep.study_row import StudyRow
from hpo_model.config import Scalar
from hpo_reports.records.names import STUDY_LAST_RUN, STUDY_RECORD, STUDY_TABLE, TRIAL_CANDIDATE, TRIAL_ROLE, TRIAL_SLOT

METRICS: Mapping[Objective, str] = {"val_loss": "validation loss (nats per token)", "phi": "Φ of the validation text"}
DIRECTIONS: Mapping[Objective, StudyDirection] = {"val_loss": StudyDirection.MINIMIZE, "phi": StudyDirection.MAXIMIZE}


class Sweep:
    """One study, its slots, and the record of what it was made from."""

    def __init__(self, database: Database, study: optuna.Study, study_id: int, record: SweepRecord, lease_s: float):
        self.database, self.study, self.study_id = database, study, study_id
        self.storage = database.storage
        self.slots = Slots(database, study_id, lease_s)
        self.row = StudyRow(database, study_id)
        self.sessions = FencedSessions(self.slots)
        self._use(record)
        self.snapshot = SnapshotStudy(study.study_name, self.storage, pruner=make_pruner(self.spec))

    def _use(self, record: SweepRecord) -> None:
        self.record = record
        self.plan = record.spec.planned()

    @property
    def spec(self) -> StudySpec:
        """The study's specification."""
        return self.record.spec

    @property
    def uid(self) -> str:
        """Eight hexadecimal digits that tell studies of one name apart."""
        return self.record.uid

    def check_there(self) -> None:
        """See that the study still exists.

        Raises:
            StudyError: it was deleted, as through Optuna.
        """
        try:
            found = self.storage.get_study_id_from_name(self.study.study_name)
        except KeyError:
            found = None
        if found != self.study_id:
            raise self._deleted() from None

    def _deleted(self) -> StudyError:
        return StudyError(f"study {self.spec.name!r} was deleted meanwhile: nothing is left to work on")

    # ------------------------------------------------------------------------------------------------- record

    def revise(self, change: Callable[[SweepRecord], SweepRecord]) -> None:
        """Store a changed record, for our own readers and for Optuna's; changed again where another process was first.

        Args:
            change: the record wanted, given the one that stands.

        Raises:
            StudyError: the study was deleted meanwhile.
        """
        while True:
            standing = self.row.record()
            if standing is None or standing.uid != self.uid:  # SQLite may have given the id to another study
                raise self._deleted()
            wanted = change(standing)
            if wanted == standing or self.row.revise(standing, wanted):
                break
        self._use(self.row.record() or wanted)
        self.publish()

    def publish(self) -> None:
        """Put the record where readers of Optuna's study look; called again in case a crash prevented it."""
        content = self.record.to_dict()
        if self.study.user_attrs.get(STUDY_RECORD) != content:
            names = [METRICS[objective] for objective in self.spec.objectives]
            self.storage.set_study_system_attr(self.study_id, optuna_private.METRIC_NAMES, names)
            self.study.set_user_attr(STUDY_RECORD, content)

    # ------------------------------------------------------------------------------------------------- trials

    @contextlib.contextmanager
    def holding(self, lease: Lease, on_renewal: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Keep a lease renewed, and let Optuna write nothing that it does not cover.

        Args:
            lease: of the calling worker.
            on_renewal: called after each renewal by the timer, in its thread.

        Raises:
            LeaseLost: from any write after another worker has taken the slot.
        """
        with self.sessions.under(lease), renewed(self.slots, lease, on_renewal):
            yield

    def start(self, lease: Lease) -> optuna.Trial:
        """The trial of a slot: the one bound to it, or a new one.

        A trial is created with its slot's number on it and bound to the slot in one transaction: no crash orphans it,
        and no two are made for one slot.

        Raises:
            LeaseLost: another worker holds the slot.
        """
        number = self._create(lease) if lease.trial_number is None else lease.trial_number
        self.snapshot.sampler = make_sampler(self.spec, lease.slot)
        self.snapshot.refresh()  # also because Optuna's cache cannot write to trials that it has never read
        return optuna_private.trial_of(self.snapshot, self.trial_id(number))

    def _create(self, lease: Lease) -> int:
        role, parameters = self._planned(lease.slot)
        candidate = (
            {} if self.spec.replication is None else {TRIAL_CANDIDATE: self.spec.replication.runs[lease.slot][0]}
        )
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            system_attrs={optuna_private.FIXED_PARAMETERS: parameters},
            user_attrs={TRIAL_SLOT: lease.slot, TRIAL_ROLE: stored_role(role), **candidate},
        )
        try:
            with self.sessions.under(lease, binds=True) as fence:
                self.storage.create_new_trial(self.study_id, template)
            number = fence.created
        except LeaseLost:  # or an attempt of ours was committed without our hearing of it
            number = self.slots.trial_of(lease)
        if number is None:
            raise LeaseLost
        return number

    def _planned(self, slot: int) -> tuple[Role, dict[str, Scalar]]:
        """Role and values of a slot's trial; no values: the sampler's choice."""
        if slot >= len(self.plan) and self.spec.replication is not None:  # planned since this worker started
            self._use(self.row.record() or self.record)
            return self.plan[slot]
        return self.plan[slot] if slot < len(self.plan) else ("search", {})

    def finalize(self, lease: Lease, number: int, result: TrialResult) -> None:
        """Tell Optuna how a trial ended and mark its slot, in one transaction. A second call changes nothing."""
        trial_id = self.trial_id(number)
        self.database.set_user_attributes(trial_id, result.attributes)
        with contextlib.suppress(
            optuna.exceptions.UpdateFinishedTrialError
        ):  # an earlier attempt was committed, unheard
            for name in result.violations:
                if name not in self.storage.get_trial(trial_id).constraints:
                    optuna_private.trial_of(self.study, trial_id).set_constraint(name, 1.0)
            with self.sessions.under(lease, ends=True) as fence:
                state, values = TrialState[result.state], list(result.values) or None
                self.storage.set_trial_state_values(trial_id, state, values)
            if fence.passed:
                return
        self.slots.done(lease)

    def trial_id(self, number: int) -> int:
        """Optuna's id of a trial, which no other trial of the database has."""
        return self.storage.get_trial_id_from_study_id_trial_number(self.study_id, number)

    # ---------------------------------------------------------------------------------------------- standings

    def stopped_improving(self) -> bool:
        """Whether the last `stopping.trials_without_improvement` trials to finish brought no better one."""
        patience = self.spec.stopping.trials_without_improvement
        if patience is None:
            return False
        finished = [trial for trial in self.study.get_trials(deepcopy=False) if trial.state.is_finished()]
        finished.sort(key=lambda trial: (trial.datetime_complete, trial.number))
        losses = [trial.value if is_feasible(trial) else None for trial in finished]
        best = min((loss for loss in losses if loss is not None), default=None)
        return best is not None and len(losses) - 1 - losses.index(best) >= patience

    def best(self) -> FrozenTrial | None:
        """The complete, feasible trial of lowest validation loss, whatever else the study looks for."""
        return next(iter(self.front()), None)

    def front(self) -> list[FrozenTrial]:
        """The complete, feasible trials that no other beats; of equal ones the first.

        With one objective that is the best trial, if any; with two all of the Pareto front, lowest loss first.
        """
        engine = self.database.engine
        values = self.database.retry.call(lambda: optuna_private.feasible_values(engine, self.study_id))
        costs = {trial_id: self._costs(values[trial_id]) for trial_id in values}
        front: list[int] = []
        for trial_id in sorted(costs, key=lambda trial_id: (*costs[trial_id], trial_id)):
            if not front or costs[trial_id][1:] < costs[front[-1]][1:]:
                front.append(trial_id)
        return [self.storage.get_trial(trial_id) for trial_id in front]

    def _costs(self, values: Sequence[float]) -> tuple[float, ...]:
        """Values of a complete trial, each so that less is better."""
        signs = [1 if direction is StudyDirection.MINIMIZE else -1 for direction in self.study.directions]
        return tuple(sign * value for sign, value in zip(signs, values, strict=True))


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial is complete and breaks no constraint; an implausibly low perplexity breaks one."""
    return trial.state is TrialState.COMPLETE and all(value <= 0 for value in trial.constraints.values())


def find_sweep(database: Database, name: str, lease_s: float = LEASE_S) -> Sweep | None:
    """The sweep of this name, or None where the database has no study of this name.

    Raises:
        StudyError: the study was made by another program, or imported from a table.
    """
    if name not in study_names(database):
        return None
    study = load_study(database, name)
    study_id = database.storage.get_study_id_from_name(name)
    row = StudyRow(database, study_id)
    stored = row.record_text()
    empty = STUDY_RECORD not in study.user_attrs and not study.get_trials(deepcopy=False)
    if empty and (stored is None or row.delete_stale(name)):
        return None  # its making was interrupted, or an earlier study of this id was deleted
    if STUDY_TABLE in study.user_attrs:
        raise StudyError(f"study {name!r} is a table of past experiments, which nothing can run; `hpo report` reads it")
    if stored is None:
        raise StudyError(f"study {name!r} was made by another program; only that program can run it; name another")
    return Sweep(database, study, study_id, SweepRecord.from_json(stored), lease_s)


def open_sweep(database: Database, name: str, lease_s: float = LEASE_S) -> Sweep:
    """The sweep of this name.

    Raises:
        StudyError: unknown, or made by another program.
    """
    sweep = find_sweep(database, name, lease_s)
    if sweep is None:
        load_study(database, name)  # which names the studies there are, if this is none of them
        raise StudyError(f"study {name!r} is empty; `hpo run` fills it")
    return sweep


def create_sweep(database: Database, record: SweepRecord, lease_s: float = LEASE_S) -> Sweep:
    """Create a study and store what it is made from; where two processes do so at once, the first one's record stands.

    Raises:
        StudyError: there is an empty study of this name that was made for other objectives.
    """
    if tables.check(database.engine):
        database.retry.call(lambda: tables.delete_orphans(database.engine))
    name, directions = record.spec.name, [DIRECTIONS[objective] for objective in record.spec.objectives]
    study = optuna.create_study(study_name=name, storage=database.storage, directions=directions, load_if_exists=True)
    if study.directions != directions:
        raise StudyError(f"study {name!r} was made for other objectives; name another")
    study_id = database.storage.get_study_id_from_name(name)
    row = StudyRow(database, study_id)
    row.delete_stale(name)
    standing = row.create(dataclasses.replace(record, fingerprint=Fingerprint.of(record.spec)))
    sweep = Sweep(database, study, study_id, standing, lease_s)
    sweep.publish()
    return sweep


def update_metadata(sweep: Sweep, spec: StudySpec) -> None:
    """Take over from the study file what may differ between two sessions: all that is not in `StudySpec.identity`."""

    def change(record: SweepRecord) -> SweepRecord:
        text = spec.text.model_copy(update={"corpus": record.spec.text.corpus})
        update = {"profile": record.spec.profile, "text": text}
        return dataclasses.replace(record, spec=spec.model_copy(update=update))

    sweep.revise(change)


def load_study(database: Database, name: str) -> optuna.Study:
    """A study of this name, of ours or of another program.

    Raises:
        StudyError: unknown.
    """
    names = study_names(database)
    if name not in names:
        held = f"there are {', '.join(names[:8])}" if names else "there is none yet; `hpo run` makes the first"
        raise StudyError(f"unknown study {name!r}: {held}")
    return optuna.load_study(study_name=name, storage=database.storage)


def study_names(database: Database) -> list[str]:
    """All studies of a database, in the order in which they were made."""
    return [study.study_name for study in database.storage.get_all_studies()]


def describe_studies(database: Database) -> list[str]:
    """A line for each study of a database."""
    lines, counts = [], optuna_private.trial_counts(database.engine)
    for study in database.storage.get_all_studies():
        record = study.user_attrs.get(STUDY_RECORD)
        if record:
            origin = f"{record['corpus']['name']}, profile {record['profile']}"
        elif STUDY_TABLE in study.user_attrs:
            origin = "a table of past experiments"
        else:
            origin = "made by another program"
        lines.append(f"{study.study_name:<18} {counts.get(study.study_name, 0)} trials · {origin}")
    return lines or ["none yet; `hpo run` makes the first"]


def last_run(database: Database) -> str | None:
    """The study that was run last, or None."""
    studies = database.storage.get_all_studies()
    stamped = [(study.user_attrs.get(STUDY_LAST_RUN, 0.0), study.study_name) for study in studies]
    return max(stamped)[1] if stamped else None
