"""Statistics of text against written-out ones; the score's order on real text; the three ways to collapse."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Sequence
from pathlib import Path

import pytest

from hpo_model.data.corpus import load_corpus
from hpo_model.errors import ConfigError
from hpo_model.generation.quality import (
    GRADES,
    PASSAGES,
    Judgement,
    Passages,
    distinct,
    entropy_bits,
    grade,
    passages,
    repetition,
    self_bleu,
    type_token_ratio,
    words_of,
    zipf_slope,
)

CAT = ["the", "cat", "sat", "on", "the", "mat"]
DOG = ["the", "dog", "sat", "on", "the", "log"]


# ---------------------------------------------------------------------------------------------- statistics


def test_words_are_letters_signs_and_stretches_of_blanks() -> None:
    assert words_of("It 's <unk> @-@ 4.5, naïve\n\n  end") == [
        *("It", "'", "s", "<unk>", "@-@", "4", ".", "5", ",", "naïve", "\n\n  ", "end")
    ]
    assert words_of("a" * 45) == ["a" * 20, "a" * 20, "a" * 5]
    assert words_of(" " * 20) == [" " * 8, " " * 8, " " * 4]
    assert words_of("") == []


def test_entropy_against_written_out_ones() -> None:
    assert entropy_bits(["a"] * 7) == 0.0
    assert entropy_bits(["a", "b", "c", "d"]) == 2.0
    assert entropy_bits(["a", "a", "b", "c"]) == pytest.approx(1.5)


def test_distinct_repetition_and_types_against_counted_ones() -> None:
    assert distinct([CAT, DOG], 1) == 7 / 12  # the cat sat on mat dog log
    assert distinct([CAT, DOG], 2) == 8 / 10  # "sat on" and "on the" stand in both; none runs from text to text
    assert distinct([CAT, DOG], 3) == 7 / 8
    assert repetition([CAT, DOG], 1) == pytest.approx(2 / 12)  # each says "the" again
    assert repetition([CAT, DOG], 2) == 0.0  # what only the other text said is no repetition
    assert repetition([["a", "b"] * 4], 2) == pytest.approx(5 / 7)
    assert type_token_ratio([CAT, ["a"] * 6]) == pytest.approx((5 / 6 + 1 / 6) / 2)


def test_zipf_slope_of_a_power_law() -> None:
    words = [f"w{rank}" for rank in range(1, 60) for _ in range(round(6000 / rank))]
    assert zipf_slope(words) == pytest.approx(-1, abs=0.01)
    assert zipf_slope(["a", "a", "b", "b", "c"]) is None


def written_out_bleu(words: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """By the paper's formula, order by order, with loops and nothing shared with the implementation."""
    product = 1.0
    for order in (1, 2, 3, 4):
        runs = [" ".join(words[first : first + order]) for first in range(len(words) - order + 1)]
        clipped = 0
        for run in set(runs):
            most = 0
            for reference in references:
                theirs = [" ".join(reference[first : first + order]) for first in range(len(reference) - order + 1)]
                most = max(most, theirs.count(run))
            clipped += min(runs.count(run), most)
        product *= (clipped if clipped else 0.1) / len(runs)
    nearest = sorted((abs(len(each) - len(words)), len(each)) for each in references)[0][1]
    brevity = 1.0 if len(words) > nearest else math.exp(1 - nearest / len(words))
    return float(brevity * product**0.25)


def test_self_bleu_worked_out_by_hand() -> None:
    # Either way, of one word: the the sat on, 4 of 6; of two: "sat on", "on the"; of three: "sat on the"; of four: none
    assert self_bleu([CAT, DOG]) == pytest.approx((4 / 6 * 2 / 5 * 1 / 4 * 0.1 / 3) ** 0.25)
    assert self_bleu([CAT, CAT]) == pytest.approx(1)
    # The shorter text is punished for its length, the longer one for the runs that the shorter does not have
    assert self_bleu([CAT[:5], CAT]) == pytest.approx(
        (math.exp(1 - 6 / 5) + (5 / 6 * 4 / 5 * 3 / 4 * 2 / 3) ** 0.25) / 2
    )
    assert self_bleu([CAT]) is None


def test_self_bleu_is_the_mean_of_written_out_ones() -> None:
    draw = random.Random(1)
    for _ in range(50):
        texts = [[draw.choice("abcd") for _ in range(draw.randint(4, 12))] for _ in range(4)]
        each = [written_out_bleu(text, [*texts[:place], *texts[place + 1 :]]) for place, text in enumerate(texts)]
        assert self_bleu(texts) == pytest.approx(sum(each) / 4)


# ---------------------------------------------------------------------------------------------- on real text


