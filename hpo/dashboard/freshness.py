"""Which studies have moved on since their notes were written."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version

import sqlalchemy as sa

from hpo.dashboard.notes import PublishedVersion, read_published_versions
from hpo.database import tables
from hpo.database.connection import Database
from hpo.database.optuna_private import STUDIES, STUDY_USER_ATTRIBUTES
from hpo_model.digest import short_digest
from hpo_reports.records.names import FINALISTS_SUFFIX, STUDY_LAST_RUN


@dataclass(frozen=True, kw_only=True)
class State:
    """How far a study has come, its finalists included: they are in its report."""

    study_id: int
    finished: int  # trials that have ended; it only grows
    digest: str  # of that number, of the study's attributes (long runs among them), and of the program's version
    stamp: PublishedVersion  # of the notes as they were last written

    @property
    def is_stale(self) -> bool:
        """Whether there is something to show that the notes do not."""
        return self.finished > 0 and self.stamp.state != self.digest


def states(database: Database) -> dict[str, State]:
    """The state of each study of ours, by name."""
    if not tables.check(database.engine):
        return {}
    slots, studies = tables.slots.c, tables.studies.c
    done = sa.select(sa.func.count()).where((slots.study_id == studies.study_id) & (slots.state == "done"))
    query = sa.select(STUDIES.c.study_name, STUDIES.c.study_id, done.scalar_subquery()).join(
        tables.studies, studies.study_id == STUDIES.c.study_id
    )
    noted = sa.select(
        STUDY_USER_ATTRIBUTES.c.study_id, STUDY_USER_ATTRIBUTES.c.key, STUDY_USER_ATTRIBUTES.c.value_json
    ).where(STUDY_USER_ATTRIBUTES.c.key != STUDY_LAST_RUN)
    with database.engine.connect() as connection:
        found = {str(name): (int(study_id), int(finished)) for name, study_id, finished in connection.execute(query)}
        facts: Mapping[int, list[str]] = defaultdict(list)
        for study_id, key, text in connection.execute(noted):
            facts[study_id].append(f"{key}={text}")
    stamps = read_published_versions(database)
    return {name: _state(name, found, facts, stamps) for name in found}


def _state(
    name: str,
    found: Mapping[str, tuple[int, int]],
    facts: Mapping[int, list[str]],
    stamps: Mapping[int, PublishedVersion],
) -> State:
    parts = [found[each] for each in (name, name + FINALISTS_SUFFIX) if each in found]
    finished = sum(done for _, done in parts)
    content = [version("assay-hpo"), str(finished), *(fact for number, _ in parts for fact in sorted(facts[number]))]
    digest = short_digest("\n".join(content))
    study_id = parts[0][0]
    return State(study_id=study_id, finished=finished, digest=digest, stamp=stamps.get(study_id, PublishedVersion()))
