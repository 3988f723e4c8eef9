"""The session's results in numbers: what the search found, how the winner trained, what became of Φ."""

from __future__ import annotations

from collections.abc import Iterator

from hpo_reports.analysis.findings import Findings
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.commands import configuration_toml, text_commands
from hpo_reports.document.formats import count, duration, fixed, percent, perplexity, phi
from hpo_reports.document.layout import Block, Section, bullets, fenced
from hpo_reports.document.markdown import Markdown
from hpo_reports.records.study import TrialRecord
from hpo_reports.sections.analysis import changes, changes_text
from hpo_reports.sections.words import change, percent_change


def results(findings: Findings, say: Catalogue) -> Section | None:
    """Search, training and Φ of the trial to go on with; none without runs of ours."""
    best = findings.chosen
    if best is None or not best.is_ours:
        return None
    blocks: list[Block] = []
    for title, lines in (
        (say("results.search"), _search(findings, best, say)),
        (say("results.training"), _training(best, say)),
        (say("results.phi"), _phi(findings, best, say)),
    ):
        blocks += [Markdown(f"### {title}"), bullets(lines)]
    return Section(title=say("results.title"), blocks=tuple(blocks))


def generation(findings: Findings, say: Catalogue) -> Section | None:
    """No study generates text: that is said, with the commands that do."""
    best = findings.chosen
    if best is None or not best.is_ours:
        return None
    commands = fenced("bash", text_commands(findings.record.name, best.number))
    return Section(title=say("generation.title"), blocks=(say("generation.none"), commands))


def configuration(findings: Findings, say: Catalogue) -> Section | None:
    """The whole configuration to go on with, as a block to paste."""
    best = findings.chosen
    if best is None or not best.is_ours:
        return None
    text = say("configuration.of", number=best.number)
    block = fenced("toml", configuration_toml(best.parameters))
    return Section(title=say("configuration.title"), blocks=(text, block))


def _search(findings: Findings, best: TrialRecord, say: Catalogue) -> Iterator[Markdown]:
    sums, baseline = findings.totals, findings.comparison.baseline
    yield say("results.found", number=best.number, ppl=perplexity(best.measured.val_ppl))
    if baseline is not None and baseline is not best:
        yield say("results.against", changes=changes_text(changes(best, baseline), say))
        ppl = change(baseline.measured.val_ppl, best.measured.val_ppl, perplexity)
        yield say("results.val_ppl", change=ppl)
    if sums.saved_percent is not None:
        yield say("results.saved", p=percent(sums.saved_percent), n=sums.outcomes["pruned"])


def _training(best: TrialRecord, say: Catalogue) -> Iterator[Markdown]:
    values = [value for value in best.curve if value is not None]
    if len(values) > 1:
        first, last = fixed(values[0], 3), fixed(values[-1], 3)
        yield say("results.loss", first=first, last=last, change=percent_change(values[0], values[-1]))
    measured = best.measured
    yield say(
        "results.run",
        tokens=count(measured.tokens),
        steps=count(measured.step),
        time=duration(measured.seconds),
        speed=count(measured.tokens_per_s),
    )


def _phi(findings: Findings, best: TrialRecord, say: Catalogue) -> Iterator[Markdown]:
    baseline = findings.comparison.baseline
    if baseline is None or baseline is best:
        yield say("results.phi_alone", phi=phi(best.measured.phi))
    else:
        yield say("results.phi_change", change=change(baseline.measured.phi, best.measured.phi, phi))
