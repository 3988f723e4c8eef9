"""Study and slots in step, whatever happens in between; on SQLite and on PostgreSQL."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, Literal

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState

from hpo.database.connection import Database
from hpo.errors import StudyError
from hpo.study.search_space import should_prune, suggest
from hpo.sweep.result import TrialResult
from hpo.sweep.slots import Lease, LeaseLost, SlotCounts
from hpo.sweep.study_row import StudyRow
from hpo.sweep.sweep import (
    METRICS,
    Sweep,
    create_sweep,
    describe_studies,
    find_sweep,
    is_feasible,
    last_run,
    load_study,
    open_sweep,
    study_names,
)
from hpo_reports.records.names import (
    STUDY_LAST_RUN,
    STUDY_RECORD,
    TRIAL_HISTORY,
    TRIAL_OUTCOME,
    TRIAL_REASON,
    TRIAL_ROLE,
    TRIAL_SLOT,
)
from tests.support.side_processes import PROCESSES, fill_all
from tests.support.sweeps import (
    COMPLETE,
    DIVERGED,
    FAIL,
    PATIENT,
    PRUNED,
    Crash,
    complete,
    contents,
    crash_at_commit,
    make_record,
    make_spec,
    make_sweep,
    opened,
    run_slot,
    slot_row,
    unheard,
)

Open = Callable[..., Database]


@pytest.fixture
def empty(sqlite_url: str, open_url: Open) -> Database:
    """A database that no other test uses."""
    return open_url(sqlite_url)


@pytest.fixture
def own(database_url: str) -> Iterator[Database]:
    """A worker's own, patient view of `database`."""
    with opened(database_url, PATIENT) as database:
        yield database


def claim(sweep: Sweep, owner: str = "worker") -> Lease:
    lease = sweep.slots.claim(owner, sweep.spec.trials)
    assert lease is not None
    return lease


def take_over(sweep: Sweep, dead: str = "worker") -> Lease:
    """The slot of a worker that is gone, under the next fencing token."""
    sweep.slots.release_owner(dead, crashed=True)
    return claim(sweep, "next")


def trials(sweep: Sweep) -> list[FrozenTrial]:
    return sweep.study.get_trials(deepcopy=False)


def fresh(sweep: Sweep, database: Database) -> list[FrozenTrial]:
    """The trials as they are stored, whatever somebody remembers."""
    return optuna.storages.get_storage(database.storage._inner._backend).get_all_trials(sweep.study_id)  # type: ignore[attr-defined]


def seen_by_another(sweep: Sweep, database: Database) -> Sweep:
    """The same sweep, as another process opens it."""
    return open_sweep(database, sweep.spec.name)


# ---------------------------------------------------------------------------------------------- begin


def test_planned_slots_get_the_plan_and_the_others_are_searched(database: Database) -> None:
    sweep = make_sweep(database, enqueued=[{"dropout": 0.3}])
    begun = [sweep.start(claim(sweep)) for _ in range(4)]
    values = [suggest(sweep.spec, trial)["dropout"] for trial in begun]
    assert values[:2] == [0.1, 0.3]
    found = trials(sweep)
    assert [trial.user_attrs for trial in found] == [
        {TRIAL_SLOT: slot, TRIAL_ROLE: role} for slot, role in enumerate(("baseline", "known", "search", "search"))
    ]
    assert [trial.state for trial in found] == [TrialState.RUNNING] * 4
    assert [trial.params["dropout"] for trial in found] == values
    assert all(trial.datetime_start is not None for trial in found)


def test_each_slot_s_trial_draws_numbers_of_its_own_and_always_the_same(database: Database) -> None:
    sweep = make_sweep(database, sampler={"kind": "random"})
    values = [suggest(sweep.spec, sweep.start(claim(sweep)))["dropout"] for _ in range(10)]
    assert len(set(values)) == 10
    again = make_sweep(database, sampler={"kind": "random"})  # as if it were the first sweep's
    assert [suggest(again.spec, again.start(claim(again)))["dropout"] for _ in range(10)] == values


