"""Every private name of Optuna and its dashboard that this program relies on. No other file may use one.

Optuna's public interface lacks four things that a fleet of workers needs: its tables, to bind a slot and a trial in
one transaction; its session, to check a lease before a commit; a study that answers from a snapshot; and the keys
under which it stores what the dashboard shows. `tests/contract/test_optuna_private.py` names each of them, so that a
new version of Optuna that moves one fails there first.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Container, Mapping, Set
from pathlib import Path
from typing import Any, cast

import optuna
import sqlalchemy as sa
from optuna.artifacts import FileSystemArtifactStore
from optuna.storages import RDBStorage, get_storage
from optuna.storages._rdb import models
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy import orm

# Tables
STUDIES = cast(sa.Table, models.StudyModel.__table__)
STUDY_USER_ATTRIBUTES = cast(sa.Table, models.StudyUserAttributeModel.__table__)
STUDY_SYSTEM_ATTRIBUTES = cast(sa.Table, models.StudySystemAttributeModel.__table__)
TRIALS = cast(sa.Table, models.TrialModel.__table__)
TRIAL_USER_ATTRIBUTES = cast(sa.Table, models.TrialUserAttributeModel.__table__)
TRIAL_SYSTEM_ATTRIBUTES = cast(sa.Table, models.TrialSystemAttributeModel.__table__)
TRIAL_VALUES = cast(sa.Table, models.TrialValueModel.__table__)
TABLE_NAMES = {"studies", "trials", "version_info"}  # in every database of Optuna's
TABLES_VERSION = "v3.2.0.a"  # Alembic's name for the tables as Optuna 5 has them

# Keys of system attributes
FIXED_PARAMETERS = "fixed_params"  # of a trial: values that the sampler must take, as `Study.enqueue_trial` stores them
METRIC_NAMES = "study:metric_names"  # of a study; `Study.set_metric_names` warns that it is experimental
CONSTRAINTS = "constraints"  # of a trial, alone with a list, or followed by a colon and a name
COMPLETED_RUNG = "completed_rung_"  # of a trial, followed by a number: successive halving has compared it there
ARTIFACT = "artifacts:"  # of a trial, followed by the artifact's id
DASHBOARD = "dashboard:"  # of a study: notes and figures; see hpo/dashboard/notes.py
DASHBOARD_FIGURE = "dashboard:plot_data:"


def cached(storage: RDBStorage) -> optuna.storages.BaseStorage:
    """Optuna's cache before its relational storage, as `optuna.create_study` puts it there."""
    return get_storage(storage)


def sessions_of(storage: RDBStorage) -> orm.scoped_session[orm.Session]:
    """The sessions in which a storage reads and writes."""
    return storage.scoped_session


class CurrentStorage(RDBStorage):
    """Optuna's storage over tables that are known to be those of `TABLES_VERSION`.

    Optuna's own constructor creates what is missing and asks Alembic for the version; importing Alembic, with Mako and
    every dialect of SQLAlchemy, was a third of the processor time of `hpo studies`.
    """

    def __init__(self, url: str, engine_kwargs: dict[str, Any]) -> None:
        self.url, self.engine_kwargs, self.skip_compatibility_check = url, engine_kwargs, True
        self.heartbeat_interval = self.grace_period = None
        self.heartbeat_stale_trial_callback = self.failed_trial_callback = None
        self.engine = sa.create_engine(url, **engine_kwargs)
        self.scoped_session = orm.scoped_session(orm.sessionmaker(bind=self.engine))


def are_current(connection: sa.Connection, present: Set[str]) -> bool:
    """Whether a database's tables are those of `TABLES_VERSION`; of other ones Optuna says what they are.

    Args:
        connection: to the database.
        present: the names of its tables.
    """
    if not {*TABLE_NAMES, "alembic_version"} <= present:
        return False
    versions = connection.scalars(sa.text("SELECT version_num FROM alembic_version")).all()
    return list(versions) == [TABLES_VERSION]


def check_schema(storage: RDBStorage) -> None:
    """Refuse tables of another version of Optuna; done apart from the constructor, which would leave connections open.

    Raises:
        RuntimeError: the tables are older or newer; `is_schema_error` recognises it.
    """
    storage._version_manager.check_table_schema_compatibility()


