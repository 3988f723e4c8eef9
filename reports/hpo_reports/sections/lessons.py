"""Lessons that follow from numbers of the study, and from nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from hpo_reports.analysis.findings import Findings
from hpo_reports.analysis.judging import percent_of
from hpo_reports.analysis.verdicts import SEED_NOISE_PERCENT, expected_optimism_percent
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.formats import count, duration, percent
from hpo_reports.document.layout import Section, bullets
from hpo_reports.document.markdown import Markdown
from hpo_reports.records.study import TrialRecord
from hpo_reports.sections.winner import contenders
from hpo_reports.sections.words import difference


def lessons(findings: Findings, say: Catalogue) -> Section | None:
    """What this study teaches; none where it holds no runs of ours."""
    lines = list(_lines(findings, say)) if findings.record.is_ours else []
    return Section(title=say("lessons.title"), blocks=(bullets(lines),)) if lines else None


def discoveries(findings: Findings, say: Catalogue) -> Section | None:
    """The same under the session's heading."""
    found = lessons(findings, say)
    return None if found is None else Section(title=say("lessons.discoveries"), blocks=found.blocks)


def _lines(findings: Findings, say: Catalogue) -> Iterator[Markdown]:
    yield from _pruning(findings, say)
    if findings.single:
        yield from _noise(findings, say)
        yield from _close(findings, say)
    yield from _train_above_val(findings, say)
    yield from _failures(findings, say)


def _pruning(findings: Findings, say: Catalogue) -> Iterator[Markdown]:
    sums = findings.totals
    if not sums.tokens_saved or not sums.tokens_spent or not sums.training_s or sums.saved_percent is None:
        return
    yield say(
        "lessons.pruning",
        n=sums.outcomes["pruned"],
        all=count(sums.trials),
        p=percent(sums.saved_percent),
        time=duration(sums.training_s * sums.tokens_saved / sums.tokens_spent),
    )


def _noise(findings: Findings, say: Catalogue) -> Iterator[Markdown]:
    """How much of a difference the seed alone makes, and how much the best of many flatters."""
    noise = None if findings.judgement is None else findings.judgement.noise
    if noise is not None:
        limit = percent(noise.indistinguishable_percent)
        yield say("lessons.noise_measured", noise=percent(noise.percent), n=noise.candidates, limit=limit)
        yield from _optimism(findings, say)
    elif len(findings.comparison.ranked) > 1:
        runs = contenders(findings.record)
        optimism = percent(expected_optimism_percent(runs))
        yield say("lessons.noise_assumed", noise=SEED_NOISE_PERCENT, n=runs, optimism=optimism)


def _optimism(findings: Findings, say: Catalogue) -> Iterator[Markdown]:
    """What is left of the lead of the search's winner under fresh seeds."""
    leader, judgement = findings.comparison.winner, findings.judgement
    judged = None if leader is None or judgement is None else judgement.of(leader.number)
    if judgement is None or judged is None or judged.screening_difference is None or judged.percent is None:
        return
    single = difference(percent_of(judged.screening_difference), say)
    fresh = difference(judged.percent, say)
    yield say("lessons.screened", number=judged.trial, n=judged.pairs, single=single, fresh=fresh)
    if judgement.expected_optimism is not None:
        expected = percent(percent_of(judgement.expected_optimism))
        yield say("lessons.expected_optimism", expected=expected, n=judgement.screened)


def _close(findings: Findings, say: Catalogue) -> Iterator[Markdown]:
    """How many others could be the best as well."""
    compared = len(findings.comparison.ranked)
    if compared > 1 and findings.comparison.close:
        yield say("lessons.close", n=len(findings.comparison.close), all=compared - 1)


def _train_above_val(findings: Findings, say: Catalogue) -> Iterator[Markdown]:
    """A train perplexity above the validation's is no sign of generalisation."""
    measured = [trial.measured for trial in findings.comparison.ranked]
    pairs = [(m.train_ppl, m.val_ppl) for m in measured if m.train_ppl is not None and m.val_ppl is not None]
    above = sum(train > val for train, val in pairs)
    if above:
        yield say("lessons.train_above_val", n=above, all=count(len(pairs)))


def _failures(findings: Findings, say: Catalogue) -> Iterator[Markdown]:
    """What the trials that diverged have in common, where one learning rate parts them from the others."""
    trials = findings.record.trials
    diverged = [trial for trial in trials if trial.outcome == "diverged"]
    if not diverged:
        return
    rates, safe = _rates(diverged), _rates([trial for trial in trials if trial.outcome == "complete"])
    if rates and safe and min(rates) > max(safe):
        yield say("lessons.diverged_above", n=len(diverged), low=min(rates), high=max(safe))
    else:
        yield say("lessons.diverged", n=len(diverged), all=count(len(trials)))


def _rates(trials: list[TrialRecord]) -> list[float]:
    values = [trial.parameters.get("learning_rate") for trial in trials]
    return [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
