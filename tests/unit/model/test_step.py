"""One piece of a batch: what is measured, what the loss is made of, and that compiling changes neither.

Shapes: B sequences, T positions, N tokens.
"""

from __future__ import annotations

import functools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, get_args

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo.utils import counters

from hpo_model.config import PhiObjective, RunConfig, Scalar, build_run
from hpo_model.network import phi
from hpo_model.network.transformer import Transformer
from hpo_model.training.checkpoint import load_checkpoint
from hpo_model.training.history import Evaluation
from hpo_model.training.loop import Decision, train
from hpo_model.training.optimizer import make_optimizer
from hpo_model.training.step import (
    ForwardWithPhi,
    PhiStats,
    compiled_forward_with_phi,
    forward_with_phi,
    total_loss,
)

if TYPE_CHECKING:
    from hpo_model.data.tokens import TokenizedCorpus

VOCABULARY = 300  # of the small corpus, so that its runs share a graph with the networks made here
SEQUENCES, LENGTH = 4, 32


def tiny(**values: Scalar) -> RunConfig:
    """The bounded objective unless told otherwise: it alone reads the target and the embeddings."""
    return build_run(
        {
            "width": 16, "layers": 2, "heads": 2, "sequence_length": LENGTH, "memory_slots": 8, "phi_probes": 8,
            "batch_size": SEQUENCES, "budget_tokens": 200 * SEQUENCES * LENGTH, "evaluations": 4,
            "evaluation_tokens": 256, "phi_objective": "bounded", **values,
        }
    )  # fmt: skip


def build(config: RunConfig) -> Transformer:
    """A network in training with random matrices, none of them zero, and a memory that is full and heard."""
    torch.manual_seed(config.training.seed)
    network = Transformer(config.architecture, VOCABULARY)
    for parameter in network.parameters():
        if parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.5 / math.sqrt(parameter.shape[1]))
    network.set_regularisation(dropout=config.training.dropout, noise=config.training.noise)
    if network.memory is not None:
        network.memory.fill()
    return network.train()


def batch(sequences: int = SEQUENCES) -> tuple[Tensor, Tensor]:
    """Inputs and targets (B, T)."""
    windows_BT = torch.randint(VOCABULARY, (sequences, LENGTH + 1), generator=torch.Generator().manual_seed(0))
    return windows_BT[:, :-1], windows_BT[:, 1:]


class Passed(NamedTuple):
    loss: Tensor
    measured: PhiStats | None


def one_pass(
    network: Transformer,
    config: RunConfig,
    inputs_BT: Tensor,
    targets_BT: Tensor,
    with_: ForwardWithPhi = forward_with_phi,
) -> Passed:
    target, weight = torch.tensor(config.phi.phi_target), torch.tensor(config.phi.lambda_phi)
    hidden_BTD, measured = with_(network, config.phi.phi_objective, target, inputs_BT)
    return Passed(total_loss(network, hidden_BTD, targets_BT, measured, weight), measured)


def gradients(network: Transformer) -> dict[str, Tensor]:
    return {name: each.grad.clone() for name, each in network.named_parameters() if each.grad is not None}


def assert_near(computed: dict[str, Tensor], expected: dict[str, Tensor], rtol: float) -> None:
    """Equal up to `rtol` of each tensor's largest element."""
    assert computed.keys() == expected.keys()
    for name, other in expected.items():
        atol = rtol * float(other.abs().max())
        torch.testing.assert_close(computed[name], other, rtol=0, atol=atol, msg=lambda text, name=name: name + text)


# ---------------------------------------------------------------------------------------------- the loss

QUIET: dict[str, Scalar] = {"dropout": 0.0, "noise": 0.0}


