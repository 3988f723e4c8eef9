"""The check that every run passes before it trains: no position sees its own future, and no sequence another one."""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor

from hpo_model.errors import CausalityError
from hpo_model.hardware import mixed_precision
from hpo_model.network.custom import Network
from hpo_model.network.transformer import ForwardOutput


@torch.no_grad()
def check_causality(network: Network) -> None:
    """Refuse a network in which later tokens or another sequence move a logit, in training or in evaluation.

    Compared are final states, bit by bit: all logits are read from them, position by position. Checked is a copy with
    random parameters, a filled memory and an open gate: what is zero at first hides nothing. Some places are drawn by
    the run's seed, so that a network that leaks here and there is met by the next trial.

    Raises:
        CausalityError: some position sees its own future, or another sequence of its batch.
    """
    network = copy.deepcopy(network)
    generator = torch.Generator().manual_seed(torch.initial_seed())
    _randomise(network, generator)
    length = network.architecture.sequence_length
    tokens_T = torch.arange(length, device=network.output.weight.device)
    tokens_BT = torch.stack((tokens_T, tokens_T.flip(0))) % len(network.output.weight)
    for training in (False, True):
        network.train(training)
        before_BTD = _states_under_fixed_noise(network, tokens_BT)
        # two sequences of a batch are changed at once, each from a place of its own on; the last one throughout
        tried = [(length // 4, length // 2), (length - 1, 0)]
        if not training:  # as perplexities are measured
            first, second = torch.randint(1, length, (2,), generator=generator).tolist()
            tried.append((first, second))
        for places in tried:
            changed_BT = _changed(network, tokens_BT, places)
            after_BTD = _states_under_fixed_noise(network, changed_BT)
            row = _moved(before_BTD, after_BTD, places)
            if row is not None:  # where memory runs out kernels may change in between
                before_BTD, after_BTD = (_states_under_fixed_noise(network, each) for each in (tokens_BT, changed_BT))
                row = _moved(before_BTD, after_BTD, places)
            if row is not None:
                raise CausalityError(_leak(network, tokens_BT, before_BTD, row, places[row]))


def _moved(before_BTD: Tensor, after_BTD: Tensor, places: tuple[int, int]) -> int | None:
    """The first sequence whose states before its place are not the same, bit by bit."""
    equal = (torch.equal(before_BTD[row, :place], after_BTD[row, :place]) for row, place in enumerate(places))
    return next((row for row, same in enumerate(equal) if not same), None)


def _randomise(network: Network, generator: torch.Generator) -> None:
    """Random parameters, and a memory that is full."""
    for parameter in network.parameters():
        drawn = torch.randn(parameter.shape, generator=generator).to(parameter.device)
        if parameter.ndim >= 2:
            parameter.copy_(drawn.div_(math.sqrt(parameter.shape[1])))
        else:
            parameter.add_(drawn.mul_(0.5))
    if network.memory is not None:
        network.memory.fill()


def _states_under_fixed_noise(network: Network, tokens_BT: Tensor) -> Tensor:
    """Final states (B, T, D); dropout and noise are equal at each call, and the caller's are left alone."""
    device = tokens_BT.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(0)
        with mixed_precision(device):
            states: ForwardOutput = network(tokens_BT)
    return states.hidden_BTD


def _changed(network: Network, tokens_BT: Tensor, places: tuple[int, int]) -> Tensor:
    """The same sequences with another token at each position from their place on."""
    changed_BT = tokens_BT.clone()
    for row, place in enumerate(places):
        changed_BT[row, place:] += 1
    return changed_BT % len(network.output.weight)


def _leak(network: Network, tokens_BT: Tensor, before_BTD: Tensor, row: int, place: int) -> str:
    """What moved a sequence's states before a place: its own tokens from there on, or else those of the other one."""
    untouched = tokens_BT.shape[1]
    places = (place, untouched) if row == 0 else (untouched, place)
    after_BTD = _states_under_fixed_noise(network, _changed(network, tokens_BT, places))
    moved = (before_BTD - after_BTD)[row, :place].abs().max().item()
    sign = f"is not causal: changing the tokens from {place} on moved earlier states by up to {moved:.2g}"
    if moved == 0:
        sign = "mixes the sequences of a batch: changing one moved the states of another"
    return f"the network {sign}; its perplexity would be meaningless"
