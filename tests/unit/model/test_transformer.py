"""The law of causality, and the network's parts against written-out references.

Shapes: B sequences, T positions, D channels, V vocabulary.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING, get_args

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from hpo_model.config import PRESETS, Architecture, BlockPattern, build_run
from hpo_model.errors import CausalityError
from hpo_model.network.causality import check_causality
from hpo_model.network.transformer import (
    Dropout,
    ForwardOutput,
    GatedConvolution,
    SelfAttention,
    Transformer,
    bucket_of,
)
from tests.support.pairs import pairwise

if TYPE_CHECKING:
    from conftest import Trained

VOCABULARY = 61
LENGTH = 24  # short, so that the large presets stay quick; the law holds per position, whatever the length
MEMORIES = ("dynamic", "static", "control arm")


@functools.lru_cache(maxsize=1)
def network_with_full_memory(preset: str, blocks: str, memory: str, tied: bool, near: bool) -> Transformer:
    values = {"preset": preset, "blocks": blocks, "tie_embeddings": tied, "sequence_length": LENGTH}
    arm = {"iit": False} if memory == "control arm" else {"memory_gate": memory}
    looks_near = {"attention_taps": 3, "bigram_buckets": 40} if near else {"attention_taps": 1, "bigram_buckets": 0}
    torch.manual_seed(0)
    network = Transformer(build_run({**values, **arm, **looks_near}).architecture, VOCABULARY)
    network.set_regularisation(dropout=0.2, noise=0.05)
    stir(network)
    if network.memory is not None:
        fill(network)
    return network


def stir(network: Transformer) -> None:
    """Give every matrix random values: one that starts at zero would hide what is behind it."""
    for parameter in network.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=1 / math.sqrt(parameter.shape[1]))


def fill(network: Transformer) -> None:
    """Write every slot with random states, and open the gate that starts closed."""
    assert network.memory is not None
    slots = network.architecture.memory_slots
    stream_BTD = torch.randn(slots, LENGTH, network.architecture.width)
    with torch.no_grad():
        offered = network.memory.candidates(stream_BTD, torch.rand(slots, LENGTH).softmax(-1))
        network.memory.write(offered, torch.rand(slots) / 2 + 0.5)
        network.memory.gate_bias.fill_(1.0)
    assert int(network.memory.used()) == slots
    assert (network.memory(stream_BTD) - stream_BTD).abs().max() > 1e-3


def logits(network: Transformer, tokens_BT: Tensor, training: bool, seed: int) -> Tensor:
    network.train(training)
    torch.manual_seed(seed)  # equal draws of dropout and noise
    with torch.no_grad():
        return network.logits(network(tokens_BT).hidden_BTD)


def assert_causal(network: Transformer, changed: set[int], training: bool, seed: int, length: int = LENGTH) -> None:
    """Changing the tokens at `changed` leaves every logit before the first of them bit-identical."""
    vocabulary = network.token_embedding.num_embeddings
    tokens_BT = torch.randint(vocabulary, (2, length), generator=torch.Generator().manual_seed(seed))
    other_BT = tokens_BT.clone()
    other_BT[:, sorted(changed)] = (other_BT[:, sorted(changed)] + 1) % vocabulary
    before, after = (logits(network, tokens, training, seed) for tokens in (tokens_BT, other_BT))
    first = min(changed)
    assert torch.equal(before[:, :first], after[:, :first])
    assert not torch.equal(before[:, first:], after[:, first:])


@pytest.mark.parametrize(
    ("preset", "blocks", "memory", "tied", "near"),
    pairwise(PRESETS, get_args(BlockPattern), MEMORIES, [True, False], [True, False]),
)
@settings(max_examples=4)
@given(
    changed=st.sets(st.integers(1, LENGTH - 1), min_size=1, max_size=3),
    training=st.booleans(),
    seed=st.integers(0, 999),
)
@example(changed={1}, training=True, seed=0)
@example(changed={LENGTH - 1}, training=False, seed=0)
def test_changing_a_token_leaves_every_earlier_logit_bit_identical(
    preset: str, blocks: str, memory: str, tied: bool, near: bool, changed: set[int], training: bool, seed: int
) -> None:
    assert_causal(network_with_full_memory(preset, blocks, memory, tied, near), changed, training, seed)


@pytest.mark.parametrize("training", [True, False])
def test_the_law_holds_at_full_length_after_training(trained: Trained, training: bool) -> None:
    network = trained.network
    network.set_regularisation(dropout=0.1, noise=0.05)
    assert network.memory is not None
    assert int(network.memory.used()) == network.architecture.memory_slots
    length = network.architecture.sequence_length
    for position in (1, length // 2, length - 1):
        assert_causal(network, {position}, training, seed=position, length=length)
    network.eval()


def nano(**values: bool | int | float | str) -> Architecture:
    return build_run({"width": 32, "heads": 2, "sequence_length": LENGTH, **values}).architecture


def fresh(architecture: Architecture, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(architecture, VOCABULARY)


def build(architecture: Architecture) -> Transformer:
    network = fresh(architecture)
    stir(network)
    return network


# ---------------------------------------------------------------------------------------------- the guard


class MeanLeak(Transformer):
    """Adds a little of the mean over all positions to each, as the public V5.2 code does."""

    def forward(self, tokens_BT: Tensor) -> ForwardOutput:
        states = super().forward(tokens_BT)
        leaked = states.hidden_BTD + 0.01 * states.hidden_BTD.mean(1, keepdim=True)
        return states._replace(hidden_BTD=leaked)


class NextLeak(Transformer):
    """Shows each position the state of its right neighbour."""

    def forward(self, tokens_BT: Tensor) -> ForwardOutput:
        states = super().forward(tokens_BT)
        return states._replace(hidden_BTD=states.hidden_BTD + 0.01 * states.hidden_BTD.roll(-1, 1))


class ClosedLeak(Transformer):
    """Leaks through a weight that is zero until it has learned."""

    def __init__(self, architecture: Architecture, vocabulary: int) -> None:
        super().__init__(architecture, vocabulary)
        self.leak = torch.nn.Parameter(torch.zeros(()))

    def forward(self, tokens_BT: Tensor) -> ForwardOutput:
        states = super().forward(tokens_BT)
        return states._replace(hidden_BTD=states.hidden_BTD + self.leak * states.hidden_BTD.mean(1, keepdim=True))


@pytest.mark.parametrize("leaky", [MeanLeak, NextLeak, ClosedLeak])
def test_the_guard_refuses_a_network_that_leaks(leaky: type[Transformer]) -> None:
    torch.manual_seed(0)
    with pytest.raises(
        CausalityError, match=r"not causal: changing the tokens from \d+ on moved earlier states by up to [\d.e-]+;"
    ):
        check_causality(leaky(nano(), VOCABULARY))


class EarlyLeak(Transformer):
    """Adds the mean over the first half to each position of the first half."""

    def forward(self, tokens_BT: Tensor) -> ForwardOutput:
        states = super().forward(tokens_BT)
        half_BTD = states.hidden_BTD[:, : tokens_BT.shape[1] // 2]
        leaked = torch.cat((half_BTD + half_BTD.mean(1, keepdim=True), states.hidden_BTD[:, half_BTD.shape[1] :]), 1)
        return states._replace(hidden_BTD=leaked)


class TrainingLeak(MeanLeak):
    """Leaks in training alone, where the damage is done."""

    def forward(self, tokens_BT: Tensor) -> ForwardOutput:
        return super().forward(tokens_BT) if self.training else Transformer.forward(self, tokens_BT)


@pytest.mark.parametrize("leaky", [EarlyLeak, TrainingLeak])
def test_the_guard_refuses_a_network_that_leaks_elsewhere(leaky: type[Transformer]) -> None:
    torch.manual_seed(0)
    with pytest.raises(CausalityError, match="not causal"):
        check_causality(leaky(nano(), VOCABULARY))


class BatchNorm(Transformer):
    """Normalises each state by those that stand at the same position in the batch."""

    def forward(self, tokens_BT: Tensor) -> ForwardOutput:
        states = super().forward(tokens_BT)
        return states._replace(hidden_BTD=states.hidden_BTD - 0.01 * states.hidden_BTD.mean(0, keepdim=True))


class BatchAttention(Transformer):
    """Attends over the sequences of a batch, in evaluation alone."""

    def forward(self, tokens_BT: Tensor) -> ForwardOutput:
        states = super().forward(tokens_BT)
        if self.training:
            return states
        weights_BTD = states.hidden_BTD.softmax(dim=0)
        return states._replace(hidden_BTD=(weights_BTD * states.hidden_BTD).sum(0, keepdim=True).expand_as(weights_BTD))


class LateMixing(Transformer):
    """Adds the neighbour's state in the batch at the last position but one alone."""

    def forward(self, tokens_BT: Tensor) -> ForwardOutput:
        states = super().forward(tokens_BT)
        hidden_BTD = states.hidden_BTD.clone()
        hidden_BTD[:, -2] += states.hidden_BTD[:, -2].roll(1, 0)
        return states._replace(hidden_BTD=hidden_BTD)


