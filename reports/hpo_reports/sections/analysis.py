"""One analysis per experiment: what differed from the baseline, what moved with it, and why the verdict is as it is."""

from __future__ import annotations

from collections.abc import Iterator

from hpo_reports.analysis.findings import Findings
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.formats import count, duration, percent, perplexity, phi, sparkline
from hpo_reports.document.layout import Block, Section, bullets
from hpo_reports.document.markdown import Markdown
from hpo_reports.records.attributes import Scalar
from hpo_reports.records.study import TrialRecord
from hpo_reports.sections.comparison import curve_scale
from hpo_reports.sections.phrases import describe_candidate, describe_change, describe_parameter, describe_verdict

MAX_ANALYSED = 8
BEST_ANALYSED = 3
MAX_CHANGES = 12  # of parameters, that are named


def analysis(findings: Findings, t: Catalogue) -> Section | None:
    """The most telling runs, each against the baseline; none of a study without runs of ours."""
    trials = analysed(findings)
    if not findings.record.is_ours or not trials:
        return None
    compared = len(findings.comparison.ranked or findings.comparison.front)
    chosen = t("analysis.all") if len(trials) == compared else t("analysis.chosen", n=len(trials), all=compared)
    blocks: list[Block] = [chosen]
    for trial in trials:
        blocks += [_heading(findings, trial, t), bullets(_lines(findings, trial, t))]
    return Section(title=t("analysis.title"), blocks=tuple(blocks))


def analysed(findings: Findings) -> list[TrialRecord]:
    """The best, the baseline, configurations that were asked for and the worst; all where they are few."""
    compared = findings.comparison.ranked or findings.comparison.front
    if len(compared) <= MAX_ANALYSED:
        return list(compared)
    asked_for = [trial for trial in compared if trial.is_baseline or trial.role == "enqueued"]
    chosen = [*compared[:BEST_ANALYSED], *asked_for[: MAX_ANALYSED - BEST_ANALYSED - 1], compared[-1]]
    numbers = {trial.number for trial in chosen}
    return [trial for trial in compared if trial.number in numbers]


def changes(trial: TrialRecord, baseline: TrialRecord) -> dict[str, tuple[Scalar, Scalar]]:
    """Values of the run that are not the baseline's: by name, before and after."""
    names = dict.fromkeys((*baseline.parameters, *trial.parameters))
    pairs = {name: (baseline.parameters.get(name), trial.parameters.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def changes_text(changed: dict[str, tuple[Scalar, Scalar]], t: Catalogue) -> Markdown:
    """Changed values in a row."""
    named = [_changed(name, *pair, t) for name, pair in list(changed.items())[:MAX_CHANGES]]
    more = t("analysis.more", n=len(changed) - MAX_CHANGES) if len(changed) > MAX_CHANGES else ""
    return Markdown(f"{t.listed(named)}{more}")


def _changed(name: str, before: Scalar, after: Scalar, t: Catalogue) -> Markdown:
    facts = {"name": describe_parameter(name, t), "before": before, "after": after}
    if _is_ratio(before) and _is_ratio(after):
        return t("analysis.changed_ratio", **facts, ratio=Markdown(f"{after / before:.2g}"))  # type: ignore[operator]
    return t("analysis.changed", **facts)


def _is_ratio(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-12 < value < 1e12


def _heading(findings: Findings, trial: TrialRecord, t: Catalogue) -> Markdown:
    verdict = describe_verdict(findings.comparison.verdicts[trial.number], t)
    crown = t.sign("winner") if trial is findings.comparison.winner else ""
    return Markdown(f"### {t('analysis.trial', sign=Markdown(crown), number=trial.number, verdict=verdict)}")


def _lines(findings: Findings, trial: TrialRecord, t: Catalogue) -> Iterator[Markdown]:
    baseline = findings.comparison.baseline
    if baseline is None or trial is baseline or trial.number not in findings.comparison.verdicts:
        yield _measured(trial, t)
    else:
        changed = changes(trial, baseline)
        yield from _changes(changed, t)
        yield _moved(trial, baseline, t)
        yield from _confounded(changed, trial, baseline, t)
    yield from _curve(findings, trial, t)
    yield from _why(findings, trial, t)


def _measured(trial: TrialRecord, t: Catalogue) -> Markdown:
    measured = trial.measured
    return t(
        "analysis.measured",
        val_ppl=perplexity(measured.val_ppl),
        train_ppl=perplexity(measured.train_ppl),
        phi=phi(measured.phi),
        delta_phi=phi(measured.delta_phi_loss),
        time=duration(measured.seconds),
    )


def _changes(changed: dict[str, tuple[Scalar, Scalar]], t: Catalogue) -> Iterator[Markdown]:
    if not changed:
        yield t("analysis.nothing_changed")
        return
    yield t("analysis.changes", changes=changes_text(changed, t))
    if len(changed) > 1:
        yield t("analysis.several", n=len(changed))


def _moved(trial: TrialRecord, baseline: TrialRecord, t: Catalogue) -> Markdown:
    """From the baseline's figures to the trial's."""
    before, after = baseline.measured, trial.measured
    return t(
        "analysis.moved",
        val_ppl=describe_change(before.val_ppl, after.val_ppl, perplexity),
        train_ppl=describe_change(before.train_ppl, after.train_ppl, perplexity),
        phi=describe_change(before.phi, after.phi, phi),
        delta_phi=describe_change(before.delta_phi_loss, after.delta_phi_loss, phi),
        time=describe_change(before.seconds, after.seconds, duration),
    )


def _confounded(
    changed: dict[str, tuple[Scalar, Scalar]], trial: TrialRecord, baseline: TrialRecord, t: Catalogue
) -> Iterator[Markdown]:
    """What would be read wrongly."""
    steps = (baseline.measured.step, trial.measured.step)
    if None not in steps and steps[0] != steps[1]:
        yield t("analysis.updates", before=count(steps[0]), after=count(steps[1]))
    if "lambda_phi" in changed:
        yield t("analysis.delta_phi_scales")


def _curve(findings: Findings, trial: TrialRecord, t: Catalogue) -> Iterator[Markdown]:
    """The curve, and where it was lowest: of the evaluations on the sample, which alone compare with each other."""
    sampled = trial.curve[:-1] if trial.measured.full_split else trial.curve
    values = [(value, place) for place, value in enumerate(sampled, 1) if value is not None]
    if len(values) < 2:
        return
    drawn = sparkline(trial.curve, *curve_scale(findings.comparison))
    lowest = min(values)[1]
    if lowest == len(sampled):
        yield t("analysis.curve_falls", curve=drawn, n=len(sampled))
    else:
        yield t("analysis.curve_turns", curve=drawn, place=lowest, n=len(sampled))


def _why(findings: Findings, trial: TrialRecord, t: Catalogue) -> Iterator[Markdown]:
    """Why the verdict: what it would take to say more."""
    verdict = findings.comparison.verdicts[trial.number]
    judged = None if findings.judgement is None else findings.judgement.of(trial.number)
    if judged is not None and not judged.is_baseline:
        yield t("analysis.why_finalist", verdict=describe_candidate(judged, t))
        return
    if verdict.percent is None:
        return
    facts = {"p": percent(abs(verdict.percent)), "limit": percent(findings.comparison.min_detectable_percent)}
    if verdict.standing == "not_distinguishable":
        yield t("analysis.why_small", **facts)
    else:
        yield t("analysis.why_one_run", **facts)
