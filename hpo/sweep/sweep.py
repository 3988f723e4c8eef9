"""A sweep: an Optuna study together with its slots, and how the two are kept in step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.study import StudyDirection
from optuna.trial import FrozenTrial, TrialState
from pydantic import ValidationError

from hpo.database import tables as schema
from hpo.database.connection import Database
from hpo.errors import StudyError
from hpo.study.search_space import SnapshotStudy, make_pruner, make_sampler
from hpo.study.spec import Objective, Role, StudySpec
from hpo.sweep.meaning import meaning
from hpo.sweep.slots import LEASE_S, Lease, LeaseLost, Slots, TrialResult
from hpo_model.config import Scalar

STUDY_ATTRIBUTE = "hpo:study"
LAST_RUN_ATTRIBUTE = "hpo:last_run"
LOG_ATTRIBUTE = "hpo:log"  # of a study that is a table of past experiments
METRICS: Mapping[Objective, str] = {"val_loss": "validation loss (nats per token)", "phi": "Φ of the validation text"}
DIRECTIONS: Mapping[Objective, StudyDirection] = {"val_loss": StudyDirection.MINIMIZE, "phi": StudyDirection.MAXIMIZE}


@dataclass
class Sweep:
    """One study, its slots, and the record of what it was made from.

    The record is plain data: uid, created_at, profile, spec, meaning, corpus, tokenizer, hardware, versions.
    """

    database: Database
    study: optuna.Study
    slots: Slots
    record: dict[str, Any]

    def __post_init__(self) -> None:
        self._read_record()
        self.storage = self.database.storage
        self.asking = SnapshotStudy(self.study.study_name, self.storage, pruner=make_pruner(self.spec))

    def _read_record(self) -> None:
        try:
            self.spec = StudySpec.model_validate(self.record["spec"])
        except ValidationError as error:
            made_by = self.record.get("versions", {}).get("hpo", "unknown")
            name = self.study.study_name
            raise StudyError(
                f"study {name!r} was made by version {made_by} of this program, which alone reads it"
            ) from error
        self.plan = self.spec.planned()

    @property
    def uid(self) -> str:
        """Eight hexadecimal digits that tell studies of one name apart."""
        return str(self.record["uid"])

    def check_there(self) -> None:
        """See that the study is still there.

        Raises:
            StudyError: it was deleted, as through Optuna.
        """
        if all(study._study_id != self.study._study_id for study in self.storage.get_all_studies()):
            raise StudyError(
                f"study {self.spec.name!r} was deleted meanwhile: there is nothing left to work on"
            ) from None

    @contextlib.contextmanager
    def holding(self, lease: Lease, on_renewal: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Keep a lease renewed, and let Optuna write nothing that it does not cover.

        Args:
            lease: of the calling worker.
            on_renewal: called after each renewal by the timer, in its thread.

        Raises:
            LeaseLost: from whatever writes after another worker has taken the slot.
        """
        with self.slots.fence(lease), self.slots.renewed(lease, on_renewal):
            yield

    def start(self, lease: Lease) -> optuna.Trial:
        """The trial of a slot: the one bound to it, or a new one.

        A trial is created with its slot's number on it and bound to the slot in one transaction: no crash orphans it,
        and no two are made for one slot.

        Raises:
            LeaseLost: another worker holds the slot.
        """
        number = self._create(lease) if lease.trial_number is None else lease.trial_number
        self.asking.sampler = make_sampler(self.spec, lease.slot)
        self.asking.look()  # also because Optuna's cache cannot write to trials that it has never read
        return optuna.Trial(self.asking, self.trial_id(number))

    def _create(self, lease: Lease) -> int:
        role, parameters = self._planned(lease.slot)
        candidate = (
            {} if self.spec.replication is None else {"hpo:candidate": self.spec.replication.runs[lease.slot][0]}
        )
        template = optuna.trial.create_trial(
            state=TrialState.RUNNING,
            system_attrs={"fixed_params": parameters},  # as Study.enqueue_trial stores them
            user_attrs={"hpo:slot": lease.slot, "hpo:role": role, **candidate},
        )
        try:
            with self.slots.fence(lease, binds=True) as fence:
                self.storage.create_new_trial(self.study._study_id, template)
            number = fence.created
        except LeaseLost:  # or an attempt of ours was committed without our hearing of it
            number = self.slots.trial_of(lease)
        if number is None:
            raise LeaseLost
        return number

    def revise(self, record: dict[str, Any]) -> bool:
        """Store a record that was made from this one. False: another was stored meanwhile, and is read instead."""
        stored = self.slots.revise_record(self.record, record)
        self.record = record if stored else self.slots.record() or self.record
        self._read_record()
        return stored

    def _planned(self, slot: int) -> tuple[Role, dict[str, Scalar]]:
        """Role and values of a slot's trial; no values: the sampler's choice."""
        if slot >= len(self.plan) and self.spec.replication is not None:  # planned since this worker began
            self.record = self.slots.record() or self.record
            self._read_record()
            return self.plan[slot]
        return self.plan[slot] if slot < len(self.plan) else ("search", {})

    def finalize(self, lease: Lease, number: int, outcome: TrialResult) -> None:
        """Tell Optuna how a trial ended and mark its slot, in one transaction. A second call changes nothing."""
        trial_id = self.trial_id(number)
        self.database.set_user_attributes(trial_id, outcome.attributes)
        with contextlib.suppress(optuna.exceptions.UpdateFinishedTrialError):  # told before, without our hearing of it
            for name in outcome.violations:
                if name not in self.storage.get_trial(trial_id).constraints:
                    optuna.Trial(self.study, trial_id).set_constraint(name, 1.0)
            with self.slots.fence(lease, ends=True) as fence:
                state, values = TrialState[outcome.state], list(outcome.values) or None
                self.storage.set_trial_state_values(trial_id, state, values)
            if fence.passed:
                return
        self.slots.done(lease)

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
        complete = [trial for trial in self.study.get_trials(deepcopy=False) if is_feasible(trial)]
        front: list[FrozenTrial] = []
        for trial in sorted(complete, key=lambda trial: (*self._costs(trial), trial.number)):
            if not front or self._costs(trial)[1:] < self._costs(front[-1])[1:]:
                front.append(trial)
        return front

    def _costs(self, trial: FrozenTrial) -> tuple[float, ...]:
        """A complete trial's values, each so that less is better."""
        signs = [1 if direction is StudyDirection.MINIMIZE else -1 for direction in self.study.directions]
        return tuple(sign * value for sign, value in zip(signs, trial.values, strict=True))

    def trial_id(self, number: int) -> int:
        """Optuna's id of a trial, which no other trial of the database has."""
        return self.storage.get_trial_id_from_study_id_trial_number(self.study._study_id, number)


