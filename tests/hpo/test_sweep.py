"""Study and slots in step, whatever happens in between; on every engine that the program knows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optuna
import pytest
from optuna.trial import FrozenTrial, TrialState
from toy_sweeps import (
    COMPLETE,
    DIVERGED,
    FAIL,
    PRUNED,
    complete,
    make_record,
    make_spec,
    make_sweep,
    run_slot,
)

from hpo.errors import StudyError
from hpo.search_space import suggest
from hpo.slots import Lease, LeaseLost, SlotCounts, Slots, TrialOutcome
from hpo.storage import Database
from hpo.sweep import (
    LAST_RUN_ATTRIBUTE,
    METRIC,
    STUDY_ATTRIBUTE,
    Sweep,
    create_sweep,
    describe_studies,
    find_sweep,
    is_feasible,
    last_run,
    load_study,
    open_sweep,
    publish,
    study_names,
)

Open = Callable[..., Database]


class Crash(Exception):
    """Stands for kill -9: nothing after it happens."""


@pytest.fixture
def own(sqlite_url: str, open_url: Open) -> Database:
    """A database that no other test uses."""
    return open_url(sqlite_url)


def claim(sweep: Sweep, owner: str = "worker") -> Lease:
    lease = sweep.slots.claim(owner, sweep.spec.trials)
    assert lease is not None
    return lease


def take_over(sweep: Sweep, dead: str = "worker") -> Lease:
    """The slot of a worker that is gone, under the next epoch."""
    sweep.slots.release_owner(dead, died=True)
    return claim(sweep, "next")


def trials(sweep: Sweep) -> list[FrozenTrial]:
    return sweep.study.get_trials(deepcopy=False)


def seen_by_another(sweep: Sweep, database: Database) -> Sweep:
    """The same sweep, as another process opens it."""
    return open_sweep(database, sweep.spec.name)


# ---------------------------------------------------------------------------------------------- begin


def test_planned_slots_get_the_plan_and_the_others_are_searched(database: Database) -> None:
    sweep = make_sweep(database, known=[{"dropout": 0.3}])
    begun = [sweep.begin(claim(sweep)) for _ in range(4)]
    values = [suggest(sweep.spec, trial)["dropout"] for trial in begun]
    assert values[:2] == [0.1, 0.3]
    found = trials(sweep)
    assert [trial.user_attrs for trial in found] == [
        {"hpo:slot": slot, "hpo:role": role} for slot, role in enumerate(("baseline", "known", "search", "search"))
    ]
    assert [trial.state for trial in found] == [TrialState.RUNNING] * 4
    assert [trial.params["dropout"] for trial in found] == values
    assert all(trial.datetime_start is not None for trial in found)


def test_each_slot_s_trial_draws_numbers_of_its_own_and_always_the_same(database: Database) -> None:
    sweep = make_sweep(database, sampler={"kind": "random"})
    values = [suggest(sweep.spec, sweep.begin(claim(sweep)))["dropout"] for _ in range(10)]
    assert len(set(values)) == 10
    again = make_sweep(database, sampler={"kind": "random"})  # as if it were the first sweep's
    assert [suggest(again.spec, again.begin(claim(again)))["dropout"] for _ in range(10)] == values


def test_a_grid_s_slots_are_its_points(database: Database) -> None:
    choices = [0.0, 0.1, 0.2]
    sweep = make_sweep(database, trials=3, search={"dropout": {"choices": choices}}, sampler={"kind": "grid"})
    values = [suggest(sweep.spec, sweep.begin(claim(sweep)))["dropout"] for _ in range(3)]
    assert values == [0.1, 0.0, 0.2]


def test_a_crash_between_create_and_bind_loses_no_trial(database: Database) -> None:
    sweep = make_sweep(database)
    other = sweep.begin(claim(sweep, "other"))  # of slot 0, and not bound either
    first = sweep.begin(claim(sweep))
    again = sweep.begin(take_over(sweep))
    assert again.number == first.number != other.number
    assert again.user_attrs["hpo:slot"] == 1
    assert len(trials(sweep)) == 2


def test_a_crash_before_create_begins_anew(database: Database) -> None:
    sweep = make_sweep(database)
    claim(sweep)
    trial = sweep.begin(take_over(sweep))
    assert trial.user_attrs == {"hpo:slot": 0, "hpo:role": "baseline"}
    assert len(trials(sweep)) == 1


def test_a_bound_trial_is_continued_with_its_values(database: Database) -> None:
    sweep = make_sweep(database, baseline={}, sampler={"kind": "random"})
    run_slot(sweep, COMPLETE)  # the baseline; the next one is searched
    lease = claim(sweep)
    trial = sweep.begin(lease)
    assert sweep.slots.bind(lease, trial.number)
    values = suggest(sweep.spec, trial)
    trial.report(4.0, 1)
    assert sweep.slots.release(lease)
    other = seen_by_another(sweep, database)
    lease = claim(other, "next")
    assert (lease.slot, lease.trial_number) == (1, trial.number)
    again = other.begin(lease)
    assert again.number == trial.number
    assert suggest(other.spec, again) == values
    again.report(3.0, 2)
    assert trials(other)[1].intermediate_values == {1: 4.0, 2: 3.0}
    assert len(trials(other)) == 2


# ---------------------------------------------------------------------------------------------- settle

FACTS = {"hpo:outcome": "diverged", "hpo:reason": "loss is not finite", "hpo:history": [{"val_loss": None, "phi": 0.5}]}
UNLUCKY = TrialOutcome(state="PRUNED", violations=("diverged", "out_of_memory"), attributes=FACTS)


def finishing(sweep: Sweep, outcome: TrialOutcome) -> tuple[Lease, int]:
    lease = claim(sweep)
    number = sweep.begin(lease).number
    assert sweep.slots.bind(lease, number)
    assert sweep.slots.finish(lease, outcome)
    return lease, number


@pytest.mark.parametrize("outcome", [COMPLETE, PRUNED, FAIL, DIVERGED], ids=lambda outcome: outcome.state)
def test_a_trial_ends_in_optuna_as_its_outcome_says(database: Database, outcome: TrialOutcome) -> None:
    sweep = make_sweep(database)
    lease, number = finishing(sweep, outcome)
    sweep.settle(lease, number, outcome)
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
    trial = sweep.begin(lease)
    trial.report(0.5, 1)
    assert sweep.slots.bind(lease, trial.number)
    assert sweep.slots.finish(lease, PRUNED)
    sweep.settle(lease, trial.number, PRUNED)
    assert sweep.best() is None


def test_telling_twice_changes_nothing(database: Database) -> None:
    sweep = make_sweep(database)
    lease, number = finishing(sweep, UNLUCKY)
    sweep.settle(lease, number, UNLUCKY)
    before = trials(sweep)[0]
    sweep.settle(lease, number, complete(1.0))
    seen_by_another(sweep, database).settle(lease, number, complete(1.0))
    assert trials(seen_by_another(sweep, database)) == [before]
    assert sweep.slots.counts(10) == SlotCounts(done=1, open=9)


POINTS = (
    ("set_trial_user_attr", 1),
    ("set_trial_user_attr", 3),
    ("set_trial_system_attr", 1),  # the first constraint
    ("set_trial_system_attr", 2),
    ("set_trial_state_values", 1),
    ("done", 1),
)


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("call", "times"), POINTS)
def test_a_crash_anywhere_in_the_end_is_made_good_by_the_next_claimer(
    database: Database, monkeypatch: pytest.MonkeyPatch, call: str, times: int, when: str
) -> None:
    sweep = make_sweep(database)
    lease, number = finishing(sweep, UNLUCKY)
    holder: Any = sweep.slots if call == "done" else sweep.storage
    with monkeypatch.context() as patch:
        crash_at(patch, holder, call, times, when)
        with pytest.raises(Crash):
            sweep.settle(lease, number, UNLUCKY)
    if (call, when) == ("done", "after"):
        assert sweep.slots.counts(10) == SlotCounts(done=1, open=9)
        return
    other = seen_by_another(sweep, database)
    taken = take_over(other)
    assert (taken.trial_number, taken.outcome) == (number, UNLUCKY)
    assert taken.outcome is not None
    other.settle(taken, number, taken.outcome)
    (trial,) = trials(seen_by_another(sweep, database))
    assert trial.state is TrialState.PRUNED
    assert trial.user_attrs == {"hpo:slot": 0, "hpo:role": "baseline", **FACTS}
    assert trial.constraints == {"diverged": 1.0, "out_of_memory": 1.0}
    assert other.slots.counts(10) == SlotCounts(done=1, open=9)


def crash_at(patch: pytest.MonkeyPatch, holder: Any, call: str, times: int, when: str) -> None:
    """Let the call crash on its n-th use, before or after it has done its work."""
    real, used = getattr(holder, call), []

    def crashing(*args: Any, **kwargs: Any) -> Any:
        used.append(call)
        if len(used) == times and when == "before":
            raise Crash
        result = real(*args, **kwargs)
        if len(used) == times:
            raise Crash
        return result

    patch.setattr(holder, call, crashing)


def test_who_lost_the_lease_while_telling_leaves_the_slot_alone(database: Database) -> None:
    sweep = make_sweep(database)
    stale, number = finishing(sweep, COMPLETE)
    taken = take_over(sweep)
    sweep.settle(stale, number, COMPLETE)
    assert sweep.slots.counts(10) == SlotCounts(leased=1, open=9)
    sweep.settle(taken, number, COMPLETE)
    assert sweep.slots.counts(10) == SlotCounts(done=1, open=9)
    assert [trial.value for trial in trials(sweep)] == [4.0]


# ---------------------------------------------------------------------------------------------- best, no better


def test_the_best_trial_is_complete_and_feasible(database: Database) -> None:
    sweep = make_sweep(database)
    assert sweep.best() is None
    infeasible = TrialOutcome(state="COMPLETE", values=(1.0,), violations=("too_slow",), attributes={})
    for outcome in (FAIL, PRUNED, DIVERGED, infeasible):
        run_slot(sweep, outcome)
        assert sweep.best() is None
    for loss, best in ((5.0, 5.0), (3.0, 3.0), (4.0, 3.0)):
        run_slot(sweep, complete(loss))
        assert sweep.best().value == best  # type: ignore[union-attr]
    sweep.begin(claim(sweep))
    assert sweep.best().number == 5  # type: ignore[union-attr]


def test_of_equal_trials_the_first_is_best(database: Database) -> None:
    sweep = make_sweep(database)
    numbers = [run_slot(sweep, complete(3.0)) for _ in range(3)]
    assert sweep.best().number == numbers[0]  # type: ignore[union-attr]


def test_the_sampler_hears_of_broken_constraints(database: Database) -> None:
    sweep = make_sweep(database)
    run_slot(sweep, DIVERGED)
    run_slot(sweep, PRUNED)
    diverged, pruned = trials(sweep)
    assert not is_feasible(diverged)
    assert not is_feasible(pruned)  # not complete
    assert diverged.constraints == {"diverged": 1.0}
    assert pruned.constraints == {}


def test_a_study_without_the_wish_never_stops_improving(database: Database) -> None:
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
    pruned = sweep.begin(lease)
    pruned.report(0.5, 1)  # Optuna takes it for the pruned trial's value
    assert sweep.slots.bind(lease, pruned.number)
    sweep.settle(lease, pruned.number, PRUNED)
    assert not sweep.stopped_improving()
    run_slot(sweep, TrialOutcome(state="COMPLETE", values=(0.5,), violations=("too_slow",)))
    assert sweep.stopped_improving()


def test_trials_count_in_the_order_in_which_they_end(database: Database) -> None:
    sweep = make_sweep(database, stopping={"trials_without_improvement": 2})
    slow = finishing(sweep, complete(1.0))  # begins first, ends last
    run_slot(sweep, complete(3.0), "other")
    run_slot(sweep, complete(3.5), "other")
    assert not sweep.stopped_improving()
    sweep.settle(*slow, complete(1.0))
    assert not sweep.stopped_improving()
    run_slot(sweep, PRUNED)
    run_slot(sweep, PRUNED)
    assert sweep.stopped_improving()


# ---------------------------------------------------------------------------------------------- find, open, create


def test_a_sweep_is_found_again_with_its_record(database: Database) -> None:
    sweep = make_sweep(database, known=[{"dropout": 0.3}], stopping={"trials_without_improvement": 3})
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
    assert study.user_attrs[STUDY_ATTRIBUTE] == sweep.record
    assert study.metric_names == [METRIC]
    assert study.direction is optuna.study.StudyDirection.MINIMIZE


@pytest.mark.parametrize("kind", ["successive_halving", "median", "none"])
def test_a_sweep_prunes_as_its_file_says(database: Database, kind: str) -> None:
    sweep = make_sweep(database, pruner={"kind": kind})
    expected = {
        "successive_halving": optuna.pruners.SuccessiveHalvingPruner,
        "median": optuna.pruners.MedianPruner,
        "none": optuna.pruners.NopPruner,
    }
    assert type(sweep.study.pruner) is expected[kind]


def test_of_two_that_make_one_study_the_first_one_s_record_stands(database: Database) -> None:
    first = make_sweep(database)
    other_spec = make_spec(name=first.spec.name, run={"preset": "nano", "warmup": 0.3})
    second = create_sweep(database, first.spec.name, make_record(other_spec))
    assert second.record == first.record
    assert second.spec == first.spec
    assert second.study.user_attrs[STUDY_ATTRIBUTE] == first.record
    assert second.study._study_id == first.study._study_id


def test_no_study_of_the_name_is_none_or_an_error(database: Database) -> None:
    assert find_sweep(database, "never made") is None
    for opening in (open_sweep, load_study):
        with pytest.raises(StudyError, match=r"\Aunknown study 'never made': there (are|is) "):
            opening(database, "never made")


def test_an_unknown_study_is_answered_with_the_known_ones(own: Database) -> None:
    with pytest.raises(StudyError, match="unknown study 'toy': there is none yet; `hpo run` makes the first"):
        load_study(own, "toy")
    for place in range(10):
        make_sweep(own, name=f"study-{place}")
    with pytest.raises(StudyError, match=r"unknown study 'toy': there are study-0, study-1, .*, study-7$"):
        open_sweep(own, "toy")


@pytest.mark.parametrize("ours_first", [True, False])
def test_another_program_s_study_is_refused(own: Database, ours_first: bool) -> None:
    if ours_first:
        make_sweep(own)
    optuna.create_study(storage=own.storage, study_name="theirs").optimize(lambda trial: 1.0, n_trials=1)
    for opening in (find_sweep, open_sweep):
        with pytest.raises(StudyError, match="study 'theirs' was made by another program, which alone can run it"):
            opening(own, "theirs")
    assert load_study(own, "theirs").best_value == 1.0


def test_two_studies_of_one_database_keep_apart(database: Database) -> None:
    one, two = make_sweep(database), make_sweep(database)
    run_slot(one, complete(1.0))
    assert two.best() is None
    assert two.slots.counts(10) == SlotCounts(open=10)
    assert trials(two) == []


def test_study_names_are_in_the_order_in_which_they_were_made(own: Database) -> None:
    assert study_names(own) == []
    for name in ("b", "c", "a"):
        make_sweep(own, name=name)
    assert study_names(own) == ["b", "c", "a"]


def test_studies_are_described_in_a_line_each(own: Database) -> None:
    assert describe_studies(own) == ["none yet; `hpo run` makes the first"]
    run_slot(make_sweep(own, name="ours"), COMPLETE)
    optuna.create_study(storage=own.storage, study_name="theirs")
    ours, theirs = describe_studies(own)
    assert ours.split() == ["ours", "1", "trials", "·", "pages,", "profile", "cpu"]
    assert theirs.split() == ["theirs", "0", "trials", "·", "made", "by", "another", "program"]


def test_the_study_that_was_run_last_is_known(own: Database) -> None:
    assert last_run(own) is None
    for name, at in (("a", 10.0), ("c", 30.0), ("b", 20.0)):
        make_sweep(own, name=name).study.set_user_attr(LAST_RUN_ATTRIBUTE, at)
    optuna.create_study(storage=own.storage, study_name="z-theirs")
    assert last_run(own) == "c"
    own.storage.delete_study(load_study(own, "c")._study_id)
    assert last_run(own) == "b"


def test_a_study_whose_making_was_interrupted_is_made_again(own: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        crash_at(patch, Slots, "create", 1, "before")
        with pytest.raises(Crash):
            make_sweep(own, name="toy")
    assert find_sweep(own, "toy") is None
    assert make_sweep(own, name="toy").spec.name == "toy"


def test_a_study_whose_making_was_interrupted_later_gets_its_facts_too(
    own: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        crash_at(patch, Slots, "create", 1, "after")
        with pytest.raises(Crash):
            make_sweep(own, name="toy")
    found = open_sweep(own, "toy")
    publish(found)  # as every run does
    assert found.study.user_attrs[STUDY_ATTRIBUTE] == found.record
    assert found.study.metric_names == [METRIC]


def test_a_worker_that_slept_before_it_began_leaves_no_second_trial(database: Database) -> None:
    sweep = make_sweep(database)
    asleep = claim(sweep)
    other = seen_by_another(sweep, database)
    taken = take_over(other)
    number = other.begin(taken).number
    assert other.slots.bind(taken, number)
    with pytest.raises(LeaseLost):
        sweep.begin(asleep)  # it wakes up
    other.slots.finish(taken, COMPLETE)
    other.settle(taken, number, COMPLETE)
    assert [trial.state for trial in trials(other)] == [TrialState.COMPLETE]


def test_two_that_tell_at_once_disturb_each_other_not(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = make_sweep(database)
    stale, number = finishing(sweep, UNLUCKY)
    other = seen_by_another(sweep, database)
    taken = take_over(other)
    real = sweep.storage.set_trial_user_attr

    def meanwhile(*args: Any) -> None:
        monkeypatch.setattr(sweep.storage, "set_trial_user_attr", real)
        other.settle(taken, number, UNLUCKY)
        real(*args)

    monkeypatch.setattr(sweep.storage, "set_trial_user_attr", meanwhile)
    sweep.settle(stale, number, UNLUCKY)
    assert sweep.slots.counts(10) == SlotCounts(done=1, open=9)
