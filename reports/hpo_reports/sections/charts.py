"""Charts that GitHub draws: Mermaid in Markdown, with the text of the catalogue alone in their labels.

Mermaid's xychart knows neither exponents nor gaps nor a legend: numbers are written out, what is too large for that has
no chart, and the order of the lines is told beside it.
Source: https://mermaid.js.org/syntax/xyChart.html and https://mermaid.js.org/syntax/pie.html
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from hpo_reports.analysis.findings import Findings
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.layout import Block, Chart, Section
from hpo_reports.records.study import TrialRecord

MAX_POINTS = 50  # of a line
COLORS = {"blue": "#1f77b4", "orange": "#ff7f0e", "green": "#2ca02c", "red": "#d62728"}  # of lines, in order
MAX_LINES = len(COLORS)
LARGEST = 1e9  # that is drawn


def charts(findings: Findings, t: Catalogue) -> Section:
    """The best so far, the curves of the best, and how trials ended."""
    blocks: list[Block] = [*_history(findings, t), *_curves(findings, t), *_outcomes(findings, t)]
    several = [Chart(figure=f"history-{place}") for place, _ in enumerate(findings.record.directions, 1)]
    return Section(title=t("charts.title"), blocks=(*blocks, *several, Chart(figure="phi")))


def _history(findings: Findings, t: Catalogue) -> list[Block]:
    """The best value so far, by trial."""
    ranked = sorted(findings.comparison.ranked, key=lambda trial: trial.number)
    values = _best_so_far(ranked, findings.record.directions[0] == "maximize")
    if len(values) < 2:
        return []
    title = t("charts.history", value=_value_name(findings, t))
    mermaid = _xychart(title, (t("charts.trial"), ranked[0].number, ranked[-1].number), [values])
    return [Chart(figure="history", mermaid=mermaid)] if mermaid else []


def _best_so_far(ranked: Sequence[TrialRecord], maximize: bool) -> list[float]:
    """One value per trial number from the first ranked trial to the last; between them it stays."""
    values: list[float] = []
    for trial in ranked:
        value = trial.values[0]
        assert value is not None, "ranked trials have a finite value"
        if values:
            values += [values[-1]] * (trial.number - ranked[0].number - len(values))
            value = max(value, values[-1]) if maximize else min(value, values[-1])
        values.append(value)
    return values


def _curves(findings: Findings, t: Catalogue) -> list[Block]:
    """Validation loss by evaluation of the best few, and of the baseline."""
    trials = _drawn_trials(findings)
    if not trials:
        return []
    lines = [[value for value in trial.curve if value is not None] for trial in trials]
    title = t("charts.curves", value=_value_name(findings, t))
    mermaid = _xychart(title, (t("charts.evaluation"), 1, len(lines[0])), lines)
    if mermaid is None:
        return []
    lines_named = [
        t("charts.line", color=t(f"color.{color}"), number=trial.number)
        for color, trial in zip(COLORS, trials, strict=False)
    ]
    caption = t("charts.lines", lines=t.listed(lines_named))
    return [Chart(figure="curves", mermaid=mermaid, caption=caption)]


def _drawn_trials(findings: Findings) -> list[TrialRecord]:
    """The best and the baseline, as far as their curves are whole and equally long."""
    comparison = findings.comparison
    best = list((comparison.ranked or comparison.front)[: MAX_LINES - 1])
    if comparison.baseline is not None and comparison.baseline not in best:
        best.append(comparison.baseline)
    whole = [trial for trial in best if len(trial.curve) > 1 and None not in trial.curve]
    return [trial for trial in whole if len(trial.curve) == len(whole[0].curve)]


def _outcomes(findings: Findings, t: Catalogue) -> list[Block]:
    counts = findings.totals.outcomes
    if len(counts) < 2:
        return []
    title = t("charts.outcomes")
    slices = [f'    "{t(f"outcome.{outcome}")}" : {n}' for outcome, n in counts.items()]
    return [Chart(figure="outcomes", mermaid="\n".join([f"pie showData title {title}", *slices]))]


def _value_name(findings: Findings, t: Catalogue) -> str:
    return t("charts.loss") if findings.record.is_ours else t("charts.objective")


def _xychart(title: str, x_axis: tuple[str, int, int], lines: Sequence[Sequence[float]]) -> str | None:
    """Lines over evenly spaced places; None where a number cannot be written."""
    values = [value for line in lines for value in line]
    if not all(math.isfinite(value) and abs(value) < LARGEST for value in values):
        return None
    low, high = min(values), max(values)
    margin = (high - low) * 0.05 or max(abs(high) * 0.05, 0.05)
    name, first, last = x_axis
    return "\n".join(
        [
            _PALETTE,
            "xychart-beta",
            f'    title "{title}"',
            f'    x-axis "{name}" {first} --> {last}',
            f"    y-axis {low - margin:.4f} --> {high + margin:.4f}",
            *(f"    line [{', '.join(f'{value:.4f}' for value in _thinned(line))}]" for line in lines),
        ]
    )


def _thinned(values: Sequence[float]) -> list[float]:
    """Evenly spaced values, the first and the last among them."""
    if len(values) <= MAX_POINTS:
        return list(values)
    step = (len(values) - 1) / (MAX_POINTS - 1)
    return [values[round(place * step)] for place in range(MAX_POINTS)]


_PALETTE = '%%{init: {"themeVariables": {"xyChart": {"plotColorPalette": "' + ", ".join(COLORS.values()) + '"}}}}%%'
