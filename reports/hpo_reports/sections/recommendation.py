"""What to run next: the long run and a quick one, with the time that they take at the speed that was measured."""

from __future__ import annotations

from collections.abc import Iterator

from hpo_reports.analysis.findings import Findings
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.commands import QUICK_RUN_EPOCHS, train_command
from hpo_reports.document.formats import count, duration
from hpo_reports.document.layout import Block, Section, fenced
from hpo_reports.document.markdown import Markdown
from hpo_reports.projection.horizon import LONG_RUN_EPOCHS
from hpo_reports.records.study import TrialRecord


def recommendation(findings: Findings, t: Catalogue) -> Section | None:
    """Commands to run with the winner; none where nothing that we can train has won."""
    best = findings.chosen
    if best is None or not best.can_train:
        return None
    return Section(title=t("recommendation.title"), blocks=tuple(_blocks(findings, best, t)))


def overall_tokens_per_s(trial: TrialRecord) -> float | None:
    """Training tokens per second of a run's whole time, evaluations included."""
    tokens, seconds = trial.measured.tokens, trial.measured.seconds
    return tokens / seconds if tokens and seconds else None


def run_s(findings: Findings, trial: TrialRecord, epochs: int) -> float | None:
    """Seconds that so many epochs take at a trial's speed; None where its speed or the corpus is unknown."""
    speed, tokens = overall_tokens_per_s(trial), findings.record.corpus.train_tokens
    return epochs * tokens / speed if speed and tokens else None


def _blocks(findings: Findings, best: TrialRecord, t: Catalogue) -> Iterator[Block]:
    study = findings.record.name
    yield t("recommendation.long", epochs=LONG_RUN_EPOCHS, time=_expected(findings, best, LONG_RUN_EPOCHS, t))
    yield fenced("bash", train_command(study, best.number))
    yield t("recommendation.quick", n=QUICK_RUN_EPOCHS, time=_expected(findings, best, QUICK_RUN_EPOCHS, t))
    yield fenced("bash", train_command(study, best.number, QUICK_RUN_EPOCHS))


def _expected(findings: Findings, best: TrialRecord, epochs: int, t: Catalogue) -> Markdown:
    seconds = run_s(findings, best, epochs)
    if seconds is None:
        return t("recommendation.time_unknown")
    speed = count(overall_tokens_per_s(best))
    return t("recommendation.time", time=duration(seconds), speed=speed, number=best.number, device=best.device)
