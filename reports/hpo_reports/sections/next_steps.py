"""What to do next, each step for a reason that is a number of the study."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from hpo_reports.analysis.findings import Findings
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.commands import replicate_command, run_command, train_command
from hpo_reports.document.formats import duration
from hpo_reports.document.layout import Section, numbered
from hpo_reports.document.markdown import Markdown
from hpo_reports.projection.horizon import LONG_RUN_EPOCHS
from hpo_reports.records.study import SearchRecord, TrialRecord
from hpo_reports.sections.objectives import finished
from hpo_reports.sections.phrases import describe_parameter
from hpo_reports.sections.recommendation import run_s

EDGE = 0.05  # of a range, at either end


def next_steps(findings: Findings, t: Catalogue) -> Section | None:
    """Commands in the order in which they are worth running."""
    steps = list(_steps(findings, t))
    return Section(title=t("next.title"), blocks=(numbered(steps),)) if steps else None


def at_edge(searched: SearchRecord, trial: TrialRecord) -> float | None:
    """The end of its range that a trial's value lies at; None where it lies within, or there is no range."""
    value = trial.parameters.get(searched.name)
    low, high = searched.low, searched.high
    if isinstance(value, bool | str) or value is None or low is None or high is None or low >= high:
        return None
    if searched.log and min(low, value) <= 0:
        return None
    place = math.log(value / low) / math.log(high / low) if searched.log else (value - low) / (high - low)
    return low if place <= EDGE else high if place >= 1 - EDGE else None


def _steps(findings: Findings, t: Catalogue) -> Iterator[Markdown]:
    study, best = findings.record, findings.chosen
    if study.planned_trials is not None and finished(study) < study.planned_trials:
        missing = study.planned_trials - finished(study)
        yield t("next.finish", n=missing, command=_code(run_command(study.name)))
    if best is None or not best.can_train:
        return
    if findings.judgement is None or not findings.judgement.verdict_possible:
        yield t("next.replicate", command=_code(replicate_command(study.name)))
    for searched in study.search:
        edge = at_edge(searched, best)
        if edge is not None:
            value = best.parameters.get(searched.name)
            yield t("next.widen", name=describe_parameter(searched.name, t), value=value, edge=edge, number=best.number)
    command = _code(train_command(study.name, best.number))
    time = duration(run_s(findings, best, LONG_RUN_EPOCHS))
    yield t("next.train", epochs=LONG_RUN_EPOCHS, time=time, command=command)


def _code(command: str) -> Markdown:
    """A command within a sentence; a name with a backtick in it needs a longer fence."""
    fence = "`" * (max(map(len, re.findall("`+", command)), default=0) + 1)
    return Markdown(f"{fence}{command}{fence}")