@pytest.mark.parametrize("objective", get_args(PhiObjective))
def test_the_loss_is_cross_entropy_plus_lambda_times_delta_phi(objective: str) -> None:
    config = tiny(**QUIET, phi_objective=objective, lambda_phi=0.3, phi_target=0.6)
    network, (inputs_BT, targets_BT) = build(config), batch()
    with torch.no_grad():
        network.phi_weight_logits.copy_(torch.tensor([1.0, 0.0, -1.0, 0.5]))
    states = network(inputs_BT)
    received_BT = phi.attention_received(states.attention, 8)
    components_BC, of_inputs_BC = (
        phi.components(each_BTD, received_BT) for each_BTD in (states.hidden_BTD, states.embedded_BTD)
    )
    learned_C, initial_C = network.phi_weight_logits.softmax(-1), torch.tensor([0.3, 0.3, 0.2, 0.2])
    phi_B = components_BC @ learned_C
    delta_phi = {
        "v5.2": (phi_B - 3.5).square() + (3 * components_BC @ initial_C - phi_B).clamp_min(0),
        "bounded": (phi_B - 0.6).square() + (of_inputs_BC @ learned_C - phi_B).clamp_min(0),
    }[objective].mean()
    nats = F.cross_entropy(network.logits(states.hidden_BTD).flatten(0, 1), targets_BT.flatten())

    loss, measured = one_pass(network, config, inputs_BT, targets_BT)
    assert measured is not None
    torch.testing.assert_close(measured.phi_B, phi_B)
    torch.testing.assert_close(measured.delta_phi, delta_phi)
    torch.testing.assert_close(loss, nats + 0.3 * delta_phi)


def test_what_is_measured_holds_no_graph_but_for_delta_phi() -> None:
    config = tiny()
    network = build(config)
    _, measured = one_pass(network, config, *batch())
    assert measured is not None
    assert measured.candidates is not None
    assert measured.delta_phi.requires_grad
    assert not any(part.requires_grad for part in (measured.phi_B, *measured.candidates))


def test_the_memory_is_offered_the_stream_that_it_was_read_with() -> None:
    config = tiny(**QUIET)
    network, (inputs_BT, targets_BT) = build(config), batch()
    states = network(inputs_BT)
    received_BT = phi.attention_received(states.attention, 8)
    assert network.memory is not None
    expected = network.memory.candidates(states.stream_BTD, received_BT)
    _, measured = one_pass(network, config, inputs_BT, targets_BT)
    assert measured is not None
    assert measured.candidates is not None
    for offered, other in zip(measured.candidates, expected, strict=True):
        assert torch.equal(offered, other)


def test_without_slots_there_is_phi_and_no_candidate() -> None:
    config = tiny(memory_slots=0)
    _, measured = one_pass(build(config), config, *batch())
    assert measured is not None
    assert measured.candidates is None


def test_the_loss_of_the_control_arm_is_cross_entropy_whatever_lambda_is() -> None:
    config = tiny(**QUIET, iit=False, lambda_phi=7.0)
    network, (inputs_BT, targets_BT) = build(config), batch()
    loss, measured = one_pass(network, config, inputs_BT, targets_BT)
    logits_NV = network.logits(network(inputs_BT).hidden_BTD).flatten(0, 1)
    assert measured is None
    torch.testing.assert_close(loss, F.cross_entropy(logits_NV, targets_BT.flatten()))


@pytest.mark.parametrize("lambda_phi", [0.0, 0.5])
def test_phi_weights_learn_from_the_phi_term_alone(lambda_phi: float) -> None:
    config = tiny(lambda_phi=lambda_phi)
    network = build(config)
    one_pass(network, config, *batch()).loss.backward()  # type: ignore[no-untyped-call]
    assert network.phi_weight_logits.grad is not None
    assert bool(network.phi_weight_logits.grad.any()) is (lambda_phi > 0)


