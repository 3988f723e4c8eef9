"""Studies against each other: what each has found and cost, and how far the first one's winner is from the others'.

Only studies of equal budget and text compare. Where tokenizers differ, perplexities per token do not: then word-level
perplexity is compared, and bits per byte told. A difference between single runs is no verdict; winners that were both
repeated under fresh seeds are held against each other.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hpo_reports.analysis import statistics
from hpo_reports.analysis.findings import Findings, analyse
from hpo_reports.analysis.statistics import ALPHA, Interval, percent_of
from hpo_reports.errors import IncomparableError
from hpo_reports.records.finalists import FinalistsRecord, ReplicateRecord
from hpo_reports.records.names import FINALISTS_SUFFIX
from hpo_reports.records.study import Measurement, StudyRecord, TrialRecord

Scale = Literal["token", "word"]  # of the perplexities that are compared
Evidence = Literal["paired", "two_samples", "one_run"]
StudyVerdict = Literal["better", "worse", "not_distinguishable", "none"]


@dataclass(frozen=True, kw_only=True)
class Side:
    """One study: its best comparable trial and what it took."""

    study: str
    tokenizer: str | None
    trials: int
    tokens_spent: float | None
    winner: int  # of the finalists where all of them have run, else of the search
    runs: int  # from which its figures are: replicates, else the one of the search
    epochs: float | None  # passes over the text within the budget
    val_ppl: float | None  # geometric mean where there are several runs, as the next
    val_word_ppl: float | None
    val_bits_per_byte: float | None  # mean


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A study's winner to the first study's; below 0: it is better. Of log-perplexity on the scale that is compared."""

    study: str
    evidence: Evidence
    pairs: int  # seeds that both have; of two samples the smaller number of runs
    difference: float | None
    interval: Interval | None
    p_adjusted: float | None  # by Holm, over the studies
    verdict: StudyVerdict

    @property
    def percent(self) -> float | None:
        """The difference as per cent of the first study's perplexity."""
        return None if self.difference is None else percent_of(self.difference)


@dataclass(frozen=True, kw_only=True)
class Across:
    """Studies that compare, in the order in which they were named."""

    budget_tokens: int | None
    corpus: str | None
    scale: Scale
    sides: tuple[Side, ...]
    differences: tuple[Difference, ...]  # of all but the first, to the first


@dataclass(frozen=True, kw_only=True)
class _Contender:
    """A study's winner with the runs that speak for it."""

    findings: Findings
    winner: TrialRecord
    replicates: tuple[ReplicateRecord, ...]  # complete ones; none: only the search's run


def compare_studies(studies: Sequence[tuple[StudyRecord, FinalistsRecord | None]]) -> Across:
    """Compare studies with the first of them.

    Args:
        studies: with their finalists, if they were run.

    Raises:
        IncomparableError: fewer than two studies, or what keeps them from being compared.
    """
    names = [record.name for record, _ in studies]
    if len(set(names)) < max(2, len(names)):
        raise IncomparableError(f"a comparison takes two studies or more, each once, got {', '.join(names)}")
    contenders = [_contender(record, finalists) for record, finalists in studies]
    _check_same(contenders, "budgets", lambda each: _budget(each.findings))
    _check_same(contenders, "texts", lambda each: each.findings.record.corpus.digest)
    digests = {each.findings.record.tokenizer.digest for each in contenders}
    scale: Scale = "token" if len(digests) == 1 and None not in digests else "word"
    for each in contenders:
        _check_measured(each, scale)
    first, *others = contenders
    raw = [_difference(each, first, scale) for each in others]
    return Across(
        budget_tokens=first.findings.comparison.budget_tokens,
        corpus=first.findings.record.corpus.name,
        scale=scale,
        sides=tuple(map(_side, contenders)),
        differences=_judged(raw),
    )


def _contender(record: StudyRecord, finalists: FinalistsRecord | None) -> _Contender:
    if record.log is not None:
        raise IncomparableError(
            f"study {record.name!r} is a table of past experiments, whose text is unknown; name one that `hpo run` made"
        )
    if record.name.endswith(FINALISTS_SUFFIX):
        raise IncomparableError(
            f"study {record.name!r} holds finalists; name {record.name.removesuffix(FINALISTS_SUFFIX)!r}"
        )
    if not record.is_ours:
        raise IncomparableError(f"study {record.name!r} was made by another program: its budget and text are unknown")
    if len(record.directions) > 1:
        raise IncomparableError(f"study {record.name!r} has {len(record.directions)} objectives, so no best trial")
    findings = analyse(record, finalists)
    if findings.chosen is None:
        raise IncomparableError(f"study {record.name!r} has no complete trial that can be compared; `hpo run` goes on")
    final = findings.final_winner
    candidates = () if final is None or finalists is None else finalists.candidates
    runs = [each.replicates for each in candidates if final is not None and each.trial == final.trial]
    complete = tuple(run for replicates in runs for run in replicates if run.state == "complete")
    return _Contender(findings=findings, winner=findings.chosen, replicates=complete)


def _budget(findings: Findings) -> str | None:
    tokens = findings.comparison.budget_tokens
    return None if tokens is None else f"{tokens:,} tokens"


