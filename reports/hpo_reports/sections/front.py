"""Of several objectives: the trials that no other dominates."""

from __future__ import annotations

from hpo_reports.analysis.findings import Findings
from hpo_reports.analysis.verdicts import SEED_NOISE_PERCENT
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.commands import train_command
from hpo_reports.document.layout import Block, Chart, Section, bullets, fenced
from hpo_reports.document.tables import front_table
from hpo_reports.sections.comparison import drawn


def front(findings: Findings, t: Catalogue) -> Section | None:
    """The Pareto front, and the command that takes one of it."""
    if findings.single:
        return None
    blocks: list[Block] = [t("front.introduction", n=len(findings.record.directions))]
    trials = findings.comparison.front
    if not trials:
        blocks.append(t("front.none"))
    else:
        blocks.append(drawn(front_table(findings.record, findings.comparison), findings, t))
        if findings.record.is_ours:
            blocks.append(bullets([t("front.evidence", noise=SEED_NOISE_PERCENT), t("front.choice")]))
            blocks.append(fenced("bash", train_command(findings.record.name, trials[0].number)))
    blocks.append(Chart(figure="front"))
    return Section(title=t("front.title"), blocks=tuple(blocks))
