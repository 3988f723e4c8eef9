"""The two reports of a study: which sections each has, in which order."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal, get_args

from hpo_reports.analysis.findings import Findings
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.layout import Document, Section
from hpo_reports.sections.analysis import analysis
from hpo_reports.sections.charts import charts
from hpo_reports.sections.comparison import comparison, incomplete
from hpo_reports.sections.decision import decision
from hpo_reports.sections.finalists import finalists
from hpo_reports.sections.front import front
from hpo_reports.sections.head import head
from hpo_reports.sections.insights import insights
from hpo_reports.sections.lessons import discoveries, lessons
from hpo_reports.sections.next_steps import next_steps
from hpo_reports.sections.objectives import objectives, session_head
from hpo_reports.sections.past_log import past_log
from hpo_reports.sections.projection import projection
from hpo_reports.sections.recommendation import recommendation
from hpo_reports.sections.results import configuration, generation, results
from hpo_reports.sections.success import success
from hpo_reports.sections.totals import totals
from hpo_reports.sections.winner import winner

Template = Literal["experiments", "session"]
TEMPLATES: tuple[Template, ...] = get_args(Template)
SectionWriter = Callable[[Findings, Catalogue], Section | None]

_SECTIONS: Mapping[Template, tuple[SectionWriter, ...]] = {
    "experiments": (
        head,
        comparison,
        incomplete,
        charts,
        front,
        winner,
        finalists,
        analysis,
        decision,
        projection,
        insights,
        recommendation,
        lessons,
        success,
        totals,
    ),
    "session": (
        session_head,
        objectives,
        results,
        charts,
        generation,
        configuration,
        insights,
        discoveries,
        success,
        next_steps,
    ),
}
# of an imported table of past experiments: no winner, nothing to run, and no session that took place here
_TABLE_SECTIONS: Mapping[Template, tuple[SectionWriter, ...]] = {
    "experiments": (head, past_log, comparison, charts, analysis, insights, totals),
    "session": (head, past_log, comparison, insights),
}


def document(template: Template, findings: Findings, t: Catalogue) -> Document:
    """Write a report of a study with at least one trial.

    Args:
        template: `experiments`, the experiment log; or `session`, a summary of the session.
        findings: what it is written from.
        t: the messages of its language.
    """
    writers = (_TABLE_SECTIONS if findings.record.log else _SECTIONS)[template]
    sections = (write(findings, t) for write in writers)
    return Document(
        title=t(f"title.{template}", study=findings.record.name),
        sections=tuple(section for section in sections if section is not None),
    )
