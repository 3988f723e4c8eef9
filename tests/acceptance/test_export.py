"""A folder that needs nothing of this program: loaded in an isolated Python that refuses to import it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from markdown_it import MarkdownIt
from typer.testing import CliRunner

import hpo.inference.export
from hpo.cli import app
from hpo.errors import HpoError, UsageError
from hpo.inference.card import LICENCES
from hpo.inference.export import export
from hpo_model.config import TokenizerChoice, build_run
from hpo_model.data.corpus import NAMES, Corpus
from hpo_model.data.tokens import TokenizedCorpus, tokenize_corpus
from hpo_model.errors import CheckpointError, ModelError
from hpo_model.generation.exporting import Program, export_program, load_weights
from hpo_model.generation.trained import load_trained
from hpo_model.network.custom import build_network
from hpo_model.network.transformer import Transformer
from hpo_model.training.checkpoint import load_checkpoint, save_checkpoint
from hpo_model.training.loop import train

TINY: dict[str, Any] = {
    "width": 32, "layers": 2, "heads": 2, "sequence_length": 32, "batch_size": 8, "memory_slots": 8,
    "budget_tokens": 4_000, "evaluations": 2, "evaluation_tokens": 512,
}  # fmt: skip
FILES = {"README.md", "config.json", "model.pt2", "model.safetensors", "tokenizer.json"}

# Runs with `python -I`: neither the current folder nor PYTHONPATH is searched; what is asked for beside torch and
# tokenizers raises, so that an installed copy of this program is no help either.
ISOLATED = """
import sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("hpo", "hpo_model", "hpo_reports", "hpo_studies", "safetensors", "optuna"):
            raise ImportError(name + " is not in a bare environment")
sys.meta_path.insert(0, Blocked())
"""


def write_checkpoint(corpus: TokenizedCorpus, path: Path, **values: Any) -> Path:
    train(build_run({**TINY, **values}), corpus, save_to=path)
    return path


@pytest.fixture(scope="module")
def words(small_corpus: TokenizedCorpus, cache: Path) -> TokenizedCorpus:
    texts = dict.fromkeys(("train", "valid"), "the cat sat on a mat\nand the dog <b>slept</b>\n" * 60)
    corpus = Corpus(name="cats & *dogs*", source="/home/me/cats", origin="me", texts=texts)
    return tokenize_corpus(corpus, TokenizerChoice(kind="word"), cache)


@pytest.fixture(scope="module", params=["bpe", pytest.param("word", marks=pytest.mark.nightly)])
def checkpoint(
    request: pytest.FixtureRequest,
    small_corpus: TokenizedCorpus,
    words: TokenizedCorpus,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    corpus = small_corpus if request.param == "bpe" else words
    near = {"optimizer": "muon", "attention_taps": 2, "bigram_buckets": 40}
    return write_checkpoint(corpus, tmp_path_factory.mktemp("export") / "checkpoint-1.pt", **near)


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("exported") / "winner"
    export("winner", checkpoint, target, None)
    return target


@pytest.fixture
def quick_exporter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stands for the exporter of programs, which takes seconds, where the program is not what is looked at."""

    def write(network: object, path: Path) -> Program:
        path.write_bytes(b"a program")
        return Program(freedom="any batch, any length", difference=0.0)

    monkeypatch.setattr(hpo.inference.export, "export_program", write)