@pytest.mark.parametrize("rows", [1, 2, 3])
@pytest.mark.parametrize("objective", get_args(PhiObjective))
def test_a_batch_in_pieces_has_the_gradient_of_the_whole(objective: str, rows: int) -> None:
    config = tiny(**QUIET, phi_objective=objective, lambda_phi=0.5)
    network, (inputs_BT, targets_BT) = build(config), batch()
    whole = one_pass(network, config, inputs_BT, targets_BT)
    whole.loss.backward()  # type: ignore[no-untyped-call]
    expected = gradients(network)
    network.zero_grad(set_to_none=True)
    total = 0.0
    for first in range(0, SEQUENCES, rows):
        piece = slice(first, first + rows)
        share = len(inputs_BT[piece]) / SEQUENCES
        loss = share * one_pass(network, config, inputs_BT[piece], targets_BT[piece]).loss
        loss.backward()  # type: ignore[no-untyped-call]
        total += loss.item()
    assert total == pytest.approx(whole.loss.item(), rel=1e-5)
    assert all(part.any() for part in expected.values())
    assert_near(gradients(network), expected, rtol=1e-4)


# ---------------------------------------------------------------------------------------------- repetition


def losses(config: RunConfig, updates: int, with_: ForwardWithPhi = forward_with_phi) -> list[float]:
    """The loss of each of some updates on one batch, the memory written after each."""
    network, (inputs_BT, targets_BT) = build(config), batch()
    optimizer = make_optimizer(network, config.training)
    for group in optimizer.param_groups:
        group["lr"] = config.training.learning_rate
    seen = []
    for _ in range(updates):
        optimizer.zero_grad(set_to_none=True)
        loss, measured = one_pass(network, config, inputs_BT, targets_BT, with_)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if network.memory is not None and measured is not None and measured.candidates is not None:
            network.memory.write(measured.candidates, measured.phi_B)
        seen.append(loss.item())
    return seen


def test_two_hundred_updates_repeat_bitwise() -> None:
    first, again, other = (losses(tiny(seed=seed), updates) for seed, updates in ((1, 200), (1, 200), (2, 20)))
    assert first == again
    assert len(set(first)) > 190  # dropout and noise differ from update to update
    assert not set(first) & set(other)
    assert first[-1] < first[0] - 0.5


# ---------------------------------------------------------------------------------------------- compiled


def compiling(test: Callable[..., None]) -> Callable[..., None]:
    """Marks of a test that compiles: one graph for them all, in some ten seconds of an idle core."""
    for mark in (
        pytest.mark.nightly,
        pytest.mark.timeout(900),
        pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # of torch's compiler, about torch itself
        pytest.mark.skipif(
            shutil.which("g++") is None and shutil.which("c++") is None,
            reason="compiling for a CPU takes a C++ compiler, g++ or c++",
        ),
    ):
        test = mark(test)
    return test


compiled = functools.partial(compiled_forward_with_phi, replayed=False)


@compiling
def test_other_values_of_a_trial_compile_nothing() -> None:
    losses(tiny(), 1, compiled())
    assert not counters["graph_break"]
    graphs = counters["stats"]["unique_graphs"]
    trials: list[dict[str, Scalar]] = [
        {"seed": 2, "dropout": 0.3, "noise": 0.05, "lambda_phi": 0.2, "phi_target": 0.6, "learning_rate": 1e-2},
        {"seed": 3, "dropout": 0.0, "noise": 0.0, "lambda_phi": 0.0, "phi_target": 0.9, "weight_decay": 0.0},
    ]
    with torch.compiler.set_stance("fail_on_recompile"):
        for trial in trials:
            assert len(set(losses(tiny(**trial), 3, compiled()))) == 3
        with pytest.raises(RuntimeError, match="recompile"):  # so the stance would have told
            one_pass(build(tiny()), tiny(), *batch(SEQUENCES - 1), compiled())
    assert counters["stats"]["unique_graphs"] == graphs


@compiling
def test_two_hundred_compiled_updates_repeat_bitwise() -> None:
    first, again, other = (
        losses(tiny(seed=seed), updates, compiled()) for seed, updates in ((1, 200), (1, 200), (2, 20))
    )
    assert first == again
    assert len(set(first)) > 190
    assert not set(first) & set(other)