def is_schema_error(error: RuntimeError) -> bool:
    """Whether Optuna refuses its tables' version."""
    return "table schema" in str(error)


def trial_counts(engine: sa.Engine) -> dict[str, int]:
    """How many trials each study of a database has, by name; a summary of Optuna's reads all of them for it."""
    query = sa.select(STUDIES.c.study_name, sa.func.count(TRIALS.c.trial_id)).join(TRIALS).group_by(STUDIES.c.study_id)
    with engine.connect() as connection:
        return {str(name): int(count) for name, count in connection.execute(query)}


def feasible_values(engine: sa.Engine, study_id: int) -> dict[int, tuple[float, ...]]:
    """The values of each complete trial that breaks no constraint, by its id; Optuna reads all of a trial for them."""
    ours = (TRIALS.c.study_id == study_id) & (TRIALS.c.state == TrialState.COMPLETE)
    columns = (TRIAL_VALUES.c.trial_id, TRIAL_VALUES.c.value, TRIAL_VALUES.c.value_type)
    values = sa.select(*columns).join(TRIALS).where(ours).order_by(TRIAL_VALUES.c.trial_id, TRIAL_VALUES.c.objective)
    key, content = TRIAL_SYSTEM_ATTRIBUTES.c.key, TRIAL_SYSTEM_ATTRIBUTES.c.value_json
    constraints = sa.select(TRIAL_SYSTEM_ATTRIBUTES.c.trial_id, content).join(TRIALS)
    constraints = constraints.where(ours & ((key == CONSTRAINTS) | key.startswith(f"{CONSTRAINTS}:")))
    found: dict[int, tuple[float, ...]] = {}
    with engine.connect() as connection:
        for trial_id, value, kind in connection.execute(values):
            found[trial_id] = (*found.get(trial_id, ()), models.TrialValueModel.stored_repr_to_value(value, kind))
        for trial_id, text in connection.execute(constraints):
            broken = json.loads(text)
            if any(each > 0 for each in (broken if isinstance(broken, list) else [broken])):
                found.pop(trial_id, None)
    return found


def new_trial_number(session: orm.Session) -> int:
    """The number of the one trial that a session is about to commit."""
    (trial,) = (each for each in session.identity_map.values() if isinstance(each, models.TrialModel))
    return int(trial.number)


def trial_of(study: optuna.Study, trial_id: int) -> optuna.Trial:
    """The running trial of this id, as a sampler's and an objective's counterpart."""
    return optuna.Trial(study, trial_id)


def trial_id(trial: optuna.Trial | FrozenTrial) -> int:
    """The id of a trial, which is unique in its database."""
    return trial._trial_id


def reported(trial: optuna.Trial) -> Mapping[int, float]:
    """The intermediate values by step that a trial had when it was opened, and those it reported since."""
    return trial._cached_frozen_trial.intermediate_values


def system_attributes(trial: FrozenTrial) -> dict[str, Any]:
    """System attributes of a trial."""
    return trial._system_attrs


def with_system_attributes(trial: FrozenTrial, attributes: dict[str, Any]) -> FrozenTrial:
    """A copy of a trial that has these system attributes."""
    changed = copy.copy(trial)
    changed._system_attrs = attributes
    return changed


class SnapshotStudy(optuna.Study):
    """A study that reads its trials in `refresh` and answers from what it read.

    Samplers and pruners ask for all trials several times per question, and each reading loads every running trial anew:
    with sixteen workers this was half of what the search costs.
    """

    trials_read: tuple[FrozenTrial, ...] = ()

    def refresh(self) -> None:
        """Read all trials as they are now."""
        self.trials_read = tuple(self._storage.get_all_trials(self._study_id, deepcopy=False))

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        del use_cache
        trials = [trial for trial in self.trials_read if states is None or trial.state in states]
        return copy.deepcopy(trials) if deepcopy else trials


class ArtifactFolder(FileSystemArtifactStore):
    """Optuna's folder of artifacts, with its private parts named."""

    @property
    def folder(self) -> Path:
        """Where the files lie."""
        return self._base_path

    def path(self, artifact_id: str) -> Path:
        """The file of an artifact.

        Raises:
            ValueError: the id leaves the folder.
        """
        return Path(self._get_filepath(artifact_id))
