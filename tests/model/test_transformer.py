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

from model.config import PRESETS, Architecture, BlockPattern, build_run
from model.errors import CausalityError
from model.transformer import Dropout, GatedConvolution, SelfAttention, States, Transformer, check_causality

if TYPE_CHECKING:
    from conftest import Trained

VOCABULARY = 61
LENGTH = 24  # short, so that the large presets stay quick; the law holds per position, whatever the length
MEMORIES = ("dynamic", "static", "control arm")


@functools.lru_cache(maxsize=1)
def network_with_full_memory(preset: str, blocks: str, memory: str, tied: bool) -> Transformer:
    values = {"preset": preset, "blocks": blocks, "tie_embeddings": tied, "sequence_length": LENGTH}
    arm = {"iit": False} if memory == "control arm" else {"memory_gate": memory}
    torch.manual_seed(0)
    network = Transformer(build_run({**values, **arm}).architecture, VOCABULARY)
    network.set_regularisation(dropout=0.2, noise=0.05)
    if network.memory is not None:
        fill(network)
    return network


def fill(network: Transformer) -> None:
    """Write every slot with random states, and open the gate that starts closed."""
    assert network.memory is not None
    slots = network.architecture.memory_slots
    stream_BTD = torch.randn(slots, LENGTH, network.architecture.width)
    with torch.no_grad():
        network.memory.write(stream_BTD, torch.rand(slots) / 2 + 0.5, torch.rand(slots, LENGTH).softmax(-1))
        network.memory.gate_bias.fill_(1.0)
    assert int(network.memory.used()) == slots
    assert network.memory(stream_BTD).abs().max() > 1e-3


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


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("memory", MEMORIES)
@pytest.mark.parametrize("blocks", get_args(BlockPattern))
@pytest.mark.parametrize("preset", PRESETS)
@settings(max_examples=4)
@given(
    changed=st.sets(st.integers(1, LENGTH - 1), min_size=1, max_size=3),
    training=st.booleans(),
    seed=st.integers(0, 999),
)
@example(changed={1}, training=True, seed=0)
@example(changed={LENGTH - 1}, training=False, seed=0)
def test_changing_a_token_leaves_every_earlier_logit_bit_identical(
    preset: str, blocks: str, memory: str, tied: bool, changed: set[int], training: bool, seed: int
) -> None:
    assert_causal(network_with_full_memory(preset, blocks, memory, tied), changed, training, seed)


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


def build(architecture: Architecture, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(architecture, VOCABULARY)


# ---------------------------------------------------------------------------------------------- the guard


class MeanLeak(Transformer):
    """Adds a little of the mean over all positions to each, as the public V5.2 code does."""

    def forward(self, tokens_BT: Tensor) -> States:
        states = super().forward(tokens_BT)
        leaked = states.hidden_BTD + 0.01 * states.hidden_BTD.mean(1, keepdim=True)
        return states._replace(hidden_BTD=leaked)


class NextLeak(Transformer):
    """Shows each position the state of its right neighbour."""

    def forward(self, tokens_BT: Tensor) -> States:
        states = super().forward(tokens_BT)
        return states._replace(hidden_BTD=states.hidden_BTD + 0.01 * states.hidden_BTD.roll(-1, 1))


@pytest.mark.parametrize("leaky", [MeanLeak, NextLeak])
def test_the_guard_refuses_a_network_that_leaks(leaky: type[Transformer]) -> None:
    torch.manual_seed(0)
    with pytest.raises(CausalityError, match=r"not causal: changing the tokens from \d+ on moved earlier logits by up to [\d.e-]+;"):
        check_causality(leaky(nano(), VOCABULARY))


class EarlyLeak(Transformer):
    """Adds the mean over the first half to each position of the first half."""

    def forward(self, tokens_BT: Tensor) -> States:
        states = super().forward(tokens_BT)
        half_BTD = states.hidden_BTD[:, : tokens_BT.shape[1] // 2]
        leaked = torch.cat((half_BTD + half_BTD.mean(1, keepdim=True), states.hidden_BTD[:, half_BTD.shape[1] :]), 1)
        return states._replace(hidden_BTD=leaked)


class TrainingLeak(MeanLeak):
    """Leaks in training alone, where the damage is done."""

    def forward(self, tokens_BT: Tensor) -> States:
        return super().forward(tokens_BT) if self.training else Transformer.forward(self, tokens_BT)


@pytest.mark.parametrize("leaky", [EarlyLeak, TrainingLeak])
def test_the_guard_refuses_a_network_that_leaks_elsewhere(leaky: type[Transformer]) -> None:
    torch.manual_seed(0)
    with pytest.raises(CausalityError, match="not causal"):
        check_causality(leaky(nano(), VOCABULARY))


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


def test_tied_embeddings_are_one_matrix() -> None:
    tied, untied = build(nano()), build(nano(tie_embeddings=False))
    assert tied.output.weight is tied.token_embedding.weight
    more = sum(parameters(untied).values()) - sum(parameters(tied).values())
    assert more == VOCABULARY * 32


@pytest.mark.parametrize("tied", [True, False])
def test_a_fresh_network_guesses_uniformly(tied: bool) -> None:
    network = build(nano(tie_embeddings=tied))
    tokens_BT = torch.randint(VOCABULARY, (8, LENGTH))
    targets_BT = torch.randint(VOCABULARY, (8, LENGTH))
    loss = F.cross_entropy(logits(network, tokens_BT, False, 0).flatten(0, 1), targets_BT.flatten())
    assert float(loss) == pytest.approx(math.log(VOCABULARY), abs=0.05)


def test_equal_seeds_build_equal_networks() -> None:
    first, again, other = (build(nano(), seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["token_embedding.weight"], other["token_embedding.weight"])


# ---------------------------------------------------------------------------------------------- regularisation


def test_evaluation_draws_nothing_and_repeats_bitwise() -> None:
    network = build(nano())
    network.set_regularisation(dropout=0.5, noise=0.5)
    fill(network)
    tokens_BT = torch.randint(VOCABULARY, (2, LENGTH))
    assert torch.equal(*(logits(network, tokens_BT, training=False, seed=seed) for seed in (1, 2)))


def test_dropout_zeroes_its_share_and_scales_the_rest() -> None:
    dropout = Dropout()
    dropout.probability.fill_(0.25)
    dropped = dropout(torch.ones(100_000))
    assert dropped.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float((dropped == 0).float().mean()) == pytest.approx(0.25, abs=0.01)


def test_dropout_of_zero_and_evaluation_change_nothing() -> None:
    dropout, x = Dropout(), torch.randn(1000)
    assert torch.equal(dropout(x), x)
    dropout.probability.fill_(0.9)
    assert torch.equal(dropout.eval()(x), x)


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
    seen: list[States] = []
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
