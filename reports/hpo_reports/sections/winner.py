"""The best of the compared trials, with the evidence there is for it."""

from __future__ import annotations

from collections.abc import Iterator

from hpo_reports.analysis.findings import Findings
from hpo_reports.analysis.judging import CandidateJudgement
from hpo_reports.analysis.verdicts import expected_optimism_percent
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.formats import bits_per_byte, count, duration, percent, perplexity, phi
from hpo_reports.document.layout import Section, bullets
from hpo_reports.document.markdown import Markdown
from hpo_reports.records.study import StudyRecord, TrialRecord
from hpo_reports.sections.phrases import describe_candidate, describe_numbers, describe_trials, describe_verdict


def winner(findings: Findings, t: Catalogue) -> Section | None:
    """The winner of the search; none of several objectives."""
    if not findings.single:
        return None
    best = findings.comparison.winner
    if findings.final_winner is not None:
        return _final(findings, findings.final_winner, t)
    if best is None:
        return Section(title=t("winner.title_none"), blocks=(t("winner.none"),))
    title = t("winner.title", sign=Markdown(t.sign("winner")), number=best.number)
    return Section(title=title, blocks=(_headline(findings, best, t), bullets(_lines(findings, best, t))))


def _final(findings: Findings, final: CandidateJudgement, t: Catalogue) -> Section:
    """The winner under fresh seeds, and what became of the one that led the search."""
    title = t("winner.title", sign=Markdown(t.sign("winner")), number=final.trial)
    mean, loss = perplexity(final.mean_val_ppl), final.mean_val_loss
    headline = t("winner.headline_final", number=final.trial, n=final.complete, ppl=mean, loss=loss)
    return Section(title=title, blocks=(headline, bullets(_final_lines(findings, final, t))))


def _final_lines(findings: Findings, final: CandidateJudgement, t: Catalogue) -> Iterator[Markdown]:
    assert findings.judgement is not None, "there is no winner of finalists without them"
    for name, value in final.parameters.items():
        yield t("winner.value", name=name, value=value)
    if final.is_baseline:
        yield t("winner.final_is_baseline")
    else:
        yield t("winner.final_verdict", verdict=describe_candidate(final, t))
    if findings.judgement.tied:
        yield t("winner.final_tied", trials=describe_numbers(findings.judgement.tied, t))
    leader = findings.comparison.winner
    if leader is not None and leader.number != final.trial:
        yield t("winner.led_search", number=leader.number)


def contenders(record: StudyRecord) -> int:
    """Trials that could have won: those that lost early lost, in part, to seed noise too."""
    return sum(trial.outcome in ("complete", "pruned") for trial in record.trials)


def _headline(findings: Findings, best: TrialRecord, t: Catalogue) -> Markdown:
    facts = {"number": best.number, "n": len(findings.comparison.ranked), "value": best.values[0]}
    if best.is_ours:
        return t("winner.headline_run", **facts)
    highest = findings.record.directions[0] == "maximize"
    return t("winner.headline_maximize" if highest else "winner.headline_minimize", **facts)


def _lines(findings: Findings, best: TrialRecord, t: Catalogue) -> Iterator[Markdown]:
    for name in best.searched:
        yield t("winner.value", name=name, value=best.parameters.get(name))
    if best.is_ours:
        yield _measured(best, t)
        yield from _against_baseline(findings, best, t)
    if findings.comparison.tied:
        yield t("winner.tied", trials=describe_trials(findings.comparison.tied, t))
    if best.is_ours and findings.comparison.close:
        yield t("winner.close", trials=describe_trials(findings.comparison.close, t))
    if best.is_ours:
        yield _evidence(findings, best, t)


def _measured(best: TrialRecord, t: Catalogue) -> Markdown:
    measured = best.measured
    return t(
        "winner.measured",
        val_ppl=perplexity(measured.val_ppl),
        word_ppl=perplexity(measured.val_word_ppl),
        bits=bits_per_byte(measured.val_bits_per_byte),
        train_ppl=perplexity(measured.train_ppl),
        phi=phi(measured.phi),
        time=duration(measured.seconds),
    )


def _against_baseline(findings: Findings, best: TrialRecord, t: Catalogue) -> Iterator[Markdown]:
    verdict, baseline = findings.comparison.verdicts[best.number], findings.comparison.baseline
    if verdict.standing == "baseline":
        yield t("winner.is_baseline")
    elif verdict.percent is not None and baseline is not None:
        yield t(
            "winner.against_baseline",
            number=baseline.number,
            val_ppl=perplexity(baseline.measured.val_ppl),
            verdict=describe_verdict(verdict, t),
        )


def _evidence(findings: Findings, best: TrialRecord, t: Catalogue) -> Markdown:
    """One run, and how far the lowest of so many flatters."""
    seed = best.parameters.get("seed")
    one_run = t("winner.one_run") if seed is None else t("winner.one_run_seed", seed=seed)
    if len(findings.comparison.ranked) < 2:
        return Markdown(f"{one_run}.")
    runs = contenders(findings.record)
    noise = findings.noise_percent
    optimism = percent(expected_optimism_percent(runs, noise))
    flatters = t("winner.flatters", contenders=count(runs), noise=percent(noise), optimism=optimism)
    return Markdown(f"{one_run}. {flatters}")