@pytest.mark.parametrize("mixing", [BatchNorm, BatchAttention, LateMixing])
def test_the_guard_refuses_a_network_that_mixes_the_sequences_of_a_batch(mixing: type[Transformer]) -> None:
    torch.manual_seed(0)
    with pytest.raises(CausalityError, match="mixes the sequences of a batch: changing one moved the states of anoth"):
        check_causality(mixing(nano(), VOCABULARY))


def test_the_guard_refuses_attention_without_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    attend = F.scaled_dot_product_attention
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v, is_causal: attend(q, k, v))
    with pytest.raises(CausalityError, match="not causal"):
        check_causality(build(nano()))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("blocks", get_args(BlockPattern))
def test_the_guard_passes_a_causal_network_and_leaves_it_as_it_was(blocks: str, training: bool) -> None:
    network = build(nano(blocks=blocks)).train(training)
    network.set_regularisation(dropout=0.5, noise=0.5)
    before, random = {name: value.clone() for name, value in network.state_dict().items()}, torch.get_rng_state()
    check_causality(network)
    assert network.training is training
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    assert torch.equal(random, torch.get_rng_state())


def test_the_guard_works_in_a_vocabulary_smaller_than_the_sequence() -> None:
    torch.manual_seed(0)
    check_causality(Transformer(nano(), 5))
    with pytest.raises(CausalityError, match="not causal"):
        check_causality(MeanLeak(nano(), 5))


