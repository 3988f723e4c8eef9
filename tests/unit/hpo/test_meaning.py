from __future__ import annotations

from hpo.sweep.meaning import check_same_meaning, meaning
from hpo_model.config import PRESETS, RUNS_VERSION, build_run
from tests.support.sweeps import make_spec


def test_a_meaning_has_all_values_of_each_preset_that_a_trial_may_take() -> None:
    presets = ["nano", "large_iit"]
    spec = make_spec(run={"clip_norm": 0.5}, search={"preset": {"choices": presets}})
    assert meaning(spec) == {
        "runs_version": RUNS_VERSION,
        "presets": {name: build_run({"preset": name, "clip_norm": 0.5}).parameters() for name in presets},
    }


def test_without_a_preset_it_is_the_one_that_a_run_takes() -> None:
    assert meaning(make_spec(run={}))["presets"] == {"nano": build_run({}).parameters()}


def test_every_preset_means_the_same_as_a_moment_ago() -> None:
    spec = make_spec(run={}, search={"preset": {"choices": list(PRESETS)}})
    check_same_meaning(spec, {"meaning": meaning(spec)})
