"""A comparison of studies as Markdown for people and JSON for programs."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator

from hpo_reports.analysis.across import Across, Difference, Side
from hpo_reports.analysis.judging import percent_of
from hpo_reports.document.catalogue import Catalogue, Language, catalogue
from hpo_reports.document.formats import MISSING, count, percent
from hpo_reports.document.layout import Document, Section, bullets, markdown_of
from hpo_reports.document.markdown import Markdown, markdown_table
from hpo_reports.document.tables import Table, Value
from hpo_reports.sections.words import difference, p_value


def across_markdown(found: Across, language: Language = "en") -> str:
    """A table of the studies, and how their winners stand to the first one's."""
    say = catalogue(language)
    facts = bullets(_facts(found, say))
    verdicts = bullets(_verdict(each, found, say) for each in found.differences)
    notes = bullets([say("across.selection"), *([say("across.unlike_tokens")] if found.scale == "word" else [])])
    sections = (
        Section(title=None, blocks=(facts, _table(found, say))),
        Section(title=say("across.differences"), blocks=(verdicts, notes)),
    )
    return markdown_of(Document(title=say("across.title"), sections=sections))


def across_json(found: Across) -> str:
    """Everything, raw."""
    return json.dumps(dataclasses.asdict(found), ensure_ascii=False, allow_nan=False, indent=2) + "\n"


def _facts(found: Across, say: Catalogue) -> Iterator[Markdown]:
    yield say("across.terms", tokens=count(found.budget_tokens), corpus=found.corpus)
    yield say("across.by_token" if found.scale == "token" else "across.by_word")


def _table(found: Across, say: Catalogue) -> Markdown:
    labels = {
        "study": say("across.study"),
        "tokenizer": say("across.tokenizer"),
        "trials": say("across.trials"),
        "tokens": say("across.tokens"),
        "winner": say("across.winner"),
        "runs": say("across.runs"),
        "epoch": say("column.epoch"),
        "val_ppl": say("column.val_ppl"),
        "val_word_ppl": say("column.val_word_ppl"),
        "val_bits_per_byte": say("column.val_bits_per_byte"),
    }
    if found.scale == "word":  # per token nothing compares
        del labels["val_ppl"]
    rows = tuple(tuple(_cells(side)[name] for name in labels) for side in found.sides)
    return markdown_table(Table(tuple(labels), rows), labels)


def _cells(side: Side) -> dict[str, Value]:
    return {**dataclasses.asdict(side), "tokens": side.tokens_spent, "epoch": side.epochs}


def _verdict(each: Difference, found: Across, say: Catalogue) -> Markdown:
    gap = Markdown(MISSING) if each.percent is None else difference(each.percent, say)
    first = found.sides[0].study
    if each.evidence == "one_run":
        return say("across.one_run", study=each.study, first=first, difference=gap)
    ends = (None, None) if each.interval is None else (each.interval.low, each.interval.high)
    low, high = (Markdown(MISSING if end is None else f"{percent(percent_of(end))} %") for end in ends)
    key = "across.paired" if each.evidence == "paired" else "across.two_samples"
    verdict = say(f"standing.{each.verdict}")
    return say(
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