# ---------------------------------------------------------------------------------------------- the arms


def parameters(network: Transformer) -> dict[str, int]:
    return {name: parameter.numel() for name, parameter in network.named_parameters()}


def test_the_control_arm_has_the_same_parameters_apart_from_memory_and_phi_weights() -> None:
    with_phi, control = build(nano()), build(nano(iit=False))
    extra = parameters(with_phi).keys() - parameters(control).keys()
    assert extra == {name for name in parameters(with_phi) if name.startswith("memory.")}
    assert len(extra) >= 5
    assert all(parameters(with_phi)[name] == size for name, size in parameters(control).items())
    learning = {name for name, parameter in control.named_parameters() if parameter.requires_grad}
    assert parameters(control).keys() - learning == {"phi_weight_logits"}
    assert with_phi.phi_weight_logits.requires_grad


def test_the_control_arm_takes_no_noise() -> None:
    control, with_phi = build(nano(iit=False)), build(nano())
    tokens_BT = torch.randint(VOCABULARY, (1, LENGTH))
    for network, moved in ((control, False), (with_phi, True)):
        network.set_regularisation(dropout=0.0, noise=0.5)
        first, second = (logits(network, tokens_BT, training=True, seed=seed) for seed in (1, 2))
        assert torch.equal(first, second) is not moved


