"""A study's record as text: Markdown for people, JSON and CSV of the same rows for programs."""

from __future__ import annotations

import csv
import dataclasses
import functools
import io
import json
from collections.abc import Callable, Mapping
from typing import Literal

import jinja2

from reports import formats
from reports.attributes import whole
from reports.commands import LONG_RUN_EPOCHS, run_command, toml_lines, train_command
from reports.errors import EmptyStudyError, UnknownFormatError
from reports.markdown import Markdown, markdown_table, plain
from reports.records import StudyRecord
from reports.tables import comparison_table, incomplete_table, trial_table
from reports.totals import sum_up
from reports.verdicts import (
    INDISTINGUISHABLE_PERCENT,
    SEED_NOISE_PERCENT,
    Comparison,
    compare,
    expected_optimism_percent,
)

Format = Literal["markdown", "json", "csv"]

LABELS: Mapping[str, str] = {
    "number": "Exp",
    "params_learning_rate": "LR",
    "params_batch_size": "Batch",
    "params_lambda_phi": "λ_phi",
    "params_dropout": "Dropout",
    "val_ppl": "Val PPL",
    "val_word_ppl": "Word PPL",
    "val_bits_per_byte": "Bits/byte",
    "train_ppl": "Train PPL",
    "train_phi": "Train Φ",
    "delta_phi_loss": "ΔΦ loss",
    "seconds": "Time",
    "curve": "Curve",
    "verdict": "Against the baseline",
    "objective": "Objective",
    "outcome": "Outcome",
    "tokens": "Tokens read",
    "last_val_ppl": "Last val PPL",
    "last_value": "Last value",
    "reason": "Reason",
}


def render(record: StudyRecord, format: Literal["markdown", "json", "csv"]) -> str:
    """Write the experiment report of a study.

    Args:
        record: the study, as `read_study` gives it.
        format: markdown, or the rows behind it as json or csv.

    Returns:
        The document, which ends in a line end.

    Raises:
        EmptyStudyError: the study has no trials.
        UnknownFormatError: the format is none of the three.
    """
    if format not in _RENDERERS:
        raise UnknownFormatError(f"format must be one of {', '.join(_RENDERERS)}, got {format!r}")
    if not record.trials:
        command = run_command(record.name)
        raise EmptyStudyError(f"a report needs trials, and study {record.name!r} has none; run some with: {command}")
    return _RENDERERS[format](record, compare(record))


def _markdown(record: StudyRecord, comparison: Comparison) -> str:
    winner = comparison.winner
    incomplete = incomplete_table(record)
    return (
        _environment()
        .get_template("experiments.md.jinja")
        .render(
            study=record,
            comparison=comparison,
            winner=winner,
            single=len(record.directions) == 1,
            totals=sum_up(record),
            complete=markdown_table(
                comparison_table(record, comparison), LABELS, bold=winner.number if winner else None
            ),
            incomplete=markdown_table(incomplete, LABELS),
            has_incomplete=bool(incomplete.rows),
            **_of_runs(record, comparison),
            **_of_winner(record, comparison),
            suspicious=[trial for trial in record.trials if trial.suspicious],
            limit_percent=INDISTINGUISHABLE_PERCENT,
            noise_percent=SEED_NOISE_PERCENT,
        )
    )


def _of_runs(record: StudyRecord, comparison: Comparison) -> dict[str, object]:
    """What the runs of a study have in common, and in what they differ."""
    runs = [trial for trial in record.trials if trial.is_ours]
    steps = [trial.measured.step for trial in comparison.ranked if trial.measured.step is not None]
    return {
        "seeds": sorted({seed for run in runs if (seed := whole(run.parameters, "seed")) is not None}),
        "budgets": sorted({run.budget_tokens for run in runs if run.budget_tokens is not None}),
        "evaluations": sorted({n for run in runs if (n := whole(run.parameters, "evaluations")) is not None}),
        "batch_sizes": sorted(
            {n for run in comparison.ranked if (n := whole(run.parameters, "batch_size")) is not None}
        ),
        "updates": (min(steps), max(steps)) if steps else None,
    }


def _of_winner(record: StudyRecord, comparison: Comparison) -> dict[str, object]:
    winner = comparison.winner
    if winner is None:
        return {}
    return {
        "searched": {name: winner.parameters.get(name) for name in winner.searched},
        "verdict": comparison.verdicts[winner.number],
        "optimism_percent": expected_optimism_percent(len(comparison.ranked)),
        "command": Markdown(train_command(record.name, winner.number)),  # one line each: no fence can end early
        "configuration": Markdown("\n".join(toml_lines(winner.parameters))),
        "epochs": LONG_RUN_EPOCHS,
    }


def _json(record: StudyRecord, comparison: Comparison) -> str:
    rows = trial_table(record, comparison).dicts()
    winner = comparison.winner
    header = {field.name: getattr(record, field.name) for field in dataclasses.fields(record) if field.name != "trials"}
    content = {
        "header": header,
        "rows": rows,
        "winner": None
        if winner is None
        else {
            "number": winner.number,
            "compared_trials": len(comparison.ranked),
            "tied": [trial.number for trial in comparison.tied],
            "not_distinguishable": [trial.number for trial in comparison.close],
            "parameters": winner.parameters,
            "command": train_command(record.name, winner.number) if winner.is_ours else None,
        },
        "totals": sum_up(record),
    }
    return json.dumps(content, ensure_ascii=False, allow_nan=False, indent=2, default=_plain_data) + "\n"


def _plain_data(value: object) -> object:
    """Records as objects, read-only mappings as plain ones."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.asdict(value)
    raise TypeError(f"{type(value).__name__} has no JSON")


def _csv(record: StudyRecord, comparison: Comparison) -> str:
    table = trial_table(record, comparison)
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(table.columns)
    writer.writerows(table.rows)
    return file.getvalue()


@functools.cache
def _environment() -> jinja2.Environment:
    """Jinja in which every value is escaped on its way into the document, unless it is Markdown already."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("reports"),
        finalize=plain,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    for written in ("bits_per_byte", "count", "duration", "hours", "moment", "percent", "perplexity", "phi", "words"):
        environment.filters[written] = getattr(formats, written)
    return environment


_RENDERERS: Mapping[str, Callable[[StudyRecord, Comparison], str]] = {
    "markdown": _markdown,
    "json": _json,
    "csv": _csv,
}
