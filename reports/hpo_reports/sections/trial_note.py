"""One trial in a few lines of Markdown, and a long report cut to what a note can hold."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from hpo_reports.analysis.verdicts import TrialComparison
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.commands import train_command
from hpo_reports.document.formats import number, sparkline
from hpo_reports.document.layout import fenced
from hpo_reports.document.markdown import Markdown, markdown_table
from hpo_reports.document.tables import Row, Table
from hpo_reports.records.attributes import Scalar
from hpo_reports.records.study import StudyRecord, TrialRecord
from hpo_reports.sections.phrases import column_headings, describe_difference

MAX_VALUE = 80  # characters of a parameter's value
MAX_PARAMETERS = 30  # in one table
MAX_ROWS = 100  # of a table in a note
MAX_CHARACTERS = 60_000  # of a note; a browser draws as many without a pause
_OWN = ("budget_tokens", "seed")  # parameters that name what was spent, not what was tried
_MEASURED = ("val_ppl", "val_word_ppl", "val_bits_per_byte", "train_ppl", "phi", "tokens", "seconds")


def trial_note(record: StudyRecord, comparison: TrialComparison, trial: TrialRecord, t: Catalogue) -> str:
    """Write what a trial tried, what came of it, how it stands, why it ended, and what to run with it.

    Args:
        record: the trial's study.
        comparison: of the study's complete trials.
        trial: one of them, complete or not.
        t: the messages of the reader's language.
    """
    heading = t("note.trial", number=trial.number, outcome=t(f"outcome.{trial.outcome}"))
    parts = [
        " ".join((heading, *_verdict(record, comparison, trial, t))),
        _parameters(comparison, trial, t),
        _measured(trial, t),
        _curve(comparison, trial, t),
        t("note.ended", reason=trial.reason) if trial.reason else "",
        _command(record, trial, t),
    ]
    return "\n\n".join(part for part in parts if part)


def study_note(report: str, t: Catalogue) -> str:
    """A report as the study's note: shortened, with a line on when it is rewritten.

    Args:
        report: as Markdown, without diagrams.
        t: the messages of the reader's language.
    """
    return f"{shortened(report, t).rstrip()}\n\n{t('note.footer')}"


def shortened(markdown: str, t: Catalogue) -> str:
    """A report as a note: long tables cut, and no longer than it may be.

    Args:
        markdown: the report, without diagrams, which a note does not draw.
        t: the messages of the reader's language.
    """
    lines: list[str] = []
    rows = 0
    for line in markdown.split("\n"):
        if not line.startswith("|"):
            if rows > MAX_ROWS + 2:
                lines += ["", t("note.more_rows", n=rows - MAX_ROWS - 2), ""]
            rows = 0
            lines.append(line)
            continue
        rows += 1
        if rows <= MAX_ROWS + 2:  # heading and rule
            lines.append(line)
    short = "\n".join(lines)
    if len(short) <= MAX_CHARACTERS:
        return short
    return f"{short[:MAX_CHARACTERS].rpartition(chr(10))[0]}\n\n…\n"


def _verdict(record: StudyRecord, comparison: TrialComparison, trial: TrialRecord, t: Catalogue) -> Iterator[Markdown]:
    """How a complete trial stands; nothing of others."""
    verdict = comparison.verdicts.get(trial.number)
    if verdict is None or (not record.is_ours and verdict.standing == "not_compared"):
        return
    if comparison.winner is not None and trial.number == comparison.winner.number:
        yield t("note.best", n=len(comparison.ranked))
    if verdict.percent is None:
        yield t(f"remark.{verdict.standing}")
    elif verdict.standing == "not_distinguishable":
        yield t("note.not_distinguishable", difference=describe_difference(verdict.percent, t))
    else:
        yield t("note.one_run", difference=describe_difference(verdict.percent, t))


def _parameters(comparison: TrialComparison, trial: TrialRecord, t: Catalogue) -> str:
    """What the trial does otherwise than the baseline; all that was searched where there is none."""
    baseline = comparison.baseline
    labels = {"parameter": t("insights.parameter"), "trial": t("note.column", number=trial.number)}
    if baseline is None or baseline.number == trial.number:
        rows = [(name, _value(trial.parameters.get(name))) for name in trial.searched]
        return _shortened_table(labels, rows, t)
    labels["baseline"] = t("note.baseline_column", number=baseline.number)
    names = dict.fromkeys((*trial.searched, *baseline.parameters, *trial.parameters))
    pairs = {name: (trial.parameters.get(name), baseline.parameters.get(name)) for name in names if name not in _OWN}
    different = [(name, _value(own), _value(other)) for name, (own, other) in pairs.items() if own != other]
    return _shortened_table(labels, different, t) or t("note.same", number=baseline.number)


def _shortened_table(labels: Mapping[str, str], rows: Sequence[Row], t: Catalogue) -> str:
    """The first rows, and how many more there are; nothing where there are none."""
    if not rows:
        return ""
    table = markdown_table(Table(tuple(labels), tuple(rows[:MAX_PARAMETERS])), labels)
    more = len(rows) - MAX_PARAMETERS
    return f"{table}\n\n{t('note.more', n=more)}" if more > 0 else table


def _measured(trial: TrialRecord, t: Catalogue) -> str:
    """The figures of merit, in one row."""
    if not trial.is_ours:
        values = [number(value) for value in trial.values]
        return t("note.objective", values=t.listed(values, "and")) if values else ""
    row = tuple(getattr(trial.measured, name) for name in _MEASURED)
    if all(value is None for value in row):
        return ""
    table = Table(_MEASURED, (row,))
    return markdown_table(table, column_headings(table, t))


def _curve(comparison: TrialComparison, trial: TrialRecord, t: Catalogue) -> str:
    """The way of the loss, on the scale of the trials that are compared."""
    compared = comparison.ranked or comparison.unranked or (trial,)
    values = [value for each in compared for value in each.curve if value is not None]
    if not any(value is not None for value in trial.curve):
        return ""
    shown = sparkline(trial.curve, min(values), max(values)) if values else sparkline(trial.curve, 0.0, 0.0)
    return t("note.curve", curve=shown, n=len(trial.curve))


def _command(record: StudyRecord, trial: TrialRecord, t: Catalogue) -> str:
    """What to run with a complete trial of ours, unless its perplexity is implausibly low."""
    if not trial.can_train or trial.outcome != "complete" or trial.suspicious or not trial.feasible:
        return ""
    return f"{t('note.command')}\n\n{fenced('bash', train_command(record.name, trial.number))}"


def _value(value: Scalar) -> Scalar:
    return f"{value[: MAX_VALUE - 1]}…" if isinstance(value, str) and len(value) > MAX_VALUE else value
