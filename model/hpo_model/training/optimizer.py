"""The optimizers: AdamW alone, or Muon for the blocks' matrices with AdamW for everything else.

Shapes: N matrices of one shape at once, R rows and C columns.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from hpo_model.config import Training
from hpo_model.errors import ConfigError
from hpo_model.network.custom import Network

ADAM_BETAS = (0.9, 0.95)
MUON_MOMENTUM = 0.95
# Root mean square of an update of AdamW, which Muon's are scaled to, so that one learning rate serves both (Liu et al.
# 2025, "Muon is scalable for LLM training")
ADAM_UPDATE_RMS = 0.2
# Of the odd polynomial a x + b x³ + c x⁵, and how often it is applied (Jordan 2024): singular values end near 1
NEWTON_SCHULZ = (3.4445, -4.7750, 2.0315)
NEWTON_SCHULZ_STEPS = 5


def make_optimizer(network: Network, training: Training) -> torch.optim.AdamW | MuonWithAdamW:
    """The optimizer of a run; weight decay is on matrices only.

    Raises:
        ConfigError: Muon was asked for, and the network, which is a user's own, has nothing for it.
    """
    named = [(name, each) for name, each in network.named_parameters() if each.requires_grad]
    by_muon = [each for name, each in named if training.optimizer == "muon" and _is_block_matrix(name, each)]
    taken = {id(each) for each in by_muon}
    rest = [each for _, each in named if id(each) not in taken]
    groups = [
        {"params": [each for each in rest if each.ndim >= 2], "weight_decay": training.weight_decay},
        {"params": [each for each in rest if each.ndim < 2], "weight_decay": 0.0},
    ]
    adamw = torch.optim.AdamW(groups, betas=ADAM_BETAS, fused=True)
    if training.optimizer == "adamw":
        return adamw
    if not by_muon:
        own = network.architecture.network
        raise ConfigError(f'optimizer = "muon": {own} has no matrices under the name `blocks`, which it updates')
    return MuonWithAdamW(Muon(by_muon, training.weight_decay), adamw)


def _is_block_matrix(name: str, parameter: nn.Parameter) -> bool:
    """Whether Muon updates a parameter: a matrix of a block, which taps are not."""
    return parameter.ndim == 2 and ".blocks." in f".{name}" and name.endswith(".weight")


class MuonWithAdamW:
    """Two optimizers, each with parameters of its own, used as one of `torch.optim` is."""

    def __init__(self, muon: Muon, adamw: torch.optim.AdamW) -> None:
        self.parts = {"muon": muon, "adamw": adamw}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of both."""
        return [group for part in self.parts.values() for group in part.param_groups]

    def step(self) -> None:
        """One update of all parameters."""
        for part in self.parts.values():
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        for part in self.parts.values():
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """The state of each by its name."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave; KeyError or ValueError where it is another optimizer's."""
        for name, part in self.parts.items():
            part.load_state_dict(state_dict[name])


class Muon(torch.optim.Optimizer):
    """Momentum whose update of each matrix is made orthogonal: all of its directions count the same.

    `torch.optim.Muon` does it in bfloat16, for which many CPUs have no arithmetic, and one matrix at a time.

    Args:
        matrices: parameters (R, C).
        weight_decay: decoupled, as AdamW's.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], weight_decay: float) -> None:
        super().__init__(matrices, {"lr": 0.0, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        """One update from the gradients; matrices without one stay as they are."""
        for group in self.param_groups:
            alike: dict[torch.Size, list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    alike[parameter.shape].append(parameter)
            for shape, parameters in alike.items():
                direction_NRC = orthogonal(torch.stack([self._direction(each) for each in parameters]))
                rate = group["lr"] * ADAM_UPDATE_RMS * math.sqrt(max(shape))
                for parameter, direction_RC in zip(parameters, direction_NRC, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(direction_RC, alpha=rate)

    def _direction(self, parameter: nn.Parameter) -> Tensor:
        """Nesterov's momentum: the gradient leans towards the mean of those before."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        mean: Tensor = state["momentum"].lerp_(parameter.grad, 1 - MUON_MOMENTUM)
        return parameter.grad.lerp(mean, MUON_MOMENTUM)


def orthogonal(matrices_NRC: Tensor) -> Tensor:
    """Replace the singular values of each matrix by numbers near 1 (0.7 to 1.2), by Newton and Schulz's iteration."""
    a, b, c = NEWTON_SCHULZ
    tall = matrices_NRC.shape[-2] > matrices_NRC.shape[-1]
    x = matrices_NRC.mT if tall else matrices_NRC
    x = x.bfloat16() if x.device.type == "cuda" else x
    x = x / x.norm(dim=(-2, -1), keepdim=True).clamp_min(1e-7)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x.mT if tall else x).to(matrices_NRC.dtype)