def _check_same(contenders: Sequence[_Contender], what: str, fact: Callable[[_Contender], str | None]) -> None:
    facts = [fact(each) for each in contenders]
    told = ", ".join(
        f"{each.findings.record.name} {fact or 'unknown'}" for each, fact in zip(contenders, facts, strict=True)
    )
    if None in facts or len(set(facts)) > 1:
        raise IncomparableError(f"studies compare under equal {what}, got {told}; leave out what differs")


def _check_measured(contender: _Contender, scale: Scale) -> None:
    """Whether there are figures to compare, in the search's run or all replicates."""
    missing = [each for each in _measurements(contender) if _score(each, scale) is None]
    if missing and scale == "word":
        raise IncomparableError(
            f"tokenizers differ, and study {contender.findings.record.name!r} has no bits per byte: its tokenizer does "
            "not know every word; search with bpe"
        )
    if missing:
        raise IncomparableError(f"study {contender.findings.record.name!r} did not record its winner's perplexity")


def _measurements(contender: _Contender) -> list[Measurement]:
    return [each.measured for each in contender.replicates] or [contender.winner.measured]


def _score(measured: Measurement, scale: Scale) -> float | None:
    """Log-perplexity on a scale. Per word only where the tokenizer knows every word, which bits per byte tell."""
    if scale == "word" and measured.val_bits_per_byte is None:
        return None
    ppl = measured.val_ppl if scale == "token" else measured.val_word_ppl
    return math.log(ppl) if ppl is not None and ppl > 0 else None


def _side(contender: _Contender) -> Side:
    findings, measured = contender.findings, _measurements(contender)
    bits = _mean([each.val_bits_per_byte for each in measured])
    tokenizer = findings.record.tokenizer
    return Side(
        study=findings.record.name,
        tokenizer=None if tokenizer.kind is None else f"{tokenizer.kind} {tokenizer.vocabulary or ''}".strip(),
        trials=len(findings.record.trials),
        tokens_spent=findings.totals.tokens_spent,
        winner=contender.winner.number,
        runs=len(measured),
        epochs=contender.winner.measured.epoch,
        val_ppl=_geometric_mean([each.val_ppl for each in measured]),
        val_word_ppl=_geometric_mean([each.val_word_ppl for each in measured]),
        val_bits_per_byte=bits,
    )


def _difference(contender: _Contender, first: _Contender, scale: Scale) -> tuple[Difference, float | None]:
    """The difference with its p, before that is corrected."""
    name = contender.findings.record.name
    mine, theirs = (_by_seed(each, scale) for each in (contender, first))
    common = sorted(mine.keys() & theirs.keys())
    if len(mine) < 2 or len(theirs) < 2:
        own, other = (_mean([_score(m, scale) for m in _measurements(each)]) for each in (contender, first))
        gap = None if own is None or other is None else own - other
        return _undecided(name, "one_run", 1, gap, None), None
    if len(common) == len(mine) == len(theirs):
        pairs = [mine[seed] - theirs[seed] for seed in common]
        interval = statistics.paired_interval(pairs)
        return _undecided(name, "paired", len(pairs), float(np.mean(pairs)), interval), statistics.sign_flip_p(pairs)
    from scipy import stats

    tested = stats.ttest_ind(list(mine.values()), list(theirs.values()), equal_var=False)
    low, high = tested.confidence_interval(1 - ALPHA)
    gap = float(np.mean(list(mine.values())) - np.mean(list(theirs.values())))
    p = float(tested.pvalue)
    if not math.isfinite(p):  # neither sample varies
        return _undecided(name, "two_samples", min(len(mine), len(theirs)), gap, None), 1.0
    interval = Interval(low=float(low), high=float(high), level=1 - ALPHA)
    return _undecided(name, "two_samples", min(len(mine), len(theirs)), gap, interval), p


def _by_seed(contender: _Contender, scale: Scale) -> dict[int, float]:
    scores = {each.seed: _score(each.measured, scale) for each in contender.replicates}
    return {seed: score for seed, score in scores.items() if score is not None}


def _undecided(study: str, evidence: Evidence, pairs: int, gap: float | None, interval: Interval | None) -> Difference:
    """A difference before p is corrected and a verdict follows."""
    return Difference(
        study=study,
        evidence=evidence,
        pairs=pairs,
        difference=gap,
        interval=interval,
        p_adjusted=None,
        verdict="none",
    )


def _judged(raw: Sequence[tuple[Difference, float | None]]) -> tuple[Difference, ...]:
    """With p corrected over the studies that have one, and the verdict that follows."""
    adjusted = iter(statistics.holm([p for _, p in raw if p is not None]))
    return tuple(each if p is None else _verdict(each, next(adjusted)) for each, p in raw)


def _verdict(each: Difference, p: float) -> Difference:
    found: StudyVerdict = "not_distinguishable"
    if p <= ALPHA and each.difference is not None:
        found = "better" if each.difference < 0 else "worse"
    return dataclasses.replace(each, p_adjusted=p, verdict=found)


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present and len(present) == len(values) else None


def _geometric_mean(values: Sequence[float | None]) -> float | None:
    logs = _mean([math.log(value) if value is not None and value > 0 else None for value in values])
    return None if logs is None else math.exp(logs)
