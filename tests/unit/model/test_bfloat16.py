"""Matrix products in bfloat16, as on a GPU, on the CPU: what rounding does to a run's result.

Each preset's layers, heads, dropout, learning rate and warm-up, at a quarter of its width, over 300 updates. The bound:
final losses of 21 such pairs of runs were 0.0003 nats apart at most; seeds alone were 0.006 to 0.034 apart.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import hpo_model.hardware
import hpo_model.training.optimizer
from hpo_model.config import PRESETS, RunConfig, Scalar, build_run
from hpo_model.hardware import mixed_precision
from hpo_model.network.transformer import Transformer
from hpo_model.training.history import Evaluation
from hpo_model.training.loop import train
from hpo_model.training.optimizer import orthogonal

if TYPE_CHECKING:
    from hpo_model.data.tokens import TokenizedCorpus

UPDATES = 300
BOUND = 0.002  # nats
SHORT: dict[str, Scalar] = {
    "sequence_length": 64, "batch_size": 8, "budget_tokens": UPDATES * 8 * 64, "evaluations": 3,
    "evaluation_tokens": 2048,
}  # fmt: skip
KINDS: dict[str, dict[str, Scalar]] = {
    "as it is": {},
    "control arm": {"iit": False},
    "Muon, earlier positions, bigrams": {"optimizer": "muon", "attention_taps": 3, "bigram_buckets": 256},
    "convolution": {"blocks": "convolution+attention"},
}
CPU = torch.device("cpu")


def narrow(preset: str, **values: Scalar) -> RunConfig:
    """A preset at a quarter of its width."""
    width = int(PRESETS[preset]["width"]) // 4
    return build_run({"preset": preset, **SHORT, "width": width, **values})


@pytest.fixture
def mixed(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """bfloat16 wherever the program has it on a GPU, until it is undone."""
    monkeypatch.setattr(hpo_model.hardware, "is_mixed", lambda device_type: True)
    monkeypatch.setattr(
        hpo_model.training.optimizer, "orthogonal", lambda each: orthogonal(each.bfloat16()).to(each.dtype)
    )
    return monkeypatch


def last(config: RunConfig, corpus: TokenizedCorpus) -> Evaluation:
    return train(config, corpus).history[-1]


def assert_near(config: RunConfig, corpus: TokenizedCorpus, mixed: pytest.MonkeyPatch) -> None:
    rounded = last(config, corpus)
    mixed.undo()
    exact = last(config, corpus)
    assert exact.step == UPDATES
    assert rounded.val_loss != exact.val_loss
    assert rounded.val_loss == pytest.approx(exact.val_loss, abs=BOUND)
    assert rounded.phi == pytest.approx(exact.phi, abs=BOUND)
    assert rounded.memory_used == exact.memory_used
    assert exact.val_loss < 3.5, "it has learned something that rounding could have spoilt"


def test_a_run_in_bfloat16_ends_where_one_in_float32_does(
    mixed: pytest.MonkeyPatch, small_corpus: TokenizedCorpus
) -> None:
    values = KINDS["Muon, earlier positions, bigrams"]
    assert_near(narrow("nano", **values), small_corpus, mixed)


@pytest.mark.nightly
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("preset", PRESETS)
def test_so_does_one_of_every_preset_and_kind(
    preset: str, kind: str, mixed: pytest.MonkeyPatch, small_corpus: TokenizedCorpus
) -> None:
    assert_near(narrow(preset, **KINDS[kind]), small_corpus, mixed)


@pytest.mark.usefixtures("mixed")
def test_what_is_rounded_and_what_is_not() -> None:
    network = Transformer(narrow("nano").architecture, 300)
    read: list[torch.dtype] = []
    network.blocks[-1].contract.register_forward_hook(lambda module, inputs, given: read.append(given.dtype))
    with mixed_precision(CPU):
        states = network(torch.zeros((1, 64), dtype=torch.int64))
    assert read == [torch.bfloat16]
    assert {part.dtype for part in states.attention} == {torch.bfloat16}
    assert states.stream_BTD.dtype == states.hidden_BTD.dtype == torch.float32


@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 32, 128), (2, 128, 32)])
def test_directions_of_muon_stay_near_orthogonal_in_bfloat16(shape: tuple[int, ...]) -> None:
    matrices_NRC = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact, rounded = (orthogonal(each).float() for each in (matrices_NRC, matrices_NRC.bfloat16()))
    for directions in (exact, rounded):
        assert torch.linalg.svdvals(directions).max() < 1.3
    cosine = torch.nn.functional.cosine_similarity(exact.flatten(1), rounded.flatten(1))
    assert cosine.min() > 0.99
