"""Finalists: who is chosen, under which seeds, and that the search's own trials stay what they were."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from optuna.trial import FrozenTrial

from hpo.database.connection import Database
from hpo.errors import StudyError, StudyFileError
from hpo.home import Home
from hpo.study.search_space import suggest
from hpo.study.spec import StudySpec
from hpo.study.toml import parse_study
from hpo.sweep.finalists import find_finalists, overtaken, plan_finalists
from hpo.sweep.result import TrialResult
from hpo.sweep.sweep import Sweep, create_sweep, find_sweep, open_sweep
from hpo.transfer.copying import copy_studies
from hpo_reports.analysis.judging import judge
from hpo_reports.records.finalists import read_companion, read_finalists
from hpo_reports.records.names import TRIAL_CANDIDATE, TRIAL_ROLE
from tests.support.sweeps import (
    DIVERGED,
    PRUNED,
    complete,
    contents,
    make_record,
    make_spec,
    make_sweep,
    opened,
    rewrite_record,
)

SUSPICIOUS = TrialResult(state="COMPLETE", values=(0.1,), violations=("suspicious",), attributes={})
LOSSES = (5.0, 4.8, 4.9, 4.7, 4.85)  # of trials 0, the baseline, to 4


def searched(database: Database, *outcomes: TrialResult, **changes: object) -> Sweep:
    """A search that has ended."""
    outcomes = outcomes or tuple(map(complete, LOSSES))
    search = make_sweep(database, **{"trials": len(outcomes), **changes})
    for outcome in outcomes:
        fill(search, outcome)
    return search


def planned(search: Sweep, count: int = 2, replicates: int = 3) -> Sweep:
    companion = plan_finalists(search, count, replicates)
    assert companion is not None
    return companion


def runs(companion: Sweep) -> list[tuple[int, int]]:
    assert companion.spec.replication is not None
    return list(companion.spec.replication.runs)


def candidates(companion: Sweep) -> list[tuple[int, str]]:
    assert companion.spec.replication is not None
    return [(candidate.trial, candidate.role) for candidate in companion.spec.replication.candidates]


def fill(sweep: Sweep, outcome: TrialResult | Callable[[FrozenTrial], TrialResult]) -> bool:
    """Take the next slot from claim to done, values included, as a worker does; whether there was one."""
    lease = sweep.slots.claim("worker", None)
    if lease is None:
        return False
    trial = sweep.start(lease)
    suggest(sweep.spec, trial)
    ended = outcome if isinstance(outcome, TrialResult) else outcome(sweep.study.get_trials()[trial.number])
    assert sweep.slots.finish(lease, ended)
    sweep.finalize(lease, trial.number, ended)
    return True


def run_all(companion: Sweep, loss: Callable[[FrozenTrial], float] = lambda trial: 4.0) -> list[FrozenTrial]:
    """Fill every open slot; all trials of the study."""
    while fill(companion, lambda trial: complete(loss(trial))):
        pass
    return companion.study.get_trials()


# ------------------------------------------------------------------------------------------------------ who is chosen


def test_the_best_and_the_baseline_run_under_the_same_fresh_seeds(database: Database) -> None:
    companion = planned(searched(database))
    assert candidates(companion) == [(0, "baseline"), (3, "finalist"), (1, "finalist")]
    assert runs(companion) == [(trial, seed) for seed in (2, 3, 4) for trial in (0, 3, 1)]
    trials = run_all(companion)
    assert [(t.user_attrs[TRIAL_CANDIDATE], t.params["seed"]) for t in trials] == runs(companion)
    assert [t.user_attrs[TRIAL_ROLE] for t in trials[:3]] == ["baseline", "finalist", "finalist"]
    assert companion.slots.counts(None).done == len(trials) == 9


def test_a_candidate_runs_as_it_ran_in_the_search_but_for_its_seed(database: Database) -> None:
    search = searched(database)
    companion = planned(search)
    for _, parameters in companion.spec.planned():
        seed = parameters.pop("seed")
        run = companion.spec.run_with({**parameters, "seed": seed}).parameters()
        assert run.pop("seed") == seed
        before = search.spec.run_with(parameters).parameters()
        assert before.pop("seed") == 1
        assert run == before
    assert companion.spec.pruner.kind == "none"
    assert not companion.stopped_improving()


def test_the_search_stays_what_it_was(database: Database) -> None:
    search = searched(database)
    before = (search.record, search.study.get_trials(), search.slots.counts(None), search.study.user_attrs)
    run_all(planned(search))
    again = open_sweep(database, search.spec.name)
    assert (again.record, again.study.get_trials(), again.slots.counts(None), again.study.user_attrs) == before


def test_only_complete_feasible_trials_are_chosen_and_none_twice(database: Database) -> None:
    again = {
        "enqueued": [{"dropout": 0.3}],
        "search": {"dropout": {"choices": [0.1, 0.3]}},
        "sampler": {"kind": "random"},
    }
    search = searched(database, complete(5.0), PRUNED, SUSPICIOUS, *map(complete, (4.5, 4.4, 4.6, 4.3)), **again)
    feasible = [trial for trial in search.study.get_trials()[3:] if trial.params == {"dropout": 0.3}]
    assert len(feasible) > 1, "the same configuration, again and again"
    best = min(feasible, key=lambda trial: trial.values[0])
    companion = planned(search, count=9)
    assert candidates(companion) == [(0, "baseline"), (best.number, "finalist")]
    assert companion.spec.replication is not None
    assert companion.spec.replication.screened == 5


def test_a_baseline_that_failed_in_the_search_is_not_run_again(database: Database) -> None:
    companion = planned(searched(database, DIVERGED, complete(4.8), complete(4.9)), count=1)
    assert candidates(companion) == [(1, "finalist")]


@pytest.mark.parametrize(("count", "replicates"), [(0, 3), (3, 0)])
def test_nothing_wanted_makes_nothing(database: Database, count: int, replicates: int) -> None:
    search = searched(database)
    assert plan_finalists(search, count, replicates) is None
    assert find_finalists(search) is None


def test_the_baseline_alone_is_no_contest(database: Database) -> None:
    assert plan_finalists(searched(database, complete(5.0), PRUNED), 3, 3) is None


def test_two_objectives_have_no_best(database: Database) -> None:
    search = make_sweep(database, objectives=["val_loss", "phi"], pruner={"kind": "none"})
    assert (search.spec.finalists.count, search.spec.finalists.replicates) == (0, 0)
    with pytest.raises(StudyError, match="two objectives"):
        plan_finalists(search, 3, 3)


def test_a_grid_has_finalists(database: Database) -> None:
    grid = {"search": {"dropout": {"choices": [0.1, 0.2, 0.3]}}, "sampler": {"kind": "grid"}}
    search = make_sweep(database, trials=3, **grid)
    for loss in (5.0, 4.0, 4.5):
        fill(search, complete(loss))
    companion = plan_finalists(search, 1, 2)
    assert companion is not None
    assert companion.spec.sampler.kind == "random"
    assert companion.spec.max_trials() == len(runs(companion))


def test_fresh_seeds_follow_the_search_s_own(database: Database) -> None:
    for own, first in ((7, 8), (2**31 - 1, 0)):
        companion = planned(searched(database, run={"preset": "nano", "seed": own}), count=1, replicates=2)
        assert [seed for _, seed in runs(companion)] == [first, first, first + 1, first + 1]


# ------------------------------------------------------------------------------------------------------------- totals


def test_planning_again_changes_nothing(database: Database) -> None:
    search = searched(database)
    first = planned(search)
    fill(first, complete(4.0))
    again = planned(search)
    assert again.uid == first.uid
    assert again.record == first.record
    assert again.slots.total() == 9


def test_more_replicates_and_candidates_are_totals_and_leave_what_is_planned(database: Database) -> None:
    search = searched(database)
    first = runs(planned(search))
    more = planned(search, count=3, replicates=4)
    assert runs(more)[:9] == first
    assert sorted(runs(more)) == sorted((trial, seed) for trial in (0, 1, 3, 4) for seed in (2, 3, 4, 5))
    assert more.slots.total() == 16
    fewer = planned(search, count=1, replicates=1)
    assert runs(fewer) == runs(more)
    trials = run_all(fewer)
    assert {(t.user_attrs[TRIAL_CANDIDATE], t.params["seed"]) for t in trials} == set(runs(more))
    assert more.spec.replication is not None
    assert more.spec.replication.rounds == (3, 4)


def test_a_worker_that_began_before_finds_what_was_added(database: Database) -> None:
    search = searched(database)
    worker = planned(search, count=1, replicates=1)
    run_all(worker)
    planned(search, count=1, replicates=2)
    trials = run_all(worker)
    assert [(t.user_attrs[TRIAL_CANDIDATE], t.params["seed"]) for t in trials] == [(0, 2), (3, 2), (0, 3), (3, 3)]


def test_two_who_add_at_once_lose_nothing(database_url: str, database: Database) -> None:
    search = searched(database)
    planned(search, count=1, replicates=1)

    def add(count: int, replicates: int) -> None:
        with opened(database_url, retry=database.retry) as own:
            plan_finalists(open_sweep(own, search.spec.name), count, replicates)

    threads = [threading.Thread(target=add, args=wanted) for wanted in ((1, 5), (3, 1), (2, 3))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    companion = planned(search, count=3, replicates=5)
    assert len(runs(companion)) == len(set(runs(companion))) == 20
    assert companion.slots.total() == 20


def test_a_plan_that_another_made_meanwhile_is_added_to(database: Database) -> None:
    search = searched(database)
    mine = planned(search, count=1, replicates=1)
    planned(search, count=1, replicates=2)
    assert len(runs(mine)) == 2, "it has not read what stands now"
    mine.revise(lambda record: dataclasses.replace(record, hardware="another"))
    assert len(runs(mine)) == 4, "it has revised what stands"
    assert mine.record.hardware == "another"


def test_a_search_that_goes_on_leaves_its_finalists_and_tells_who_is_better_now(database: Database) -> None:
    search = searched(database)
    companion = planned(search)
    assert overtaken(search, companion) == ()
    search.slots.ensure(7)
    fill(search, complete(4.75))
    fill(search, complete(4.95))
    assert runs(planned(search)) == runs(companion)
    assert [trial.number for trial in overtaken(search, companion)] == [5]
    more = planned(search, count=3)
    assert candidates(more)[-1] == (5, "finalist")
    assert overtaken(search, more) == ()


# -------------------------------------------------------------------------------------------------- whose companion


def test_the_companion_of_a_deleted_search_is_refused(database: Database) -> None:
    search = searched(database)
    companion = planned(search)

    def of_an_earlier_search(record: dict[str, Any]) -> dict[str, Any]:
        record["spec"]["replication"]["created_at"] = 1.0
        return record

    rewrite_record(companion, of_an_earlier_search)
    with pytest.raises(StudyError, match="earlier study"):
        find_finalists(search)


def test_a_copy_takes_its_finalists_along(new_url: Callable[[str], str], tmp_path: Path) -> None:
    source, target = new_url("sqlite"), new_url("sqlite")
    with opened(source) as database:
        spec = make_spec(trials=2)
        search = create_sweep(database, dataclasses.replace(make_record(spec), created_at=5.0))
        search.slots.ensure(2)
        fill(search, complete(5.0))
        fill(search, complete(4.0))
        run_all(planned(search, count=1, replicates=2))
    lines = list(copy_studies(source, target, "toy", Home(tmp_path)))
    assert [line.partition(":")[0] for line in lines] == ["toy", "toy--finalists"]
    with opened(target) as database:
        copy = open_sweep(database, "toy")
        companion = find_finalists(copy)
        assert companion is not None
        assert companion.slots.counts(None).done == 4


def test_reports_read_what_was_run(database: Database) -> None:
    search = searched(database)
    companion = planned(search, count=2, replicates=6)
    means = {0: 5.0, 3: 4.9, 1: 4.5}
    run_all(companion, lambda trial: means[trial.user_attrs[TRIAL_CANDIDATE]] + 0.01 * trial.number)
    record = read_finalists(search.study, database.storage)
    assert record is not None
    assert record == read_finalists(companion.study, database.storage) == read_companion(companion.study)
    judgement = judge(record)
    assert judgement.winner == 1
    assert judgement.is_complete
    assert [candidate.complete for candidate in judgement.candidates] == [6, 6, 6]
    assert judgement.screened == 5


# ---------------------------------------------------------------------------------------------------------- study file

FILE = 'name = "toy"\nrun = { preset = "nano" }\nsearch = { dropout = { low = 0.0, high = 0.4 } }\n'


@pytest.mark.parametrize(("profile", "expected"), [("cpu", (1, 6)), ("cuda", (3, 7))])
def test_a_file_without_finalists_has_what_its_hardware_affords(profile: str, expected: tuple[int, int]) -> None:
    spec = parse_study(FILE, "toy.toml", profile)  # type: ignore[arg-type]
    assert (spec.finalists.count, spec.finalists.replicates) == expected
    partly = parse_study(f"{FILE}[finalists]\nreplicates = 9", "toy.toml", profile)  # type: ignore[arg-type]
    assert (partly.finalists.count, partly.finalists.replicates) == (expected[0], 9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[finalists]\ncount = -1", r"finalists\.count.*-1"),
        ("[finalists]\nreplicates = 2.5", r"finalists\.replicates.*2\.5"),
        ("[finalists]\nseeds = 3", r"finalists\.seeds: unknown key"),
        ("finalists = 3", r"finalists.*3"),
        ("[replication]\nstudy = 'x'", "replication: unknown key"),
        ("[profile.cuda.replication]\nstudy = 'x'", "replication: unknown key"),
    ],
)
def test_what_a_file_may_not_say_is_refused(text: str, message: str) -> None:
    content = f"{text}\n{FILE}" if text.startswith("finalists =") else f"{FILE}{text}"
    with pytest.raises(StudyFileError, match=message):
        parse_study(content, "toy.toml", "cpu")


def test_a_searched_seed_and_the_name_of_a_companion_are_refused() -> None:
    with pytest.raises(StudyFileError, match=r"search\.seed: all trials share it"):
        parse_study(FILE.replace("dropout =", "seed ="), "toy.toml", "cpu")
    with pytest.raises(StudyFileError, match="--finalists at its end is for studies that the program makes"):
        parse_study(FILE.replace('"toy"', '"toy--finalists"'), "toy.toml", "cpu")
    with pytest.raises(StudyFileError, match="two objectives"):
        parse_study(
            f"objectives = ['val_loss', 'phi']\npruner.kind = 'none'\n{FILE}[finalists]\ncount = 1\nreplicates = 2",
            "toy.toml",
            "cpu",
        )


def test_a_study_of_a_version_without_finalists_is_the_same_study() -> None:
    stored = make_spec().model_dump(mode="json")
    del stored["finalists"], stored["replication"]
    assert StudySpec.model_validate(stored).identity() == make_spec().identity()


def test_a_companion_is_no_study_for_another_search(database: Database) -> None:
    companion = planned(searched(database))
    found = find_sweep(database, companion.spec.name)
    assert found is not None
    assert found.plan == companion.spec.planned()
    assert contents(database)["hpo_studies"]