def test_the_arms_compute_the_same_from_the_same_weights_while_the_memory_is_empty() -> None:
    with_phi, control = build(nano()), build(nano(iit=False))
    control.load_state_dict({name: with_phi.state_dict()[name] for name in control.state_dict()})
    tokens_BT = torch.randint(VOCABULARY, (2, LENGTH))
    assert torch.equal(*(logits(network, tokens_BT, training=False, seed=0) for network in (with_phi, control)))


def test_the_arms_compute_the_same_in_bfloat16_while_the_memory_is_empty() -> None:
    """Reading from an empty memory rounds nothing that the control arm does not round."""
    with_phi, control = build(nano()), build(nano(iit=False))
    control.load_state_dict({name: with_phi.state_dict()[name] for name in control.state_dict()})
    tokens_BT = torch.randint(VOCABULARY, (2, LENGTH))
    with torch.autocast("cpu", torch.bfloat16):
        read, untouched = (network.eval()(tokens_BT).hidden_BTD for network in (with_phi, control))
    assert read.dtype == untouched.dtype
    assert torch.equal(read, untouched)


def test_earlier_positions_and_bigrams_change_nothing_before_they_have_learned() -> None:
    plain, near = fresh(nano()), fresh(nano(attention_taps=4, bigram_buckets=30))
    assert near.state_dict().keys() > plain.state_dict().keys()
    assert all(torch.equal(near.state_dict()[name], value) for name, value in plain.state_dict().items())
    tokens_BT = torch.randint(VOCABULARY, (2, LENGTH))
    assert torch.equal(*(logits(network, tokens_BT, training=False, seed=0) for network in (plain, near)))


def test_queries_keys_and_values_are_mixed_from_earlier_positions_channel_by_channel() -> None:
    attention = SelfAttention(width=8, heads=2, taps=3)
    assert attention.earlier_taps is not None
    torch.nn.init.normal_(attention.earlier_taps)
    x_BTD = torch.randn(2, 5, 8)
    projected_BTF = attention.query_key_value(x_BTD)
    expected_BTF = projected_BTF.clone()
    for position in range(5):
        for distance, tap in ((2, 0), (1, 1)):
            if position >= distance:
                expected_BTF[:, position] += attention.earlier_taps[tap] * projected_BTF[:, position - distance]
    seen = attention(x_BTD)[1]
    expected = [part.unflatten(-1, (2, 4)).transpose(1, 2) for part in expected_BTF.chunk(3, -1)]
    assert torch.allclose(seen.query_BHTE, expected[0], atol=1e-6)
    assert torch.allclose(seen.key_BHTE, expected[1], atol=1e-6)


def test_a_bigram_is_a_token_and_the_one_before_it_and_falls_evenly() -> None:
    network = build(nano(bigram_buckets=50)).eval()
    assert network.bigram_embedding is not None
    one_BT, other_BT = torch.tensor([[3, 5, 7, 5]]), torch.tensor([[4, 5, 7, 5]])
    with torch.no_grad():
        moved_BT = (network(one_BT).embedded_BTD - network(other_BT).embedded_BTD).abs().sum(-1) > 0
    assert moved_BT.tolist() == [[True, True, False, False]]
    counts = torch.bincount(bucket_of(torch.arange(2**20) * 61 + 3, 50), minlength=50)
    assert len(counts) == 50
    assert counts.max() < 1.05 * counts.min()
    assert bucket_of(torch.tensor([2**40 + 12345]), 50) < 50


def test_tied_embeddings_are_one_matrix() -> None:
    tied, untied = build(nano()), build(nano(tie_embeddings=False))
    assert tied.output.weight is tied.token_embedding.weight
    more = sum(parameters(untied).values()) - sum(parameters(tied).values())
    assert more == VOCABULARY * 32


@pytest.mark.parametrize("tied", [True, False])
def test_a_fresh_network_guesses_nearly_uniformly(tied: bool) -> None:
    """Logits of deviation 1/2 cost an eighth of a nat; with tied embeddings each token also points at itself."""
    network = fresh(nano(tie_embeddings=tied))
    tokens_BT = torch.randint(VOCABULARY, (8, LENGTH))
    targets_BT = (tokens_BT + torch.randint(1, VOCABULARY, (8, LENGTH))) % VOCABULARY  # any other token
    others_BTV = logits(network, tokens_BT, False, 0).scatter(-1, tokens_BT[..., None], -math.inf)
    loss = F.cross_entropy(others_BTV.flatten(0, 1), targets_BT.flatten())
    assert float(loss) == pytest.approx(math.log(VOCABULARY - 1) + 1 / 8, abs=0.1)


