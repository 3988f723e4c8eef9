"""The fingerprint of a study, and what makes it incompatible."""

from __future__ import annotations

import dataclasses

from hpo.sweep.compatibility import check_compatible
from hpo.sweep.record import Fingerprint
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
