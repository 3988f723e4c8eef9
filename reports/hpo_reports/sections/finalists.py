"""The finalists: the best configurations under fresh seeds, with intervals, corrected tests and the test split."""

from __future__ import annotations

from collections.abc import Iterator

from hpo_reports.analysis.findings import Findings
from hpo_reports.analysis.judging import CandidateJudgement, FinalistsJudgement
from hpo_reports.analysis.statistics import ALPHA, percent_of
from hpo_reports.document.catalogue import Catalogue
from hpo_reports.document.commands import replicate_command
from hpo_reports.document.formats import MISSING, bits_per_byte, percent, perplexity
from hpo_reports.document.layout import Block, Section, bullets, fenced
from hpo_reports.document.markdown import Markdown, markdown_table
from hpo_reports.document.tables import Table
from hpo_reports.records.finalists import TestEvaluation
from hpo_reports.sections.phrases import describe_candidate, p_value


def finalists(findings: Findings, t: Catalogue) -> Section | None:
    """What the fresh seeds say; without them how to run them."""
    if not findings.single or not findings.record.can_train or findings.comparison.winner is None:
        return None
    command = fenced("bash", replicate_command(findings.record.name))
    judgement = findings.judgement
    if judgement is None:
        return Section(title=t("finalists.title"), blocks=(t("finalists.none"), command))
    blocks: list[Block] = [_introduction(judgement, t), _table(judgement, t)]
    blocks.append(bullets(_lines(judgement, t)))
    if judgement.is_complete and not judgement.verdict_possible:
        blocks += [t("finalists.too_few", n=judgement.seeds, needed=judgement.seeds_needed), command]
    return Section(title=t("finalists.title"), blocks=tuple(blocks))


def _introduction(judgement: FinalistsJudgement, t: Catalogue) -> Markdown:
    candidates = len(judgement.candidates)
    text = t("finalists.introduction", n=judgement.seeds, candidates=candidates)
    return text if judgement.is_complete else Markdown(f"{text} {t('finalists.provisional')}")


def _table(judgement: FinalistsJudgement, t: Catalogue) -> Markdown:
    labels = {
        "number": t("column.number"),
        "seeds": t("finalists.seeds"),
        "screening": t("finalists.screening"),
        "mean": t("finalists.mean"),
        "deviation": t("finalists.deviation"),
        "shrunk": t("finalists.shrunk"),
        "difference": t("finalists.difference"),
        "p": t("finalists.p"),
        "best": t("finalists.best"),
        "verdict": t("column.verdict"),
    }
    rows = tuple(_row(candidate, t) for candidate in judgement.candidates)
    return markdown_table(Table(tuple(labels), rows), labels, bold=judgement.winner)


def _row(candidate: CandidateJudgement, t: Catalogue) -> tuple[int | str, ...]:
    planned = candidate.complete + candidate.lost + candidate.failed + candidate.pending
    return (
        candidate.trial,
        Markdown(f"{candidate.complete}/{planned}"),
        Markdown(_ppl(candidate.screening_val_loss)),
        Markdown(_ppl(candidate.mean_val_loss)),
        Markdown(MISSING if candidate.deviation is None else f"{percent(100 * candidate.deviation)} %"),
        Markdown(_ppl(candidate.shrunk_val_loss)),
        _difference(candidate, t),
        Markdown(p_value(candidate.p_adjusted)),
        Markdown(MISSING if candidate.probability_best is None else f"{100 * candidate.probability_best:.0f} %"),
        describe_candidate(candidate, t),
    )


def _difference(candidate: CandidateJudgement, t: Catalogue) -> Markdown:
    """To the baseline in per cent of its perplexity, with the interval."""
    if candidate.percent is None:
        return Markdown(MISSING)
    if candidate.interval is None:
        return Markdown(_signed(candidate.percent))
    low, high = (_signed(percent_of(end)) for end in (candidate.interval.low, candidate.interval.high))
    return t("finalists.interval", mean=Markdown(_signed(candidate.percent)), low=Markdown(low), high=Markdown(high))


def _signed(value: float) -> str:
    return f"{'−' if value < 0 else '+'}{percent(abs(value))} %"


def _ppl(nats: float | None) -> str:
    return perplexity(None if nats is None else 1 + percent_of(nats) / 100)


def _lines(judgement: FinalistsJudgement, t: Catalogue) -> Iterator[Markdown]:
    yield t("finalists.method", alpha=percent(100 * ALPHA))
    if judgement.rounds > 1:
        yield t("finalists.rounds", n=judgement.rounds)
    if judgement.noise is not None:
        noise = judgement.noise
        limit = percent(noise.min_detectable_percent)
        yield t("finalists.noise", noise=percent(noise.percent), n=noise.candidates, limit=limit)
    for candidate in judgement.candidates:
        if candidate.lost or candidate.failed:
            yield t("finalists.lost", number=candidate.trial, lost=candidate.lost, failed=candidate.failed)
    yield _test(judgement, t)


def _test(judgement: FinalistsJudgement, t: Catalogue) -> Markdown:
    """What the test split gave, and how often it was looked at."""
    test = judgement.test
    if test is None:
        return t("finalists.untested")
    ppl, bits = _ppl(test.mean_loss), _bits(test)
    text = t("finalists.test", number=test.candidate, n=len(test.scores), ppl=ppl, bits=bits)
    again = len(judgement.later_tests)
    return text if not again else Markdown(f"{text} {t('finalists.tested_again', n=again)}")


def _bits(test: TestEvaluation) -> str:
    bits = [score.bits_per_byte for score in test.scores if score.bits_per_byte is not None]
    return bits_per_byte(sum(bits) / len(bits)) if len(bits) == len(test.scores) else MISSING
