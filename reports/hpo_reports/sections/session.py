"""The session's summary: objectives, results, configuration, discoveries, what to do next."""

from __future__ import annotations

from hpo_reports.analysis.findings import Findings
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.layout import Document
from hpo_reports.sections.charts import charts
from hpo_reports.sections.comparison import comparison
from hpo_reports.sections.head import head
from hpo_reports.sections.insights import insights
from hpo_reports.sections.lessons import discoveries
from hpo_reports.sections.next_steps import next_steps
from hpo_reports.sections.objectives import objectives, session_head
from hpo_reports.sections.past_log import past_log
from hpo_reports.sections.results import configuration, generation, results
from hpo_reports.sections.success import success

SECTIONS = (
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
)
LOG_SECTIONS = (head, past_log, comparison, insights)  # of a table of past experiments, which had no session here


def session(findings: Findings, say: Catalogue) -> Document:
    """Write the summary of a study with at least one trial."""
    sections = (section(findings, say) for section in (LOG_SECTIONS if findings.record.log else SECTIONS))
    return Document(
        title=say("title.session", study=findings.record.name),
        sections=tuple(section for section in sections if section is not None),
    )