@compiling
def test_compiled_and_eager_passes_agree() -> None:
    config = tiny(**QUIET, lambda_phi=0.5)
    found = []
    for with_ in (forward_with_phi, compiled()):
        network = build(config)
        loss, measured = one_pass(network, config, *batch(), with_)
        loss.backward()  # type: ignore[no-untyped-call]
        assert measured is not None
        assert measured.candidates is not None
        told = {"loss": loss.detach(), "phi": measured.phi_B, **measured.candidates._asdict()}
        found.append({**told, **gradients(network)})
    eager, fused = found
    assert len(eager) > 20
    assert_near(fused, eager, rtol=1e-4)
    assert losses(config, 20, compiled()) == pytest.approx(losses(config, 20), rel=1e-4)


@compiling
def test_dropout_and_noise_are_as_strong_in_a_compiled_pass() -> None:
    """Fresh numbers at each pass, and in the mean over many the loss of eager passes."""
    config = tiny(dropout=0.4, noise=0.5)
    network, (inputs_BT, targets_BT) = build(config), batch()
    means, spreads = [], []
    for with_ in (forward_with_phi, compiled()):
        with torch.no_grad():
            network.phi_weight_logits.zero_()
        drawn = torch.stack([one_pass(network, config, inputs_BT, targets_BT, with_).loss.detach() for _ in range(200)])
        means.append(float(drawn.mean()))
        spreads.append(float(drawn.std()))
    assert means[1] == pytest.approx(means[0], abs=5 * spreads[0] / 200**0.5)
    assert spreads[1] == pytest.approx(spreads[0], rel=0.3)
    assert min(spreads) > 0


@compiling
def test_a_compiled_run_that_was_interrupted_ends_bit_identical(small_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    """And stays compiled, though whoever continues it does not ask for that."""
    assert small_corpus.tokenizer.vocabulary == VOCABULARY
    config = tiny(budget_tokens=20 * SEQUENCES * LENGTH)
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"

    def interrupt(evaluation: Evaluation) -> Decision:
        return Decision.INTERRUPT if evaluation.milestone == 2 else Decision.CONTINUE

    losses(config, 1, compiled())
    with torch.compiler.set_stance("fail_on_recompile"):
        train(config, small_corpus, save_to=whole, compiled=True)
        train(config, small_corpus, save_to=parts, compiled=True, on_evaluation=interrupt)
        torch.rand(7)
        train(config, small_corpus, save_to=parts, resume_from=parts)
    one, other = (load_checkpoint(path) for path in (whole, parts))
    assert one["compiled"] is other["compiled"] is True
    assert all(torch.equal(one["network"][name], other["network"][name]) for name in one["network"])
    losses_of = [[evaluation["val_loss"] for evaluation in each["history"]] for each in (one, other)]
    assert losses_of[0] == losses_of[1]
    eager = train(config, small_corpus).history[-1]
    assert eager.val_loss == pytest.approx(losses_of[0][-1], abs=0.02)


ARMS: dict[str, dict[str, Scalar]] = {
    "Φ and memory": {},
    "V5.2's objective": {"phi_objective": "v5.2"},
    "control arm": {"iit": False},
    "static gate": {"memory_gate": "static"},
    "no memory": {"memory_slots": 0},
    "convolution": {"blocks": "convolution+attention"},
    "untied": {"tie_embeddings": False},
    "earlier positions": {"attention_taps": 3},
    "bigrams": {"bigram_buckets": 64},
}


@compiling
@pytest.mark.parametrize("arm", ARMS)
def test_every_arm_is_one_graph_without_a_break(arm: str) -> None:
    torch._dynamo.reset()
    counters.clear()
    config = tiny(**ARMS[arm])
    network, (inputs_BT, targets_BT) = build(config), batch()
    for _ in range(2):
        one_pass(network, config, inputs_BT, targets_BT, compiled()).loss.backward()  # type: ignore[no-untyped-call]
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
