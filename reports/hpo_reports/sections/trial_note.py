"""One trial in a few lines of Markdown, and a long report cut to what a note can hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from hpo_reports.analysis.verdicts import Comparison, Standing
from hpo_reports.document.commands import train_command
from hpo_reports.document.formats import (
    MISSING,
    bits_per_byte,
    count,
    duration,
    number,
    percent,
    perplexity,
    phi,
    sparkline,
)
from hpo_reports.document.markdown import escape, plain
from hpo_reports.records.attributes import Scalar
from hpo_reports.records.study import StudyRecord, TrialRecord

LONGEST_VALUE = 80  # characters of a parameter's value
MOST_PARAMETERS = 30  # in one table
MOST_ROWS = 100  # of a table in a note
MOST_CHARACTERS = 60_000  # of a note; a browser draws as many without a pause
_OWN = ("budget_tokens", "seed")  # parameters that say what was spent, not what was tried

_STANDINGS: Mapping[Standing, str] = {
    "baseline": "It is the baseline.",
    "not_compared": "It is compared with nothing: there is no baseline to compare with.",
    "suspicious": "⚠ Suspicious: too good to be true for text. It is compared with nothing and cannot win.",
    "infeasible": "It breaks a constraint and is compared with nothing.",
    "not_causal": "Its network sees what it is to predict: its perplexity means nothing and is not compared.",
    "causality_unknown": "Nobody knows whether its network saw what it was to predict: it is compared with nothing.",
    "budget_unknown": "How much it was trained is unknown: it is compared with nothing.",
    "other_budget": "It had another budget of tokens and is compared with nothing.",
    "not_finite": "It has no finite value and is compared with nothing.",
    "on_front": "No other trial is at least as good in every objective and better in one: it is on the front.",
    "dominated": "Another trial is at least as good in every objective and better in one.",
}


def trial_note(record: StudyRecord, comparison: Comparison, trial: TrialRecord) -> str:
    """What a trial tried, what came of it, how it stands, why it ended, and what to run with it.

    Args:
        record: the trial's study.
        comparison: of the study's complete trials.
        trial: one of them, complete or not.
    """
    parts = [
        f"**Trial {trial.number}: {trial.outcome.replace('_', ' ')}.** {_verdict(record, comparison, trial)}".strip(),
        _parameters(comparison, trial),
        _measured(trial),
        _curve(comparison, trial),
        f"Ended: {escape(trial.reason)}" if trial.reason else "",
        _command(record, trial),
    ]
    return "\n\n".join(part for part in parts if part)


def shortened(markdown: str) -> str:
    """A report as a note: long tables cut, and no longer than it may be.

    Args:
        markdown: the report, without diagrams, which a note does not draw.
    """
    lines: list[str] = []
    rows = 0
    for line in markdown.split("\n"):
        if not line.startswith("|"):
            lines += [_cut_rows(rows), ""] if rows > MOST_ROWS + 2 else []
            rows = 0
            lines.append(line)
            continue
        rows += 1
        if rows <= MOST_ROWS + 2:  # heading and rule
            lines.append(line)
    short = "\n".join(lines)
    if len(short) <= MOST_CHARACTERS:
        return short
    return f"{short[:MOST_CHARACTERS].rpartition(chr(10))[0]}\n\n…\n"


def _cut_rows(rows: int) -> str:
    return f"\n*{rows - MOST_ROWS - 2:,} more rows are in `hpo report`.*"


def _verdict(record: StudyRecord, comparison: Comparison, trial: TrialRecord) -> str:
    """How a complete trial stands; nothing of others."""
    verdict = comparison.verdicts.get(trial.number)
    if verdict is None or (not record.is_ours and verdict.standing == "not_compared"):
        return ""
    best = comparison.winner is not None and trial.number == comparison.winner.number
    first = f"The best of {len(comparison.ranked):,} comparable trials. " if best else ""
    if verdict.percent is None:
        return first + _STANDINGS.get(verdict.standing, "")
    way = "better" if verdict.percent < 0 else "worse"
    difference = f"{percent(abs(verdict.percent))} % {way} than the baseline in val PPL"
    if verdict.standing == "not_distinguishable":
        return f"{first}Not distinguishable from the baseline by one run: {difference}."
    return f"{first}{difference[0].upper()}{difference[1:]}; one run, no verdict."


def _parameters(comparison: Comparison, trial: TrialRecord) -> str:
    """What the trial does otherwise than the baseline; all that was searched where there is none."""
    baseline = comparison.baseline
    if baseline is None or baseline.number == trial.number:
        shown: Sequence[str] = trial.searched
        rows = [(escape(name), _value(trial.parameters.get(name))) for name in shown]
        return _table(("Parameter", f"Trial {trial.number}"), rows)
    names = dict.fromkeys((*trial.searched, *baseline.parameters, *trial.parameters))
    different = [
        name for name in names if name not in _OWN and trial.parameters.get(name) != baseline.parameters.get(name)
    ]
    rows3 = [
        (escape(name), _value(trial.parameters.get(name)), _value(baseline.parameters.get(name))) for name in different
    ]
    if not rows3:
        return f"The same parameters as the baseline (trial {baseline.number})."
    return _table(("Parameter", f"Trial {trial.number}", f"Baseline (trial {baseline.number})"), rows3)


def _measured(trial: TrialRecord) -> str:
    """The figures of merit, in one row."""
    if not trial.is_ours:
        values = " and ".join(number(value) for value in trial.values)
        return f"Objective: {values}" if values else ""
    found = trial.measured
    cells = {
        "Val PPL": perplexity(found.val_ppl),
        "Word PPL": perplexity(found.val_word_ppl),
        "Bits/byte": bits_per_byte(found.val_bits_per_byte),
        "Train PPL": perplexity(found.train_ppl),
        "Val Φ": phi(found.phi),
        "Tokens read": count(found.tokens),
        "Time": duration(found.seconds),
    }
    if all(cell == MISSING for cell in cells.values()):
        return ""
    return _table(tuple(cells), [tuple(cells.values())])


def _curve(comparison: Comparison, trial: TrialRecord) -> str:
    """The way of the loss, on the scale of the trials that are compared."""
    compared = comparison.ranked or comparison.unranked or (trial,)
    values = [value for each in compared for value in each.curve if value is not None]
    if not any(value is not None for value in trial.curve):
        return ""
    shown = sparkline(trial.curve, min(values), max(values)) if values else sparkline(trial.curve, 0.0, 0.0)
    return f"Curve: {shown} ({len(trial.curve)} evaluations, on the scale of the trials that are compared)"


def _command(record: StudyRecord, trial: TrialRecord) -> str:
    """What to run with a complete trial of ours that is not too good to be true."""
    if not trial.can_train or trial.outcome != "complete" or trial.suspicious or not trial.feasible:
        return ""
    return f"The long run with it:\n\n```bash\n{train_command(record.name, trial.number)}\n```"


def _value(value: Scalar) -> str:
    if isinstance(value, str) and len(value) > LONGEST_VALUE:
        value = f"{value[: LONGEST_VALUE - 1]}…"
    return plain(value)


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A GitHub table of cells that are Markdown already."""
    if not rows:
        return ""
    lines = [headings, ["---"] * len(headings), *rows[:MOST_PARAMETERS]]
    more = f"\n\n*{len(rows) - MOST_PARAMETERS} more.*" if len(rows) > MOST_PARAMETERS else ""
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + more
