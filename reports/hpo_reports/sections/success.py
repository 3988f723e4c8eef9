"""Success metrics: the baseline before, the winner after, and how sure the difference is."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hpo_reports.analysis.findings import Findings
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.formats import bits_per_byte, count, duration, fixed, perplexity, phi
from hpo_reports.document.layout import Section
from hpo_reports.document.markdown import Markdown, markdown_table
from hpo_reports.document.tables import Table
from hpo_reports.records.study import TrialRecord
from hpo_reports.sections.phrases import describe_candidate, describe_percent_change, describe_verdict

Shown = Callable[[float | None], str]

METRICS: Mapping[str, tuple[Callable[[TrialRecord], float | None], Shown]] = {
    "val_loss": (lambda trial: trial.values[0], lambda value: fixed(value, 4)),
    "val_ppl": (lambda trial: trial.measured.val_ppl, perplexity),
    "val_word_ppl": (lambda trial: trial.measured.val_word_ppl, perplexity),
    "val_bits_per_byte": (lambda trial: trial.measured.val_bits_per_byte, bits_per_byte),
    "train_ppl": (lambda trial: trial.measured.train_ppl, perplexity),
    "phi": (lambda trial: trial.measured.phi, phi),
    "delta_phi_loss": (lambda trial: trial.measured.delta_phi_loss, phi),
    "tokens_per_s": (lambda trial: trial.measured.tokens_per_s, count),
    "seconds": (lambda trial: trial.measured.seconds, duration),
}


def success(findings: Findings, t: Catalogue) -> Section | None:
    """Baseline against winner; none of several objectives or without runs of ours."""
    if not findings.single or not findings.record.is_ours:
        return None
    return Section(title=t("success.title"), blocks=_blocks(findings, t))


def _blocks(findings: Findings, t: Catalogue) -> tuple[Markdown, ...]:
    best, baseline = findings.chosen, findings.comparison.baseline
    if best is None or baseline is None or baseline not in findings.comparison.ranked:
        return (t("success.nothing"),)
    if best is baseline:
        return (t("success.baseline_won", number=baseline.number),)
    introduction = t("success.introduction", before=baseline.number, after=best.number)
    verdict = t("success.verdict", verdict=_worth(findings, best, t))
    return (introduction, _table(findings, baseline, best, t), verdict)


def _worth(findings: Findings, best: TrialRecord, t: Catalogue) -> Markdown:
    """The verdict with the most evidence that there is."""
    if findings.final_winner is not None:
        return describe_candidate(findings.final_winner, t)
    return describe_verdict(findings.comparison.verdicts[best.number], t)


def _table(findings: Findings, before: TrialRecord, after: TrialRecord, t: Catalogue) -> Markdown:
    single = [
        (t(f"metric.{name}"), *_cells(value(before), value(after), shown)) for name, (value, shown) in METRICS.items()
    ]
    rows = (*_fresh(findings, before, after, t), *single)
    labels = {
        "metric": t("success.metric"),
        "before": t("success.before"),
        "after": t("success.after"),
        "change": t("success.change"),
    }
    return markdown_table(Table(tuple(labels), rows), labels)


def _cells(before: float | None, after: float | None, shown: Shown) -> tuple[Markdown, Markdown, Markdown]:
    return Markdown(shown(before)), Markdown(shown(after)), describe_percent_change(before, after)


def _fresh(findings: Findings, before: TrialRecord, after: TrialRecord, t: Catalogue) -> list[tuple[Markdown, ...]]:
    """The means under fresh seeds, where both have them."""
    judged = [None if findings.judgement is None else findings.judgement.of(trial.number) for trial in (before, after)]
    means = [each.mean_val_ppl for each in judged if each is not None]
    if len(means) < len(judged):
        return []
    return [(t("success.fresh_ppl"), *_cells(means[0], means[1], perplexity))]
