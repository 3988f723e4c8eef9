"""A table of past experiments as a study: for comparison and reports, never to be continued.

What the table does not say stays unknown. The study holds no more than the table does, and says where it came from.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution
from optuna.trial import FrozenTrial

from hpo.database.connection import Database
from hpo.errors import StudyError, UsageError
from hpo.study.former_names import stored_role
from hpo.study.sections import MAX_WHOLE
from hpo.sweep.sweep import study_names
from hpo_model.config import Scalar, parameter_type
from hpo_model.digest import short_digest
from hpo_model.errors import ConfigError
from hpo_reports.records.names import (
    FINALISTS_SUFFIX,
    STUDY_TABLE,
    TRIAL_CAUSAL,
    TRIAL_HISTORY,
    TRIAL_IMPORTED,
    TRIAL_LABELS,
    TRIAL_MACHINE,
    TRIAL_OUTCOME,
    TRIAL_ROLE,
    TRIAL_RUN,
)

MEASURES = (
    *("val_ppl", "val_word_ppl", "val_bits_per_byte", "train_ppl", "phi", "train_phi", "delta_phi_loss"),
    *("seconds", "epoch", "tokens", "step", "tokens_per_s", "peak_memory_bytes"),
)
LABELS = ("experiment", "note", "device")  # texts
CAUSAL = "causal"  # whether the network could see no token that it had to predict
BASELINE = "baseline"  # whether the others are to be compared with this one; without the column the first row is
TRUTHS: Mapping[str, bool] = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
UNKNOWN = "unknown"  # the same as an empty cell
MAX_ROWS = 100_000
MAX_NAME = 200  # of a study, as in its file


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One row: what was set, what was measured, what was noted."""

    parameters: Mapping[str, Scalar]
    measured: Mapping[str, float]
    labels: Mapping[str, str]
    causal: bool | None
    is_baseline: bool


@dataclass(frozen=True, kw_only=True)
class PastExperiments:
    """A whole table."""

    file: str  # its name, for people
    digest: str  # sixteen hexadecimal digits of its content
    rows: tuple[Experiment, ...]


def read_experiments(path: Path) -> PastExperiments:
    """Read a table of experiments.

    Args:
        path: a CSV file with a header, or a JSON file with a list of objects. Columns are the names of a run's
            parameters, of measurements (`val_ppl` is needed), `experiment`, `note`, `device`, `causal`, `baseline`. An
            empty cell, or the word unknown, is an unknown value.

    Raises:
        UsageError: the file, its row and column that cannot be read, and what was expected there.
    """
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: not UTF-8 at byte {error.start}") from error
    rows = [_known(row) for row in (_json_rows(path, text) if path.suffix == ".json" else _csv_rows(path, text))]
    if not 0 < len(rows) <= MAX_ROWS:
        raise UsageError(f"{path}: needs between one and {MAX_ROWS:,} experiments, got {len(rows):,}")
    baselines = [
        n - 1
        for n, row in enumerate(rows, 1)
        if BASELINE in row and _truth(f"{path}, row {n}", BASELINE, row[BASELINE])
    ]
    if len(baselines) > 1:
        raise UsageError(f"{path}: one baseline at most, got {len(baselines)}")
    anchor = baselines[0] if baselines else 0
    experiments = tuple(_experiment(f"{path}, row {n}", row, n - 1 == anchor) for n, row in enumerate(rows, 1))
    return PastExperiments(file=path.name, digest=short_digest(content), rows=experiments)


def import_experiments(database: Database, name: str, past: PastExperiments) -> None:
    """Make a study of a table's rows, a complete trial each; its objective is the log of the validation perplexity.

    It is made whole or not at all.

    Raises:
        UsageError: no study may have this name.
        StudyError: there is a study of this name already.
    """
    if not name.isprintable() or name != name.strip() or not 0 < len(name) <= MAX_NAME:
        raise UsageError(f"--name: must be printable text without blanks at its ends, got {name!r}")
    if name.endswith(FINALISTS_SUFFIX):
        raise UsageError(f"--name: {FINALISTS_SUFFIX} at its end is for studies that the program makes, got {name!r}")
    if name in study_names(database):
        raise StudyError(f"there is a study {name!r} already; --name gives the experiments another name")
    study = optuna.create_study(study_name=name, storage=database.storage)
    facts = {"file": past.file, "digest": past.digest, "imported_at": time.time(), "rows": len(past.rows)}
    study.set_user_attr(STUDY_TABLE, facts)
    differing = _differing(past.rows)
    try:
        study.add_trials([_trial(row, differing) for row in past.rows])
    except BaseException:
        with contextlib.suppress(Exception):  # what stopped it is what there is to tell
            optuna.delete_study(study_name=name, storage=database.storage)
        raise