@pytest.fixture(scope="session", params=["python-docs", "WikiText-2"])
def cut(request: pytest.FixtureRequest, cache: Path) -> Passages:
    if request.param == "python-docs":
        text = load_corpus("python-docs", cache).texts["valid"]
    else:
        folder: Path = request.getfixturevalue("wikitext2")
        text = (folder / "wiki.valid.tokens").read_text(encoding="utf-8")
    found = passages(text)
    assert found is not None
    return found


def test_passages_are_apart_from_each_other_and_from_the_rest() -> None:
    found = passages(" ".join(f"w{place}" for place in range(20_000)))
    assert found is not None
    assert (len(found.human), len(found.contexts)) == (PASSAGES, PASSAGES)
    assert {len(words) for words in found.human} == {found.words}
    rest, graded = set(found.yardstick.counts), {word for words in found.human for word in words}
    assert not rest & graded
    stretches = 20_000 // (2 * PASSAGES) * 2 * PASSAGES
    assert len(rest) == stretches - 2 * PASSAGES * found.words
    for context, words in zip(found.contexts, found.human, strict=True):
        assert int(context.rpartition("w")[2]) + 1 == int(words[0].removeprefix("w"))
        assert not context.endswith(" ")


def test_a_text_that_is_too_short_is_not_cut() -> None:
    assert passages("word " * 1000) is None
    assert passages("word " * 6000) is not None


def of(cut: Passages, kind: str) -> list[list[str]]:
    draw = random.Random(3)
    names = sorted(cut.yardstick.counts)
    function_words = ["the", "of", ",", ".", "and", "in", "to"]
    junk = ["".join(draw.choices("abcdefghij'.,-(", k=draw.randint(1, 6))) for _ in range(5000)]
    makers = {
        "any words": lambda words: draw.choices(names, k=len(words)),  # what an untrained word model writes
        "any letters": lambda words: draw.choices(junk, k=len(words)),
        "one word": lambda words: ["the"] * len(words),
        "a phrase": lambda words: (list(words[:8]) * len(words))[: len(words)],
        "a sentence": lambda words: (list(words[:25]) * len(words))[: len(words)],
        "function words": lambda words: draw.choices(function_words, k=len(words)),
        "shuffled people": lambda words: draw.sample(list(words), len(words)),
    }
    return [makers[kind](words) for words in cut.human]


def judged(cut: Passages, kind: str) -> Judgement:
    return cut.yardstick.judge(cut.human if kind == "people" else of(cut, kind))


def test_the_order_of_the_scores(cut: Passages) -> None:
    kinds = ("any words", "any letters", "one word", "a phrase", "a sentence", "function words", "shuffled people")
    scores = {kind: judged(cut, kind).score for kind in (*kinds, "people")}
    untrained = max(scores["any words"], scores["any letters"])
    loops = [scores[kind] for kind in ("one word", "a phrase", "a sentence", "function words")]
    assert untrained < min(loops)
    assert max(loops) < 0.12 < scores["shuffled people"] < scores["people"]
    assert judged(cut, "people").grade == "A"
    assert {judged(cut, kind).grade for kind in kinds[:6]} == {"F"}


@pytest.mark.parametrize(
    ("kind", "collapse", "evidence"),
    [
        ("people", "none", ""),
        ("shuffled people", "none", ""),
        ("any words", "uniform", "its words are rare ones"),
        ("any letters", "uniform", "of its pairs are known, of people's"),
        ("one word", "repetition loop", "'the the the the'"),
        ("a phrase", "repetition loop", "of runs of 4 words stood in the same text before"),
        ("a sentence", "repetition loop", "of runs of 4 words stood in the same text before"),
        ("function words", "function-word loop", "most often"),
    ],
)
def test_how_a_text_has_collapsed(cut: Passages, kind: str, collapse: str, evidence: str) -> None:
    found = judged(cut, kind)
    assert found.collapse == collapse
    assert evidence in found.evidence
    assert bool(found.evidence) == (collapse != "none")


def test_other_lengths_are_refused(cut: Passages) -> None:
    shape = f"{PASSAGES} texts of {cut.words} words"
    with pytest.raises(ConfigError, match=f"equal lengths: {shape}, got {PASSAGES} texts of 7 or {cut.words}"):
        cut.yardstick.judge([cut.human[0][:7], *cut.human[1:]])
    with pytest.raises(ConfigError, match=f"equal lengths: {shape}, got {PASSAGES - 1} texts"):
        cut.yardstick.judge(cut.human[1:])


def test_the_scale_is_set_by_other_passages_than_are_graded(cut: Passages) -> None:
    assert cut.yardstick.human != judged(cut, "people").measures
    assert dataclasses.asdict(cut.yardstick.human)["known_pairs"] < 1  # its own pairs are not among the known ones


def test_every_score_has_a_grade() -> None:
    assert [grade(least) for least, _ in GRADES] == [letter for _, letter in GRADES]
    assert grade(1.0) == "A"
