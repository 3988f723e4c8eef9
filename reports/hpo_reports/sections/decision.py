"""What to train for long: the exact command, the whole configuration, and what speaks for waiting."""

from __future__ import annotations

from hpo_reports.analysis.findings import Findings
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.commands import configuration_toml, train_command
from hpo_reports.document.formats import count
from hpo_reports.document.layout import Block, Section, fenced
from hpo_reports.projection.horizon import LONG_RUN_EPOCHS
from hpo_reports.records.study import TrialRecord
from hpo_reports.sections.phrases import describe_candidate


def decision(findings: Findings, t: Catalogue) -> Section | None:
    """The long run with the winner; none where nothing that we can train has won."""
    best = findings.chosen
    if best is None or not best.can_train:
        return None
    blocks: list[Block] = [
        t("decision.long_run", number=best.number),
        fenced("bash", train_command(findings.record.name, best.number)),
        fenced("toml", configuration_toml(best.parameters)),  # one line each: no fence ends early
    ]
    blocks += _caution(findings, best, t)
    blocks.append(t("decision.no_promise", tokens=count(best.measured.tokens), epochs=LONG_RUN_EPOCHS))
    return Section(title=t("decision.title"), blocks=tuple(blocks))


def _caution(findings: Findings, best: TrialRecord, t: Catalogue) -> list[Block]:
    """What speaks for waiting: a lead that the seeds alone can explain."""
    final = findings.final_winner
    if final is None:
        within = findings.comparison.verdicts[best.number].standing == "not_distinguishable"
        return [t("decision.within_noise")] if within else []
    if final.standing in ("better", "baseline"):
        return []
    return [t("decision.not_established", verdict=describe_candidate(final, t))]
