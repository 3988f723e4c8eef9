"""A run's configuration: presets, values by name, refusals, milestones."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hpo_model.config import ADDED_VALUES, PRESETS, build_run, parameter_type, recorded_run
from hpo_model.errors import ConfigError

# Width, layers and heads: DESIGN.md, section 4.
SHAPES = {
    "nano": (128, 2, 4),
    "tiny_iit": (256, 2, 4),
    "micro_iit": (384, 3, 6),
    "small_iit": (384, 3, 6),
    "medium_iit": (448, 4, 8),
    "large_iit": (512, 4, 8),
}


def test_presets_have_the_designed_shapes() -> None:
    built = {name: build_run({"preset": name}).architecture for name in PRESETS}
    assert {name: (shape.width, shape.layers, shape.heads) for name, shape in built.items()} == SHAPES


def test_micro_and_small_differ_in_training_only() -> None:
    micro, small = build_run({"preset": "micro_iit"}), build_run({"preset": "small_iit"})
    assert micro.architecture == small.architecture
    assert micro.training != small.training


def test_named_values_override_the_preset() -> None:
    run = build_run({"preset": "tiny_iit", "width": 64, "lambda_phi": 0.3, "seed": 7})
    assert (run.architecture.width, run.phi.lambda_phi, run.training.seed) == (64, 0.3, 7)
    assert run.architecture.layers == 2


@pytest.mark.parametrize("preset", PRESETS)
def test_a_run_is_built_again_from_its_own_parameters(preset: str) -> None:
    run = build_run({"preset": preset, "blocks": "convolution+attention", "lambda_schedule": "adaptive"})
    assert build_run(run.parameters()) == run


def test_a_whole_number_stands_for_a_float() -> None:
    run = build_run({"lambda_phi": 1})
    assert type(run.phi.lambda_phi) is float
    assert run.digest() == build_run({"lambda_phi": 1.0}).digest()


OTHER_VALUES = {
    "width": 64, "layers": 3, "heads": 2, "sequence_length": 64, "blocks": "attention+convolution",
    "tie_embeddings": False, "iit": False, "phi_probes": 8, "memory_slots": 0, "memory_gate": "static",
    "network": "mine:Network", "attention_taps": 3, "bigram_buckets": 100,
    "lambda_phi": 0.1, "phi_objective": "bounded", "phi_target": 0.9, "lambda_schedule": "linear", "phi_floor": 0.6,
    "budget_tokens": 100_000, "batch_size": 4, "learning_rate": 1e-4, "learning_rate_schedule": "constant",
    "warmup": 0.3, "optimizer": "muon", "weight_decay": 0.0, "dropout": 0.3, "noise": 0.1, "clip_norm": 0.5,
    "evaluations": 5, "evaluation_tokens": 500,
    "seed": 2,
}  # fmt: skip


WITHOUT_ADDED_VALUES = {
    "width": 128, "layers": 2, "heads": 4, "sequence_length": 128, "blocks": "attention", "tie_embeddings": True,
    "iit": True, "phi_probes": 32, "memory_slots": 64, "memory_gate": "dynamic", "network": "",
    "lambda_phi": 0.05, "phi_objective": "v5.2", "phi_target": 0.8, "lambda_schedule": "constant", "phi_floor": 0.7,
    "budget_tokens": 2_000_000, "batch_size": 8, "learning_rate": 4e-3, "learning_rate_schedule": "cosine",
    "warmup": 0.2, "weight_decay": 0.1, "dropout": 0.1, "noise": 0.01, "clip_norm": 1.0,
    "evaluations": 10, "evaluation_tokens": 8192,
    "seed": 1,
}  # fmt: skip


def test_a_run_stored_before_a_value_was_added_is_what_it_was() -> None:
    run = recorded_run(WITHOUT_ADDED_VALUES)
    assert run.parameters() == {**WITHOUT_ADDED_VALUES, **ADDED_VALUES}
    assert run.digest() == "6734045780a2cf5a"  # as it was then: checkpoints and long runs are found by it


def test_the_digest_tells_runs_apart_in_every_value() -> None:
    digests = {build_run({name: value}).digest() for name, value in OTHER_VALUES.items()}
    assert OTHER_VALUES.keys() == build_run({}).parameters().keys()
    assert len(digests | {build_run({}).digest()}) == len(OTHER_VALUES) + 1


def test_the_digest_does_not_depend_on_how_the_run_was_named() -> None:
    assert build_run({"preset": "nano"}).digest() == build_run(build_run({}).parameters()).digest()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"preset": "huge"}, "unknown preset 'huge', one of nano, tiny_iit"),
        ({"lamda_phi": 0.1}, "lamda_phi: not a value of a run; known are .*lambda_phi"),
        ({"learning_rate": "1e-4"}, "learning_rate must be of type float.*got '1e-4'"),
        ({"layers": 2.0}, "layers must be of type int.*got 2.0"),
        ({"iit": 1}, "iit must be of type bool.*got 1"),
        ({"batch_size": True}, "batch_size must be of type int.*got True"),
        ({"blocks": "recurrent"}, "blocks must be one of 'attention'.*got 'recurrent'"),
        ({"width": 130}, "heads must divide width, got 4 and 130"),
        ({"width": 0}, "width must be above 0, got 0"),
        ({"sequence_length": 7}, "sequence_length must be at least 8 tokens, got 7"),
        ({"memory_slots": -1}, "memory_slots must be 0 or more, got -1"),
        ({"blocks": "convolution+attention", "layers": 1}, "has no attention"),
        ({"lambda_phi": -0.1}, "lambda_phi must be 0 or more, got -0.1"),
        ({"phi_target": 1.0}, "phi_target must be between 0 and 1, got 1.0"),
        ({"phi_floor": 0.0}, "phi_floor must be between 0 and 1, got 0.0"),
        ({"dropout": 1.0}, "dropout must be at least 0 and below 1, got 1.0"),
        ({"warmup": 1.0}, "warmup must be at least 0 and below 1, got 1.0"),
        ({"noise": -0.1}, "noise must be 0 or more, got -0.1"),
        ({"weight_decay": -0.1}, "weight_decay must be 0 or more, got -0.1"),
        ({"budget_tokens": 0}, "budget_tokens must be above 0, got 0"),
        ({"evaluations": 0}, "evaluations must be above 0, got 0"),
        ({"budget_tokens": 9 * 8 * 128}, "evaluations must be at most the 9 updates of budget_tokens, got 10"),
        ({"evaluation_tokens": 255}, "evaluation_tokens must be at least two sequences of 128, got 255"),
        ({"seed": -1}, r"seed must be at least 0 and below 2\*\*31, got -1"),
        ({"learning_rate": float("nan")}, "learning_rate must be .*got nan"),
        ({"noise": float("inf")}, "noise must be .*got inf"),
    ],
)
def test_a_value_outside_its_rule_is_refused_by_name(values: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_run(values)


def test_configurations_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        build_run({}).training.seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("blocks", "kinds"),
    [
        ("attention", ("attention", "attention", "attention")),
        ("convolution+attention", ("convolution", "attention", "convolution")),
        ("attention+convolution", ("attention", "convolution", "attention")),
    ],
)
def test_the_block_pattern_repeats_over_the_layers(blocks: str, kinds: tuple[str, ...]) -> None:
    assert build_run({"layers": 3, "blocks": blocks}).architecture.block_kinds == kinds


def test_the_control_arm_has_no_memory() -> None:
    assert build_run({}).architecture.has_memory
    assert not build_run({"iit": False}).architecture.has_memory
    assert not build_run({"memory_slots": 0}).architecture.has_memory


@given(
    budget=st.integers(1, 200_000), batch_size=st.integers(1, 64), evaluations=st.integers(1, 20), length=st.just(64)
)
def test_milestones_rise_to_the_whole_budget(budget: int, batch_size: int, evaluations: int, length: int) -> None:
    updates = -(-budget // (batch_size * length))
    evaluations = min(evaluations, updates)
    run = build_run(
        {"budget_tokens": budget, "batch_size": batch_size, "evaluations": evaluations, "sequence_length": length}
    )
    steps = [run.milestone_step(milestone) for milestone in range(1, evaluations + 1)]
    assert budget <= run.steps * run.tokens_per_step < budget + run.tokens_per_step
    assert steps == sorted(steps)
    assert steps[-1] == run.steps
    for milestone, step in enumerate(steps, start=1):  # the first update at or after the even share
        assert step - 1 < run.steps * milestone / evaluations <= step


def test_milestones_of_batch_sizes_that_divide_the_budget_are_equal_in_tokens() -> None:
    def tokens(batch_size: int) -> list[int]:
        run = build_run({"budget_tokens": 128 * 320, "sequence_length": 128, "batch_size": batch_size})
        return [run.milestone_step(milestone) * run.tokens_per_step for milestone in range(1, 11)]

    assert tokens(4) == tokens(8) == tokens(16) == tokens(32) == [4096 * milestone for milestone in range(1, 11)]


@pytest.mark.parametrize(
    ("name", "expected"),
    [("preset", str), ("width", int), ("iit", bool), ("lambda_phi", float), ("memory_gate", str)],
)
def test_the_type_of_each_value_is_known(name: str, expected: type) -> None:
    assert parameter_type(name) is expected


@pytest.mark.parametrize("module", ["config", "errors", "training.history"])
def test_configurations_and_histories_load_no_heavy_package(module: str) -> None:
    program = (
        f"import sys, hpo_model.{module}; print({{'torch', 'tokenizers', 'datasets', 'numpy'}} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
