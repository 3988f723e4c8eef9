"""Generation: the past against reading all again, every way to shape a distribution against a written-out one.

Shapes: B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from torch import nn

from hpo_model.config import Scalar, build_run
from hpo_model.data.tokens import Span
from hpo_model.errors import ConfigError
from hpo_model.generation.sampling import (
    Reader,
    Sampling,
    StoppingCriteria,
    apply_penalties,
    beam_search,
    generate,
    phi_per_step,
    probabilities,
    sample,
    window_start,
)
from hpo_model.network.custom import ControlArmAdapter
from hpo_model.network.transformer import Transformer
from hpo_model.training.evaluation import score
from tests.support.networks import MixingPast, Recurrent

VOCABULARY = 40
LENGTH = 16
GREEDY = Sampling(temperature=0)
ARMS: dict[str, dict[str, Scalar]] = {
    "dynamic gate": {},
    "static gate": {"memory_gate": "static"},
    "control arm": {"iit": False},
    "hybrid": {"blocks": "convolution+attention"},
    "hybrid, the other order": {"blocks": "attention+convolution", "layers": 3},
    "earlier positions, bigrams": {"attention_taps": 3, "bigram_buckets": 50, "layers": 3},
}


def stirred(**values: Scalar) -> Transformer:
    """A small network with random weights everywhere, and a full memory behind an open gate."""
    config = build_run({"width": 32, "heads": 2, "sequence_length": LENGTH, **values})
    torch.manual_seed(0)
    network = Transformer(config.architecture, VOCABULARY)
    network.set_regularisation(dropout=0.5, noise=0.5)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=1.5 / math.sqrt(parameter.shape[1]))
    if network.memory is not None:
        network.memory.fill()
    return network


def prompts(*lengths: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(7)
    return [torch.randint(VOCABULARY, (length,), generator=generator).tolist() for length in lengths]


NETWORK = stirred()


# ---------------------------------------------------------------------------------------------- with a past, without


@pytest.mark.parametrize("arm", ARMS)
@pytest.mark.parametrize(("double", "tolerance"), [(False, 2e-5), (True, 1e-13)], ids=["float", "double"])
def test_logits_with_a_past_are_those_without(arm: str, double: bool, tolerance: float) -> None:
    """Not bit for bit: a product with one row is another kernel than one with many. In double it is rounding alone."""
    network = stirred(**ARMS[arm])
    network = network.double() if double else network
    readers = [Reader(network.eval(), prompts(3, 9, 1, LENGTH), cached=cached) for cached in (True, False)]
    following = torch.randint(VOCABULARY, (3 * LENGTH, 4), generator=torch.Generator().manual_seed(1)).tolist()
    for tokens in following:  # far enough for windows that move on, at different times
        with_past, without = (reader.logits() for reader in readers)
        largest = without.abs().max()
        assert largest > 1
        assert (with_past - without).abs().max() <= tolerance * largest
        for reader in readers:
            reader.append(tokens)


@pytest.mark.parametrize("kind", [Recurrent, MixingPast])
def test_a_network_of_a_user_s_own_reads_its_whole_window_for_each_token(kind: type[nn.Module]) -> None:
    architecture = stirred().architecture
    built = kind(architecture, VOCABULARY)
    network = built if isinstance(built, Transformer) else ControlArmAdapter(built, architecture)
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    [prompt] = prompts(5)
    [made] = generate(network, [prompt], Sampling(temperature=0), StoppingCriteria(max_tokens=2 * LENGTH))
    text = list(prompt)
    for token in made.tokens:
        window = text[window_start(len(text), LENGTH) :]
        with torch.no_grad():
            assert network.logits(network(torch.tensor([window])).hidden_BTD)[0, -1].argmax() == token
        text.append(token)


def test_a_text_does_not_depend_on_what_stands_beside_it() -> None:
    network = stirred().double()
    together = generate(network, prompts(3, 9, 1), Sampling(), StoppingCriteria(max_tokens=40))
    alone = [generate(network, [each], Sampling(), StoppingCriteria(max_tokens=40))[0] for each in prompts(3, 9, 1)]
    assert together == alone


def test_the_memory_is_read_and_not_written() -> None:
    network = stirred()
    assert network.memory is not None
    before = {name: buffer.clone() for name, buffer in network.memory.named_buffers()}
    text = generate(network.train(), prompts(4), GREEDY, StoppingCriteria(max_tokens=20))
    assert all(torch.equal(before[name], buffer) for name, buffer in network.memory.named_buffers())
    assert network.training
    network.memory.written_M.fill_(float("-inf"))  # empty
    assert generate(network, prompts(4), GREEDY, StoppingCriteria(max_tokens=20)) != text


def test_dropout_and_noise_are_off_in_a_network_in_training_mode() -> None:
    network = stirred().train()
    assert generate(network, prompts(4), GREEDY, StoppingCriteria()) == generate(
        network, prompts(4), GREEDY, StoppingCriteria()
    )


# ---------------------------------------------------------------------------------------------- beyond the context


@pytest.mark.parametrize("length", [8, 9, 16])
def test_the_window_moves_on_when_it_is_full(length: int) -> None:
    start = 0
    for read in range(1, 5 * length):
        if read - start > length:
            start = read - length // 2
        assert window_start(read, length) == start


@pytest.mark.parametrize("cached", [True, False])
def test_a_long_text_goes_on_from_the_second_half_of_its_window(cached: bool) -> None:
    network = stirred().double()
    text = [*prompts(LENGTH)[0]]
    text += generate(network, [text], GREEDY, StoppingCriteria(max_tokens=9), cached=cached)[0].tokens
    window = text[-(LENGTH // 2) - 8 : -1]  # half of the prompt, and what has come since but the last
    with torch.no_grad():
        logits_1TV = network.eval().logits(network(torch.tensor([window])).hidden_BTD)
    assert int(logits_1TV[0, -1].argmax()) == text[-1]


@pytest.mark.parametrize("length", [0, LENGTH + 1])
def test_prompts_that_are_empty_or_too_long_are_refused(length: int) -> None:
    with pytest.raises(ConfigError, match=f"a prompt must have 1 to {LENGTH} tokens, got {length}"):
        generate(stirred(), [[1], [0] * length], Sampling(), StoppingCriteria())


# ---------------------------------------------------------------------------------------------- shaping

P = [0.4, 0.3, 0.15, 0.1, 0.05]


def shaped(**values: Any) -> list[float]:
    [row] = probabilities(torch.tensor([P], dtype=torch.float64).log(), Sampling(**values)).tolist()
    return [round(value, 10) for value in row]


def kept(count: int) -> list[float]:
    return [round(value / sum(P[:count]), 10) for value in P[:count]] + [0.0] * (5 - count)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, P),
        ({"top_k": 2}, kept(2)),
        ({"top_k": 99}, P),
        ({"top_p": 0.69}, kept(2)),
        ({"top_p": 0.71}, kept(3)),
        ({"top_p": 1e-9}, kept(1)),
        ({"min_p": 0.3}, kept(3)),
        ({"min_p": 1.0}, kept(1)),
        ({"top_k": 2, "top_p": 0.5}, kept(1)),  # 0.4 / 0.7 is beyond half already
        ({"temperature": 0.5}, [round(p**2 / sum(q**2 for q in P), 10) for p in P]),
        ({"temperature": 0}, kept(1)),
    ],
    ids=str,
)
def test_probabilities_against_written_out_ones(values: dict[str, Any], expected: list[float]) -> None:
    assert shaped(**values) == pytest.approx(expected, abs=1e-9)


def test_penalties_against_written_out_ones() -> None:
    logits, seen, said = (torch.tensor([row]) for row in ([2.0, -2.0, 1.0], [3.0, 1.0, 0.0], [2.0, 0.0, 0.0]))
    sampling = Sampling(repetition_penalty=2.0, frequency_penalty=0.5, presence_penalty=0.25)
    assert apply_penalties(logits, sampling, seen, said).tolist() == [[2 / 2 - 2 * 0.5 - 0.25, -2 * 2.0, 1.0]]


def test_draws_follow_the_probabilities() -> None:
    network = stirred()
    [prompt] = prompts(5)
    sampling = Sampling(temperature=1.5, top_k=6)
    expected = probabilities(Reader(network.eval(), [prompt]).logits(), sampling)[0]
    drawn = next(sample(network, [prompt] * 4000, sampling, numbers=range(4000)))
    shares = torch.bincount(torch.tensor(drawn), minlength=VOCABULARY) / 4000
    assert (shares - expected).abs().max() < 4 * math.sqrt(0.25 / 4000)
    assert set(drawn) <= set(expected.nonzero()[:, 0].tolist())


def test_a_seed_and_a_number_give_a_text() -> None:
    network, [prompt] = stirred(), prompts(5)

    def texts(seed: int, numbers: list[int]) -> list[tuple[int, ...]]:
        return [
            each.tokens
            for each in generate(
                network, [prompt] * len(numbers), Sampling(seed=seed), StoppingCriteria(), numbers=numbers
            )
        ]

    torch.manual_seed(1)
    first = texts(1, [0, 1, 2])
    torch.manual_seed(2)
    assert texts(1, [2, 0, 1]) == [first[2], first[0], first[1]]
    assert len({*first, *texts(2, [0, 1, 2])}) == 6


def test_the_global_generator_is_left_alone() -> None:
    before = torch.get_rng_state()
    generate(NETWORK, prompts(3), Sampling(), StoppingCriteria())
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("penalty", ["repetition_penalty", "frequency_penalty", "presence_penalty"])
def test_penalties_make_repetition_rarer(penalty: str) -> None:
    [plain] = generate(NETWORK, prompts(3), GREEDY, StoppingCriteria(max_tokens=40))
    [other] = generate(NETWORK, prompts(3), Sampling(temperature=0, **{penalty: 20.0}), StoppingCriteria(max_tokens=40))  # type: ignore[arg-type]
    assert len(set(plain.tokens)) < len(set(other.tokens))


def test_a_text_ends_after_an_ending_and_holds_nothing_banned() -> None:
    ends = [1, 2, 3, 4]
    stopping = StoppingCriteria(max_tokens=30, ends=ends, banned=[0])
    texts = generate(NETWORK, prompts(*[3] * 40), Sampling(temperature=3.0), stopping, numbers=range(40))
    assert {each.end for each in texts} == {"line", "length"}
    for each in texts:
        assert 0 not in each.tokens
        assert not set(ends) & set(each.tokens[:-1])
        assert (each.tokens[-1] in ends) == (each.end == "line")
        assert each.end == "line" or len(each.tokens) == 30


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"temperature": -0.1}, "temperature must be at least 0 and at most 100, got -0.1"),
        ({"temperature": math.nan}, "temperature must be .*, got nan"),
        ({"top_k": -1}, "top_k must be 0 .all. or more, got -1"),
        ({"top_p": 0.0}, "top_p must be above 0 and at most 1, got 0.0"),
        ({"top_p": 1.1}, "top_p must be above 0 and at most 1, got 1.1"),
        ({"min_p": 2.0}, "min_p must be at least 0 and at most 1, got 2.0"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be above 0, got 0.0"),
        ({"frequency_penalty": math.inf}, "frequency_penalty must be between -100 and 100, got inf"),
        ({"presence_penalty": math.nan}, "presence_penalty must be between -100 and 100, got nan"),
        ({"seed": -1}, "seed must be at least 0 and below 2..31, got -1"),
    ],
    ids=str,
)
def test_values_out_of_range_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Sampling(**values)


# ---------------------------------------------------------------------------------------------- beam search


def log_probability(network: Transformer, prompt: list[int], text: tuple[int, ...]) -> float:
    with torch.no_grad():
        logits_TV = network.eval().logits(network(torch.tensor([[*prompt, *text]])).hidden_BTD)[0]
    nats = logits_TV.log_softmax(-1)
    return sum(float(nats[len(prompt) - 1 + place, token]) for place, token in enumerate(text))


def small() -> Transformer:
    config = build_run({"width": 32, "heads": 2, "sequence_length": LENGTH})
    torch.manual_seed(3)
    network = Transformer(config.architecture, 5)
    with torch.no_grad():
        for parameter in network.parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=1.5 / math.sqrt(parameter.shape[1]))
    return network


@pytest.mark.parametrize("cached", [True, False])
def test_wide_beams_find_what_trying_every_text_finds(cached: bool) -> None:
    network, prompt, end = small(), [1, 2], 0
    every = [
        text
        for length in range(1, 5)
        for text in itertools.product(range(5), repeat=length)
        if end not in text[:-1] and (text[-1] == end or length == 4)
    ]
    best = sorted(every, key=lambda text: -log_probability(network, prompt, text) / len(text))
    found = beam_search(network, prompt, 5, Sampling(), StoppingCriteria(max_tokens=4, ends=[end]), cached=cached)
    assert found[0].tokens == best[0]
    assert found[0].mean_nats == pytest.approx(-log_probability(network, prompt, best[0]) / len(best[0]), abs=1e-5)
    assert found[0].end == ("line" if best[0][-1] == end else "length")
    means = [each.mean_nats for each in found]
    assert means == sorted(means)  # type: ignore[type-var]


def test_one_beam_is_greedy_and_more_are_no_worse() -> None:
    network, [prompt] = stirred(), prompts(4)
    greedy = generate(network, [prompt], GREEDY, StoppingCriteria(max_tokens=10))[0].tokens
    one, *_ = beam_search(network, prompt, 1, Sampling(), StoppingCriteria(max_tokens=10))
    assert one.tokens == greedy
    many, *rest = beam_search(network, prompt, 8, Sampling(), StoppingCriteria(max_tokens=10))
    assert many.mean_nats is not None
    assert one.mean_nats is not None
    assert many.mean_nats <= one.mean_nats
    assert len({each.tokens for each in (many, *rest)}) == 8


# ---------------------------------------------------------------------------------------------- Φ


def test_phi_of_a_whole_window_is_that_of_the_evaluation() -> None:
    network, [prompt] = stirred(), prompts(LENGTH)
    values = phi_per_step(network, prompt, [1])
    scores = score(network, Span(torch.tensor([*prompt, 1]).numpy().astype("uint16"), 1, 1), torch.device("cpu"))
    assert values == [pytest.approx(scores.phi, abs=1e-6)]


def test_phi_of_each_step_is_that_of_the_window_before_it() -> None:
    network, [prompt] = stirred(), prompts(1)
    text = list(generate(network, [prompt], Sampling(), StoppingCriteria(max_tokens=30))[0].tokens)
    values = phi_per_step(network, prompt, text)
    assert values[:3] == [None] * 3  # one, two, three positions
    assert len(values) == 30
    for place in (3, 10, 16, 29):
        window = [*prompt, *text][window_start(place + 1, LENGTH) : place + 1]
        alone = phi_per_step(network, window, [0])
        assert values[place] == pytest.approx(alone[0], abs=1e-6)
