"""Shapes: T positions, V vocabulary."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import hpo_model.network.loss
import hpo_model.training.evaluation
from hpo_model.config import TokenizerChoice, build_run
from hpo_model.data.corpus import load_corpus
from hpo_model.data.markov import shipped_chain, word
from hpo_model.data.tokens import Span, TokenizedCorpus, tokenize_corpus
from hpo_model.network import phi
from hpo_model.network.transformer import ForwardOutput, Transformer
from hpo_model.training.evaluation import Scores, implausibly_low, score

CPU = torch.device("cpu")
LENGTH = 16


def network(vocabulary: int, **values: bool | int | float | str) -> Transformer:
    """Untrained, but far from uniform, with slots in its memory and regularisation that evaluation must ignore."""
    torch.manual_seed(0)
    architecture = build_run({"width": 32, "heads": 2, "sequence_length": LENGTH, **values}).architecture
    built = Transformer(architecture, vocabulary)
    built.set_regularisation(dropout=0.5, noise=0.5)
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=2 / math.sqrt(parameter.shape[1]))
        if built.memory is not None:
            offered = built.memory.candidates(torch.randn(9, LENGTH, 32), torch.rand(9, LENGTH).softmax(-1))
            built.memory.write(offered, torch.full((9,), 0.9))
            built.memory.gate_bias.fill_(0.0)
    return built


def shortened(span: Span, tokens: int) -> Span:
    return Span(span.ids[: tokens + 1], span.words, span.bytes)


def naive_nats(built: Transformer, span: Span) -> list[float]:
    """−log p of each token, given those of its own sequence of T tokens before it."""
    ids = span.ids.astype("int64").tolist()
    nats = []
    with torch.no_grad():
        for place in range(span.tokens):
            start = place - place % LENGTH
            logits_V = built.logits(built(torch.tensor([ids[start : place + 1]])).hidden_BTD)[0, -1]
            nats.append(-float(logits_V.log_softmax(-1)[ids[place + 1]]))
    return nats


@pytest.mark.parametrize("tokens", [5, LENGTH, 3 * LENGTH, 3 * LENGTH + 1, 100])
def test_loss_equals_a_naive_loop_over_tokens(small_corpus: TokenizedCorpus, tokens: int) -> None:
    built = network(small_corpus.tokenizer.vocabulary).eval()
    span = shortened(small_corpus.span("valid"), tokens)
    expected = naive_nats(built, span)
    measured = score(built, span, CPU)
    assert len(expected) == tokens
    assert measured.nats == pytest.approx(math.fsum(expected), rel=1e-5)
    assert measured.loss == pytest.approx(math.fsum(expected) / tokens, rel=1e-5)
    assert measured.perplexity == pytest.approx(math.exp(math.fsum(expected) / tokens), rel=1e-4)
    assert abs(measured.loss - math.log(built.token_embedding.num_embeddings)) > 0.02  # no uniform guess


class SeesItsInput(Transformer):
    """Notes every row it reads, a list for each pass."""

    passes: list[list[list[int]]]

    def forward(self, tokens_BT: Tensor) -> ForwardOutput:
        self.passes.append(tokens_BT.tolist())
        return super().forward(tokens_BT)


@pytest.mark.parametrize("logits_at_once", [1, 7 * 101, 2**22])
@pytest.mark.parametrize("tokens_at_once", [1, 2 * LENGTH + 1, 2**12])
@pytest.mark.parametrize("tokens", [LENGTH - 1, 4 * LENGTH, 5 * LENGTH + 3])
def test_every_token_is_predicted_once_and_padding_does_not_count(
    tokens: int, tokens_at_once: int, logits_at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(hpo_model.training.evaluation.TOKENS_AT_ONCE, "cpu", tokens_at_once)
    monkeypatch.setitem(hpo_model.network.loss.LOGITS_AT_ONCE, "cpu", logits_at_once)
    values = {"width": 32, "heads": 2, "sequence_length": LENGTH, "tie_embeddings": False}
    uniform = SeesItsInput(build_run(values).architecture, 101)
    torch.nn.init.zeros_(uniform.output.weight)  # every next token is as probable as any other
    uniform.passes = []
    ids = np.arange(tokens + 1, dtype=np.uint16)
    measured = score(uniform, Span(ids, words=tokens, bytes=2 * tokens), CPU)
    assert measured.nats == pytest.approx(tokens * math.log(101), rel=1e-6)
    read = [token for rows in uniform.passes for row in rows for token in row]
    assert read[:tokens] == list(range(tokens))
    assert len(read) == -(-tokens // LENGTH) * LENGTH
    assert max(len(rows) * LENGTH for rows in uniform.passes) <= max(tokens_at_once, LENGTH)


@pytest.mark.parametrize(("tokens_at_once", "logits_at_once"), [(1, 2**22), (2**12, 1), (3 * LENGTH, 1000)])
def test_the_size_of_the_pieces_does_not_change_the_scores(
    tokens_at_once: int, logits_at_once: int, small_corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    built = network(small_corpus.tokenizer.vocabulary)
    span = shortened(small_corpus.span("valid"), 500)
    whole = score(built, span, CPU)
    monkeypatch.setitem(hpo_model.training.evaluation.TOKENS_AT_ONCE, "cpu", tokens_at_once)
    monkeypatch.setitem(hpo_model.network.loss.LOGITS_AT_ONCE, "cpu", logits_at_once)
    pieces = score(built, span, CPU)
    assert pieces.loss == pytest.approx(whole.loss, rel=1e-6)
    assert pieces.components == pytest.approx(whole.components, rel=1e-5)


def test_a_span_without_a_full_sequence_has_a_loss_and_no_phi(small_corpus: TokenizedCorpus) -> None:
    built = network(small_corpus.tokenizer.vocabulary).eval()
    span = shortened(small_corpus.span("valid"), LENGTH - 1)
    measured = score(built, span, CPU)
    assert measured.nats == pytest.approx(math.fsum(naive_nats(built, span)), rel=1e-5)
    assert math.isnan(measured.phi)


@pytest.mark.parametrize("iit", [True, False])
def test_phi_is_the_mean_over_full_sequences(small_corpus: TokenizedCorpus, iit: bool) -> None:
    built = network(small_corpus.tokenizer.vocabulary, iit=iit).eval()
    with torch.no_grad():
        built.phi_weight_logits.copy_(torch.tensor([1.0, 0.0, -1.0, 0.5]))
    span = shortened(small_corpus.span("valid"), 3 * LENGTH + 7)
    rows = torch.from_numpy(span.ids[: 3 * LENGTH].astype("int64")).view(3, LENGTH)
    sums = torch.zeros(4)
    with torch.no_grad():
        for row_T in rows:
            states = built(row_T[None])
            received_BT = phi.attention_received(states.attention, built.architecture.phi_probes)
            sums += phi.components(states.hidden_BTD, received_BT)[0]
    measured = score(built, span, CPU)
    assert measured.components == pytest.approx((sums / 3).tolist(), abs=1e-5)
    initial_weights = torch.tensor([0.3, 0.3, 0.2, 0.2])  # not the learned ones, under which runs would not compare
    assert measured.phi == pytest.approx(float(sums / 3 @ initial_weights), abs=1e-5)


@pytest.mark.parametrize("training", [True, False])
def test_scoring_changes_nothing_and_draws_nothing(small_corpus: TokenizedCorpus, training: bool) -> None:
    built = network(small_corpus.tokenizer.vocabulary).train(training)
    before, random = {name: value.clone() for name, value in built.state_dict().items()}, torch.get_rng_state()
    span = shortened(small_corpus.span("valid"), 100)
    first, again = score(built, span, CPU), score(built, span, CPU)
    assert first == again
    assert built.training is training
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], value) for name, value in built.state_dict().items())
    assert all(parameter.grad is None for parameter in built.parameters())


def scores(nats: float, tokens: int, words: int, size: int | None) -> Scores:
    span = Span(np.zeros(tokens + 1, np.uint16), words, size)
    return Scores(loss=nats / tokens, nats=nats, span=span, phi=0.9, components=(0.9, 0.9, 0.9, 0.9))


def test_the_three_perplexities_are_one_likelihood_in_three_units() -> None:
    measured = scores(nats=600.0, tokens=300, words=100, size=700)
    assert measured.perplexity == pytest.approx(math.exp(2))
    assert measured.word_perplexity == pytest.approx(math.exp(6))
    assert measured.word_perplexity == pytest.approx(measured.perplexity ** (300 / 100))
    assert measured.bits_per_byte == pytest.approx(600 / 700 / math.log(2))
    assert 2 ** (measured.bits_per_byte * 7) == pytest.approx(measured.word_perplexity)


def test_one_token_per_word_makes_both_perplexities_equal() -> None:
    measured = scores(nats=600.0, tokens=100, words=100, size=700)
    assert measured.perplexity == measured.word_perplexity


def test_bits_per_byte_stay_missing_where_the_tokenizer_lost_words() -> None:
    assert scores(nats=600.0, tokens=300, words=100, size=None).bits_per_byte is None


def test_a_perplexity_too_large_for_a_number_is_infinite() -> None:
    measured = scores(nats=1e6, tokens=10, words=5, size=50)
    assert measured.perplexity == measured.word_perplexity == math.inf
    assert measured.bits_per_byte == pytest.approx(1e6 / 50 / math.log(2))


def test_the_span_s_own_counts_reach_the_scores(small_corpus: TokenizedCorpus) -> None:
    built = network(small_corpus.tokenizer.vocabulary)
    span = small_corpus.span("test")
    measured = score(built, span, CPU)
    assert span.bytes is not None
    assert measured.loss == pytest.approx(measured.nats / span.tokens)
    assert measured.bits_per_byte == pytest.approx(measured.nats / span.bytes / math.log(2))
    assert measured.word_perplexity == pytest.approx(math.exp(measured.nats / span.words))


# ---------------------------------------------------------------------------------------------- implausibly low


@pytest.mark.parametrize(
    ("nats", "reason"),
    [(math.inf, None), (math.nan, None), (1000.0, None), (900.0, None), (899.0, "101 nats below the entropy of its")],
)
def test_nats_far_below_those_of_the_source_are_implausibly_low(nats: float, reason: str | None) -> None:
    span = Span(np.zeros(301, np.uint16), words=2000, bytes=4000, true_nats=1000.0)  # perplexities below 2, all of them
    told = implausibly_low(nats / 300, span)
    assert told is None if reason is None else told.startswith(reason)


@pytest.mark.parametrize(
    ("word_perplexity", "reason"),
    [(math.inf, None), (math.nan, None), (8.01, None), (7.99, "word perplexity 7.99, fewer bits than text holds")],
)
def test_of_text_of_unknown_source_the_perplexity_must_be_that_of_a_language(
    word_perplexity: float, reason: str | None
) -> None:
    assert implausibly_low(math.log(word_perplexity) * 100 / 300, Span(np.zeros(301, np.uint16), 100, 700)) == reason


class Table(Transformer):
    """Predicts each token from the one before alone: its state is that token, its output layer the table."""

    def forward(self, tokens_BT: Tensor) -> ForwardOutput:
        states = super().forward(tokens_BT)
        return states._replace(hidden_BTD=F.one_hot(tokens_BT, len(self.output.weight)).float())


def table(nats_VV: Tensor) -> Table:
    """A network whose next token costs so many nats after each token (row)."""
    built = Table(build_run({"width": 32, "heads": 2, "sequence_length": LENGTH}).architecture, len(nats_VV))
    built.output.weight = torch.nn.Parameter(-nats_VV.T)
    return built


@pytest.fixture(scope="module")
def markov(cache: Path) -> TokenizedCorpus:
    """The corpus of a known source, a token per word and one between lines."""
    return tokenize_corpus(load_corpus("markov", cache), TokenizerChoice(kind="word"), cache)


def test_the_source_itself_scores_the_nats_of_the_text_and_is_not_implausibly_low(markov: TokenizedCorpus) -> None:
    chain, tokenizer = shipped_chain(), markov.tokenizer
    words = [tokenizer.backend.token_to_id(word(state)) for state in range(1, len(chain.nats))]
    ids_S = torch.tensor([tokenizer.start_id, *words])
    nats_VV = torch.full((tokenizer.vocabulary, tokenizer.vocabulary), 1e9)  # as good as never
    nats_VV[ids_S[:, None], ids_S] = torch.from_numpy(chain.nats).float().clamp_max(1e9)
    for span in (markov.span("valid"), markov.span("test"), markov.sample("valid", 8192), markov.sample("train", 999)):
        measured = score(table(nats_VV), span, CPU)
        assert measured.nats == pytest.approx(span.true_nats, rel=1e-5)
        assert implausibly_low(measured.loss, span) is None


@pytest.mark.parametrize(("learned_from", "honest"), [("train", True), ("valid", False)])
def test_who_learned_from_the_validation_text_is_implausibly_low(
    learned_from: str, honest: bool, markov: TokenizedCorpus
) -> None:
    ids = torch.from_numpy(markov.span(learned_from).ids.astype("int64"))
    counts_VV = torch.full((markov.tokenizer.vocabulary, markov.tokenizer.vocabulary), 1e-3)
    counts_VV.index_put_((ids[:-1], ids[1:]), torch.ones(len(ids) - 1), accumulate=True)
    learned = table(-(counts_VV / counts_VV.sum(dim=1, keepdim=True)).log())
    for span in (markov.span("valid"), markov.sample("valid", 8192)):
        measured = score(learned, span, CPU)
        assert measured.nats == pytest.approx(span.true_nats, rel=0.05)  # either is near
        assert (implausibly_low(measured.loss, span) is None) is honest
