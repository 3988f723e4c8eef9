"""The order in which a run reads its text."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from hpo_model.config import Scalar, TokenizerChoice, build_run
from hpo_model.data.batches import TrainingBatches
from hpo_model.data.corpus import Corpus
from hpo_model.data.tokens import TokenizedCorpus, tokenize_corpus


def batches(corpus: TokenizedCorpus, **values: Scalar) -> TrainingBatches:
    config = build_run({"sequence_length": 32, "batch_size": 4, "evaluations": 1, **values})
    return TrainingBatches(corpus, config, torch.device("cpu"))


def sequences(of: TrainingBatches, count: int) -> list[tuple[int, ...]]:
    """The first `count` sequences read."""
    rows: list[tuple[int, ...]] = []
    step = 0
    while len(rows) < count:
        rows += [tuple(row) for row in of.at(step)[0].tolist()]
        step += 1
    return rows[:count]


@pytest.mark.parametrize("batch_size", [2, 3, 5, 64])
def test_sequences_come_in_the_same_order_whatever_the_batch_size(
    batch_size: int, small_corpus: TokenizedCorpus
) -> None:
    singly = batches(small_corpus, batch_size=1)
    count = 2 * singly.sequences + 7  # over two epochs and into the third
    assert sequences(batches(small_corpus, batch_size=batch_size), count) == sequences(singly, count)


def test_every_sequence_of_an_epoch_is_read_once(small_corpus: TokenizedCorpus) -> None:
    read = batches(small_corpus, batch_size=1)
    positions = torch.arange(read.tokens + 1, dtype=torch.int32)
    read.stream_N = positions  # a stream in which every token is its own place
    for epoch in range(3):
        steps = range(epoch * read.sequences, (epoch + 1) * read.sequences)
        places = Counter(place for step in steps for place in read.at(step)[0][0].tolist())
        assert set(places.values()) == {1}
        assert len(places) == read.sequences * read.length > read.tokens - 2 * read.length
        assert max(places) - min(places) == len(places) - 1


def test_epochs_differ_in_order_and_phase(small_corpus: TokenizedCorpus) -> None:
    read = batches(small_corpus)
    epochs = [read.shuffled(epoch) for epoch in range(5)]
    assert len({int(starts.min()) for starts in epochs}) > 1
    assert all(not torch.equal(epochs[0] - epochs[0].min(), starts - starts.min()) for starts in epochs[1:])


def test_targets_are_the_inputs_one_later(small_corpus: TokenizedCorpus) -> None:
    inputs_BT, targets_BT = batches(small_corpus).at(3)
    assert inputs_BT.shape == targets_BT.shape == (4, 32)
    assert torch.equal(inputs_BT[:, 1:], targets_BT[:, :-1])


def test_other_seeds_read_in_another_order(small_corpus: TokenizedCorpus) -> None:
    assert sequences(batches(small_corpus, seed=1), 20) != sequences(batches(small_corpus, seed=2), 20)


def test_any_batch_can_be_asked_for_first(small_corpus: TokenizedCorpus) -> None:
    forward, direct = batches(small_corpus), batches(small_corpus)
    step = forward.sequences // 4 + 1  # across the end of the first epoch
    for earlier in range(step):
        forward.at(earlier)
    assert torch.equal(forward.at(step)[0], direct.at(step)[0])


@pytest.mark.parametrize("tokens", [32, 33, 63, 64, 65, 95, 96, 100])
def test_texts_of_few_sequences_are_read_within_their_bounds(tokens: int, tmp_path: Path) -> None:
    words = "".join(f"{number} " for number in range(tokens - 1)) + "\n"
    corpus = Corpus(name="n", source="s", origin="o", texts={"train": words, "valid": words})
    tokenized = tokenize_corpus(corpus, TokenizerChoice(kind="word"), tmp_path)
    assert tokenized.tokens("train") == tokens
    read = batches(tokenized, batch_size=3)
    for step in range(10):
        assert read.at(step)[1].shape == (3, 32)
