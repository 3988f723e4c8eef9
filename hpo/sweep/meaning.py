"""What the values of a study mean: a record of it, and the refusal to rank trials together for which they differ."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpo.errors import StudyError
from hpo.study.spec import StudySpec
from hpo_model.config import RUNS_VERSION


def meaning(spec: StudySpec) -> dict[str, Any]:
    """For a study's record: the version of runs, and all values that a trial has of each preset it may take."""
    presets = spec.search["preset"].corners if "preset" in spec.search else (spec.run.get("preset", "nano"),)
    values = {str(preset): spec.run_with({"preset": preset}).parameters() for preset in presets}
    return {"runs_version": RUNS_VERSION, "presets": values}


def runs_version(record: Mapping[str, Any]) -> int:
    """The version of the runs of a study; the first one was not recorded."""
    return int(record.get("meaning", {}).get("runs_version", 1))


def check_same_meaning(spec: StudySpec, record: Mapping[str, Any]) -> None:
    """Refuse a study whose values would train other runs now than when it was made.

    A value that runs did not have then is no difference: by its default they are as before, or `RUNS_VERSION` tells.

    Args:
        spec: of the study.
        record: what it was made from.

    Raises:
        StudyError: what was different.
    """
    before = record.get("meaning", {}).get("presets", {})
    differences = [
        f"{name} of {preset} was {before[preset][name]!r}, is {value!r}"
        for preset, values in meaning(spec)["presets"].items()
        for name, value in values.items()
        if value != before.get(preset, {}).get(name, value)
    ]
    if runs_version(record) != RUNS_VERSION:
        differences = [f"runs were of version {runs_version(record)}, are of {RUNS_VERSION}"]
    if differences:
        raise StudyError(
            f"study {spec.name!r} was made when equal values trained otherwise: {'; '.join(differences[:3])}; its "
            "trials would not compare with new ones: give the new study another name, or use the version that made it"
        )