def test_a_grid_s_slots_are_its_points(database: Database) -> None:
    choices = [0.0, 0.1, 0.2]
    sweep = make_sweep(database, trials=3, search={"dropout": {"choices": choices}}, sampler={"kind": "grid"})
    values = [suggest(sweep.spec, sweep.start(claim(sweep)))["dropout"] for _ in range(3)]
    assert values == [0.1, 0.0, 0.2]


def test_a_trial_is_bound_in_the_transaction_that_creates_it(database: Database, own: Database) -> None:
    mine = open_sweep(own, make_sweep(database).spec.name)
    for slot, (moment, stored) in enumerate((("before", []), ("after", [1]))):
        lease = claim(mine)
        with crash_at_commit(own, 1, moment), pytest.raises(Crash):
            mine.start(lease)
        assert [trial.number for trial in fresh(mine, database)][slot:] == stored
        assert slot_row(database, mine.study_id, slot)["trial_number"] == (stored[0] if stored else None)
        again = take_over(mine)
        assert (again.slot, again.trial_number) == (slot, stored[0] if stored else None)
        assert mine.start(again).number == slot
    assert [trial.user_attrs[TRIAL_SLOT] for trial in fresh(mine, database)] == [0, 1]


def test_a_trial_s_number_is_on_its_slot_and_the_slot_s_on_its_trial(database: Database) -> None:
    sweep = make_sweep(database)
    for slot, number in ((0, 0), (1, 1)):
        trial = sweep.start(claim(sweep))
        assert (trial.number, trial.user_attrs[TRIAL_SLOT]) == (number, slot)
        assert slot_row(database, sweep.study_id, slot)["trial_number"] == number
    sweep.study.ask()  # somebody uses plain Optuna meanwhile
    lease = claim(sweep)
    assert sweep.start(lease).number == 3
    assert sweep.slots.trial_of(lease) == 3


def test_a_second_creation_for_one_slot_finds_the_first(database: Database) -> None:
    sweep = make_sweep(database)
    lease = claim(sweep)  # knows of no trial, as after an answer that was never heard
    first = sweep.start(lease)
    again = sweep.start(lease)
    assert again.number == first.number
    again.report(4.0, 1)  # the cache knows it
    assert len(trials(sweep)) == 1


def test_a_creation_whose_answer_is_lost_makes_one_trial(database: Database, own: Database) -> None:
    mine = open_sweep(own, make_sweep(database).spec.name)
    lease = claim(mine)
    with mine.holding(lease), unheard(own, 1, 2) as broken:
        trial = mine.start(lease)
        trial.report(4.0, 1)
        values = suggest(mine.spec, trial)
    assert broken == [1, 2]
    (found,) = fresh(mine, database)
    assert (found.number, found.params, found.intermediate_values) == (trial.number, values, {1: 4.0})


def test_a_trial_without_its_lease_is_not_even_created(database: Database) -> None:
    sweep = make_sweep(database)
    lease = claim(sweep)
    assert sweep.slots.release(lease)
    with pytest.raises(LeaseLost):
        sweep.start(lease)
    assert trials(sweep) == []


def test_whatever_answer_is_lost_the_slot_ends_with_one_trial(database: Database, own: Database) -> None:
    mine = open_sweep(own, make_sweep(database, trials=30).spec.name)
    stored: list[FrozenTrial] = []
    for lost in range(1, 30):
        with unheard(own, lost) as broken:
            number = fill(mine, UNLUCKY)
        stored = fresh(mine, database)
        assert [trial.user_attrs[TRIAL_SLOT] for trial in stored] == list(range(lost))
        assert stored[number].state is TrialState.PRUNED
        assert stored[number].user_attrs == {
            TRIAL_SLOT: lost - 1,
            TRIAL_ROLE: stored[number].user_attrs[TRIAL_ROLE],
            **FACTS,
        }
        assert stored[number].constraints == dict.fromkeys(UNLUCKY.violations, 1.0)
        assert stored[number].intermediate_values == {1: 5.0, 2: 4.0}
        assert list(stored[number].params) == ["dropout"]
        assert mine.slots.counts(None).done == lost
        if not broken:
            break
    assert len(stored) > 10, "claim, trial, parameter, two reports, finish, facts, two constraints, end"


