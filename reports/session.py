"""The session's summary: objectives, results, configuration, discoveries, what to do next."""

from __future__ import annotations

from reports.catalogue import Catalogue
from reports.findings import Findings
from reports.layout import Document
from reports.sections.charts import charts
from reports.sections.insights import insights
from reports.sections.lessons import discoveries
from reports.sections.next_steps import next_steps
from reports.sections.objectives import objectives, session_head
from reports.sections.past_log import past_log
from reports.sections.results import configuration, generation, results
from reports.sections.success import success

SECTIONS = (
    session_head,
    past_log,
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


def session(findings: Findings, say: Catalogue) -> Document:
    """Write the summary of a study with at least one trial."""
    sections = (section(findings, say) for section in SECTIONS)
    return Document(
        title=say("title.session", study=findings.record.name),
        sections=tuple(section for section in sections if section is not None),
    )
