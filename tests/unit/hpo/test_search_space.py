"""From a study's specification to Optuna: suggested values, samplers, pruning decisions."""

from __future__ import annotations

from typing import Any

import optuna
import pytest
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import TrialState, create_trial

from hpo.database.optuna_private import SnapshotStudy
from hpo.study.search_space import make_pruner, make_sampler, should_prune, suggest
from hpo.study.spec import PLANNED, StudySpec
from hpo_reports.records.names import TRIAL_ROLE
from tests.support.sweeps import make_spec

SEARCH: dict[str, Any] = {
    "dropout": {"low": 0.0, "high": 0.4},
    "lambda_phi": {"low": 0.001, "high": 0.3, "log": True},
    "warmup": {"low": 0.0, "high": 0.5, "step": 0.25},
    "batch_size": {"low": 8, "high": 32, "step": 8},
    "memory_slots": {"low": 1, "high": 64, "log": True},
    "iit": {"choices": [True, False]},
    "blocks": {"choices": ["attention", "attention+convolution"]},
    "layers": {"choices": [1, 2, 4]},
}


def make_study(spec: StudySpec, slot: int = 0) -> optuna.Study:
    return optuna.create_study(sampler=make_sampler(spec, slot), pruner=make_pruner(spec))


# ---------------------------------------------------------------------------------------------- suggestions


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_every_searched_value_is_suggested_within_its_space_and_of_the_run_s_type(kind: str) -> None:
    spec = make_spec(search=SEARCH, baseline={}, sampler={"kind": kind, "startup_trials": 5})
    study = make_study(spec)
    for _ in range(20):
        trial = study.ask()
        values = suggest(spec, trial)
        assert list(values) == list(SEARCH)
        assert all(spec.search[name].holds(value) for name, value in values.items())
        assert [type(value) for value in values.values()] == [float, float, float, int, int, bool, str, int]
        assert values["warmup"] in (0.0, 0.25, 0.5)
        assert values["batch_size"] in (8, 16, 24, 32)
        spec.run_with(values)
        study.tell(trial, values["dropout"])


def test_optuna_is_told_each_space_as_the_file_has_it() -> None:
    spec = make_spec(search=SEARCH, baseline={})
    trial = make_study(spec).ask()
    suggest(spec, trial)
    assert trial.distributions == {
        "dropout": FloatDistribution(0.0, 0.4),
        "lambda_phi": FloatDistribution(0.001, 0.3, log=True),
        "warmup": FloatDistribution(0.0, 0.5, step=0.25),
        "batch_size": IntDistribution(8, 32, step=8),
        "memory_slots": IntDistribution(1, 64, log=True),
        "iit": CategoricalDistribution((True, False)),
        "blocks": CategoricalDistribution(("attention", "attention+convolution")),
        "layers": CategoricalDistribution((1, 2, 4)),
    }


def test_an_interval_s_ends_can_be_reached() -> None:
    spec = make_spec(search={"layers": {"low": 1, "high": 2}}, baseline={"layers": 1})
    study = make_study(spec)
    assert {suggest(spec, study.ask())["layers"] for _ in range(30)} == {1, 2}


def test_a_continued_trial_keeps_its_values_whatever_the_sampler() -> None:
    spec = make_spec(search=SEARCH, baseline={}, sampler={"kind": "random"})
    study = make_study(spec, slot=0)
    trial = study.ask()
    values = suggest(spec, trial)
    study.sampler = make_sampler(spec, slot=7)
    assert suggest(spec, optuna.Trial(study, trial._trial_id)) == values


def test_a_trial_that_was_left_between_two_suggestions_keeps_the_first() -> None:
    spec = make_spec(search=SEARCH, baseline={}, sampler={"kind": "random"})
    study = make_study(spec)
    trial = study.ask()
    dropout = trial.suggest_float("dropout", 0.0, 0.4)
    study.sampler = make_sampler(spec, slot=7)
    values = suggest(spec, optuna.Trial(study, trial._trial_id))
    assert values["dropout"] == dropout
    assert set(values) == set(SEARCH)