def crash(*_: object) -> None:
    raise Crash


def fill(sweep: Sweep, outcome: TrialResult) -> int:
    """A slot as a worker fills it."""
    lease = claim(sweep)
    with sweep.sessions.under(lease):
        trial = sweep.start(lease)
        suggest(sweep.spec, trial)
        for milestone, loss in ((1, 5.0), (2, 4.0)):
            trial.storage.set_trial_intermediate_value(trial._trial_id, milestone, loss)
        assert sweep.slots.finish(lease, outcome)
        sweep.finalize(lease, trial.number, outcome)
    return trial.number


def test_n_slots_get_n_trials_whatever_is_lost_and_however_many_work(
    database: Database, database_url: str, processes: ProcessPoolExecutor
) -> None:
    sweep = make_sweep(database, trials=24)
    jobs = [
        processes.submit(fill_all, database_url, sweep.spec.name, f"worker-{place}", place)
        for place in range(PROCESSES)
    ]
    assert sum(job.result(timeout=200) for job in jobs) > 24, "hardly an answer was lost"
    finished = fresh(sweep, database)
    assert sorted(trial.user_attrs[TRIAL_SLOT] for trial in finished) == list(range(24))
    assert {trial.state for trial in finished} == {TrialState.COMPLETE}
    assert sweep.slots.counts(24) == SlotCounts(done=24)


def test_a_crash_before_create_begins_anew(database: Database) -> None:
    sweep = make_sweep(database)
    claim(sweep)
    trial = sweep.start(take_over(sweep))
    assert trial.user_attrs == {TRIAL_SLOT: 0, TRIAL_ROLE: "baseline"}
    assert len(trials(sweep)) == 1


def test_a_bound_trial_is_continued_with_its_values(database: Database) -> None:
    sweep = make_sweep(database, baseline={}, sampler={"kind": "random"})
    run_slot(sweep, COMPLETE)  # the baseline; the next one is searched
    lease = claim(sweep)
    trial = sweep.start(lease)
    values = suggest(sweep.spec, trial)
    trial.report(4.0, 1)
    assert sweep.slots.release(lease)
    other = seen_by_another(sweep, database)
    lease = claim(other, "next")
    assert (lease.slot, lease.trial_number) == (1, trial.number)
    again = other.start(lease)
    assert again.number == trial.number
    assert suggest(other.spec, again) == values
    again.report(3.0, 2)
    assert trials(other)[1].intermediate_values == {1: 4.0, 2: 3.0}
    assert len(trials(other)) == 2


# ---------------------------------------------------------------------------------------------- settle

FACTS = {TRIAL_OUTCOME: "diverged", TRIAL_REASON: "loss is not finite", TRIAL_HISTORY: [{"val_loss": None, "phi": 0.5}]}
UNLUCKY = TrialResult(state="PRUNED", violations=("diverged", "out_of_memory"), attributes=FACTS)


def finishing(sweep: Sweep, outcome: TrialResult) -> tuple[Lease, int]:
    lease = claim(sweep)
    number = sweep.start(lease).number
    assert sweep.slots.finish(lease, outcome)
    return lease, number


