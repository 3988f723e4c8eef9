"""The optimizers: the parameters of each, Muon's update against a written-out one, states that do not fit."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from hpo_model.config import RunConfig, build_run
from hpo_model.errors import ConfigError
from hpo_model.network.custom import ControlArmAdapter
from hpo_model.network.transformer import Transformer
from hpo_model.training.optimizer import Muon, MuonWithAdamW, make_optimizer, orthogonal
from tests.support.networks import Recurrent


def run(**values: bool | int | float | str) -> RunConfig:
    return build_run(
        {"width": 16, "heads": 2, "sequence_length": 8, "memory_slots": 4, "evaluation_tokens": 16, **values}
    )


def network_of(config: RunConfig) -> Transformer:
    torch.manual_seed(0)
    return Transformer(config.architecture, 50)


def names_in(groups: list[dict[str, object]], network: Transformer) -> list[set[str]]:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    return [{names[id(parameter)] for parameter in group["params"]} for group in groups]  # type: ignore[attr-defined]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_every_learning_parameter_has_one_place_and_weight_decay_takes_matrices_only(optimizer: str) -> None:
    config = run(optimizer=optimizer, weight_decay=0.3)
    network = network_of(config)
    groups = make_optimizer(network, config.training).param_groups
    placed = [parameter for group in groups for parameter in group["params"]]
    assert len(placed) == len({id(parameter) for parameter in placed}) == len(list(network.parameters()))
    for group in groups:
        assert {parameter.ndim >= 2 for parameter in group["params"]} == {group["weight_decay"] == 0.3}


def test_what_does_not_learn_is_left_out() -> None:
    config = run(iit=False)
    groups = make_optimizer(network_of(config), config.training).param_groups
    assert all(parameter.requires_grad for group in groups for parameter in group["params"])


@pytest.mark.parametrize("blocks", ["attention", "convolution+attention"])
def test_muon_takes_the_matrices_of_the_blocks_and_nothing_else(blocks: str) -> None:
    config = run(optimizer="muon", blocks=blocks, attention_taps=3)
    network = network_of(config)
    optimizer = make_optimizer(network, config.training)
    assert isinstance(optimizer, MuonWithAdamW)
    (taken,) = names_in(optimizer.parts["muon"].param_groups, network)
    kinds = {name.split(".", 2)[2] for name in taken}
    assert all(name.startswith("blocks.") for name in taken)
    assert kinds <= {"mixer.query_key_value.weight", "mixer.expand.weight", "mixer.project.weight", "expand.weight",
                     "contract.weight"}  # fmt: skip
    assert len(taken) == 8


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_network_without_blocks_is_no_case_for_muon(optimizer: str) -> None:
    config = run(optimizer=optimizer, iit=False, network="networks:Recurrent")
    network = ControlArmAdapter(Recurrent(config.architecture, 50), config.architecture)
    if optimizer == "adamw":
        make_optimizer(network, config.training)
        return
    with pytest.raises(ConfigError, match='optimizer = "muon": networks:Recurrent has no matrices under'):
        make_optimizer(network, config.training)


def test_singular_values_end_near_one_whatever_the_shape() -> None:
    generator = torch.Generator().manual_seed(1)
    for shape in ((3, 16, 16), (2, 48, 16), (1, 16, 64)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=generator) * 50))
        assert values.min() > 0.5
        assert values.max() < 1.3


def test_a_matrix_without_gradient_becomes_no_nan() -> None:
    assert torch.equal(orthogonal(torch.zeros(1, 4, 8)), torch.zeros(1, 4, 8))


def reference(weight_RC: Tensor, gradients: list[Tensor], rate: float, decay: float) -> Tensor:
    """Muon as it is described: momentum, Nesterov, an orthogonal direction by the singular value decomposition."""
    mean = torch.zeros_like(weight_RC)
    for gradient in gradients:
        mean = 0.95 * mean + 0.05 * gradient
        direction = orthogonal((0.05 * gradient + 0.95 * mean)[None])[0]
        weight_RC = weight_RC * (1 - rate * decay) - rate * 0.2 * math.sqrt(max(weight_RC.shape)) * direction
    return weight_RC


def test_an_update_is_the_description_s_and_as_large_as_one_of_adamw() -> None:
    generator = torch.Generator().manual_seed(2)
    start = torch.randn(24, 8, generator=generator)
    gradients = [torch.randn(24, 8, generator=generator) for _ in range(3)]
    parameter, twin = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    muon = Muon([parameter, twin], weight_decay=0.1)
    muon.param_groups[0]["lr"] = 0.01
    for gradient in gradients:
        parameter.grad, twin.grad = gradient.clone(), gradient.clone()
        muon.step()
    assert torch.allclose(parameter, reference(start, gradients, rate=0.01, decay=0.1), atol=1e-6)
    assert torch.equal(parameter, twin)
    direction = orthogonal(gradients[0][None])[0]
    update = 0.2 * math.sqrt(24) * direction
    assert update.square().mean().sqrt() == pytest.approx(0.2, rel=0.2)  # AdamW's, by which the rate is shared


def test_a_state_of_the_other_optimizer_is_refused() -> None:
    states = {}
    for optimizer in ("adamw", "muon"):
        config = run(optimizer=optimizer)
        states[optimizer] = make_optimizer(network_of(config), config.training)
    with pytest.raises(KeyError):
        states["muon"].load_state_dict(states["adamw"].state_dict())
    with pytest.raises(KeyError):
        states["adamw"].load_state_dict(states["muon"].state_dict())
