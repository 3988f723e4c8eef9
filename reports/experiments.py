"""The experiment report as Markdown: what its template is given. The sentences are the template's."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence

import jinja2

from reports import formats
from reports.attributes import whole
from reports.commands import LONG_RUN_EPOCHS, toml_lines, train_command
from reports.markdown import Markdown, markdown_table, plain
from reports.records import StudyRecord, TrialRecord
from reports.tables import comparison_table, front_table, incomplete_table
from reports.totals import sum_up
from reports.verdicts import (
    INDISTINGUISHABLE_PERCENT,
    SEED_NOISE_PERCENT,
    Comparison,
    expected_optimism_percent,
)

MOST_NAMED = 10  # trials in a sentence; the tables have them all

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
    "phi": "Val Φ",
    "train_phi": "Train Φ",
    "delta_phi_loss": "ΔΦ loss",
    "seconds": "Time",
    "curve": "Curve",
    "verdict": "Verdict",
    "objective": "Objective",
    "outcome": "Outcome",
    "tokens": "Tokens read",
    "last_val_ppl": "Last val PPL",
    "last_value": "Last value",
    "reason": "Reason",
}


def experiments_markdown(record: StudyRecord, comparison: Comparison) -> str:
    """Write the experiment report.

    Args:
        record: a study with at least one trial.
        comparison: of its complete trials.
    """
    template = _environment().get_template("experiments.md.jinja")
    return template.render(
        study=record,
        single=len(record.directions) == 1,
        comparison=comparison,
        suspicious=[trial for trial in record.trials if trial.suspicious],
        winner=comparison.winner,
        totals=sum_up(record),
        limit_percent=INDISTINGUISHABLE_PERCENT,
        noise_percent=SEED_NOISE_PERCENT,
        **_tables(record, comparison),
        **_runs(record, comparison),
        **(_winner(record, comparison, comparison.winner) if comparison.winner else {}),
        **(_long_run(record, comparison.front[0]) if comparison.front else {}),
    )


def _tables(record: StudyRecord, comparison: Comparison) -> dict[str, object]:
    bold = comparison.winner.number if comparison.winner else None
    incomplete = incomplete_table(record)
    return {
        "complete": markdown_table(comparison_table(record, comparison), LABELS, bold, _curve_scale(comparison)),
        "incomplete": markdown_table(incomplete, LABELS) if incomplete.rows else None,
        "front": markdown_table(front_table(record, comparison), LABELS) if comparison.front else None,
    }


def _curve_scale(comparison: Comparison) -> tuple[float, float]:
    """The lowest and the highest value on the way of the trials that are compared; others are cut off there."""
    trials = comparison.ranked or comparison.unranked
    values = [value for trial in trials for value in trial.curve if value is not None]
    return (min(values), max(values)) if values else (0.0, 0.0)


def _runs(record: StudyRecord, comparison: Comparison) -> dict[str, object]:
    """What the runs of a study have in common, and in what they differ."""
    runs = [trial for trial in record.trials if trial.is_ours]
    steps = [trial.measured.step for trial in comparison.ranked if trial.measured.step is not None]
    return {
        "seeds": _distinct(runs, "seed"),
        "budgets": _distinct(runs, "budget_tokens"),
        "evaluations": _distinct(runs, "evaluations"),
        "batch_sizes": _distinct(comparison.ranked, "batch_size"),
        "updates": (min(steps), max(steps)) if steps else None,
    }


def _winner(record: StudyRecord, comparison: Comparison, winner: TrialRecord) -> dict[str, object]:
    """What is said of the winner and what to run with it."""
    return {
        "searched": {name: winner.parameters.get(name) for name in winner.searched},
        "verdict": comparison.verdicts[winner.number],
        "optimism_percent": expected_optimism_percent(_contenders(record)),
        "contenders": _contenders(record),
        "configuration": Markdown("\n".join(toml_lines(winner.parameters))),  # one line each: no fence ends early
        **_long_run(record, winner),
    }


def _long_run(record: StudyRecord, trial: TrialRecord) -> dict[str, object]:
    return {"command": Markdown(train_command(record.name, trial.number)), "epochs": LONG_RUN_EPOCHS}


def _contenders(record: StudyRecord) -> int:
    """Trials that could have won: those that lost early lost, in part, to seed noise too."""
    return sum(trial.outcome in ("complete", "pruned") for trial in record.trials)


def _distinct(trials: Iterable[TrialRecord], parameter: str) -> list[int]:
    """The different whole numbers that a parameter has in these trials."""
    values = {whole(trial.parameters, parameter) for trial in trials}
    return sorted(value for value in values if value is not None)


def _named(trials: Sequence[TrialRecord]) -> str:
    """Trials by their numbers, in a sentence."""
    numbers = ", ".join(str(trial.number) for trial in trials[:MOST_NAMED])
    more = f" and {len(trials) - MOST_NAMED:,} more" if len(trials) > MOST_NAMED else ""
    return f"{'trial' if len(trials) == 1 else 'trials'} {numbers}{more}"


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
    for name in ("bits_per_byte", "count", "duration", "hours", "moment", "percent", "perplexity", "phi", "words"):
        environment.filters[name] = getattr(formats, name)
    environment.filters["named"] = _named
    return environment
