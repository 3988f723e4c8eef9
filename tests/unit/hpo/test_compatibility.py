"""The fingerprint of a study, and what makes it incompatible."""

from __future__ import annotations

import dataclasses

import pytest

from hpo.errors import StudyError
from hpo.sweep.compatibility import check_compatible, preset_changes
from hpo.sweep.record import Fingerprint, SweepRecord
from hpo_model.config import PRESETS, SEMANTICS_VERSION, build_run
from tests.support.sweeps import make_record, make_spec


def test_a_fingerprint_has_all_values_of_each_preset_that_a_trial_may_take() -> None:
    presets = ["nano", "large_iit"]
    spec = make_spec(run={"clip_norm": 0.5}, search={"preset": {"choices": presets}})
    assert Fingerprint.of(spec) == Fingerprint(
        semantics_version=SEMANTICS_VERSION,
        presets={name: build_run({"preset": name, "clip_norm": 0.5}).parameters() for name in presets},
    )


def test_without_a_preset_it_is_the_one_that_a_run_takes() -> None:
    assert Fingerprint.of(make_spec(run={})).presets == {"nano": build_run({}).parameters()}


def test_a_study_of_any_preset_is_compatible_a_moment_later() -> None:
    spec = make_spec(run={}, search={"preset": {"choices": list(PRESETS)}})
    record = make_record(spec)
    check_compatible(dataclasses.replace(record, fingerprint=Fingerprint.of(spec)), spec)


def made_with(presets: dict[str, dict[str, object]], version: int = SEMANTICS_VERSION) -> SweepRecord:
    """The record of a study that was made when presets stood for other values, as it is read back."""
    spec = make_spec(run={"clip_norm": 0.5})
    record = dataclasses.replace(make_record(spec), fingerprint=Fingerprint(semantics_version=version, presets=presets))
    return SweepRecord.from_json(record.to_json())


def test_a_study_goes_on_with_the_values_that_its_presets_had() -> None:
    values = build_run({"clip_norm": 0.5, "learning_rate": 0.123, "optimizer": "adamw"}).parameters()
    record = made_with({"nano": values})
    check_compatible(record, make_spec(run={"clip_norm": 0.5}))
    run = record.spec.run_with({"dropout": 0.3})
    assert (run.training.learning_rate, run.training.clip_norm, run.training.dropout) == (0.123, 0.5, 0.3)
    assert "learning_rate 0.123 (now " in preset_changes(record)


def test_a_preset_that_no_trial_takes_stands_for_todays_values() -> None:
    """The run's own preset, where only others are searched."""
    spec = make_spec(run={}, search={"preset": {"choices": ["tiny_iit", "small_iit"]}})
    record = dataclasses.replace(make_record(spec), fingerprint=Fingerprint.of(spec))
    assert record.fingerprint.presets.keys() == {"tiny_iit", "small_iit"}
    assert SweepRecord.from_json(record.to_json()).spec.run_with({}) == build_run({})


def test_a_value_that_runs_did_not_have_then_is_what_they_did() -> None:
    values = build_run({"clip_norm": 0.5, "optimizer": "adamw"}).parameters()
    record = made_with({"nano": {name: value for name, value in values.items() if name != "optimizer"}})
    check_compatible(record)
    assert record.spec.run_with({}).training.optimizer == "adamw"


def test_nothing_is_said_where_no_preset_has_changed() -> None:
    spec = make_spec()
    assert preset_changes(dataclasses.replace(make_record(spec), fingerprint=Fingerprint.of(spec))) == ""


@pytest.mark.parametrize("version", [1, SEMANTICS_VERSION + 1])
def test_runs_that_trained_otherwise_are_refused(version: int) -> None:
    with pytest.raises(StudyError, match=f"runs were of version {version}, are of {SEMANTICS_VERSION}"):
        check_compatible(made_with({"nano": build_run({}).parameters()}, version=version))
