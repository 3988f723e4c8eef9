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

from model.checkpoint import load_checkpoint
from model.config import RunConfig, build_run
from model.errors import CheckpointError, NetworkError
from model.evaluation import Evaluation
from model.network import Network, build_network, source_digest
from model.tokenizer import Tokenizer
from model.trained import NEXT_STEP, load_trained, tokenizer_of

MOST_ROWS = 4096  # sequences side by side that a program takes

Freedom = Literal["any batch, any length", "any batch, whole sequences", "one whole sequence"]


@dataclass(frozen=True, kw_only=True)
class Exportable:
    """A network in evaluation mode, and what is to be said of it."""

    config: RunConfig
    network: Network
    tokenizer: Tokenizer
    corpus_name: str
    corpus_source: str  # a name that `load_corpus` knows, or a folder
    corpus_digest: str
    history: tuple[Evaluation, ...]
    source: str | None  # digest of the user's code where the network is theirs


@dataclass(frozen=True, kw_only=True)
class Program:
    """What was exported of a forward pass."""

    freedom: Freedom  # the shapes (B, T) of tokens that it takes
    difference: float  # largest, between its logits and the network's, after it was read back


def load_exportable(path: Path, own: str | None) -> Exportable:
    """Read a checkpoint, onto the CPU.

    Args:
        path: the checkpoint.
        own: `module:Class`, named by the user, if the network is theirs; its code is run.

    Raises:
        CheckpointError: as `load_trained`; or the network is the user's own and was not named, or is other code.
        NetworkError: it cannot be imported or built.
    """
    if own is None:
        trained = load_trained(path)
        return Exportable(
            config=trained.config,
            network=trained.network,
            tokenizer=trained.tokenizer,
            corpus_name=trained.corpus_name,
            corpus_source=trained.corpus_source,
            corpus_digest=trained.corpus_digest,
            history=trained.history,
            source=None,
        )
    content = load_checkpoint(path, next_step=NEXT_STEP)
    try:
        return _own(path, content, own)
    except (KeyError, TypeError, RuntimeError) as error:
        raise CheckpointError(f"{path}: holds no trained network ({type(error).__name__}); {NEXT_STEP}") from error


def _own(path: Path, content: dict[str, Any], own: str) -> Exportable:
    config = build_run(content["config"])
    recorded, digest = config.architecture.network, content["identity"].get("network")
    if recorded != own:
        raise CheckpointError(f"{path}: its network is {recorded or 'the transformer of this program'}, not {own}")
    if source_digest(own) != digest:
        raise CheckpointError(f"{path}: was trained by other code of {own} (digest {digest}, now {source_digest(own)})")
    tokenizer = tokenizer_of(path, content)
    network = build_network(config.architecture, tokenizer.vocabulary)
    network.load_state_dict(content["network"])
    return Exportable(
        config=config,
        network=network.eval(),
        tokenizer=tokenizer,
        corpus_name=content["corpus"]["name"],
        corpus_source=content["corpus"]["source"],
        corpus_digest=content["identity"]["corpus"],
        history=tuple(Evaluation(**evaluation) for evaluation in content["history"]),
        source=digest,
    )


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
    batch = torch.export.Dim("batch", min=1, max=MOST_ROWS)
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
        except Exception as error:  # torch raises kinds of many kinds
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    raise NetworkError(f"the network cannot be exported as a program: {reason}")


def _example(network: Network, shape: tuple[int, int]) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randint(len(network.output.weight), shape, generator=generator)


def _difference(logits: nn.Module, path: Path, example_BT: Tensor) -> float:
    program = torch.export.load(path).module()
    return float((program(example_BT) - logits(example_BT)).abs().max())
