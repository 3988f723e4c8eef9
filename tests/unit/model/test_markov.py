"""The source whose entropy is known: its figures against others' arithmetic, its text against its figures."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest

from hpo_model.data.markov import END, WORDS, MarkovChain, shipped_chain, word, write_splits

# From END to either word with 1/2; from each word to the other, or to END, with 3/4 and 1/4 or the reverse.
TINY = MarkovChain(np.array([[1, 1, 2, 2], [END, 2, 2, 2], [END, END, END, 1]]))
ENTROPY_OF_A_QUARTER = math.log(4) - 0.75 * math.log(3)


@pytest.fixture(scope="module")
def shipped() -> MarkovChain:
    return shipped_chain()


@pytest.fixture(scope="module")
def texts(shipped: MarkovChain) -> dict[str, str]:
    return write_splits(shipped)


def tiny_lines(smallest: float = 1e-12) -> list[tuple[list[int], float]]:
    """All likely lines of the tiny chain with their probabilities, by walking it."""
    follow = {END: {1: 0.5, 2: 0.5}, 1: {END: 0.25, 2: 0.75}, 2: {END: 0.75, 1: 0.25}}
    found, open_walks = [], [([END], 1.0)]
    while open_walks:
        walk, probability = open_walks.pop()
        for state, share in follow[walk[-1]].items():
            if state == END:
                found.append(([*walk[1:]], probability * share))
            elif probability * share > smallest:
                open_walks.append(([*walk, state], probability * share))
    return found


def test_the_figures_of_a_chain_made_by_hand() -> None:
    assert TINY.transitions.tolist() == [[0, 0.5, 0.5], [0.25, 0, 0.75], [0.75, 0.25, 0]]
    assert TINY.stationary == pytest.approx([13 / 37, 10 / 37, 14 / 37])
    assert TINY.entropy_rate == pytest.approx(13 / 37 * math.log(2) + 24 / 37 * ENTROPY_OF_A_QUARTER)


def test_the_entropy_rate_is_that_of_whole_lines_over_their_mean_length() -> None:
    """By renewal at the end of each line; no stationary distribution is asked."""
    lines = tiny_lines()
    assert sum(probability for _, probability in lines) == pytest.approx(1)
    entropy = sum(-probability * math.log(probability) for _, probability in lines)
    words = sum(probability * (len(line) + 1) for line, probability in lines)
    assert TINY.entropy_rate == pytest.approx(entropy / words)


def test_a_line_s_nats_are_those_of_its_probability() -> None:
    lines = tiny_lines()
    text = [" ".join(word(state) for state in line) + "\n" for line, _ in lines]
    assert TINY.line_nats(text) == pytest.approx([-math.log(probability) for _, probability in lines])


def test_a_line_that_the_chain_cannot_write_has_infinite_nats() -> None:
    assert TINY.line_nats([f"{word(1)} {word(1)}\n", "\n"]).tolist() == [math.inf, math.inf]


def test_lines_are_written_as_often_as_they_are_likely() -> None:
    written = Counter(TINY.write(20_000, seed=[1]).splitlines())
    for line, probability in tiny_lines(smallest=0.01):
        share = written[" ".join(word(state) for state in line)] / 20_000
        assert abs(share - probability) < 4 * math.sqrt(probability / 20_000)


def test_words_are_distinct_and_the_commonest_are_short(shipped: MarkovChain) -> None:
    words = [word(state) for state in range(WORDS + 1)]
    assert len(set(words)) == len(words)
    assert all(text.isalpha() and len(text) % 2 == 0 for text in words)
    likeliest = np.argsort(-shipped.stationary)[:10]
    assert max(len(words[state]) for state in likeliest) == 2


def test_the_shipped_chain_has_several_successors_for_each_state_and_reaches_all(shipped: MarkovChain) -> None:
    possible = shipped.transitions > 0
    assert possible.sum(axis=1).min() > 10
    assert possible[1:, END].all()
    assert not possible[END, END]
    assert (shipped.stationary > 1e-4).all()
    assert shipped.stationary @ shipped.transitions == pytest.approx(shipped.stationary)


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_the_entropy_rate_is_the_mean_surprise_of_the_text(
    split: str, shipped: MarkovChain, texts: dict[str, str]
) -> None:
    """Lines are independent, and what each has above its words' entropy has mean zero."""
    lines = texts[split].splitlines()
    words = np.array([len(line.split()) + 1 for line in lines])
    above = shipped.line_nats(lines) - shipped.entropy_rate * words
    assert abs(above.sum()) < 2 * above.std() * math.sqrt(len(lines))


def test_the_stationary_distribution_is_that_of_the_text(shipped: MarkovChain, texts: dict[str, str]) -> None:
    counts = Counter(texts["train"].replace("\n", f" {word(END)} ").split())
    shares = np.array([counts[word(state)] for state in range(WORDS + 1)]) / counts.total()
    assert shares == pytest.approx(shipped.stationary, rel=0.1)


def test_splits_share_no_long_line(texts: dict[str, str]) -> None:
    long = {split: {line for line in text.splitlines() if len(line.split()) > 10} for split, text in texts.items()}
    assert all(len(lines) > 500 for lines in long.values())
    assert long["train"].isdisjoint(long["valid"] | long["test"])
    assert long["valid"].isdisjoint(long["test"])
