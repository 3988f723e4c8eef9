"""A trained network in forms that outlive this program: weights as safetensors, and a `torch.export` program.

Shapes: B sequences, T positions, V vocabulary.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import safetensors.torch
import torch
from torch import Tensor, nn

from hpo_model.errors import NetworkError, class_and_message
from hpo_model.network.custom import Network

MAX_ROWS = 4096  # sequences side by side that a program takes

Freedom = Literal["any batch, any length", "any batch, whole sequences", "one whole sequence"]


@dataclass(frozen=True, kw_only=True)
class Program:
    """What was exported of a forward pass."""

    freedom: Freedom  # the shapes (B, T) of tokens that it takes
    difference: float  # largest, between its logits and the network's, after it was read back


def save_weights(network: Network, path: Path) -> None:
    """Write parameters and buffers as safetensors; matrices that are one are stored once."""
    safetensors.torch.save_model(network, str(path))


def load_weights(network: Network, path: Path) -> None:
    """Read what `save_weights` wrote into a network of the same shape."""
    safetensors.torch.load_model(network, str(path))


class _Logits(nn.Module):
    """Tokens (B, T) to next-token logits (B, T, V)."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, tokens_BT: Tensor) -> Tensor:
        return self.network.logits(self.network(tokens_BT).hidden_BTD)


@torch.no_grad()
def export_program(network: Network, path: Path) -> Program:
    """Write the forward pass of a network in evaluation mode, its memory frozen, as a program that PyTorch alone runs.

    Shapes are left as free as the network allows: what loops over positions in Python is unrolled for one length.

    Raises:
        NetworkError: it cannot be exported, or the program gives other logits.
    """
    logits = _Logits(network).eval()
    batch = torch.export.Dim("batch", min=1, max=MAX_ROWS)
    whole = network.architecture.sequence_length
    length = torch.export.Dim("length", min=1, max=whole)
    attempts: tuple[tuple[Freedom, tuple[int, int], Any], ...] = (
        ("any batch, any length", (2, min(16, whole)), {0: batch, 1: length}),
        ("any batch, whole sequences", (2, whole), {0: batch}),
        ("one whole sequence", (1, whole), {}),
    )
    reason = ""
    for freedom, shape, free in attempts:
        example_BT = _example(network, shape)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the exporter, about code that is not the user's to change
                exported = torch.export.export(logits, (example_BT,), dynamic_shapes=({**free},))
                torch.export.save(exported, path)
            return Program(freedom=freedom, difference=_difference(logits, path, example_BT))
        except Exception as error:  # torch raises errors of many classes
            reason = class_and_message(error)
    raise NetworkError(f"the network cannot be exported as a program: {reason}")


def _example(network: Network, shape: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(len(network.output.weight), shape, generator=generator)


def _difference(logits: nn.Module, path: Path, example_BT: Tensor) -> float:
    program = torch.export.load(path).module()
    return float((program(example_BT) - logits(example_BT)).abs().max())
