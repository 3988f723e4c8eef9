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
from hpo_reports.sections.words import candidate_verdict, change, parameter_name, verdict_text

MOST_ANALYSED = 8
BEST_ANALYSED = 3
MOST_CHANGES = 12  # of parameters, that are named


def analysis(findings: Findings, say: Catalogue) -> Section | None:
    """The most telling runs, each against the baseline; none of a study without runs of ours."""
    trials = analysed(findings)
    if not findings.record.is_ours or not trials:
        return None
    compared = len(findings.comparison.ranked or findings.comparison.front)
    chosen = say("analysis.all") if len(trials) == compared else say("analysis.chosen", n=len(trials), all=compared)
    blocks: list[Block] = [chosen]
    for trial in trials:
        blocks += [_heading(findings, trial, say), bullets(_lines(findings, trial, say))]
    return Section(title=say("analysis.title"), blocks=tuple(blocks))


def analysed(findings: Findings) -> list[TrialRecord]:
    """The best, the baseline, configurations that were asked for and the worst; all where they are few."""
    compared = findings.comparison.ranked or findings.comparison.front
    if len(compared) <= MOST_ANALYSED:
        return list(compared)
    asked_for = [trial for trial in compared if trial.is_baseline or trial.role == "enqueued"]
    chosen = [*compared[:BEST_ANALYSED], *asked_for[: MOST_ANALYSED - BEST_ANALYSED - 1], compared[-1]]
    numbers = {trial.number for trial in chosen}
    return [trial for trial in compared if trial.number in numbers]


def changes(trial: TrialRecord, baseline: TrialRecord) -> dict[str, tuple[Scalar, Scalar]]:
    """Values of the run that are not the baseline's: by name, before and after."""
    names = dict.fromkeys((*baseline.parameters, *trial.parameters))
    pairs = {name: (baseline.parameters.get(name), trial.parameters.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def changes_text(changed: dict[str, tuple[Scalar, Scalar]], say: Catalogue) -> Markdown:
    """Changed values in a row."""
    named = [_changed(name, *pair, say) for name, pair in list(changed.items())[:MOST_CHANGES]]
    more = say("analysis.more", n=len(changed) - MOST_CHANGES) if len(changed) > MOST_CHANGES else ""
    return Markdown(f"{say.listed(named)}{more}")


def _changed(name: str, before: Scalar, after: Scalar, say: Catalogue) -> Markdown:
    facts = {"name": parameter_name(name, say), "before": before, "after": after}
    if _is_ratio(before) and _is_ratio(after):
        return say("analysis.changed_ratio", **facts, ratio=Markdown(f"{after / before:.2g}"))  # type: ignore[operator]
    return say("analysis.changed", **facts)


def _is_ratio(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 1e-12 < value < 1e12


def _heading(findings: Findings, trial: TrialRecord, say: Catalogue) -> Markdown:
    verdict = verdict_text(findings.comparison.verdicts[trial.number], say)
    crown = say.sign("winner") if trial is findings.comparison.winner else ""
    return Markdown(f"### {say('analysis.trial', sign=Markdown(crown), number=trial.number, verdict=verdict)}")


def _lines(findings: Findings, trial: TrialRecord, say: Catalogue) -> Iterator[Markdown]:
    baseline = findings.comparison.baseline
    if baseline is None or trial is baseline or trial.number not in findings.comparison.verdicts:
        yield _measured(trial, say)
    else:
        changed = changes(trial, baseline)
        yield from _changes(changed, say)
        yield _moved(trial, baseline, say)
        yield from _confounded(changed, trial, baseline, say)
    yield from _curve(findings, trial, say)
    yield from _why(findings, trial, say)


def _measured(trial: TrialRecord, say: Catalogue) -> Markdown:
    measured = trial.measured
    return say(
        "analysis.measured",
        val_ppl=perplexity(measured.val_ppl),
        train_ppl=perplexity(measured.train_ppl),
        phi=phi(measured.phi),
        delta_phi=phi(measured.delta_phi_loss),
        time=duration(measured.seconds),
    )


def _changes(changed: dict[str, tuple[Scalar, Scalar]], say: Catalogue) -> Iterator[Markdown]:
    if not changed:
        yield say("analysis.nothing_changed")
        return
    yield say("analysis.changes", changes=changes_text(changed, say))
    if len(changed) > 1:
        yield say("analysis.several", n=len(changed))


def _moved(trial: TrialRecord, baseline: TrialRecord, say: Catalogue) -> Markdown:
    """From the baseline's figures to the trial's."""
    before, after = baseline.measured, trial.measured
    return say(
        "analysis.moved",
        val_ppl=change(before.val_ppl, after.val_ppl, perplexity),
        train_ppl=change(before.train_ppl, after.train_ppl, perplexity),
        phi=change(before.phi, after.phi, phi),
        delta_phi=change(before.delta_phi_loss, after.delta_phi_loss, phi),
        time=change(before.seconds, after.seconds, duration),
    )


def _confounded(
    changed: dict[str, tuple[Scalar, Scalar]], trial: TrialRecord, baseline: TrialRecord, say: Catalogue
) -> Iterator[Markdown]:
    """What would be read wrongly."""
    steps = (baseline.measured.step, trial.measured.step)
    if None not in steps and steps[0] != steps[1]:
        yield say("analysis.updates", before=count(steps[0]), after=count(steps[1]))
    if "lambda_phi" in changed:
        yield say("analysis.delta_phi_scales")


def _curve(findings: Findings, trial: TrialRecord, say: Catalogue) -> Iterator[Markdown]:
    """The curve, and where it was lowest: of the evaluations on the sample, which alone compare with each other."""
    sampled = trial.curve[:-1] if trial.measured.whole_split else trial.curve
    values = [(value, place) for place, value in enumerate(sampled, 1) if value is not None]
    if len(values) < 2:
        return
    drawn = sparkline(trial.curve, *curve_scale(findings.comparison))
    lowest = min(values)[1]
    if lowest == len(sampled):
        yield say("analysis.curve_falls", curve=drawn, n=len(sampled))
    else:
        yield say("analysis.curve_turns", curve=drawn, place=lowest, n=len(sampled))


def _why(findings: Findings, trial: TrialRecord, say: Catalogue) -> Iterator[Markdown]:
    """Why the verdict: what it would take to say more."""
    verdict = findings.comparison.verdicts[trial.number]
    judged = None if findings.judgement is None else findings.judgement.of(trial.number)
    if judged is not None and not judged.is_baseline:
        yield say("analysis.why_finalist", verdict=candidate_verdict(judged, say))
        return
    if verdict.percent is None:
        return
    facts = {"p": percent(abs(verdict.percent)), "limit": percent(findings.comparison.limit_percent)}
    if verdict.standing == "not_distinguishable":
        yield say("analysis.why_small", **facts)
    else:
        yield say("analysis.why_one_run", **facts)