@pytest.mark.parametrize("outcome", [COMPLETE, PRUNED, FAIL, DIVERGED], ids=lambda outcome: outcome.state)
def test_a_trial_ends_in_optuna_as_its_result_says(database: Database, outcome: TrialResult) -> None:
    sweep = make_sweep(database)
    lease, number = finishing(sweep, outcome)
    sweep.finalize(lease, number, outcome)
    (trial,) = trials(seen_by_another(sweep, database))
    assert trial.state is TrialState[outcome.state]
    assert trial.values == (list(outcome.values) or None)
    assert trial.datetime_complete is not None
    assert outcome.attributes.items() <= trial.user_attrs.items()
    assert trial.constraints == dict.fromkeys(outcome.violations, 1.0)
    assert sweep.slots.counts(10) == SlotCounts(done=1, open=9)


def test_a_pruned_trial_s_last_report_is_not_taken_for_its_value(database: Database) -> None:
    sweep = make_sweep(database)
    lease = claim(sweep)
    trial = sweep.start(lease)
    trial.report(0.5, 1)
    assert sweep.slots.finish(lease, PRUNED)
    sweep.finalize(lease, trial.number, PRUNED)
    assert sweep.best() is None


def test_finalizing_twice_changes_nothing(database: Database) -> None:
    sweep = make_sweep(database)
    lease, number = finishing(sweep, UNLUCKY)
    sweep.finalize(lease, number, UNLUCKY)
    before = contents(database)
    sweep.finalize(lease, number, UNLUCKY)
    seen_by_another(sweep, database).finalize(lease, number, UNLUCKY)
    assert contents(database) == before
    assert sweep.slots.counts(10) == SlotCounts(done=1, open=9)


def test_a_trial_that_somebody_else_has_ended_keeps_its_end_and_fills_its_slot(database: Database) -> None:
    sweep = make_sweep(database)
    lease, number = finishing(sweep, DIVERGED)
    sweep.study.tell(number, 2.0)  # by plain Optuna
    with sweep.sessions.under(lease):
        sweep.finalize(lease, number, DIVERGED)
    (trial,) = fresh(sweep, database)
    assert (trial.state, trial.value) == (TrialState.COMPLETE, 2.0)
    assert sweep.slots.counts(10) == SlotCounts(done=1, open=9)


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_crash_anywhere_while_finalizing_is_made_good_by_the_next_claimer(
    database: Database, own: Database, moment: Literal["before", "after"]
) -> None:
    crashes = 0
    for place in itertools.count(1):
        mine = open_sweep(own, make_sweep(database).spec.name)
        lease, number = finishing(mine, UNLUCKY)
        try:
            with mine.sessions.under(lease), crash_at_commit(own, place, moment):
                mine.finalize(lease, number, UNLUCKY)
        except Crash:
            crashes += 1
        else:
            break  # that many transactions there are not
        other = open_sweep(database, mine.spec.name)
        if other.slots.counts(None).done == 0:
            taken = take_over(other)
            assert (taken.trial_number, taken.result) == (number, UNLUCKY)
            assert taken.result is not None
            with other.sessions.under(taken):
                other.finalize(taken, number, taken.result)
        (trial,) = fresh(other, database)
        assert trial.state is TrialState.PRUNED
        assert trial.user_attrs == {TRIAL_SLOT: 0, TRIAL_ROLE: "baseline", **FACTS}
        assert trial.constraints == {"diverged": 1.0, "out_of_memory": 1.0}
        assert other.slots.counts(10) == SlotCounts(done=1, open=9)
    assert crashes >= 4, "facts, two constraints, state and slot"


def test_a_trial_ends_in_the_transaction_that_marks_its_slot(database: Database, own: Database) -> None:
    mine = open_sweep(own, make_sweep(database).spec.name)
    lease, number = finishing(mine, PRUNED)
    with mine.sessions.under(lease), crash_at_commit(own, 2, "after"), pytest.raises(Crash):
        mine.finalize(lease, number, PRUNED)
    assert [trial.state for trial in fresh(mine, database)] == [TrialState.PRUNED]
    assert slot_row(database, mine.study_id, 0)["state"] == "done"


