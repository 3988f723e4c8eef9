"""The projection for the epochs of the log, with its ranges and its own past coverage; or why there is none."""

from __future__ import annotations

from collections.abc import Iterator

from hpo_reports.analysis.findings import Findings
from hpo_reports.analysis.outlook import NoOutlook, ProjectedEpoch, TrialOutlook
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.formats import MISSING, epochs, percent, perplexity
from hpo_reports.document.layout import Section, bullets
from hpo_reports.document.markdown import Markdown, markdown_table
from hpo_reports.document.tables import Table
from hpo_reports.projection.horizon import LONG_RUN_EPOCHS


def projection(findings: Findings, t: Catalogue) -> Section | None:
    """What the long run may reach."""
    outlook = findings.outlook
    if outlook is None:
        return None
    if isinstance(outlook, NoOutlook):
        return Section(title=t("projection.title"), blocks=(_refusal(findings, outlook, t),))
    return Section(title=t("projection.title"), blocks=(_table(outlook, t), bullets(_lines(outlook, t))))


def _refusal(findings: Findings, refused: NoOutlook, t: Catalogue) -> Markdown:
    trial = next(trial for trial in findings.record.trials if trial.number == refused.trial)
    return t(
        f"refusal.{refused.reason}", number=trial.number, epochs=epochs(trial.measured.epoch), horizon=LONG_RUN_EPOCHS
    )


def _table(outlook: TrialOutlook, t: Catalogue) -> Markdown:
    labels = {
        "epoch": t("projection.epoch"),
        "observed": t("projection.observed"),
        "median": t("projection.median"),
        "range_80": t("projection.range_80"),
        "range_90": t("projection.range_90"),
        "past_best": t("projection.past_best"),
    }
    rows = tuple(_row(each, t) for each in outlook.epochs)
    return markdown_table(Table(tuple(labels), rows), labels)


def _row(each: ProjectedEpoch, t: Catalogue) -> tuple[float | str, ...]:
    return (
        each.epoch,
        Markdown(perplexity(each.observed_ppl)),
        Markdown(perplexity(each.median_ppl)),
        _range(each.low_80_ppl, each.high_80_ppl, t),
        _range(each.low_90_ppl, each.high_90_ppl, t),
        Markdown(MISSING if each.past_best is None else f"{100 * each.past_best:.0f} %"),
    )


def _range(low: float | None, high: float | None, t: Catalogue) -> Markdown:
    if low is None or high is None:
        return Markdown(MISSING)
    return t("projection.range", low=perplexity(low), high=perplexity(high))


def _lines(outlook: TrialOutlook, t: Catalogue) -> Iterator[Markdown]:
    best = outlook.best
    if best is not None:
        ends = _range(best.low_90_ppl, best.high_90_ppl, t)
        yield t("projection.best", epoch=best.epoch, median=perplexity(best.median_ppl), range=ends)
    if outlook.target_ppl is not None and outlook.below_target is not None:
        probability = percent(100 * outlook.below_target)
        yield t("projection.target", target=perplexity(outlook.target_ppl), p=probability)
    yield t("projection.sources", n=outlook.references, siblings=outlook.siblings)
    if outlook.scored:
        yield t("projection.coverage", n=outlook.scored, covered=outlook.covered)
    else:
        yield t("projection.unscored")