def alone(folder: Path, code: str) -> str:
    """What a program prints that runs in the folder with an isolated Python."""
    done = subprocess.run(
        [sys.executable, "-I", "-c", ISOLATED + code], cwd=folder, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def card(folder: Path) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------- what is written


def test_the_program_alone_gives_equal_logits(folder: Path, checkpoint: Path, tmp_path: Path) -> None:
    network = load_trained(checkpoint).network
    assert network.memory is not None
    assert network.memory.used() > 0  # it is read, and frozen
    shapes = [(1, 1), (1, 32), (3, 7)]
    tokens = [torch.randint(len(network.output.weight), shape) for shape in shapes]
    torch.save(tokens, tmp_path / "tokens.pt")
    alone(
        folder,
        f"""
import torch
torch.set_num_threads({torch.get_num_threads()})  # bits depend on it
network = torch.export.load("model.pt2").module()
with torch.no_grad():
    torch.save([network(each) for each in torch.load({str(tmp_path / "tokens.pt")!r})], {str(tmp_path / "out.pt")!r})
""",
    )
    with torch.no_grad():
        for each, found in zip(tokens, torch.load(tmp_path / "out.pt"), strict=True):
            assert torch.equal(found, network.logits(network(each).hidden_BTD))


def test_the_example_of_the_card_runs_alone(folder: Path) -> None:
    examples = re.findall(r"```python\n(.*?)```", card(folder), flags=re.DOTALL)
    text = alone(folder, examples[0])
    assert len(text.split()) > 3


def test_the_weights_load_back_equal_as_the_card_says(folder: Path, checkpoint: Path) -> None:
    code = re.findall(r"```python\n(.*?)```", card(folder), flags=re.DOTALL)[1]
    found: dict[str, Any] = {}
    exec(code.replace('Path("', f'Path("{folder}/'), found)
    expected = load_trained(checkpoint).network.state_dict()
    assert found["network"].state_dict().keys() == expected.keys()
    for name, tensor in found["network"].state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_the_card_tells_what_the_run_measured(folder: Path, checkpoint: Path) -> None:
    text, trained = card(folder), load_trained(checkpoint)
    last = trained.history[-1]
    for figure in (f"{last.val_loss:.4f}", f"{last.val_ppl:,.2f}", f"{last.phi:.4f}", f"{last.tokens:,} tokens"):
        assert figure in text
    for digest in (trained.corpus_digest, trained.tokenizer.digest, trained.config.digest()):
        assert f"`{digest}`" in text
    assert hashlib.sha256(checkpoint.read_bytes()).hexdigest() in text
    assert "Seed 1 decides" in text
    for name in FILES - {"README.md"}:
        assert f"| `{name}` " in text
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() in text
    assert json.loads((folder / "config.json").read_text())["run"] == trained.config.parameters()
    assert {path.name for path in folder.iterdir()} == FILES
    assert [path.name for path in folder.parent.iterdir()] == ["winner"]


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_all_files_have_the_user_s_usual_permissions(folder: Path) -> None:
    modes = {stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}
    assert len(modes) == 1


def test_a_user_s_names_are_text_in_the_card(words: TokenizedCorpus, tmp_path: Path) -> None:
    path = write_checkpoint(words, tmp_path / "checkpoint.pt", iit=False)
    export("<script>alert(1)</script> [x](y) | `z`", path, tmp_path / "out", None)
    html = MarkdownIt("commonmark").render(card(tmp_path / "out"))
    assert "<script>" not in html
    assert "<em>dogs" not in html
    assert "cats &amp; *dogs*" in html
    assert "<h1>&lt;script&gt;alert(1)&lt;/script&gt; [x](y) | `z`</h1>" in html
    assert "Licence of the text: not known to this program" in card(tmp_path / "out")
    assert not re.search(r"bits per byte +\| +–", card(tmp_path / "out"))


@pytest.mark.usefixtures("quick_exporter")
def test_the_licence_is_that_of_the_named_text(small_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    assert set(LICENCES) == set(NAMES) - {"auto"}
    content = load_checkpoint(write_checkpoint(small_corpus, tmp_path / "checkpoint.pt"))
    content["corpus"] = {"name": "wikitext-2", "source": "wikitext-2"}
    save_checkpoint(tmp_path / "named.pt", {name: value for name, value in content.items() if name != "version"})
    export("x", tmp_path / "named.pt", tmp_path / "out", None)
    assert "Licence of the text: CC BY-SA 3.0" in card(tmp_path / "out")


def test_untied_weights_come_back_too(tmp_path: Path) -> None:
    import safetensors.torch

    architecture = build_run({**TINY, "tie_embeddings": False}).architecture
    network, other = Transformer(architecture, 50), Transformer(architecture, 50)
    safetensors.torch.save_model(network, str(tmp_path / "x.safetensors"))
    with torch.no_grad():
        other.output.weight.fill_(1.0)
    load_weights(other, tmp_path / "x.safetensors")
    assert torch.equal(other.output.weight, network.output.weight)


# ---------------------------------------------------------------------------------------------- the user's own

OWN = """
import torch
from torch import nn
class Recurrent(nn.Module):
    def __init__(self, architecture, vocabulary):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, architecture.width)
        self.layer = nn.GRU(architecture.width, architecture.width, batch_first=True)
        self.output = nn.Linear(architecture.width, vocabulary, bias=False)
    def set_regularisation(self, *, dropout, noise):
        pass
    def forward(self, tokens):
        return self.layer(self.embedding(tokens))[0]
"""


def test_a_network_of_the_user_s_own_needs_its_name_and_its_code_only_here(
    small_corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = tmp_path / "own_recurrent.py"
    source.write_text(OWN, encoding="utf-8")
    own = "own_recurrent:Recurrent"
    path = write_checkpoint(small_corpus, tmp_path / "checkpoint.pt", iit=False, network=own)
    for named, but in ((None, ""), ("other:Name", ", not other:Name")):
        rule = rf"code of a user's own; `--network own_recurrent:Recurrent` runs it{but}$"
        with pytest.raises(CheckpointError, match=rule):
            export("x", path, tmp_path / "out", named)
    export("x", path, tmp_path / "out", own)
    text = alone(tmp_path / "out", re.findall(r"```python\n(.*?)```", card(tmp_path / "out"), flags=re.DOTALL)[0])
    assert text.strip()
    assert "any batch, whole sequences" in card(tmp_path / "out")  # what loops over positions is unrolled
    source.write_text(OWN + "# changed\n", encoding="utf-8")
    with pytest.raises(CheckpointError, match="other code of own_recurrent:Recurrent"):
        export("x", path, tmp_path / "out2", own)
    assert not (tmp_path / "out2").exists()


def test_a_checkpoint_of_the_transformer_is_not_exported_by_other_code(
    small_corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    path = write_checkpoint(small_corpus, tmp_path / "checkpoint.pt")
    with pytest.raises(UsageError, match=r"--network os:path: is not the network of .*checkpoint\.pt; leave it out"):
        export("x", path, tmp_path / "out", "os:path")


class Branching(Transformer):
    """Looks at the numbers to decide what to do: nothing that a program can hold."""

    def logits(self, hidden_BTD: torch.Tensor) -> torch.Tensor:
        return super().logits(hidden_BTD) if hidden_BTD.sum() > 0 else super().logits(-hidden_BTD)


def test_a_network_that_cannot_be_a_program_is_told(tmp_path: Path) -> None:
    network = Branching(build_run(TINY).architecture, 50).eval()
    with pytest.raises(ModelError, match="the network cannot be exported as a program: "):
        export_program(network, tmp_path / "model.pt2")


# ---------------------------------------------------------------------------------------------- bad input


def refused(checkpoint: Path, target: Path, rule: str) -> None:
    before = sorted(target.parent.iterdir())
    with pytest.raises((HpoError, ModelError), match=rule) as caught:
        export("x", checkpoint, target, None)
    assert "\n" not in str(caught.value)
    assert sorted(target.parent.iterdir()) == before


def test_an_existing_folder_is_left_alone(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("dear")
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("full", "empty", "file", "link"):
        refused(checkpoint, tmp_path / name, "is there already; name a new folder")
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["letter.txt"]


@pytest.mark.usefixtures("quick_exporter")
def test_a_folder_that_appears_meanwhile_is_left_alone(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = hpo.inference.export._write

    def write(*arguments: Any) -> Any:
        (tmp_path / "out").mkdir()
        return real(*arguments)

    monkeypatch.setattr(hpo.inference.export, "_write", write)
    with pytest.raises(UsageError, match="another process made it meanwhile"):
        export("x", checkpoint, tmp_path / "out", None)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert not any((tmp_path / "out").iterdir())


@pytest.mark.usefixtures("quick_exporter")
def test_what_fails_midway_leaves_nothing(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(subject: Any) -> str:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(hpo.inference.export, "model_card", full)
    refused(checkpoint, tmp_path / "out", r"cannot be written \(No space left on device\)")


def test_a_folder_below_a_file_is_told(checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(UsageError, match="cannot be written"):
        export("x", checkpoint, tmp_path / "file" / "out", None)


def test_checkpoints_that_are_none_are_refused(checkpoint: Path, tmp_path: Path) -> None:
    whole = checkpoint.read_bytes()
    (tmp_path / "short.pt").write_bytes(whole[: len(whole) // 2])
    torch.save({"version": 99}, tmp_path / "newer.pt")
    torch.save({"version": 3, "x": Path("code")}, tmp_path / "code.pt")
    refused(tmp_path / "short.pt", tmp_path / "out", "not a readable checkpoint")
    refused(tmp_path / "newer.pt", tmp_path / "out", "checkpoint version 99")
    refused(tmp_path / "code.pt", tmp_path / "out", "it holds code, which is never run")


@pytest.mark.usefixtures("quick_exporter")
def test_the_command_names_what_there_is_not(checkpoint: Path, tmp_path: Path) -> None:
    runner = CliRunner()
    result = runner.invoke(app, ["export", str(tmp_path / "none.pt"), "--to", str(tmp_path / "out")])
    assert "no such file; a checkpoint is a path, STUDY or STUDY:TRIAL" in str(result.exception)
    result = runner.invoke(app, ["export", str(checkpoint), "--to", str(tmp_path / "out")])
    assert result.exit_code == 0
    assert result.stdout.startswith(f"{tmp_path / 'out'}: weights, tokenizer, model card, and a program for any batch")
    title = (tmp_path / "out" / "README.md").read_text(encoding="utf-8").splitlines()[0]
    assert "/" not in title, "no path of this machine"
    network = build_network(load_trained(checkpoint).config.architecture, 300)
    assert network.architecture.sequence_length == 32