def _csv_rows(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        lines = list(csv.reader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise UsageError(f"{path}: not valid CSV: {error}") from error
    lines = [line for line in lines if any(cell.strip() for cell in line)]
    if not lines:
        return []
    header = [cell.strip() for cell in lines[0]]
    if len(set(header)) < len(header):
        raise UsageError(f"{path}: a column occurs twice in the header: {', '.join(header)}")
    rows = []
    for number, line in enumerate(lines[1:], 1):
        if len(line) != len(header):
            raise UsageError(f"{path}, row {number}: the header has {len(header)} columns, the row {len(line)}")
        rows.append({name: cell.strip() for name, cell in zip(header, line, strict=True) if cell.strip()})
    return rows


def _json_rows(path: Path, text: str) -> list[dict[str, Any]]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:  # also a number of too many digits, lists too deep
        raise UsageError(f"{path}: not valid JSON: {error}") from error
    if not isinstance(content, list) or not all(isinstance(row, dict) for row in content):
        raise UsageError(f"{path}: must be a list of objects, one for each experiment")
    return content


def _known(row: Mapping[str, Any]) -> dict[str, Any]:
    """The cells of a row that hold a value, neither `null` nor the word for an unknown one."""
    return {name: value for name, value in row.items() if value is not None and value != UNKNOWN}


def _experiment(place: str, row: Mapping[str, Any], is_baseline: bool) -> Experiment:
    parameters: dict[str, Scalar] = {}
    measured: dict[str, float] = {}
    labels: dict[str, str] = {}
    for name, value in row.items():
        if name in MEASURES:
            measured[name] = _measured(place, name, value)
        elif name in LABELS:
            labels[name] = _text(place, name, value)
        elif name not in (CAUSAL, BASELINE):
            parameters[name] = _parameter(place, name, value)
    if "val_ppl" not in measured:
        raise UsageError(f"{place}: val_ppl is missing; without it there is nothing to compare")
    if measured["val_ppl"] < 1:
        raise UsageError(f"{place}: val_ppl must be at least 1, got {measured['val_ppl']:g}")
    causal = None if CAUSAL not in row else _truth(place, CAUSAL, row[CAUSAL])
    return Experiment(parameters=parameters, measured=measured, labels=labels, causal=causal, is_baseline=is_baseline)


def _measured(place: str, name: str, value: object) -> float:
    measured = _number(place, name, value)
    if measured < 0:
        raise UsageError(f"{place}: {name} must be at least 0, got {measured:g}")
    return measured


def _number(place: str, name: str, value: object) -> float:
    try:
        number = float(str(value))
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or isinstance(value, bool):
        raise UsageError(f"{place}: {name} must be a finite number, got {value!r}; leave unknown values empty")
    return number


def _parameter(place: str, name: str, value: object) -> Scalar:
    try:
        expected = parameter_type(name)
    except ConfigError as error:
        known = ", ".join((*MEASURES, *LABELS, CAUSAL, BASELINE))
        raise UsageError(f"{place}: unknown column {name!r}; known are a run's parameters and {known}") from error
    if expected is bool:
        return _truth(place, name, value)
    if expected is str:
        return _text(place, name, value)
    number = _number(place, name, value)
    if expected is int and not (number.is_integer() and abs(number) <= MAX_WHOLE):
        raise UsageError(f"{place}: {name} must be a whole number below 2^53, got {value!r}")
    return int(number) if expected is int else number


def _text(place: str, name: str, value: object) -> str:
    if isinstance(value, list | dict):
        raise UsageError(f"{place}: {name} must be a text, got a {type(value).__name__}")
    return str(value).encode("utf-8", "replace").decode()  # JSON knows lone surrogates, UTF-8 none


def _truth(place: str, name: str, value: object) -> bool:
    word = str(value).strip().lower()
    if word not in TRUTHS:
        raise UsageError(f"{place}: {name} must be one of {', '.join(TRUTHS)}, got {value!r}")
    return TRUTHS[word]


def _trial(row: Experiment, differing: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """A complete trial: the values that differ between rows are its parameters, all others are in its attributes."""
    searched = {name: row.parameters[name] for name in differing if name in row.parameters}
    evaluation = dict(row.measured)
    attributes: dict[str, Any] = {
        TRIAL_IMPORTED: True,
        TRIAL_ROLE: stored_role("baseline" if row.is_baseline else "enqueued"),
        TRIAL_RUN: dict(row.parameters),
        TRIAL_HISTORY: [evaluation],
        TRIAL_OUTCOME: "complete",
        TRIAL_CAUSAL: row.causal,
        TRIAL_LABELS: dict(row.labels),
        TRIAL_MACHINE: {"device": row.labels.get("device")},
    }
    return optuna.trial.create_trial(
        value=math.log(row.measured["val_ppl"]),
        params=searched,
        distributions={name: differing[name] for name in searched},
        user_attrs=attributes,
    )


def _differing(rows: Sequence[Experiment]) -> dict[str, BaseDistribution]:
    """The parameters in which rows differ, each with the values that it has."""
    names = dict.fromkeys(name for row in rows for name in row.parameters)
    return {name: _space(name, rows) for name in names if len({repr(row.parameters.get(name)) for row in rows}) > 1}


def _space(name: str, rows: Sequence[Experiment]) -> BaseDistribution:
    """The values that the table has."""
    values = [row.parameters[name] for row in rows if name in row.parameters]
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) < len(values):
        return CategoricalDistribution(list(dict.fromkeys(values)))
    return FloatDistribution(float(min(numbers)), float(max(numbers)))
