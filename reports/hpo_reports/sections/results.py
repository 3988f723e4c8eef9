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
from hpo_reports.sections.phrases import describe_change, describe_percent_change


def results(findings: Findings, t: Catalogue) -> Section | None:
    """Search, training and Φ of the trial to go on with; none without runs of ours."""
    best = findings.chosen
    if best is None or not best.is_ours:
        return None
    blocks: list[Block] = []
    for title, lines in (
        (t("results.search"), _search(findings, best, t)),
        (t("results.training"), _training(best, t)),
        (t("results.phi"), _phi(findings, best, t)),
    ):
        blocks += [Markdown(f"### {title}"), bullets(lines)]
    return Section(title=t("results.title"), blocks=tuple(blocks))


def generation(findings: Findings, t: Catalogue) -> Section | None:
    """No study generates text: that is said, with the commands that do."""
    best = findings.chosen
    if best is None or not best.is_ours:
        return None
    commands = fenced("bash", text_commands(findings.record.name, best.number))
    return Section(title=t("generation.title"), blocks=(t("generation.none"), commands))


def configuration(findings: Findings, t: Catalogue) -> Section | None:
    """The whole configuration to go on with, as a block to paste."""
    best = findings.chosen
    if best is None or not best.is_ours:
        return None
    text = t("configuration.of", number=best.number)
    block = fenced("toml", configuration_toml(best.parameters))
    return Section(title=t("configuration.title"), blocks=(text, block))


def _search(findings: Findings, best: TrialRecord, t: Catalogue) -> Iterator[Markdown]:
    sums, baseline = findings.totals, findings.comparison.baseline
    yield t("results.found", number=best.number, ppl=perplexity(best.measured.val_ppl))
    if baseline is not None and baseline is not best:
        yield t("results.against", changes=changes_text(changes(best, baseline), t))
        ppl = describe_change(baseline.measured.val_ppl, best.measured.val_ppl, perplexity)
        yield t("results.val_ppl", change=ppl)
    if sums.saved_percent is not None:
        yield t("results.saved", p=percent(sums.saved_percent), n=sums.outcomes["pruned"])


def _training(best: TrialRecord, t: Catalogue) -> Iterator[Markdown]:
    values = [value for value in best.curve if value is not None]
    if len(values) > 1:
        first, last = fixed(values[0], 3), fixed(values[-1], 3)
        yield t("results.loss", first=first, last=last, change=describe_percent_change(values[0], values[-1]))
    measured = best.measured
    yield t(
        "results.run",
        tokens=count(measured.tokens),
        steps=count(measured.step),
        time=duration(measured.seconds),
        speed=count(measured.tokens_per_s),
    )


def _phi(findings: Findings, best: TrialRecord, t: Catalogue) -> Iterator[Markdown]:
    baseline = findings.comparison.baseline
    if baseline is None or baseline is best:
        yield t("results.phi_alone", phi=phi(best.measured.phi))
    else:
        yield t("results.phi_change", change=describe_change(baseline.measured.phi, best.measured.phi, phi))
