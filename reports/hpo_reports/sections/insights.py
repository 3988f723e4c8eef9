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


def insights(findings: Findings, t: Catalogue) -> Section | None:
    """A part for each way of looking; nothing where there is nothing to compare."""
    found = findings.insights
    if found is None or not found.parameters:
        return None
    blocks: list[Block] = []
    if found.importance is not None:
        blocks += [_importance(found.importance, t), Chart(figure="importance")]
    elif len(findings.comparison.ranked) < MIN_TRIALS:
        blocks.append(t("insights.too_few", n=len(findings.comparison.ranked), least=MIN_TRIALS))
    else:
        blocks.append(t("insights.no_importance"))
    blocks += [bullets(_parameter(each, t) for each in found.parameters)]
    blocks += [Chart(figure=f"slice-{place}") for place, _ in enumerate(found.parameters, 1)]
    if found.contrasts:
        blocks += [t("insights.contrasts"), _contrasts(found.contrasts, t)]
    elif found.importance is None:
        blocks.append(t("insights.no_contrasts"))
    blocks.append(bullets([*_interactions(found, t), *_caveats(found, t)]))
    return Section(title=t("insights.title"), blocks=tuple(blocks))


def _importance(found: Importance, t: Catalogue) -> Markdown:
    labels = {
        "parameter": t("insights.parameter"),
        "share": t("insights.share"),
        "range": t("insights.range"),
    }
    rows = tuple(
        (name, _percent(each.value), t("projection.range", low=_percent(each.low), high=_percent(each.high)))
        for name, each in found.shares.items()
    )
    table = markdown_table(Table(tuple(labels), rows), labels)
    return Markdown(f"{table}\n\n{t('insights.evaluator', evaluator=found.evaluator, n=found.trials)}")


def _parameter(insight: Insight, t: Catalogue) -> Markdown:
    return Markdown(" ".join(_sentences(insight, t)))


def _sentences(insight: Insight, t: Catalogue) -> Iterator[Markdown]:
    trend = insight.trend
    if trend is None:
        yield t("insights.no_trend", name=insight.parameter, n=insight.trials)
    else:
        rho, low, high = (Markdown(f"{each:+.2f}") for each in (trend.rho, trend.low, trend.high))
        rises = "insights.worse" if (trend.rho > 0) == (insight.better_is == "lower") else "insights.better"
        key = rises if trend.is_clear else "insights.unclear"
        yield t(key, name=insight.parameter, n=insight.trials, rho=rho, low=low, high=high)
    if insight.best_trials and len(insight.best_values) == 2 and trend is not None:
        lowest, highest = insight.best_values
        yield t("insights.region", n=insight.best_trials, low=lowest, high=highest)
    elif insight.best_trials:
        yield t("insights.choices", n=insight.best_trials, values=t.listed(insight.best_values))
    if insight.groups:
        means = ((each, Markdown(fixed(each.mean, 4))) for each in insight.groups)
        shown = [t("insights.group", value=each.value, mean=mean, n=each.trials) for each, mean in means]
        yield t("insights.groups", groups=t.listed(shown))


def _contrasts(contrasts: tuple[Contrast, ...], t: Catalogue) -> Markdown:
    labels = {
        "parameter": t("insights.parameter"),
        "pair": t("insights.pair"),
        "change": t("insights.change"),
        "difference": t("insights.difference"),
        "ppl": t("insights.ppl"),
    }
    rows = tuple(
        (
            each.parameter,
            t("insights.of_to", first=each.trials[0], second=each.trials[1]),
            t("insights.of_to", first=each.values[0], second=each.values[1]),
            Markdown(f"{each.difference:+.3f}"),
            Markdown("–" if each.percent is None else f"{each.percent:+.1f} %"),
        )
        for each in contrasts
    )
    return markdown_table(Table(tuple(labels), rows), labels)


def _interactions(found: Insights, t: Catalogue) -> Iterator[Markdown]:
    for each in found.interactions:
        first, second = each.parameters
        rho, p = Markdown(f"{each.rho:+.2f}"), number(each.p)
        yield t("insights.interaction", first=first, second=second, rho=rho, p=p)
    if found.pairs_tested and not found.interactions:
        yield t("insights.no_interaction", n=found.pairs_tested)


def _caveats(found: Insights, t: Catalogue) -> Iterator[Markdown]:
    if found.pruned:
        yield t("insights.pruned", n=found.pruned)
    yield t("insights.caveat")


def _percent(share: float) -> Markdown:
    return Markdown(f"{100 * share:.0f} %")
