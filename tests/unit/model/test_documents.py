"""Documents, and the interval of a paired difference, where the truth is known."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hpo_model.data.documents import BLOCKS, documents_of, paired_difference


def test_articles_begin_at_their_headings() -> None:
    article = [" \n", " = Title = \n", " text = = more \n", " = = Section = = \n", " = = = Deeper = = = \n", " end \n"]
    documents = documents_of(article * 9)
    assert documents.kind == "articles"
    assert documents.firsts == (0, *range(7, 54, 6))
    assert documents.sums(np.ones(54)).tolist() == [7, *[6] * 7, 5]


def test_the_articles_of_wikitext_2(wikitext2: Path) -> None:
    lines = (wikitext2 / "wiki.valid.tokens").read_text(encoding="utf-8").splitlines(keepends=True)
    assert len(documents_of(lines).firsts) == 60  # as its authors count them


def test_other_text_is_cut_into_blocks() -> None:
    assert documents_of(["line\n"] * 1000).kind == "blocks of lines"
    assert len(documents_of(["line\n"] * 1000).firsts) == BLOCKS
    assert documents_of(["line\n"] * 3).firsts == (0, 1, 2)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    draw = np.random.default_rng(5)
    held = 0
    for trial in range(200):
        size = draw.integers(50, 200, 40).astype(float)
        shared = draw.normal(3, 1, 40) * size  # hard and easy documents: the same for both
        gap = paired_difference(shared + size * draw.normal(0.1, 0.2, 40), shared, size, seed=trial)
        held += gap.low <= 0.1 <= gap.high
    assert 0.88 <= held / 200 <= 0.99


def test_a_difference_is_clear_or_not() -> None:
    size = np.full(30, 100.0)
    noise = np.random.default_rng(1).normal(0, 5, 30)
    better = paired_difference(200 + noise - 10, np.full(30, 200.0), size)
    same = paired_difference(200 + noise - noise.mean(), np.full(30, 200.0), size)
    assert better.is_clear
    assert better.mean < better.high < 0
    assert not same.is_clear
    assert abs(same.mean) < 1e-12
    assert same.documents == 30
