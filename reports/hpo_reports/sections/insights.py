"""What the study tells of each hyperparameter: importance, trend, best region, pairs of trials, interactions."""

from __future__ import annotations

from collections.abc import Iterator

from hpo_reports.analysis.findings import Findings
from hpo_reports.analysis.importance import MIN_TRIALS, Importance
from hpo_reports.analysis.insights import Contrast, Insight, Insights
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.formats import fixed, number
from hpo_reports.document.layout import Block, Chart, Section, bullets
from hpo_reports.document.markdown import Markdown, markdown_table
from hpo_reports.document.tables import Table


def insights(findings: Findings, say: Catalogue) -> Section | None:
    """A part for each way of looking; nothing where there is nothing to compare."""
    found = findings.insights
    if found is None or not found.parameters:
        return None
    blocks: list[Block] = []
    if found.importance is not None:
        blocks += [_importance(found.importance, say), Chart(figure="importance")]
    elif len(findings.comparison.ranked) < MIN_TRIALS:
        blocks.append(say("insights.too_few", n=len(findings.comparison.ranked), least=MIN_TRIALS))
    else:
        blocks.append(say("insights.no_importance"))
    blocks += [bullets(_parameter(each, say) for each in found.parameters)]
    blocks += [Chart(figure=f"slice-{place}") for place, _ in enumerate(found.parameters, 1)]
    if found.contrasts:
        blocks += [say("insights.contrasts"), _contrasts(found.contrasts, say)]
    elif found.importance is None:
        blocks.append(say("insights.no_contrasts"))
    blocks.append(bullets([*_interactions(found, say), *_caveats(found, say)]))
    return Section(title=say("insights.title"), blocks=tuple(blocks))


def _importance(found: Importance, say: Catalogue) -> Markdown:
    labels = {
        "parameter": say("insights.parameter"),
        "share": say("insights.share"),
        "range": say("insights.range"),
    }
    rows = tuple(
        (name, _percent(each.value), say("projection.range", low=_percent(each.low), high=_percent(each.high)))
        for name, each in found.shares.items()
    )
    table = markdown_table(Table(tuple(labels), rows), labels)
    return Markdown(f"{table}\n\n{say('insights.evaluator', evaluator=found.evaluator, n=found.trials)}")


def _parameter(insight: Insight, say: Catalogue) -> Markdown:
    return Markdown(" ".join(_sentences(insight, say)))


def _sentences(insight: Insight, say: Catalogue) -> Iterator[Markdown]:
    trend = insight.trend
    if trend is None:
        yield say("insights.no_trend", name=insight.parameter, n=insight.trials)
    else:
        rho, low, high = (Markdown(f"{each:+.2f}") for each in (trend.rho, trend.low, trend.high))
        rises = "insights.worse" if (trend.rho > 0) == (insight.better_is == "lower") else "insights.better"
        key = rises if trend.is_clear else "insights.unclear"
        yield say(key, name=insight.parameter, n=insight.trials, rho=rho, low=low, high=high)
    if insight.best_trials and len(insight.best_values) == 2 and trend is not None:
        lowest, highest = insight.best_values
        yield say("insights.region", n=insight.best_trials, low=lowest, high=highest)
    elif insight.best_trials:
        yield say("insights.choices", n=insight.best_trials, values=say.listed(insight.best_values))
    if insight.groups:
        means = ((each, Markdown(fixed(each.mean, 4))) for each in insight.groups)
        shown = [say("insights.group", value=each.value, mean=mean, n=each.trials) for each, mean in means]
        yield say("insights.groups", groups=say.listed(shown))


def _contrasts(contrasts: tuple[Contrast, ...], say: Catalogue) -> Markdown:
    labels = {
        "parameter": say("insights.parameter"),
        "pair": say("insights.pair"),
        "change": say("insights.change"),
        "difference": say("insights.difference"),
        "ppl": say("insights.ppl"),
    }
    rows = tuple(
        (
            each.parameter,
            say("insights.of_to", first=each.trials[0], second=each.trials[1]),
            say("insights.of_to", first=each.values[0], second=each.values[1]),
            Markdown(f"{each.difference:+.3f}"),
            Markdown("–" if each.percent is None else f"{each.percent:+.1f} %"),
        )
        for each in contrasts
    )
    return markdown_table(Table(tuple(labels), rows), labels)


def _interactions(found: Insights, say: Catalogue) -> Iterator[Markdown]:
    for each in found.interactions:
        first, second = each.parameters
        rho, p = Markdown(f"{each.rho:+.2f}"), number(each.p)
        yield say("insights.interaction", first=first, second=second, rho=rho, p=p)
    if found.pairs_tested and not found.interactions:
        yield say("insights.no_interaction", n=found.pairs_tested)


def _caveats(found: Insights, say: Catalogue) -> Iterator[Markdown]:
    if found.pruned:
        yield say("insights.pruned", n=found.pruned)
    yield say("insights.caveat")


def _percent(share: float) -> Markdown:
    return Markdown(f"{100 * share:.0f} %")
