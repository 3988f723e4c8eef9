"""The experiment log: which sections it has, in which order."""

from __future__ import annotations

from reports.catalogue import Catalogue
from reports.findings import Findings
from reports.layout import Document
from reports.sections.analysis import analysis
from reports.sections.charts import charts
from reports.sections.comparison import comparison, incomplete
from reports.sections.decision import decision
from reports.sections.finalists import finalists
from reports.sections.front import front
from reports.sections.head import head
from reports.sections.insights import insights
from reports.sections.lessons import lessons
from reports.sections.past_log import past_log
from reports.sections.projection import projection
from reports.sections.recommendation import recommendation
from reports.sections.success import success
from reports.sections.totals import totals
from reports.sections.winner import winner

SECTIONS = (
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
)
LOG_SECTIONS = (head, past_log, comparison, charts, analysis, insights, totals)  # of a table: no winner, nothing to run


def experiments(findings: Findings, say: Catalogue) -> Document:
    """Write the experiment log of a study with at least one trial."""
    sections = (section(findings, say) for section in (LOG_SECTIONS if findings.record.log else SECTIONS))
    return Document(
        title=say("title.experiments", study=findings.record.name),
        sections=tuple(section for section in sections if section is not None),
    )