def test_a_planned_trial_has_the_values_of_its_plan() -> None:
    spec = make_spec(enqueued=[{"dropout": 0.3}])
    study = make_study(spec)
    for _, parameters in spec.planned():
        study.enqueue_trial(dict(parameters))
    assert [suggest(spec, study.ask()) for _ in range(2)] == [{"dropout": 0.1}, {"dropout": 0.3}]


# ---------------------------------------------------------------------------------------------- samplers


def draws(spec: StudySpec, slot: int) -> tuple[float, ...]:
    study = make_study(spec, slot)
    return tuple(suggest(spec, study.ask())["dropout"] for _ in range(2))  # type: ignore[misc]


@pytest.mark.parametrize("kind", ["random", "tpe"])
def test_every_slot_draws_its_own_numbers_and_the_same_ones_again(kind: str) -> None:
    spec = make_spec(sampler={"kind": kind})
    drawn = [draws(spec, slot) for slot in range(50)]
    assert len({first for first, _ in drawn}) == 50
    assert drawn[:5] == [draws(spec, slot) for slot in range(5)]


def test_another_seed_draws_other_numbers() -> None:
    of_seed = {seed: [draws(make_spec(sampler={"seed": seed}), slot) for slot in range(3)] for seed in (0, 1, 2)}
    assert of_seed[0] != of_seed[1] != of_seed[2]
    assert not set(of_seed[1]) & set(of_seed[2])  # nor are they the same ones, moved by a slot


def test_tpe_models_from_the_study_s_number_of_trials_on() -> None:
    """With everything good at one end, a model stays there; random draws do not."""
    later: dict[int, list[float]] = {}
    for startup_trials in (5, 100):
        spec = make_spec(sampler={"startup_trials": startup_trials})
        study = make_study(spec)
        distributions = {"dropout": FloatDistribution(0.0, 0.4)}
        for place in range(30):
            dropout = 0.4 * place / 29
            trial = create_trial(params={"dropout": dropout}, distributions=distributions, value=dropout)
            study.add_trial(trial)
        later[startup_trials] = []
        for slot in range(20):
            study.sampler = make_sampler(spec, slot)
            later[startup_trials].append(suggest(spec, study.ask())["dropout"])  # type: ignore[arg-type]
    assert sum(later[5]) / 20 < 0.12 < sum(later[100]) / 20


# ---------------------------------------------------------------------------------------------- pruning


class Race:
    """Trials of one study that report one after another."""

    def __init__(self, **pruner: Any) -> None:
        self.spec = make_spec(pruner={"n_min_trials": 1, **pruner})
        self.study = make_study(self.spec)

    def enter(self, *losses: float, role: str = "search", state: TrialState = TrialState.COMPLETE) -> list[bool]:
        """A trial that reports these losses at milestones 1, 2, ...; whether it was behind at each."""
        asked = self.study.ask()
        asked.set_user_attr(TRIAL_ROLE, role)
        attentive = SnapshotStudy(self.study.study_name, self.study._storage, pruner=self.study.pruner)
        trial = optuna.Trial(attentive, asked._trial_id)
        behind = []
        for milestone, loss in enumerate(losses, start=1):
            trial.report(loss, milestone)
            behind.append(should_prune(self.spec, trial, milestone))
        self.study.tell(trial.number, losses[-1] if state == TrialState.COMPLETE else None, state=state)
        return behind


@pytest.mark.parametrize("kind", ["successive_halving", "percentile", "median"])
def test_the_worst_of_many_is_behind_and_the_best_is_not(kind: str) -> None:
    race = Race(kind=kind, min_resource=1)
    for loss in (5.0, 4.0, 3.0, 2.0):
        assert race.enter(loss) == [False]
    assert race.enter(6.0) == [True]
    assert race.enter(1.0) == [False]


def test_nobody_is_behind_without_a_pruner() -> None:
    race = Race(kind="none", min_resource=1)
    for loss in (1.0, 2.0, 3.0, 4.0, 5.0):
        assert race.enter(*[loss] * 10) == [False] * 10


@pytest.mark.parametrize(
    "kind",
    ["successive_halving", "percentile", "median"],
)
def test_nobody_is_behind_before_the_first_milestone(kind: str) -> None:
    race = Race(kind=kind, min_resource=3)
    for _ in range(5):
        race.enter(1.0, 1.0, 1.0)
    assert race.enter(9.0, 9.0, 9.0) == [False, False, True]