def test_a_worker_that_loses_its_lease_while_finalizing_leaves_the_slot_alone(
    database: Database, own: Database
) -> None:
    mine = open_sweep(own, make_sweep(database).spec.name)
    stale, number = finishing(mine, COMPLETE)
    other = open_sweep(database, mine.spec.name)
    taken = take_over(other)
    before = contents(database)
    with mine.holding(stale), pytest.raises(LeaseLost):
        mine.finalize(stale, number, complete(1.0))
    assert contents(database) == before
    other.finalize(taken, number, COMPLETE)
    before = contents(database)
    with mine.holding(stale), pytest.raises(LeaseLost):
        mine.finalize(stale, number, complete(1.0))
    assert contents(database) == before
    assert other.slots.counts(10) == SlotCounts(done=1, open=9)


def test_of_two_that_finalize_at_once_the_one_with_the_lease_does(
    database: Database, own: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = open_sweep(own, make_sweep(database).spec.name)
    stale, number = finishing(mine, UNLUCKY)
    other = open_sweep(database, mine.spec.name)
    real = type(mine.storage).get_trial

    def meanwhile(storage: Any, trial_id: int) -> FrozenTrial:
        if storage is mine.storage and not other.slots.counts(None).done:
            other.finalize(take_over(other), number, UNLUCKY)
        return real(storage, trial_id)

    monkeypatch.setattr(type(mine.storage), "get_trial", meanwhile)
    with mine.holding(stale), contextlib.suppress(LeaseLost):
        mine.finalize(stale, number, UNLUCKY)
    (trial,) = fresh(other, database)
    assert trial.constraints == {"diverged": 1.0, "out_of_memory": 1.0}
    assert other.slots.counts(10) == SlotCounts(done=1, open=9)


# ---------------------------------------------------------------------------------------------- best, no better


def test_the_best_trial_is_complete_and_feasible(database: Database) -> None:
    sweep = make_sweep(database)
    assert sweep.best() is None
    infeasible = TrialResult(state="COMPLETE", values=(1.0,), violations=("too_slow",), attributes={})
    for outcome in (FAIL, PRUNED, DIVERGED, infeasible):
        run_slot(sweep, outcome)
        assert sweep.best() is None
    for loss, best in ((5.0, 5.0), (3.0, 3.0), (4.0, 3.0)):
        run_slot(sweep, complete(loss))
        assert sweep.best().value == best  # type: ignore[union-attr]
    sweep.start(claim(sweep))
    assert sweep.best().number == 5  # type: ignore[union-attr]


def test_of_equal_trials_the_first_is_best(database: Database) -> None:
    sweep = make_sweep(database)
    numbers = [run_slot(sweep, complete(3.0)) for _ in range(3)]
    assert sweep.best().number == numbers[0]  # type: ignore[union-attr]


def test_of_two_objectives_the_front_is_what_no_other_beats_and_the_best_has_the_lowest_loss(
    database: Database,
) -> None:
    sweep = make_two(database)
    assert (sweep.front(), sweep.best()) == ([], None)
    values = [(4.0, 0.8), (5.0, 0.9), (4.5, 0.7), (3.0, 0.6), (3.0, 0.5), (5.0, 0.9)]
    for pair in values:
        run_slot(sweep, TrialResult(state="COMPLETE", values=pair))
    run_slot(sweep, TrialResult(state="COMPLETE", values=(1.0, 0.99), violations=("suspicious",)))
    run_slot(sweep, DIVERGED)
    assert [trial.number for trial in sweep.front()] == [3, 0, 1]
    assert sweep.best().number == 3  # type: ignore[union-attr]


def make_two(database: Database, **changes: Any) -> Sweep:
    """A sweep of two objectives."""
    return make_sweep(database, objectives=["val_loss", "phi"], pruner={"kind": "none"}, **changes)


def test_the_sampler_hears_of_broken_constraints(database: Database) -> None:
    sweep = make_sweep(database)
    run_slot(sweep, DIVERGED)
    run_slot(sweep, PRUNED)
    diverged, pruned = trials(sweep)
    assert not is_feasible(diverged)
    assert not is_feasible(pruned)  # not complete
    assert diverged.constraints == {"diverged": 1.0}
    assert pruned.constraints == {}


def test_a_study_without_a_stopping_rule_never_stops_improving(database: Database) -> None:
    sweep = make_sweep(database)
    for loss in (1.0, 2.0, 2.0, 2.0, 2.0):
        run_slot(sweep, complete(loss))
    assert not sweep.stopped_improving()


def test_a_study_ends_after_so_many_trials_without_a_better_one(database: Database) -> None:
    sweep = make_sweep(database, stopping={"trials_without_improvement": 3}, trials=20)
    stopped = []
    for outcome in (
        PRUNED,
        PRUNED,
        PRUNED,
        complete(5.0),
        PRUNED,
        FAIL,
        complete(4.0),
        complete(4.0),
        DIVERGED,
        PRUNED,
    ):
        run_slot(sweep, outcome)
        stopped.append(sweep.stopped_improving())
    assert stopped == [False] * 9 + [True]  # before the first complete trial there is nothing to improve


def test_neither_a_pruned_nor_an_infeasible_trial_is_an_improvement(database: Database) -> None:
    sweep = make_sweep(database, stopping={"trials_without_improvement": 2})
    run_slot(sweep, complete(5.0))
    lease = claim(sweep)
    pruned = sweep.start(lease)
    pruned.report(0.5, 1)  # Optuna takes it for the pruned trial's value
    sweep.finalize(lease, pruned.number, PRUNED)
    assert not sweep.stopped_improving()
    run_slot(sweep, TrialResult(state="COMPLETE", values=(0.5,), violations=("too_slow",)))
    assert sweep.stopped_improving()


def test_trials_count_in_the_order_in_which_they_end(database: Database) -> None:
    sweep = make_sweep(database, stopping={"trials_without_improvement": 2})
    slow = finishing(sweep, complete(1.0))  # begins first, ends last
    run_slot(sweep, complete(3.0), "other")
    run_slot(sweep, complete(3.5), "other")
    assert not sweep.stopped_improving()
    sweep.finalize(*slow, complete(1.0))
    assert not sweep.stopped_improving()
    run_slot(sweep, PRUNED)
    run_slot(sweep, PRUNED)
    assert sweep.stopped_improving()


# ---------------------------------------------------------------------------------------------- find, open, create


def test_a_sweep_is_found_again_with_its_record(database: Database) -> None:
    sweep = make_sweep(database, enqueued=[{"dropout": 0.3}], stopping={"trials_without_improvement": 3})
    for found in (find_sweep(database, sweep.spec.name, lease_s=5.0), open_sweep(database, sweep.spec.name, 5.0)):
        assert found is not None
        assert found.record == sweep.record
        assert found.spec == sweep.spec
        assert found.uid == sweep.uid
        assert found.plan == sweep.spec.planned()
        assert found.slots.lease_s == 5.0


def test_what_a_study_was_made_from_is_in_optuna_s_own_study_too(database: Database) -> None:
    sweep = make_sweep(database)
    study = optuna.load_study(study_name=sweep.spec.name, storage=database.storage)
    assert study.user_attrs[STUDY_RECORD] == sweep.record.to_dict()
    assert study.metric_names == [METRICS["val_loss"]]
    assert study.direction is optuna.study.StudyDirection.MINIMIZE


def test_two_objectives_are_in_optuna_s_own_study(database: Database) -> None:
    study = make_two(database).study
    assert study.metric_names == ["validation loss (nats per token)", "Φ of the validation text"]
    assert [direction.name for direction in study.directions] == ["MINIMIZE", "MAXIMIZE"]


def test_tpe_proposes_for_two_objectives_whatever_became_of_earlier_trials(database: Database) -> None:
    sweep = make_two(database, trials=12, sampler={"startup_trials": 4})
    for place in range(8):
        run_slot(sweep, TrialResult(state="COMPLETE", values=(4.0 + place, 0.5 + place / 20)))
    lease = claim(sweep)
    report_past_optuna(diverged := sweep.start(lease))
    sweep.finalize(lease, diverged.number, DIVERGED)
    report_past_optuna(sweep.start(claim(sweep, "other")))  # still runs
    trial = sweep.start(claim(sweep))
    assert 0.0 <= float(suggest(sweep.spec, trial)["dropout"]) <= 0.4


def report_past_optuna(trial: optuna.Trial) -> None:
    """As the objective does, because `Trial.report` refuses two objectives."""
    trial.storage.set_trial_intermediate_value(trial._trial_id, 1, 4.0)


@pytest.mark.parametrize("direction", ["maximize", "minimize"])
def test_an_empty_study_that_was_made_for_other_objectives_is_left_alone(empty: Database, direction: str) -> None:
    optuna.create_study(storage=empty.storage, study_name="theirs", direction=direction)
    before = contents(empty)
    with pytest.raises(StudyError, match="study 'theirs' was made for other objectives; name another"):
        make_two(empty, name="theirs")
    assert contents(empty)["studies"] == before["studies"]
    assert find_sweep(empty, "theirs") is None


@pytest.mark.parametrize("kind", ["successive_halving", "percentile", "median", "none"])
def test_a_sweep_prunes_as_its_file_says(database: Database, kind: str) -> None:
    sweep = make_sweep(database, pruner={"kind": kind})
    expected = {
        "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
        "percentile": optuna.pruners.PercentilePruner,
        "median": optuna.pruners.PercentilePruner,
        "none": optuna.pruners.NopPruner,
    }
    assert type(sweep.snapshot.pruner) is expected[kind]


def test_a_trial_is_compared_with_what_others_have_reported_meanwhile(database: Database, own: Database) -> None:
    mine = open_sweep(own, make_sweep(database, pruner={"kind": "successive_halving", "n_min_trials": 3}).spec.name)
    others = open_sweep(database, mine.spec.name)
    others.start(claim(others, "baseline"))  # which is never pruned
    trial = mine.start(claim(mine))
    for loss in (1.0, 2.0, 3.0):
        peer = others.start(claim(others, f"peer of {loss}"))
        peer.report(loss, 3)
        assert not should_prune(others.spec, peer, 3), "too few peers"
    trial.report(9.0, 3)
    assert should_prune(mine.spec, trial, 3)


def test_a_sampler_learns_from_what_others_have_finished(database: Database, own: Database) -> None:
    mine = open_sweep(own, make_sweep(database).spec.name)
    mine.start(claim(mine, "first"))
    others = open_sweep(database, mine.spec.name)
    for _ in range(3):
        run_slot(others, COMPLETE)
    trial = mine.start(claim(mine, "second"))
    states = [each.state.name for each in trial.study.get_trials()]
    assert states == ["RUNNING", "COMPLETE", "COMPLETE", "COMPLETE", "RUNNING"]


def test_of_two_that_make_one_study_the_first_one_s_record_stands(database: Database) -> None:
    first = make_sweep(database)
    other_spec = make_spec(name=first.spec.name, run={"preset": "nano", "warmup": 0.3})
    second = create_sweep(database, make_record(other_spec))
    assert second.record == first.record
    assert second.spec == first.spec
    assert second.study.user_attrs[STUDY_RECORD] == first.record.to_dict()
    assert second.study_id == first.study_id


def test_no_study_of_the_name_is_none_or_an_error(database: Database) -> None:
    assert find_sweep(database, "never made") is None
    for opening in (open_sweep, load_study):
        with pytest.raises(StudyError, match=r"\Aunknown study 'never made': there (are|is) "):
            opening(database, "never made")


def test_an_unknown_study_is_answered_with_the_known_ones(empty: Database) -> None:
    with pytest.raises(StudyError, match="unknown study 'toy': there is none yet; `hpo run` makes the first"):
        load_study(empty, "toy")
    for place in range(10):
        make_sweep(empty, name=f"study-{place}")
    with pytest.raises(StudyError, match=r"unknown study 'toy': there are study-0, study-1, .*, study-7$"):
        open_sweep(empty, "toy")


@pytest.mark.parametrize("ours_first", [True, False])
def test_another_program_s_study_is_refused(empty: Database, ours_first: bool) -> None:
    if ours_first:
        make_sweep(empty)
    optuna.create_study(storage=empty.storage, study_name="theirs").optimize(lambda trial: 1.0, n_trials=1)
    for opening in (find_sweep, open_sweep):
        with pytest.raises(StudyError, match="'theirs' was made by another program; only that program can run it"):
            opening(empty, "theirs")
    assert load_study(empty, "theirs").best_value == 1.0


def test_two_studies_of_one_database_keep_apart(database: Database) -> None:
    one, two = make_sweep(database), make_sweep(database)
    run_slot(one, complete(1.0))
    assert two.best() is None
    assert two.slots.counts(10) == SlotCounts(open=10)
    assert trials(two) == []


def test_study_names_are_in_the_order_in_which_they_were_made(empty: Database) -> None:
    assert study_names(empty) == []
    for name in ("b", "c", "a"):
        make_sweep(empty, name=name)
    assert study_names(empty) == ["b", "c", "a"]


def test_studies_are_described_in_a_line_each(empty: Database) -> None:
    assert describe_studies(empty) == ["none yet; `hpo run` makes the first"]
    run_slot(make_sweep(empty, name="ours"), COMPLETE)
    optuna.create_study(storage=empty.storage, study_name="theirs")
    ours, theirs = describe_studies(empty)
    assert ours.split() == ["ours", "1", "trials", "·", "pages,", "profile", "cpu"]
    assert theirs.split() == ["theirs", "0", "trials", "·", "made", "by", "another", "program"]


def test_the_study_that_was_run_last_is_known(empty: Database) -> None:
    assert last_run(empty) is None
    for name, at in (("a", 10.0), ("c", 30.0), ("b", 20.0)):
        make_sweep(empty, name=name).study.set_user_attr(STUDY_LAST_RUN, at)
    optuna.create_study(storage=empty.storage, study_name="z-theirs")
    assert last_run(empty) == "c"
    empty.storage.delete_study(load_study(empty, "c")._study_id)
    assert last_run(empty) == "b"


def test_a_study_whose_making_was_interrupted_is_made_again(empty: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(StudyRow, "create", crash)
        with pytest.raises(Crash):
            make_sweep(empty, name="toy")
    assert find_sweep(empty, "toy") is None
    assert make_sweep(empty, name="toy").spec.name == "toy"


def test_a_study_whose_making_was_interrupted_later_gets_its_facts_too(
    empty: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(Sweep, "publish", crash)
        with pytest.raises(Crash):
            make_sweep(empty, name="toy")
    found = open_sweep(empty, "toy")
    found.publish()  # as every run does
    assert found.study.user_attrs[STUDY_RECORD] == found.record.to_dict()
    assert found.study.metric_names == [METRICS["val_loss"]]


def test_a_worker_that_slept_before_it_began_leaves_no_second_trial(database: Database) -> None:
    sweep = make_sweep(database)
    asleep = claim(sweep)
    other = seen_by_another(sweep, database)
    taken = take_over(other)
    number = other.start(taken).number
    with pytest.raises(LeaseLost):
        sweep.start(asleep)  # it wakes up
    other.slots.finish(taken, COMPLETE)
    other.finalize(taken, number, COMPLETE)
    assert [trial.state for trial in trials(other)] == [TrialState.COMPLETE]
