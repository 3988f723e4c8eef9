"""Phrases that many sections share: names of trials, verdicts, changes, headings of tables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from hpo_reports.analysis.judging import CandidateJudgement, CandidateStanding
from hpo_reports.analysis.verdicts import TrialStanding, TrialVerdict
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.formats import MISSING, percent
from hpo_reports.document.markdown import Markdown, escape
from hpo_reports.document.tables import PARAMETER, Table
from hpo_reports.records.study import TrialRecord

MAX_NAMED = 10  # trials in a sentence; the tables have them all

_SIGN: Mapping[TrialStanding, str] = {
    "baseline": "baseline",
    "better": "one_run",
    "worse": "one_run",
    "not_distinguishable": "not_distinguishable",
    "suspicious": "warning",
}


_FINAL_SIGN: Mapping[CandidateStanding, str] = {
    "baseline": "baseline",
    "better": "better",
    "worse": "worse",
    "not_distinguishable": "not_distinguishable",
    "too_few_seeds": "one_run",
    "pending": "partly",
    "unstable": "warning",
}


def describe_trials(trials: Sequence[TrialRecord], t: Catalogue) -> Markdown:
    """Trials by their numbers, in a sentence."""
    numbers = t.listed(trial.number for trial in trials[:MAX_NAMED])
    more = t("trials.more", n=len(trials) - MAX_NAMED) if len(trials) > MAX_NAMED else ""
    return Markdown(f"{t('trials.one' if len(trials) == 1 else 'trials.several', numbers=numbers)}{more}")


def describe_numbers(numbers: Sequence[int], t: Catalogue) -> Markdown:
    """Trials by their numbers, all of them."""
    return t("trials.one" if len(numbers) == 1 else "trials.several", numbers=t.listed(numbers))


def describe_candidate(candidate: CandidateJudgement, t: Catalogue) -> Markdown:
    """How a finalist stands to the baseline, with its evidence."""
    sign = _FINAL_SIGN.get(candidate.standing)
    words = _candidate_verdict(candidate, t)
    return words if sign is None else Markdown(f"{t.sign(sign)}{words}")


def _candidate_verdict(candidate: CandidateJudgement, t: Catalogue) -> Markdown:
    if candidate.percent is None or candidate.standing in ("baseline", "unstable", "pending", "not_compared"):
        return t(f"final.{candidate.standing}")
    evidence = t("final.evidence", n=candidate.pairs, p=p_value(candidate.p_adjusted))
    return t(f"final.{candidate.standing}", difference=describe_difference(candidate.percent, t), evidence=evidence)


def p_value(p: float | None) -> str:
    """A p-value to three decimals."""
    return MISSING if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


def describe_difference(percent_above: float, t: Catalogue) -> Markdown:
    """How far one perplexity is from another."""
    if percent_above == 0:
        return t("verdict.equal")
    return t("verdict.percent_better" if percent_above < 0 else "verdict.percent_worse", p=percent(abs(percent_above)))


def describe_verdict(verdict: TrialVerdict, t: Catalogue) -> Markdown:
    """A verdict in words, with its evidence and its sign."""
    return Markdown(f"{verdict_sign(verdict, t)}{_verdict(verdict, t)}")


def verdict_sign(verdict: TrialVerdict, t: Catalogue) -> str:
    """The emoji of a verdict, if it has one."""
    return t.sign(_SIGN[verdict.standing]) if verdict.standing in _SIGN else ""


def _verdict(verdict: TrialVerdict, t: Catalogue) -> Markdown:
    if verdict.percent is None:
        return t(f"standing.{verdict.standing}")
    key = "verdict.not_distinguishable" if verdict.standing == "not_distinguishable" else "verdict.one_run"
    return t(key, difference=describe_difference(verdict.percent, t))


def column_headings(table: Table, t: Catalogue) -> Mapping[str, str]:
    """Column headings; a parameter without one of its own is headed by its name."""
    return {name: _heading(name, t) for name in table.columns}


def describe_parameter(name: str, t: Catalogue) -> Markdown:
    """A parameter as the log calls it."""
    return Markdown(_heading(f"{PARAMETER}{name}", t))


def _heading(column: str, t: Catalogue) -> str:
    key = f"column.{column}"
    return t(key) if key in t.messages else escape(column.removeprefix(PARAMETER))


def describe_change(before: float | None, after: float | None, shown: Callable[[float | None], str]) -> Markdown:
    """From a figure to another, with the difference in per cent of the first."""
    return Markdown(f"{shown(before)} → {shown(after)}{_parenthesis(describe_percent_change(before, after))}")


def describe_percent_change(before: float | None, after: float | None) -> Markdown:
    """The difference in per cent of the first figure; a dash where there is none."""
    if before is None or after is None or before <= 0:
        return Markdown(MISSING)
    p = 100 * (after / before - 1)
    sign = "±" if round(abs(p), 1) == 0 else "+" if p > 0 else "−"
    return Markdown(f"{sign}{percent(abs(p))} %")


def _parenthesis(text: str) -> str:
    return "" if text == MISSING else f" ({text})"
