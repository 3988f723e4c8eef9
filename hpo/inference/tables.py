"""What `hpo evaluate` found, as Markdown tables. A missing value is a dash."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hpo.inference.evaluate import Column, Comparison, Evaluated, OnSplit
from hpo_model.generation.quality import Judgement, Measures
from hpo_reports.document.markdown import aligned_table

MISSING = "—"


@dataclass(frozen=True)
class _Row:
    label: str
    digits: int
    on_split: Callable[[OnSplit], float | None]


_ON_SPLIT = (
    _Row("perplexity per token", 2, lambda each: each.token_perplexity),
    _Row("perplexity per word", 2, lambda each: each.word_perplexity),
    _Row("bits per byte", 4, lambda each: each.bits_per_byte),
    _Row("Φ", 4, lambda each: each.phi),
    _Row("temporal coherence", 4, lambda each: each.temporal_coherence),
    _Row("integration", 4, lambda each: each.integration),
    _Row("complexity", 4, lambda each: each.complexity),
    _Row("attention diversity", 4, lambda each: each.attention_diversity),
)
_MEASURES: tuple[tuple[str, int, Callable[[Measures], float | None]], ...] = (
    ("entropy, bits per word", 2, lambda each: each.entropy_bits),
    ("distinct-1", 3, lambda each: each.distinct_1),
    ("distinct-2", 3, lambda each: each.distinct_2),
    ("distinct-3", 3, lambda each: each.distinct_3),
    ("repetition-4", 3, lambda each: each.repetition),
    ("type-token ratio", 3, lambda each: each.type_token_ratio),
    ("self-BLEU", 3, lambda each: each.self_bleu),
    ("Zipf slope", 2, lambda each: each.zipf_slope),
    ("surprise, bits per word", 2, lambda each: each.surprise_bits),
    ("known pairs", 3, lambda each: each.known_pairs),
    ("known triples", 3, lambda each: each.known_triples),
    ("share of the 20 commonest", 3, lambda each: each.commonest_share),
)


def evaluation_text(found: Evaluated) -> str:
    """The whole answer for people."""
    columns = (found.untrained, *found.networks)
    parts = [f"# Evaluation on {found.corpus}", *(f"Note: {note}." for note in found.notes), ""]
    for place, split in enumerate(each.split for each in found.untrained.splits):
        parts += [f"## {split.capitalize()} split", "", *_split_table(columns, place), ""]
    if found.comparisons:
        parts += ["## Differences", "", *map(_difference, found.comparisons), ""]
    if found.human is not None:
        parts += ["## Generated text", "", *_quality(found, columns, found.human), ""]
    parts += ["## Before and after", "", *_before_and_after(found)]
    return "\n".join(parts) + "\n"


def _split_table(columns: Sequence[Column], place: int) -> list[str]:
    rows = [["training tokens", *(f"{column.training_tokens:,}" for column in columns)]]
    rows += [["parameters", *(f"{column.parameters:,}" for column in columns)]]
    rows += [[row.label, *(_number(row.on_split(c.splits[place]), row.digits) for c in columns)] for row in _ON_SPLIT]
    doubts = [f"{c.name}: implausibly low, {c.splits[place].doubt}" for c in columns if c.splits[place].doubt]
    return [*table(["", *(column.name for column in columns)], rows), *doubts]


def _difference(each: Comparison) -> str:
    if each.difference is None or each.unit is None:
        return f"- {each.split}, {each.name} against {each.first}: not comparable, the tokenizers lost words"
    gap = each.difference
    verdict = "a clear difference" if gap.is_clear else "no clear difference"
    return (
        f"- {each.split}, {each.name} minus {each.first}: {gap.mean:+.4f} {each.unit}, 95 % interval "
        f"{gap.low:+.4f} to {gap.high:+.4f} over {gap.documents} {each.documents}: {verdict} between these two networks"
    )


def _quality(found: Evaluated, columns: Sequence[Column], human: Judgement) -> list[str]:
    judged = [column.sampled for column in columns if column.sampled is not None] + [human]
    rows = [[label, *(_number(read(each.measures), digits) for each in judged)] for label, digits, read in _MEASURES]
    rows += [["**score**", *(f"**{each.score:.3f}**" for each in judged)], ["grade", *(each.grade for each in judged)]]
    rows += [["collapse, sampled", *(each.collapse for each in judged)]]
    greedy = [column.greedy.collapse for column in columns if column.greedy is not None]
    rows += [["collapse, greedy", *greedy, MISSING]]
    said = [
        f"{found.passages} texts of {found.passage_words} words each, drawn at temperature 1 with nothing cut. Each "
        "goes on from held-out text; the human text beside them is what follows there.",
        "",
        *table(["", *(column.name for column in columns), "human text"], rows),
        "",
    ]
    return said + [
        f"- {column.name}, {kind}: {each.collapse}. {each.evidence}"
        for column in columns
        for kind, each in (("sampled", column.sampled), ("greedy", column.greedy))
        if each is not None and each.collapse != "none"
    ]


def _before_and_after(found: Evaluated) -> list[str]:
    """From the untrained network to the one checkpoint, or from the first checkpoint to the last."""
    before, after = (found.untrained if len(found.networks) == 1 else found.networks[0]), found.networks[-1]
    rows = []
    for row in _ON_SPLIT[:4]:
        for old, new in zip(before.splits, after.splits, strict=True):
            label = f"{row.label} ({old.split})"
            if before.tokenizer != after.tokenizer and row.label == "perplexity per token":
                rows.append([label, MISSING, MISSING, MISSING])  # does not compare
                continue
            rows.append(_changed(label, row.on_split(old), row.on_split(new), row.digits))
    if before.sampled is not None and after.sampled is not None:
        rows.append(_changed("quality score", before.sampled.score, after.sampled.score, 3))
        rows.append(["grade", before.sampled.grade, after.sampled.grade, ""])
        rows.append(["collapse, sampled", before.sampled.collapse, after.sampled.collapse, ""])
    return table(["", before.name, after.name, "change"], rows)


def _changed(label: str, old: float | None, new: float | None, digits: int) -> list[str]:
    change = MISSING if not old or new is None else f"{new / old - 1:+.1%}"
    return [label, _number(old, digits), _number(new, digits), change]


def _number(value: float | None, digits: int) -> str:
    return MISSING if value is None else f"{value:,.{digits}f}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table of plain texts, numbers to the right."""
    heading, *cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    right = [place > 0 for place in range(len(header))]
    return aligned_table(heading, cells, right, pad_last=True).split("\n")
