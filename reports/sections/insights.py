"""Insights per hyperparameter: trend, best region, and pairs of runs that differ in it alone."""

from __future__ import annotations

from collections.abc import Iterator

from reports.catalogue import Catalogue
from reports.findings import Findings
from reports.formats import number
from reports.layout import Block, Chart, Section, bullets
from reports.markdown import Markdown
from reports.sections.words import difference, parameter_name
from reports.trends import Contrast, ParameterTrend, Trend, trends
from reports.verdicts import percent_above


def insights(findings: Findings, say: Catalogue) -> Section | None:
    """What the compared trials say of each searched parameter; none of several objectives."""
    ranked = findings.comparison.ranked
    found = trends(ranked) if findings.single and len(ranked) > 1 else ()
    if not found:
        return None
    blocks: list[Block] = [say("insights.caution", n=len(ranked))]
    for place, each in enumerate(found, 1):
        blocks.append(Markdown(f"### {parameter_name(each.name, say)}"))
        blocks.append(bullets(_lines(findings, each, say)))
        blocks.append(Chart(figure=f"slice-{place}"))
    return Section(title=say("insights.title"), blocks=(*blocks, Chart(figure="importance")))


def _lines(findings: Findings, each: ParameterTrend, say: Catalogue) -> Iterator[Markdown]:
    yield say("insights.no_trend") if each.trend is None else _trend(findings, each.trend, say)
    yield _region(findings, each, say)
    for contrast in each.contrasts:
        yield _contrast(each.name, contrast, say)
    if not each.contrasts:
        yield say("insights.no_contrast")


def _trend(findings: Findings, trend: Trend, say: Catalogue) -> Markdown:
    facts = {"rho": _signed(trend.rho), "low": _signed(trend.low), "high": _signed(trend.high)}
    text = say("insights.trend", n=trend.trials, **facts)
    if not trend.is_clear:
        return Markdown(f"{text} {say('insights.unclear')}")
    better = (trend.rho < 0) != (findings.record.directions[0] == "maximize")
    return Markdown(f"{text} {say('insights.larger_better' if better else 'insights.larger_worse')}")


def _region(findings: Findings, each: ParameterTrend, say: Catalogue) -> Markdown:
    """Where the best third lies, beside what was searched."""
    searched = next((one for one in findings.record.search if one.name == each.name), None)
    values = list(dict.fromkeys(each.best))
    is_range = len(values) > 1 and all(type(value) in (int, float) for value in values)
    best = say("insights.between", low=values[0], high=values[-1]) if is_range else say.listed(values, "or")
    if searched is None or searched.low is None:
        return say("insights.best", best=best, n=len(each.best), all=each.trials)
    return say("insights.best_of", best=best, n=len(each.best), all=each.trials, low=searched.low, high=searched.high)


def _contrast(name: str, contrast: Contrast, say: Catalogue) -> Markdown:
    before, after = contrast.before, contrast.after
    p = percent_above(after, before)
    facts = {
        "before": before.parameters.get(name),
        "after": after.parameters.get(name),
        "first": before.number,
        "second": after.number,
        "nats": _signed(contrast.difference),
    }
    if p is None:
        return say("insights.contrast", **facts)
    return say("insights.contrast_ppl", **facts, difference=difference(p, say))


def _signed(value: float) -> Markdown:
    return Markdown(f"{'−' if value < 0 else '+'}{number(round(abs(value), 3))}")
