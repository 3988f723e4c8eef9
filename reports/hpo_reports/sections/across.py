"""A comparison of studies as Markdown for people and JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from hpo_reports.analysis.across import Across, Difference, Side
from hpo_reports.analysis.statistics import percent_of
from hpo_reports.document.catalogue import Catalogue, Language, catalogue
from hpo_reports.document.formats import MISSING, count, percent
from hpo_reports.document.layout import Document, Section, bullets, markdown_of
from hpo_reports.document.markdown import Markdown, markdown_table
from hpo_reports.document.tables import Table, Value
from hpo_reports.sections.phrases import describe_difference, p_value


def across_markdown(found: Across, language: Language = "en") -> str:
    """A table of the studies, and how their winners stand to the first one's."""
    t = catalogue(language)
    facts = bullets(_facts(found, t))
    verdicts = bullets(_verdict(each, found, t) for each in found.differences)
    notes = bullets([t("across.selection"), *([t("across.unlike_tokens")] if found.scale == "word" else [])])
    sections = (
        Section(title=None, blocks=(facts, _table(found, t))),
        Section(title=t("across.differences"), blocks=(verdicts, notes)),
    )
    return markdown_of(Document(title=t("across.title"), sections=sections))


def across_json(found: Across) -> str:
    """Everything, raw."""
    return json.dumps(dataclasses.asdict(found), ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def _facts(found: Across, t: Catalogue) -> Iterator[Markdown]:
    yield t("across.terms", tokens=count(found.budget_tokens), corpus=found.corpus)
    yield t("across.by_token" if found.scale == "token" else "across.by_word")


def _table(found: Across, t: Catalogue) -> Markdown:
    labels = {
        "study": t("across.study"),
        "tokenizer": t("across.tokenizer"),
        "trials": t("across.trials"),
        "tokens": t("across.tokens"),
        "winner": t("across.winner"),
        "runs": t("across.runs"),
        "epoch": t("column.epoch"),
        "val_ppl": t("column.val_ppl"),
        "val_word_ppl": t("column.val_word_ppl"),
        "val_bits_per_byte": t("column.val_bits_per_byte"),
    }
    if found.scale == "word":  # per token nothing compares
        del labels["val_ppl"]
    rows = tuple(tuple(_cells(side)[name] for name in labels) for side in found.sides)
    return markdown_table(Table(tuple(labels), rows), labels)


def _cells(side: Side) -> dict[str, Value]:
    return {**dataclasses.asdict(side), "tokens": side.tokens_spent, "epoch": side.epochs}


def _verdict(each: Difference, found: Across, t: Catalogue) -> Markdown:
    gap = Markdown(MISSING) if each.percent is None else describe_difference(each.percent, t)
    first = found.sides[0].study
    if each.evidence == "one_run":
        return t("across.one_run", study=each.study, first=first, difference=gap)
    ends = (None, None) if each.interval is None else (each.interval.low, each.interval.high)
    low, high = (Markdown(MISSING if end is None else f"{percent(percent_of(end))} %") for end in ends)
    key = "across.paired" if each.evidence == "paired" else "across.two_samples"
    verdict = t(f"standing.{each.verdict}")
    return t(
        key,
        study=each.study,
        first=first,
        difference=gap,
        low=low,
        high=high,
        n=each.pairs,
        p=Markdown(p_value(each.p_adjusted)),
        verdict=verdict,
    )
