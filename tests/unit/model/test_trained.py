"""A checkpoint is enough to generate and to evaluate; what is not one is refused in one line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hpo_model.config import RunConfig, TokenizerChoice, build_run
from hpo_model.data.tokenizer import train_tokenizer
from hpo_model.data.tokens import TokenizedCorpus
from hpo_model.errors import CheckpointError
from hpo_model.generation.trained import load_trained, untrained
from hpo_model.network.transformer import Transformer
from hpo_model.training.checkpoint import VERSION
from hpo_model.training.evaluation import score
from hpo_model.training.loop import train

TINY = {"width": 32, "layers": 2, "heads": 2, "sequence_length": 32, "batch_size": 8, "memory_slots": 8}


def tiny(**values: Any) -> RunConfig:
    budget = {"budget_tokens": 5_000, "evaluations": 2, "evaluation_tokens": 512}
    return build_run({**TINY, **budget, **values})


@pytest.fixture(scope="module")
def written(small_corpus: TokenizedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "checkpoint.pt"
    train(tiny(), small_corpus, save_to=path)
    return path


def test_a_checkpoint_is_all_that_is_needed(written: Path, small_corpus: TokenizedCorpus) -> None:
    trained = load_trained(written)
    assert trained.config == tiny()
    assert trained.tokenizer.digest == small_corpus.tokenizer.digest
    assert (trained.corpus_name, trained.corpus_source) == ("small", "small")
    assert trained.corpus_digest == small_corpus.corpus_digest
    assert not trained.network.training
    assert trained.tokens == trained.history[-1].tokens == tiny().steps * tiny().tokens_per_step
    again = score(trained.network, small_corpus.span("valid"), torch.device("cpu"))
    assert again.loss == pytest.approx(trained.history[-1].val_loss, abs=1e-6)


def test_the_untrained_network_is_the_one_that_the_run_began_with(written: Path) -> None:
    trained = load_trained(written)
    torch.manual_seed(tiny().training.seed)
    first = Transformer(tiny().architecture, trained.tokenizer.vocabulary)
    before = torch.get_rng_state()
    for name, tensor in untrained(trained).network.state_dict().items():
        assert torch.equal(tensor, first.state_dict()[name]), name
    assert torch.equal(before, torch.get_rng_state())
    assert untrained(trained).tokens == 0


@pytest.mark.parametrize("values", [{"iit": False}, {"blocks": "convolution+attention"}, {"tie_embeddings": False}])
def test_other_arms_and_hybrids(values: dict[str, Any], small_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    train(tiny(**values), small_corpus, save_to=path)
    assert load_trained(path).config == tiny(**values)


def edited(written: Path, target: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    content = torch.load(written, weights_only=True)
    change(content)
    torch.save(content, target)
    return target


def other_tokenizer(content: dict[str, Any]) -> None:
    other = train_tokenizer(TokenizerChoice(vocabulary=300), ["some other text, of which there is not much\n"])
    content["tokenizer"]["definition"] = other.definition


def other_vocabulary(content: dict[str, Any]) -> None:
    content["network"]["token_embedding.weight"] = torch.zeros(7, 32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content.update(version=VERSION - 1), f"version {VERSION - 1}, this program reads {VERSION}"),
        (other_tokenizer, "trained with another tokenizer"),
        (other_vocabulary, "holds no trained network .RuntimeError: .*token_embedding.weight"),
        (lambda content: content.pop("tokenizer"), "holds no trained network .KeyError: 'tokenizer'"),
        (lambda content: content["tokenizer"].update(definition="{"), "holds no trained network"),
        (lambda content: content["config"].update(width="wide"), "holds no trained network .ConfigError: width must"),
    ],
)
def test_what_is_no_checkpoint_of_a_run_is_refused(
    written: Path, tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message) as refused:
        load_trained(edited(written, tmp_path / "edited.pt", change))
    assert "\n" not in str(refused.value)


def test_a_missing_or_truncated_one_is_refused(written: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such checkpoint"):
        load_trained(tmp_path / "none.pt")
    half = tmp_path / "half.pt"
    half.write_bytes(written.read_bytes()[: written.stat().st_size // 2])
    with pytest.raises(CheckpointError, match=r"half.pt: not a readable checkpoint \(RuntimeError\); copy it again"):
        load_trained(half)


def test_a_checkpoint_with_code_is_refused_and_says_so(written: Path, tmp_path: Path) -> None:
    def plant(content: dict[str, Any]) -> None:
        content["payload"] = print

    with pytest.raises(CheckpointError, match="holds code, which is never run"):
        load_trained(edited(written, tmp_path / "code.pt", plant))
