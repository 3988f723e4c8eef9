"""What the study has cost, and what pruning has saved."""

from __future__ import annotations

from collections.abc import Iterator

from hpo_reports.analysis.findings import Findings
from hpo_reports.analysis.totals import Totals
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.formats import count, fixed, hours, percent
from hpo_reports.document.layout import Section, bullets
from hpo_reports.document.markdown import Markdown

JOULES_PER_KWH = 3.6e6


def totals(findings: Findings, t: Catalogue) -> Section:
    """Trials, tokens, hours, continuations."""
    return Section(title=t("totals.title"), blocks=(bullets(_lines(findings.totals, t)),))


def outcomes_counted(sums: Totals, t: Catalogue) -> Markdown:
    """How many trials ended how."""
    return t.listed(t(f"outcomes.{outcome}", n=n) for outcome, n in sums.outcomes.items())


def _lines(sums: Totals, t: Catalogue) -> Iterator[Markdown]:
    yield t("totals.trials", trials=count(sums.trials), outcomes=outcomes_counted(sums, t))
    unknown = sums.trials_without_tokens if sums.tokens_spent is not None else 0
    without = t("totals.without_tokens", n=unknown) if unknown else ""
    yield Markdown(f"{t('totals.tokens', tokens=count(sums.tokens_spent))}{without}")
    share = "" if sums.saved_percent is None else t("totals.saved_share", p=percent(sums.saved_percent))
    yield Markdown(f"{t('totals.saved', tokens=count(sums.tokens_saved))}{share}")
    yield t("totals.time", time=hours(sums.training_s))
    if sums.energy_joules is not None:
        yield t("totals.energy", kwh=fixed(sums.energy_joules / JOULES_PER_KWH, 3))
    yield t(
        "totals.continued",
        trials=count(sums.continued_trials),
        all=count(sums.trials),
        n=sums.continuations,
    )
