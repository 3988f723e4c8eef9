"""Networks of a user's own, named `module:Class`: what they must offer, and how training sees them.

Shapes: B sequences, T positions, D channels, V vocabulary.

Any `nn.Module` with the three members of `CustomNetwork` trains as the control arm does, without Φ and memory. A
subclass of `hpo_model.network.transformer.Transformer` is taken as it is, with both. A module is imported when a user
has named it and never before; its code then runs with all rights of the process.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hpo_model.config import Architecture
from hpo_model.digest import short_digest
from hpo_model.errors import ConfigError, NetworkError, class_and_message
from hpo_model.network.loading import import_module, source_file
from hpo_model.network.transformer import ForwardOutput, Transformer


class CustomNetwork(Protocol):
    """What training asks of a network. The class is called with the architecture and V."""

    output: nn.Linear  # (V, D) without bias: the loss reads its weight, so that the logits are never all held

    def set_regularisation(self, *, dropout: float, noise: float) -> None:
        """Set the probability of dropout; the noise belongs to Φ and is 0 here."""

    def __call__(self, tokens_BT: Tensor) -> Tensor:
        """The states (B, T, D) from which `output` makes next-token logits; T at most the sequence length."""


class ControlArmAdapter(nn.Module):
    """A user's network as training sees it: the control arm, without Φ, memory and noise."""

    memory = None

    def __init__(self, inner: Any, architecture: Architecture) -> None:
        super().__init__()
        self.inner = inner
        self.architecture = architecture

    @property
    def output(self) -> nn.Linear:
        """The output layer."""
        output: nn.Linear = self.inner.output
        return output

    def set_regularisation(self, *, dropout: float, noise: float) -> None:
        """Set the training-time probabilities; the control arm takes no noise."""
        del noise
        self.inner.set_regularisation(dropout=dropout, noise=0.0)

    def forward(self, tokens_BT: Tensor) -> ForwardOutput:
        """Run the network up to its final states; there is no attention that could be asked."""
        hidden_BTD = self.inner(tokens_BT)
        return ForwardOutput(hidden_BTD, hidden_BTD, hidden_BTD, None)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Next-token logits (B, T, V)."""
        logits_BTV: Tensor = self.output(hidden_BTD)
        return logits_BTV


Network = Transformer | ControlArmAdapter


def build_network(architecture: Architecture, vocabulary: int) -> Network:
    """Build the network that an architecture names, in training mode, on the CPU.

    Raises:
        NetworkError: it cannot be imported, built or used.
        ConfigError: it has no Φ, and the architecture asks for it.
    """
    if not architecture.network:
        return Transformer(architecture, vocabulary)
    name, found = architecture.network, load_class(architecture.network)
    if architecture.iit and not issubclass(found, Transformer):
        raise ConfigError(f"{name} has no Φ: put iit = false under [run], or make it a subclass of Transformer")
    try:
        built = found(architecture, vocabulary)
    except Exception as error:
        reason = class_and_message(error)
        raise NetworkError(f"{name} cannot be built for a vocabulary of {vocabulary}: {reason}") from error
    network = built if isinstance(built, Transformer) else ControlArmAdapter(built, architecture)
    _check_members(name, built, architecture, vocabulary)
    return network


def load_class(name: str) -> type[nn.Module]:
    """Import the class that `module:Class` names. This runs the module's code.

    Raises:
        NetworkError: there is no such module or class, or it is no `nn.Module`.
    """
    module_name, _, class_name = name.partition(":")
    found = getattr(import_module(name), class_name, None)
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        what = "has no class of this name" if found is None else "is no subclass of torch.nn.Module"
        raise NetworkError(f"{name}: {module_name if found is None else class_name} {what}")
    return found


def has_phi(name: str) -> bool:
    """Whether a network can carry the Φ term and a memory: whether it is a kind of `Transformer`."""
    return issubclass(load_class(name), Transformer)


def source_digest(name: str) -> str:
    """Sixteen hexadecimal digits of the file that holds the module; it is read and not run.

    Raises:
        NetworkError: there is no such module, or no file of it.
    """
    return short_digest(source_file(name).read_bytes())


@torch.no_grad()
def _check_members(name: str, built: Any, architecture: Architecture, vocabulary: int) -> None:
    """Refuse a network that does not offer what `CustomNetwork` says, before anything trains on it."""
    output = getattr(built, "output", None)
    if not isinstance(output, nn.Linear) or output.bias is not None or output.out_features != vocabulary:
        raise NetworkError(f"{name}: needs `output`, an nn.Linear to the {vocabulary} tokens without a bias")
    if not callable(getattr(built, "set_regularisation", None)):
        raise NetworkError(f"{name}: needs a method `set_regularisation(*, dropout, noise)`")
    for training, length in ((True, architecture.sequence_length), (False, 1)):  # a text that is written begins so
        built.train(training)
        try:
            built.set_regularisation(dropout=0.0, noise=0.0)
            with torch.random.fork_rng([]):  # a look changes no random number of the run
                states = built(torch.zeros((1, length), dtype=torch.int64))
        except Exception as error:
            raise NetworkError(f"{name}: cannot be used for {length} tokens: {class_and_message(error)}") from error
        if isinstance(built, Transformer):
            continue
        wanted = (1, length, output.in_features)
        if not isinstance(states, Tensor) or tuple(states.shape) != wanted:
            got = tuple(states.shape) if isinstance(states, Tensor) else type(states).__name__
            raise NetworkError(f"{name}: must return states of shape {wanted} for `output`, got {got}")
    built.train()
