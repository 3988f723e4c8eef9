"""Success metrics: the baseline before, the winner after, and what the difference is worth."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from hpo_reports.analysis.findings import Findings
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.formats import bits_per_byte, count, duration, fixed, perplexity, phi
from hpo_reports.document.layout import Section
from hpo_reports.document.markdown import Markdown, markdown_table
from hpo_reports.document.tables import Table
from hpo_reports.records.study import TrialRecord
from hpo_reports.sections.words import candidate_verdict, percent_change, verdict_text

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


def success(findings: Findings, say: Catalogue) -> Section | None:
    """Baseline against winner; none of several objectives or without runs of ours."""
    if not findings.single or not findings.record.is_ours:
        return None
    return Section(title=say("success.title"), blocks=_blocks(findings, say))


def _blocks(findings: Findings, say: Catalogue) -> tuple[Markdown, ...]:
    best, baseline = findings.chosen, findings.comparison.baseline
    if best is None or baseline is None or baseline not in findings.comparison.ranked:
        return (say("success.nothing"),)
    if best is baseline:
        return (say("success.baseline_won", number=baseline.number),)
    introduction = say("success.introduction", before=baseline.number, after=best.number)
    verdict = say("success.verdict", verdict=_worth(findings, best, say))
    return (introduction, _table(findings, baseline, best, say), verdict)


def _worth(findings: Findings, best: TrialRecord, say: Catalogue) -> Markdown:
    """The verdict with the most evidence that there is."""
    if findings.final_winner is not None:
        return candidate_verdict(findings.final_winner, say)
    return verdict_text(findings.comparison.verdicts[best.number], say)


def _table(findings: Findings, before: TrialRecord, after: TrialRecord, say: Catalogue) -> Markdown:
    single = [
        (say(f"metric.{name}"), *_cells(value(before), value(after), shown)) for name, (value, shown) in METRICS.items()
    ]
    rows = (*_fresh(findings, before, after, say), *single)
    labels = {
        "metric": say("success.metric"),
        "before": say("success.before"),
        "after": say("success.after"),
        "change": say("success.change"),
    }
    return markdown_table(Table(tuple(labels), rows), labels)


def _cells(before: float | None, after: float | None, shown: Shown) -> tuple[Markdown, Markdown, Markdown]:
    return Markdown(shown(before)), Markdown(shown(after)), percent_change(before, after)


def _fresh(findings: Findings, before: TrialRecord, after: TrialRecord, say: Catalogue) -> list[tuple[Markdown, ...]]:
    """The means under fresh seeds, where both have them."""
    judged = [None if findings.judgement is None else findings.judgement.of(trial.number) for trial in (before, after)]
    means = [each.mean_val_ppl for each in judged if each is not None]
    if len(means) < len(judged):
        return []
    return [(say("success.fresh_ppl"), *_cells(means[0], means[1], perplexity))]
