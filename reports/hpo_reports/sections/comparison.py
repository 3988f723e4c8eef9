"""The table of the log: every complete trial with its verdict, and how to read it; then the trials that ended early."""

from __future__ import annotations

from collections.abc import Iterator

from hpo_reports.analysis.findings import Findings
from hpo_reports.analysis.verdicts import TrialComparison
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.formats import count, percent
from hpo_reports.document.layout import Section, bullets
from hpo_reports.document.markdown import Markdown, markdown_table
from hpo_reports.document.tables import Table, comparison_table, incomplete_table, incomplete_trials
from hpo_reports.sections.head import distinct
from hpo_reports.sections.phrases import column_headings, describe_verdict

MAX_ROWS = 100  # of a table; people read no more, and JSON and CSV have all


def comparison(findings: Findings, t: Catalogue) -> Section:
    """The complete trials, best first."""
    title = t("comparison.title")
    if not findings.comparison.verdicts:
        return Section(title=title, blocks=(t("comparison.none_complete"),))
    table = comparison_table(
        findings.record, findings.comparison, lambda verdict: describe_verdict(verdict, t), MAX_ROWS
    )
    blocks = [drawn(table, findings, t)]
    if len(findings.comparison.verdicts) > MAX_ROWS:
        blocks.append(t("comparison.shortened", n=len(findings.comparison.verdicts), rows=MAX_ROWS))
    blocks.append(_reading(findings, t))
    return Section(title=title, blocks=tuple(blocks))


def incomplete(findings: Findings, t: Catalogue) -> Section | None:
    """The trials that were pruned, failed or go on."""
    table, begun = incomplete_table(findings.record, MAX_ROWS), len(incomplete_trials(findings.record))
    if not begun:
        return None
    blocks = [drawn(table, findings, t)]
    if begun > MAX_ROWS:
        blocks.append(t("incomplete.shortened", n=begun, rows=MAX_ROWS))
    if findings.record.is_ours:
        blocks.append(t("incomplete.reading"))
    return Section(title=t("incomplete.title"), blocks=tuple(blocks))


def drawn(table: Table, findings: Findings, t: Catalogue) -> Markdown:
    """A table of trials, the winner's number in bold, curves on one scale."""
    winner = findings.comparison.winner
    return markdown_table(
        table,
        column_headings(table, t),
        bold=None if winner is None else winner.number,
        scale=curve_scale(findings.comparison),
        formats={"outcome": lambda outcome: t(f"outcome.{outcome}")},
    )


def curve_scale(comparison: TrialComparison) -> tuple[float, float]:
    """The lowest and the highest value on the way of the trials that are compared; others are cut off there."""
    trials = comparison.ranked or comparison.unranked
    values = [value for trial in trials for value in trial.curve if value is not None]
    return (min(values), max(values)) if values else (0.0, 0.0)


def _reading(findings: Findings, t: Catalogue) -> Markdown:
    if findings.record.log is not None:
        return bullets([*_of_a_table(findings, t), *_of_verdicts(findings, t)])
    if findings.record.is_ours:
        return bullets([*_of_runs(findings, t), *_of_verdicts(findings, t), *_of_batches(findings, t)])
    if findings.single:
        return t("comparison.no_runs")
    return t("comparison.no_ranking", n=len(findings.record.directions))


def _of_runs(findings: Findings, t: Catalogue) -> Iterator[Markdown]:
    if findings.comparison.winner:
        yield t("comparison.bold")
    yield t("comparison.perplexities")
    yield t("comparison.train_ppl")
    yield t("comparison.phi")
    if findings.single:
        budget = findings.comparison.budget_tokens
        yield t("comparison.verdicts", tokens=Markdown("" if budget is None else f" ({count(budget)})"))
        yield _limit(findings, t)


def _of_a_table(findings: Findings, t: Catalogue) -> Iterator[Markdown]:
    """What past experiments measured, their table says; how, it does not."""
    yield t("log.columns")
    if findings.comparison.ranked:
        yield t("log.verdicts")
        yield _limit(findings, t)


def _limit(findings: Findings, t: Catalogue) -> Markdown:
    """Under which difference single runs are not distinguishable, and where that comes from."""
    limit, noise = percent(findings.comparison.min_detectable_percent), findings.measured_noise
    if noise is None:
        return t("comparison.limit_assumed", limit=limit, noise=percent(findings.noise_percent))
    return t("comparison.limit_measured", limit=limit, noise=percent(noise.percent), n=noise.candidates)


def _of_verdicts(findings: Findings, t: Catalogue) -> Iterator[Markdown]:
    """Why there is no verdict, where there is none."""
    baseline, verdicts = findings.comparison.baseline, findings.comparison.verdicts
    if not findings.single:
        yield t("comparison.no_ranking", n=len(findings.record.directions))
        if baseline is not None:
            yield t("comparison.baseline_is", number=baseline.number)
        yield t("comparison.dominated")
    elif baseline is None:
        yield t("comparison.no_baseline")
    elif baseline.number not in verdicts:
        outcome = t(f"outcome.{baseline.outcome}")
        yield t("comparison.baseline_incomplete", number=baseline.number, outcome=outcome)
    elif verdicts[baseline.number].standing != "baseline":
        yield t("comparison.baseline_unusable", number=baseline.number)


def _of_batches(findings: Findings, t: Catalogue) -> Iterator[Markdown]:
    """Equal tokens in other batches are other numbers of updates."""
    trials = findings.comparison.ranked
    sizes = distinct(trials, "batch_size")
    steps = [trial.measured.step for trial in trials if trial.measured.step is not None]
    if len(sizes) > 1 and steps:
        updates = t("comparison.updates", low=count(min(steps)), high=count(max(steps)))
        yield t("comparison.batches", sizes=t.listed(sizes), updates=updates)
    elif len(sizes) > 1:
        yield t("comparison.batches", sizes=t.listed(sizes), updates=Markdown(""))
