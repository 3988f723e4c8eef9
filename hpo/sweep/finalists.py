"""The finalists of a search: its best configurations and the baseline, run again under the same fresh seeds.

They fill a companion study, `NAME--finalists`, in the same database, so that the search's own trials and totals stay
what they were. A companion is a sweep like any other: slots, leases, workers, resume. Its candidates are fixed when it
is made; later ones are only ever added, and every run that is planned stays planned.
"""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterable
from typing import Any

from optuna.trial import FrozenTrial

from hpo.errors import StudyError
from hpo.study.sections import Candidate, Replication
from hpo.study.spec import StudySpec
from hpo.sweep.record import SweepRecord
from hpo.sweep.sweep import Sweep, create_sweep, find_sweep, is_feasible
from hpo_reports.records.names import FINALISTS_SUFFIX, TRIAL_ROLE

MAX_SEEDS = 2**31  # a run's seed is below


def find_finalists(search: Sweep) -> Sweep | None:
    """The companion of a search, if it has been made.

    Raises:
        StudyError: there is one of this name that belongs to another search.
    """
    companion = find_sweep(search.database, search.spec.name + FINALISTS_SUFFIX)
    if companion is None:
        return None
    replication = companion.spec.replication
    if replication is None or replication.created_at != search.record.created_at:
        raise StudyError(
            f"study {companion.spec.name!r} belongs to an earlier study {search.spec.name!r}; "
            "delete it (`optuna delete-study`), or give the search another name"
        )
    return companion


def plan_finalists(search: Sweep, count: int, replicates: int) -> Sweep | None:
    """Make the companion of a search, or add what it lacks; it has all slots then. Once more changes nothing.

    Args:
        search: with one objective.
        count: candidates that there are to be beside the baseline; the best of the search, as far as there are any.
        replicates: seeds that there are to be for each of them.

    Returns:
        None where nothing can be or is to be run again.

    Raises:
        StudyError: the search has two objectives, or the companion is another's.
    """
    if len(search.spec.objectives) > 1:
        raise StudyError(f"study {search.spec.name!r} has two objectives, so that no trial is the best to run again")
    companion = find_finalists(search)
    if companion is None:
        replication = _extended(_empty(search), search, count, replicates)
        if not replication.runs:
            return None
        record = dataclasses.replace(search.record, uid=uuid.uuid4().hex[:8], spec=_spec(search.spec, replication))
        companion = create_sweep(search.database, record, search.slots.lease_s)

    def extend(record: SweepRecord) -> SweepRecord:
        assert record.spec.replication is not None, "companions are found by it"
        wanted = _extended(record.spec.replication, search, count, replicates)
        same = wanted == record.spec.replication
        return record if same else dataclasses.replace(record, spec=_spec(search.spec, wanted))

    companion.revise(extend)
    companion.slots.ensure(len(_replication(companion).runs))
    return companion


def overtaken(search: Sweep, companion: Sweep) -> tuple[FrozenTrial, ...]:
    """Trials of a search that went on, better than one of its finalists was there, and none of them."""
    candidates = _replication(companion).candidates
    finalists = [candidate.val_loss for candidate in candidates if candidate.role == "finalist"]
    if not finalists:
        return ()
    others = _best_first(search, [candidate.parameters for candidate in candidates])
    return tuple(trial for trial in others if trial.values[0] < max(finalists))


def _replication(companion: Sweep) -> Replication:
    assert companion.spec.replication is not None, "companions are found by it"
    return companion.spec.replication


def _empty(search: Sweep) -> Replication:
    return Replication(
        study=search.spec.name,
        created_at=search.record.created_at,
        screened=0,
        candidates=(),
        seeds=(),
        runs=(),
        rounds=(),
    )


def _extended(replication: Replication, search: Sweep, count: int, replicates: int) -> Replication:
    """What is planned, and what it lacks of so many candidates under so many seeds, seed by seed."""
    candidates = list(replication.candidates) or _baseline(search)
    wanted = count - sum(candidate.role == "finalist" for candidate in candidates)
    best = _best_first(search, [candidate.parameters for candidate in candidates])
    added = [_candidate(trial, "finalist") for trial in best[: max(wanted, 0)]]
    candidates += added
    if all(candidate.role == "baseline" for candidate in candidates):
        return replication  # with which alone there is nothing to compare
    seeds = [*replication.seeds, *_fresh_seeds(search)[len(replication.seeds) : replicates]]
    planned = set(replication.runs)
    runs = [(candidate.trial, seed) for seed in seeds for candidate in candidates]
    more = len(seeds) > len(replication.seeds)
    return replication.model_copy(
        update={
            "screened": _screened(search) if added else replication.screened,
            "candidates": tuple(candidates),
            "seeds": tuple(seeds),
            "runs": (*replication.runs, *(run for run in runs if run not in planned)),
            "rounds": (*replication.rounds, len(seeds)) if more else replication.rounds,
        }
    )


def _screened(search: Sweep) -> int:
    return sum(map(is_feasible, search.study.get_trials(deepcopy=False)))


def _baseline(search: Sweep) -> list[Candidate]:
    """The baseline, unless it has failed in the search already."""
    trials = (trial for trial in search.study.get_trials(deepcopy=False) if is_feasible(trial))
    found = next((trial for trial in trials if trial.user_attrs.get(TRIAL_ROLE) == "baseline"), None)
    return [] if found is None else [_candidate(found, "baseline")]


def _best_first(search: Sweep, taken: Iterable[dict[str, Any]]) -> list[FrozenTrial]:
    """The complete, feasible trials, best first, each configuration once and none that is taken."""
    known = list(taken)
    best = []
    trials = [trial for trial in search.study.get_trials(deepcopy=False) if is_feasible(trial)]
    for trial in sorted(trials, key=lambda trial: (trial.values[0], trial.number)):
        if trial.params not in known and trial.user_attrs.get(TRIAL_ROLE) != "baseline":
            known.append(trial.params)
            best.append(trial)
    return best


def _candidate(trial: FrozenTrial, role: Any) -> Candidate:
    return Candidate(trial=trial.number, role=role, parameters=trial.params, val_loss=trial.values[0])


def _fresh_seeds(search: Sweep) -> range:
    """Seeds that the search has not used: those after its own, as many as anyone can want."""
    own = search.spec.run_with({}).training.seed
    first = own + 1 if own < MAX_SEEDS // 2 else 0
    return range(first, first + MAX_SEEDS // 2)


def _spec(search: StudySpec, replication: Replication) -> StudySpec:
    """The companion's specification: the search's runs, with the seed as one more value, nothing sampled or pruned."""
    content = search.model_dump(mode="json")
    content |= {
        "name": search.name + FINALISTS_SUFFIX,
        "description": f"The best configurations of {search.name} and its baseline, under the same fresh seeds.",
        "trials": max(len(replication.runs), 1),
        "enqueued": [],
        "sampler": {"kind": "random"},
        "pruner": {"kind": "none"},
        "stopping": {},
        "finalists": {"count": 0, "replicates": 0},
        "search": {**content["search"], "seed": {"low": 0, "high": MAX_SEEDS - 1}},
        "replication": replication.model_dump(mode="json"),
    }
    return StudySpec.model_validate(content)
