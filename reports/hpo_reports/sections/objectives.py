"""What a session set out to do, and how far it came: each with its number."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from hpo_reports.analysis.findings import Findings
from hpo_reports.analysis.outlook import TrialOutlook
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.formats import hours, moment, perplexity
from hpo_reports.document.layout import Section, bullets, numbered
from hpo_reports.document.markdown import Markdown
from hpo_reports.records.study import StudyRecord
from hpo_reports.sections.head import distinct
from hpo_reports.sections.phrases import describe_candidate, describe_verdict
from hpo_reports.sections.totals import outcomes_counted

Status = Literal["done", "partly", "open"]


def session_head(findings: Findings, t: Catalogue) -> Section:
    """When, of what, how much."""
    study, sums = findings.record, findings.totals
    budgets = distinct((trial for trial in study.trials if trial.is_ours), "budget_tokens")
    lines = [
        t("session.date", created=moment(study.created_at), last=moment(study.last_run)),
        t("head.question", text=study.description),
        t(
            "session.trials",
            finished=finished(study),
            planned=study.planned_trials,
            outcomes=outcomes_counted(sums, t),
        ),
        t("session.compute", time=hours(sums.training_s), budget=t.listed((f"{b:,}" for b in budgets), "or") or None),
        t("head.hardware", hardware=study.hardware, profile=study.profile),
    ]
    return Section(title=None, blocks=(bullets(lines),))


def objectives(findings: Findings, t: Catalogue) -> Section:
    """The objectives of a search, each with its status."""
    lines = [
        Markdown(f"{t.sign(status)}**{t(f'status.{status}')}** · {sentence}")
        for status, sentence in _objectives(findings, t)
    ]
    return Section(title=t("objectives.title"), blocks=(numbered(lines),))


def finished(study: StudyRecord) -> int:
    """Trials that have ended."""
    return sum(trial.outcome not in ("running", "waiting") for trial in study.trials)


def _objectives(findings: Findings, t: Catalogue) -> Iterator[tuple[Status, Markdown]]:
    yield _search(findings, t)
    if findings.single and findings.record.is_ours:
        yield _baseline(findings, t)
        yield _improvement(findings, t)
        yield _replication(findings, t)
        yield _test_split(findings, t)
        yield _projected(findings, t)
        yield "open", t("objectives.generation")


def _search(findings: Findings, t: Catalogue) -> tuple[Status, Markdown]:
    done, planned = finished(findings.record), findings.record.planned_trials
    compared = len(findings.comparison.ranked or findings.comparison.front)
    text = t("objectives.search", done=done, planned=planned, compared=compared)
    return ("done" if planned is not None and done >= planned else "partly"), text


def _baseline(findings: Findings, t: Catalogue) -> tuple[Status, Markdown]:
    baseline = findings.comparison.baseline
    if baseline is None or baseline not in findings.comparison.ranked:
        return "open", t("objectives.no_baseline")
    ppl = perplexity(baseline.measured.val_ppl)
    return "done", t("objectives.baseline", number=baseline.number, ppl=ppl)


def _improvement(findings: Findings, t: Catalogue) -> tuple[Status, Markdown]:
    """Whether the baseline was beaten: by fresh seeds, or by one run."""
    final, best = findings.final_winner, findings.comparison.winner
    if final is not None:
        status: Status = "done" if final.standing == "better" else "open"
        return status, t("objectives.improvement", number=final.trial, verdict=describe_candidate(final, t))
    if best is None or best is findings.comparison.baseline:
        return "open", t("objectives.no_improvement")
    verdict = describe_verdict(findings.comparison.verdicts[best.number], t)
    return "partly", t("objectives.improvement", number=best.number, verdict=verdict)


def _replication(findings: Findings, t: Catalogue) -> tuple[Status, Markdown]:
    judgement = findings.judgement
    if judgement is None:
        return "open", t("objectives.no_replication")
    text = t("objectives.replication", n=judgement.seeds, candidates=len(judgement.candidates))
    return ("done" if judgement.is_complete and judgement.verdict_possible else "partly"), text


def _projected(findings: Findings, t: Catalogue) -> tuple[Status, Markdown]:
    if isinstance(findings.outlook, TrialOutlook):
        return "done", t("objectives.projected", n=findings.outlook.references)
    return "open", t("objectives.not_projected")


def _test_split(findings: Findings, t: Catalogue) -> tuple[Status, Markdown]:
    test = None if findings.judgement is None else findings.judgement.test
    if test is None:
        return "open", t("objectives.untested")
    return "done", t("objectives.tested", number=test.candidate, n=len(test.scores))
