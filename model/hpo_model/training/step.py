"""What one update does with a piece of a batch: the forward pass with Φ, and the loss. The update is `loop.update`.

Whatever is compiled, is compiled here.

Shapes: B sequences, T positions, D channels.

λ_phi, the target, dropout and noise are tensors: a second run with other values of them compiles nothing.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hpo_model.config import PhiObjective
from hpo_model.hardware import mixed_precision
from hpo_model.network import phi
from hpo_model.network.custom import Network
from hpo_model.network.loss import nats_per_token
from hpo_model.network.memory import Candidates
from hpo_model.network.transformer import Transformer

MAX_GRAPHS = 128  # compiled variants that a process keeps, one per shape of network and batch


class PhiStats(NamedTuple):
    """What a forward pass measures of Φ. Only `delta_phi` holds a graph."""

    delta_phi: Tensor
    phi_B: Tensor
    candidates: Candidates | None  # for the memory, if there is one


ForwardWithPhi = Callable[[Network, PhiObjective, Tensor, Tensor], tuple[Tensor, PhiStats | None]]


def forward_with_phi(
    network: Network, objective: PhiObjective, phi_target: Tensor, inputs_BT: Tensor
) -> tuple[Tensor, PhiStats | None]:
    """Run sequences through the network and measure Φ on the way.

    Returns:
        Final states (B, T, D), and what the Φ term needs; None for the control arm.
    """
    with mixed_precision(inputs_BT.device):
        states = network(inputs_BT)
    if not network.architecture.iit:
        return states.hidden_BTD, None
    assert isinstance(network, Transformer), "others are control arms"
    assert states.attention is not None
    received_BT = phi.attention_received(states.attention, network.architecture.phi_probes)
    components_BC = phi.components(states.hidden_BTD, received_BT)
    phi_B = phi.weighted(components_BC, network.phi_weight_logits)
    fixed_phi_B = phi.weighted(components_BC, network.initial_phi_weight_logits)
    input_phi_B = phi_B  # needed by the bounded objective alone
    if objective == "bounded":
        input_phi_B = phi.weighted(phi.components(states.embedded_BTD, received_BT), network.phi_weight_logits)
    delta_phi = phi.delta_phi(objective, phi_B, fixed_phi_B, input_phi_B, phi_target)
    memory = network.memory
    candidates = None if memory is None else memory.candidates(states.stream_BTD.detach(), received_BT.detach())
    return states.hidden_BTD, PhiStats(delta_phi, phi_B.detach(), candidates)


@functools.cache
def compiled_forward_with_phi(*, replayed: bool) -> ForwardWithPhi:
    """`forward_with_phi`, compiled at its first use in this process for each shape of network and batch.

    Args:
        replayed: record CUDA graphs. Not for batches in several pieces: a replay writes over the gradients of the one
            before.
    """
    torch._dynamo.config.recompile_limit = MAX_GRAPHS
    return torch.compile(forward_with_phi, dynamic=False, mode="reduce-overhead" if replayed else None)


def total_loss(
    network: Network, hidden_BTD: Tensor, targets_BT: Tensor, stats: PhiStats | None, lambda_phi: Tensor
) -> Tensor:
    """Nats per token, plus λ_phi · ΔΦ unless this is the control arm."""
    with mixed_precision(targets_BT.device):
        nats = nats_per_token(hidden_BTD.flatten(0, 1), network.output.weight, targets_BT.flatten())
    return nats if stats is None else nats + lambda_phi * stats.delta_phi