def test_a_fresh_network_passes_its_embeddings_on() -> None:
    network = fresh(nano()).eval()
    with torch.no_grad():
        states = network(torch.randint(VOCABULARY, (1, LENGTH)))
        assert torch.equal(states.hidden_BTD, network.norm(states.embedded_BTD))
        stir(network)
        assert not torch.equal(*network(torch.randint(VOCABULARY, (1, LENGTH)))[:2])


def test_equal_seeds_build_equal_networks() -> None:
    first, again, other = (fresh(nano(), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["token_embedding.weight"], other["token_embedding.weight"])


# ---------------------------------------------------------------------------------------------- regularisation


def test_evaluation_draws_nothing_and_repeats_bitwise() -> None:
    network = build(nano())
    network.set_regularisation(dropout=0.5, noise=0.5)
    fill(network)
    tokens_BT = torch.randint(VOCABULARY, (2, LENGTH))
    assert torch.equal(*(logits(network, tokens_BT, training=False, seed=seed) for seed in (1, 2)))


@pytest.mark.parametrize("probability", [0.25, 0.1, 0.9])
def test_dropout_zeroes_its_share_and_scales_the_rest(probability: float) -> None:
    dropout = Dropout()
    dropout.set(probability)
    mask = dropout(torch.Size((400, 1001)))
    assert mask.shape == (400, 1001)
    assert mask.unique().tolist() == pytest.approx([0.0, 1 / (1 - probability)], rel=2e-4)
    dropped = (mask == 0).float().flatten()
    assert float(dropped.mean()) == pytest.approx(probability, abs=0.005)
    lanes = dropped.view(-1, 4)  # four decisions are cut from one number, and each is one of its own
    assert lanes.mean(0).tolist() == pytest.approx([probability] * 4, abs=0.01)
    assert (torch.corrcoef(lanes.T) - torch.eye(4)).abs().max() < 0.02


def test_the_mean_of_dropout_is_one() -> None:
    torch.manual_seed(0)
    dropout = Dropout()
    dropout.set(0.3)
    assert float(dropout(torch.Size((1_000_000,))).mean()) == pytest.approx(1.0, abs=0.003)


@pytest.mark.parametrize("probability", [0.0, 1e-9, 0.5, 1 - 1e-9])
def test_a_probability_is_the_nearest_multiple_below_one(probability: float) -> None:
    dropout = Dropout()
    dropout.set(probability)
    assert float(dropout.probability) == pytest.approx(probability, abs=1 / 2**16)
    assert float(dropout.probability) < 1
    assert dropout(torch.Size((4000,))).isfinite().all()


def test_dropout_of_zero_changes_nothing() -> None:
    assert torch.equal(Dropout()(torch.Size((3, 5, 7))), torch.ones(3, 5, 7))


def test_each_pass_drops_others_and_equal_seeds_drop_the_same() -> None:
    dropout = Dropout()
    dropout.set(0.5)
    masks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        masks += [dropout(torch.Size((100,))), dropout(torch.Size((100,)))]
    assert torch.equal(masks[0], masks[2])
    assert torch.equal(masks[1], masks[3])
    assert not torch.equal(masks[0], masks[1])
    assert not torch.equal(masks[0], masks[4])


@pytest.mark.parametrize("iit", [True, False])
def test_evaluation_takes_no_dropout(iit: bool) -> None:
    network, tokens_BT = build(nano(iit=iit)), torch.randint(VOCABULARY, (2, LENGTH))
    scored = []
    for probability in (0.0, 0.9):
        network.set_regularisation(dropout=probability, noise=0.0)
        scored.append([logits(network, tokens_BT, training, seed=0) for training in (False, True)])
    assert torch.equal(scored[0][0], scored[1][0])
    assert torch.equal(scored[0][0], scored[0][1])  # and none is none in training too
    assert not torch.equal(scored[0][1], scored[1][1])


def test_noise_has_the_given_standard_deviation() -> None:
    network = build(nano(memory_slots=0))
    network.set_regularisation(dropout=0.0, noise=0.3)
    network.norm = torch.nn.Identity()  # type: ignore[assignment]
    tokens_BT = torch.randint(VOCABULARY, (64, LENGTH))
    with torch.no_grad():
        states = network.train()(tokens_BT)
    assert float((states.hidden_BTD - states.stream_BTD).std()) == pytest.approx(0.3, rel=0.02)


def test_regularisation_is_no_part_of_the_saved_state() -> None:
    network = build(nano())
    network.set_regularisation(dropout=0.5, noise=0.5)
    assert not {"noise", "dropout.probability"} & network.state_dict().keys()


# ---------------------------------------------------------------------------------------------- parts


def test_attention_equals_the_written_out_reference() -> None:
    torch.manual_seed(0)
    attention, x_BTD = SelfAttention(8, 2), torch.randn(1, 5, 8)
    mixed_BTD, seen = attention(x_BTD)
    query, key, value = (attention.query_key_value.weight @ x_BTD[0].T).T.split(8, dim=1)
    for t in range(5):
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            shares = torch.stack([query[t, head] @ key[s, head] / math.sqrt(4) for s in range(t + 1)]).softmax(0)
            heads.append(sum(share * value[s, head] for s, share in enumerate(shares)))
        torch.testing.assert_close(mixed_BTD[0, t], attention.project.weight @ torch.cat(heads))
    torch.testing.assert_close(seen.query_BHTE[0, 1], query[:, 4:])
    torch.testing.assert_close(seen.key_BHTE[0, 0], key[:, :4])


def test_gated_convolution_equals_the_written_out_reference() -> None:
    torch.manual_seed(0)
    convolution, x_BTD = GatedConvolution(8), torch.randn(1, 7, 8)
    mixed_BTD, _ = convolution(x_BTD)
    signal, gate = (convolution.expand.weight @ x_BTD[0].T).T.split(8, dim=1)
    for t in range(7):
        summed = sum(convolution.taps[tap] * signal[t - 3 + tap] for tap in range(4) if t - 3 + tap >= 0)
        torch.testing.assert_close(mixed_BTD[0, t], convolution.project.weight @ (summed * F.silu(gate[t])))


def test_states_carry_the_attention_of_the_last_attention_layer() -> None:
    network = build(nano(blocks="attention+convolution", layers=4)).eval()
    tokens_BT = torch.randint(VOCABULARY, (1, LENGTH))
    seen: list[ForwardOutput] = []
    network.blocks[2].mixer.register_forward_hook(lambda module, args, output: seen.append(output[1]))
    states = network(tokens_BT)
    assert torch.equal(states.attention.query_BHTE, seen[0].query_BHTE)
    assert network.architecture.block_kinds == ("attention", "convolution") * 2


def test_a_shorter_sequence_reads_like_the_start_of_a_longer_one() -> None:
    network = build(nano()).eval()
    tokens_BT = torch.randint(VOCABULARY, (1, LENGTH))
    whole, part = (logits(network, tokens, False, 0) for tokens in (tokens_BT, tokens_BT[:, :9]))
    torch.testing.assert_close(whole[:, :9], part)


@pytest.mark.parametrize("blocks", get_args(BlockPattern))
def test_every_parameter_learns(blocks: str) -> None:
    network = build(nano(blocks=blocks, tie_embeddings=False)).train()
    fill(network)
    states = network(torch.randint(VOCABULARY, (4, LENGTH)))
    network.logits(states.hidden_BTD).logsumexp(-1).sum().backward()
    still = {name for name, p in network.named_parameters() if p.grad is None or not p.grad.abs().max() > 0}
    assert still == {"phi_weight_logits"}  # these learn from the Φ term alone
