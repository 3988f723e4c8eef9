"""Lessons that follow from numbers of the study, and from nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from hpo_reports.analysis.findings import Findings
from hpo_reports.analysis.statistics import percent_of
from hpo_reports.analysis.verdicts import SEED_NOISE_PERCENT, expected_optimism_percent
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.formats import count, duration, percent
from hpo_reports.document.layout import Section, bullets
from hpo_reports.document.markdown import Markdown
from hpo_reports.records.study import TrialRecord
from hpo_reports.sections.phrases import describe_difference
from hpo_reports.sections.winner import contenders


def lessons(findings: Findings, t: Catalogue) -> Section | None:
    """What this study teaches; none where it holds no runs of ours."""
    lines = list(_lines(findings, t)) if findings.record.is_ours else []
    return Section(title=t("lessons.title"), blocks=(bullets(lines),)) if lines else None


def discoveries(findings: Findings, t: Catalogue) -> Section | None:
    """The same under the session's heading."""
    found = lessons(findings, t)
    return None if found is None else Section(title=t("lessons.discoveries"), blocks=found.blocks)


def _lines(findings: Findings, t: Catalogue) -> Iterator[Markdown]:
    yield from _pruning(findings, t)
    if findings.single:
        yield from _noise(findings, t)
        yield from _close(findings, t)
    yield from _train_above_val(findings, t)
    yield from _failures(findings, t)


def _pruning(findings: Findings, t: Catalogue) -> Iterator[Markdown]:
    sums = findings.totals
    if not sums.tokens_saved or not sums.tokens_spent or not sums.training_s or sums.saved_percent is None:
        return
    yield t(
        "lessons.pruning",
        n=sums.outcomes["pruned"],
        all=count(sums.trials),
        p=percent(sums.saved_percent),
        time=duration(sums.training_s * sums.tokens_saved / sums.tokens_spent),
    )


def _noise(findings: Findings, t: Catalogue) -> Iterator[Markdown]:
    """How much of a difference the seed alone makes, and how much the best of many flatters."""
    noise = None if findings.judgement is None else findings.judgement.noise
    if noise is not None:
        limit = percent(noise.min_detectable_percent)
        yield t("lessons.noise_measured", noise=percent(noise.percent), n=noise.candidates, limit=limit)
        yield from _optimism(findings, t)
    elif len(findings.comparison.ranked) > 1:
        runs = contenders(findings.record)
        optimism = percent(expected_optimism_percent(runs))
        yield t("lessons.noise_assumed", noise=SEED_NOISE_PERCENT, n=runs, optimism=optimism)


def _optimism(findings: Findings, t: Catalogue) -> Iterator[Markdown]:
    """What is left of the lead of the search's winner under fresh seeds."""
    leader, judgement = findings.comparison.winner, findings.judgement
    judged = None if leader is None or judgement is None else judgement.of(leader.number)
    if judgement is None or judged is None or judged.screening_difference is None or judged.percent is None:
        return
    single = describe_difference(percent_of(judged.screening_difference), t)
    fresh = describe_difference(judged.percent, t)
    yield t("lessons.screened", number=judged.trial, n=judged.pairs, single=single, fresh=fresh)
    if judgement.expected_optimism is not None:
        expected = percent(percent_of(judgement.expected_optimism))
        yield t("lessons.expected_optimism", expected=expected, n=judgement.screened)


def _close(findings: Findings, t: Catalogue) -> Iterator[Markdown]:
    """How many others could be the best as well."""
    compared = len(findings.comparison.ranked)
    if compared > 1 and findings.comparison.close:
        yield t("lessons.close", n=len(findings.comparison.close), all=compared - 1)


def _train_above_val(findings: Findings, t: Catalogue) -> Iterator[Markdown]:
    """A train perplexity above the validation's is no sign of generalisation."""
    measured = [trial.measured for trial in findings.comparison.ranked]
    pairs = [(m.train_ppl, m.val_ppl) for m in measured if m.train_ppl is not None and m.val_ppl is not None]
    above = sum(train > val for train, val in pairs)
    if above:
        yield t("lessons.train_above_val", n=above, all=count(len(pairs)))


def _failures(findings: Findings, t: Catalogue) -> Iterator[Markdown]:
    """What the trials that diverged have in common, where one learning rate parts them from the others."""
    trials = findings.record.trials
    diverged = [trial for trial in trials if trial.outcome == "diverged"]
    if not diverged:
        return
    rates, safe = _rates(diverged), _rates([trial for trial in trials if trial.outcome == "complete"])
    if rates and safe and min(rates) > max(safe):
        yield t("lessons.diverged_above", n=len(diverged), low=min(rates), high=max(safe))
    else:
        yield t("lessons.diverged", n=len(diverged), all=count(len(trials)))


def _rates(trials: list[TrialRecord]) -> list[float]:
    values = [trial.parameters.get("learning_rate") for trial in trials]
    return [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
