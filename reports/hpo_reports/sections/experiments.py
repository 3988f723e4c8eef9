"""The experiment log: which sections it has, in which order."""

from __future__ import annotations

from hpo_reports.analysis.findings import Findings
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.layout import Document
from hpo_reports.sections.analysis import analysis
from hpo_reports.sections.charts import charts
from hpo_reports.sections.comparison import comparison, incomplete
from hpo_reports.sections.decision import decision
from hpo_reports.sections.finalists import finalists
from hpo_reports.sections.front import front
from hpo_reports.sections.head import head
from hpo_reports.sections.insights import insights
from hpo_reports.sections.lessons import lessons
from hpo_reports.sections.past_log import past_log
from hpo_reports.sections.projection import projection
from hpo_reports.sections.recommendation import recommendation
from hpo_reports.sections.success import success
from hpo_reports.sections.totals import totals
from hpo_reports.sections.winner import winner

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