def test_halving_looks_at_rungs_alone() -> None:
    race = Race(kind="successive_halving", min_resource=2, reduction_factor=3)
    for _ in range(4):
        race.enter(*[1.0] * 10)
    losses = [1.0, 1.0, *[9.0] * 8]  # falls back after the first rung; the next one is at 2 · 3
    assert race.enter(*losses)[:6] == [False, False, False, False, False, True]


@pytest.mark.parametrize(
    ("reduction", "loss", "behind"), [(3, 2.5, False), (3, 3.5, True), (2, 3.5, False), (2, 5.5, True)]
)
def test_halving_lets_one_in_so_many_go_on(reduction: int, loss: float, behind: bool) -> None:
    race = Race(kind="successive_halving", min_resource=1, reduction_factor=reduction)
    for other in range(1, 9):
        race.enter(float(other))
    assert race.enter(loss) == [behind]  # the ninth: three, or four, may go on


@pytest.mark.parametrize(
    ("pruner", "line"),
    [({"kind": "median"}, 3.0), ({"kind": "percentile"}, 2.0), ({"kind": "percentile", "percentile": 75.0}, 4.0)],
)
def test_a_percentile_of_the_complete_trials_is_the_line_otherwise(pruner: dict[str, Any], line: float) -> None:
    race = Race(**pruner, min_resource=1)
    for other in (1.0, 2.0, 3.0, 4.0, 5.0):
        race.enter(other)
    assert race.enter(line + 0.1) == [True]
    assert race.enter(line - 0.1) == [False]


@pytest.mark.parametrize("kind", ["successive_halving", "percentile", "median"])
@pytest.mark.parametrize(("others", "behind"), [(3, False), (4, True)])
def test_too_few_peers_put_nobody_behind(kind: str, others: int, behind: bool) -> None:
    race = Race(kind=kind, min_resource=1, n_min_trials=4)
    for _ in range(others):
        race.enter(1.0)
    assert race.enter(9.0) == [behind]


@pytest.mark.parametrize(("kind", "behind"), [("successive_halving", True), ("percentile", False), ("median", False)])
def test_a_line_through_complete_trials_needs_so_many_of_them(kind: str, behind: bool) -> None:
    race = Race(kind=kind, min_resource=1, n_min_trials=3)
    for state in (TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.PRUNED):
        race.enter(1.0, state=state)
    assert race.enter(9.0) == [behind]
    assert race.enter(9.0) == [True]


def test_peers_are_those_that_reported_at_the_same_milestone() -> None:
    race = Race(kind="median", min_resource=1, n_min_trials=3)
    for _ in range(2):
        race.enter(1.0, 1.0)
    race.enter(1.0)
    race.enter(1.0)
    assert race.enter(9.0, 9.0) == [True, False]


@pytest.mark.parametrize("kind", ["successive_halving", "percentile", "median"])
@pytest.mark.parametrize("role", PLANNED)
def test_planned_trials_are_never_behind(kind: str, role: str) -> None:
    race = Race(kind=kind, min_resource=1)
    for _ in range(5):
        race.enter(*[1.0] * 9)
    assert race.enter(*[9.0] * 9, role=role) == [False] * 9
    assert True in race.enter(*[9.0] * 9)


@pytest.mark.parametrize("kind", ["successive_halving", "percentile", "median"])
def test_planned_trials_are_peers(kind: str) -> None:
    race = Race(kind=kind, min_resource=1, n_min_trials=3)
    for role in ("baseline", "enqueued", "enqueued"):
        race.enter(1.0, role=role)
    assert race.enter(9.0) == [True]


def test_whoever_was_spared_for_want_of_peers_counts_at_the_next_rung() -> None:
    race = Race(kind="successive_halving", min_resource=1, reduction_factor=2, n_min_trials=3)
    race.enter(1.0, 1.0)
    race.enter(5.0, 5.0)  # behind, with one peer
    race.enter(6.0, 6.0)
    assert race.enter(0.5, 5.5) == [False, True]
