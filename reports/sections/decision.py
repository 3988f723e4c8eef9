"""What to train for long: the exact command, the whole configuration, and what speaks for waiting."""

from __future__ import annotations

from reports.catalogue import Catalogue
from reports.commands import LONG_RUN_EPOCHS, toml_lines, train_command
from reports.findings import Findings
from reports.formats import count
from reports.layout import Block, Section, fenced


def decision(findings: Findings, say: Catalogue) -> Section | None:
    """The long run with the winner; none where nothing that we can train has won."""
    best = findings.comparison.winner
    if best is None or not best.is_ours:
        return None
    blocks: list[Block] = [
        say("decision.long_run", number=best.number),
        fenced("bash", train_command(findings.record.name, best.number)),
        fenced("toml", "\n".join(toml_lines(best.parameters))),  # one line each: no fence ends early
    ]
    if findings.comparison.verdicts[best.number].standing == "not_distinguishable":
        blocks.append(say("decision.within_noise"))
    blocks.append(say("decision.no_promise", tokens=count(best.measured.tokens), epochs=LONG_RUN_EPOCHS))
    return Section(title=say("decision.title"), blocks=tuple(blocks))
