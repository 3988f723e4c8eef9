"""Networks of a user's own: how they are named, checked, trained and resumed."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from hpo_model.config import RunConfig, build_run
from hpo_model.data.tokens import TokenizedCorpus
from hpo_model.errors import CheckpointError, ConfigError, NetworkError
from hpo_model.generation.trained import load_trained
from hpo_model.network.custom import ControlArmAdapter, build_network, has_phi, load_class, source_digest
from hpo_model.network.transformer import Transformer
from hpo_model.training.loop import Decision, train
from tests.support.paths import SUPPORT

TINY: dict[str, Any] = {
    "width": 32, "layers": 1, "heads": 2, "sequence_length": 32, "batch_size": 4, "memory_slots": 8,
    "budget_tokens": 2_000, "evaluations": 2, "evaluation_tokens": 512, "iit": False,
}  # fmt: skip


@pytest.fixture(autouse=True)
def own_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(SUPPORT))


def run_of(name: str, **values: Any) -> RunConfig:
    return build_run({**TINY, "network": f"networks:{name}", **values})


def test_a_module_with_three_members_is_a_control_arm() -> None:
    network = build_network(run_of("Recurrent").architecture, 50)
    assert isinstance(network, ControlArmAdapter)
    assert network.memory is None
    states = network(torch.zeros((2, 7), dtype=torch.int64))
    assert states.hidden_BTD.shape == (2, 7, 32)
    assert network.logits(states.hidden_BTD).shape == (2, 7, 50)


def test_a_kind_of_transformer_keeps_phi_and_memory() -> None:
    network = build_network(run_of("WithPhi", iit=True).architecture, 50)
    assert isinstance(network, Transformer)
    assert network.memory is not None
    assert has_phi("networks:WithPhi")
    assert not has_phi("networks:Recurrent")


def test_without_a_name_it_is_the_transformer() -> None:
    assert type(build_network(build_run({}).architecture, 50)) is Transformer


@pytest.mark.parametrize("name", ["gru", "gru.py", "a/b:C", "a:b:C", ":C", "a:", "a..b:C", "a b:C", "1a:C", "a:C()"])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match='network must be "module:Class"'):
        build_run({"network": name})


BAD = {
    "networks:Nobody": "networks has no class of this name",
    "networks:function": "function is no subclass of torch.nn.Module",
    "networks:Architecture": "Architecture is no subclass of torch.nn.Module",
    "networks:NoOutput": "needs `output`, an nn.Linear to the 50 tokens without a bias",
    "networks:Biased": "needs `output`, an nn.Linear to the 50 tokens without a bias",
    "networks:NoRegularisation": r"needs a method `set_regularisation\(\*, dropout, noise\)`",
    "networks:Logits": r"must return states of shape \(1, 32, 32\) for `output`, got \(1, 32, 50\)",
    "networks:Broken": "cannot be used for 32 tokens: RuntimeError: on purpose",
    "networks:Unbuildable": "cannot be built for a vocabulary of 50: TypeError: wants something else",
    "no_such_module:X": "there is no module no_such_module in .* or on PYTHONPATH",
    "no_such_package.module:X": "importing a package of no_such_package.module failed: ModuleNotFoundError",
    "sys:X": "there is no module sys in",
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_be_used_is_one_line(name: str) -> None:
    with pytest.raises(NetworkError, match=BAD[name]) as caught:
        build_network(build_run({**TINY, "network": name}).architecture, 50)
    assert "\n" not in str(caught.value)


def test_a_network_without_phi_is_not_trained_with_it() -> None:
    with pytest.raises(ConfigError, match=r"networks:Recurrent has no Φ: put iit = false under \[run\]"):
        build_network(run_of("Recurrent", iit=True).architecture, 50)


def test_a_module_that_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "failing_network.py").write_text("raise ValueError('no')\n", encoding="utf-8")
    with pytest.raises(NetworkError, match="importing failing_network failed: ValueError: no"):
        load_class("failing_network:X")


def test_a_digest_imports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "unread_network.py").write_text("raise SystemExit\n", encoding="utf-8")
    digest = source_digest("unread_network:X")  # of the current folder
    assert len(digest) == 16
    assert "unread_network" not in sys.modules
    (tmp_path / "unread_network.py").write_text("raise SystemExit  # changed\n", encoding="utf-8")
    assert source_digest("unread_network:X") != digest


# ---------------------------------------------------------------------------------------------- training


def test_it_trains_and_what_it_does_not_have_is_missing(small_corpus: TokenizedCorpus) -> None:
    result = train(run_of("Recurrent"), small_corpus)
    last = result.history[-1]
    assert result.outcome == "complete"
    assert last.val_loss < math.log(300)
    assert math.isnan(last.phi)
    assert math.isnan(last.attention_diversity)
    assert 0 <= last.temporal_coherence <= 1
    assert (last.train_phi, last.threshold, last.memory_used) == (None, None, None)


def test_a_kind_of_transformer_trains_with_phi(small_corpus: TokenizedCorpus) -> None:
    last = train(run_of("WithPhi", iit=True), small_corpus).history[-1]
    assert 0 < last.phi < 1
    assert last.memory_used == 8


def test_a_run_goes_on_with_the_same_code_and_no_other(
    small_corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = tmp_path / "resumed_network.py"
    source.write_text("from networks import Recurrent\nclass Mine(Recurrent):\n    pass\n", encoding="utf-8")
    config = build_run({**TINY, "network": "resumed_network:Mine"})
    path = tmp_path / "checkpoint.pt"
    train(config, small_corpus, save_to=path, on_evaluation=lambda evaluation: Decision.INTERRUPT)
    whole = train(config, small_corpus).history[-1]
    continued = train(config, small_corpus, resume_from=path).history[-1]
    assert continued.val_loss == whole.val_loss
    source.write_text(source.read_text() + "\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="written by a run with another network"):
        train(config, small_corpus, resume_from=path)


def test_a_checkpoint_never_makes_anybody_import(small_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    train(run_of("Recurrent"), small_corpus, save_to=path)
    del sys.modules["networks"]
    with pytest.raises(CheckpointError, match="code of a user's own; `--network networks:Recurrent` runs"):
        load_trained(path)
    assert "networks" not in sys.modules