def is_feasible(trial: FrozenTrial) -> bool:
    """Whether a trial is complete and breaks no constraint; one too good to be true breaks one."""
    return trial.state is TrialState.COMPLETE and all(value <= 0 for value in trial.constraints.values())


def find_sweep(database: Database, name: str, lease_s: float = LEASE_S) -> Sweep | None:
    """The sweep of this name, or None where the database has no study of this name.

    Raises:
        StudyError: the study was made by another program, or imported from a table.
    """
    if name not in study_names(database):
        return None
    study = load_study(database, name)
    slots = Slots(database, study._study_id, lease_s)
    record = slots.record()
    empty = not study.get_trials(deepcopy=False) and STUDY_ATTRIBUTE not in study.user_attrs
    if empty and (record is None or slots.forget_deleted(name)):
        return None  # its making was interrupted, or somebody made room for it
    if LOG_ATTRIBUTE in study.user_attrs:
        raise StudyError(f"study {name!r} is a table of past experiments, which nothing can run; `hpo report` reads it")
    if record is None:
        raise StudyError(f"study {name!r} was made by another program, which alone can run it; name another")
    return Sweep(database, study, slots, record)


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


def create_sweep(database: Database, name: str, record: dict[str, Any], lease_s: float = LEASE_S) -> Sweep:
    """Make a study and register what it is made from; where two do this at once, the first one's record stands.

    Raises:
        StudyError: there is an empty study of this name that was made for other objectives.
    """
    if schema.check(database.engine):
        database.retry.call(lambda: schema.forget_orphans(database.engine))
    directions = [DIRECTIONS[objective] for objective in record["spec"]["objectives"]]
    study = optuna.create_study(study_name=name, storage=database.storage, directions=directions, load_if_exists=True)
    if study.directions != directions:
        raise StudyError(f"study {name!r} was made for other objectives; name another")
    slots = Slots(database, study._study_id, lease_s)
    slots.forget_deleted(name)
    spec = StudySpec.model_validate(record["spec"])
    sweep = Sweep(database, study, slots, slots.create({**record, "meaning": meaning(spec)}))
    publish(sweep)
    return sweep


def update_metadata(sweep: Sweep, spec: StudySpec) -> None:
    """Let what may change between sessions be as the study file has it now: description, total, stopping."""
    record = {**sweep.record, "spec": spec.model_dump(mode="json")}
    record["spec"]["profile"] = sweep.record["spec"]["profile"]
    record["spec"]["text"]["corpus"] = sweep.record["spec"]["text"]["corpus"]
    if record != sweep.record:
        sweep.slots.replace_record(record)
        sweep.record, sweep.spec = record, StudySpec.model_validate(record["spec"])


def publish(sweep: Sweep) -> None:
    """Put what the study was made from where Optuna's readers look; done again where a crash prevented it."""
    if sweep.study.user_attrs.get(STUDY_ATTRIBUTE) != sweep.record:
        names = [METRICS[objective] for objective in sweep.spec.objectives]
        sweep.storage.set_study_system_attr(sweep.study._study_id, "study:metric_names", names)
        sweep.study.set_user_attr(STUDY_ATTRIBUTE, sweep.record)


def load_study(database: Database, name: str) -> optuna.Study:
    """A study of this name, whoever made it.

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
    lines = []
    for summary in optuna.get_all_study_summaries(database.storage, include_best_trial=False):
        record = summary.user_attrs.get(STUDY_ATTRIBUTE)
        if record:
            origin = f"{record['corpus']['name']}, profile {record['profile']}"
        elif LOG_ATTRIBUTE in summary.user_attrs:
            origin = "a table of past experiments"
        else:
            origin = "made by another program"
        lines.append(f"{summary.study_name:<18} {summary.n_trials} trials · {origin}")
    return lines or ["none yet; `hpo run` makes the first"]


def last_run(database: Database) -> str | None:
    """The study that was run last, or None."""
    stamped = [
        (study.user_attrs.get(LAST_RUN_ATTRIBUTE, 0.0), study.study_name)
        for study in optuna.get_all_study_summaries(database.storage, include_best_trial=False)
    ]
    return max(stamped)[1] if stamped else None
