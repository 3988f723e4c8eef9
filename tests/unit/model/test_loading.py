"""Modules that a user has named: found in the current folder, and in the way of no other module."""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import hpo_model.config
import hpo_model.network.loading
import hpo_model.network.transformer
from hpo_model.config import build_run
from hpo_model.errors import NetworkError
from hpo_model.network.custom import build_network, load_class, source_digest
from hpo_model.network.transformer import ForwardOutput, Transformer

# A network as nanoGPT users write one: a file of their own, a class GPT
GPT = """
from torch import nn

class GPT(nn.Module):
    place = "{place}"

    def __init__(self, architecture, vocabulary):
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, architecture.width)
        self.output = nn.Linear(architecture.width, vocabulary, bias=False)

    def set_regularisation(self, *, dropout, noise):
        pass

    def forward(self, tokens):
        return self.embedding(tokens)
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty current folder; what was imported from below it is forgotten afterwards."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "meta_path", list(sys.meta_path))
    monkeypatch.setattr(hpo_model.network.loading, "_entered", None)
    before = dict(sys.modules)
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    yield folder
    for name in set(sys.modules) - set(before):
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")) or name.partition(".")[0] == "model":
            del sys.modules[name]


def write(file: Path, text: str = "", place: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text or GPT.format(place=place or file.name), encoding="utf-8")
    importlib.invalidate_caches()


# Names of this program before it was hpo_model, of the standard library (imported already or not), of what is installed
@pytest.mark.parametrize(
    "name", ["model", "reports", "studies", "random", "queue", "sndhdr", "optuna", "hpo", "hpo_model", "torch", "tests"]
)
def test_a_file_of_any_name_is_a_network_and_replaces_no_module(name: str, here: Path) -> None:
    write(here / f"{name}.py")
    before = {each: sys.modules[each] for each in sys.modules if each.partition(".")[0] == name}
    found = load_class(f"{name}:GPT")
    assert found.place == f"{name}.py"
    assert load_class(f"{name}:GPT") is found
    architecture = build_run({"network": f"{name}:GPT", "iit": False}).architecture
    assert isinstance(build_network(architecture, 50), hpo_model.network.custom.ControlArmAdapter)
    for each, module in before.items():
        assert sys.modules[each] is module
    if name not in ("model", "reports", "studies", "sndhdr", "queue"):
        assert name in before
    assert importlib.import_module("queue").SimpleQueue  # the standard library's


def test_the_digest_is_that_of_the_named_file(here: Path) -> None:
    write(here / "random.py", "raise SystemExit\n")
    assert source_digest("random:GPT") == hashlib.sha256(b"raise SystemExit\n").hexdigest()[:16]


def test_what_is_not_in_the_folder_is_found_on_the_path(here: Path, tmp_path: Path) -> None:
    sys.path.insert(0, str(tmp_path / "library"))
    write(tmp_path / "library" / "far_network.py")
    assert load_class("far_network:GPT").place == "far_network.py"
    write(here / "far_network.py", place="here")
    assert load_class("far_network:GPT").place == "here"


@pytest.mark.parametrize("package", ["nets", "json", "email"])
@pytest.mark.parametrize("regular", [True, False])
def test_a_module_of_a_package_is_found_with_its_siblings(package: str, regular: bool, here: Path) -> None:
    if regular:
        write(here / package / "__init__.py", "WIDTH = 1\n")
    write(here / package / "layers.py", "DEPTH = 2\n")
    write(here / package / "gpt.py", "from .layers import DEPTH\n" + GPT.format(place="package"))
    found = load_class(f"{package}.gpt:GPT")
    assert found.place == "package"
    assert sys.modules[found.__module__].DEPTH == 2
    if package != "nets":
        assert importlib.import_module(package).__file__ != str(here / package / "__init__.py")


def test_a_package_itself_may_hold_the_class(here: Path) -> None:
    write(here / "model" / "__init__.py", "from .gpt import GPT\n")
    write(here / "model" / "gpt.py")
    assert load_class("model:GPT").place == "gpt.py"


def test_files_beside_the_module_are_importable_and_hide_nothing(here: Path) -> None:
    write(here / "mylayers.py", "X = 7\n")
    write(here / "json.py", "raise SystemExit\n")
    write(here / "random.py", "import json\nfrom mylayers import X\n" + GPT.format(place="random"))
    found = load_class("random:GPT")
    assert sys.modules[found.__module__].X == 7
    assert sys.path[-1] == str(here)


FORMER = """
from model.config import Architecture
from model.transformer import States, Transformer

class Mine(Transformer):
    def forward(self, tokens_BT, past=None) -> States:
        return super().forward(tokens_BT, past)
"""


@pytest.mark.parametrize("weights", [True, False])
def test_former_names_are_found_where_the_user_has_no_model(here: Path, weights: bool) -> None:
    if weights:  # a folder of this name without code
        write(here / "model" / "weights.txt", "none\n")
    write(here / "older.py", FORMER)
    found = load_class("older:Mine")
    assert issubclass(found, Transformer)
    module = sys.modules[found.__module__]
    assert module.Architecture is hpo_model.config.Architecture
    assert module.States is ForwardOutput
    assert hpo_model.config.__name__ == hpo_model.config.__spec__.name == "hpo_model.config"


@pytest.mark.parametrize("file", ["model.py", "model/__init__.py"])
def test_former_names_are_not_found_where_the_user_has_a_model(here: Path, file: str) -> None:
    write(here / file, "")
    write(here / "older.py", FORMER)
    with pytest.raises(NetworkError, match=r"ModuleNotFoundError: No module named 'model\.config'"):
        load_class("older:Mine")


def test_a_model_of_the_user_is_its_own_beside_a_network_that_imports_it(here: Path) -> None:
    write(here / "model.py")
    write(here / "mine.py", "from model import GPT\nclass Mine(GPT):\n    pass\n")
    assert load_class("mine:Mine").place == "model.py"


def test_networks_of_two_folders_are_told_apart_with_all_beside_them(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = "from mylayers import X\n" + GPT + "    x = X\n"
    found = []
    for folder, x in ((here, 1), (tmp_path / "there", 2)):
        write(folder / "mylayers.py", f"X = {x}\n")
        write(folder / "mine.py", network.format(place=folder.name))
        monkeypatch.chdir(folder)
        found.append(load_class("mine:GPT"))
    assert [(each.place, each.x) for each in found] == [("here", 1), ("there", 2)]
    assert str(here) not in sys.path


def test_a_former_name_of_one_folder_does_not_hide_the_model_of_another(
    here: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(here / "older.py", FORMER)
    load_class("older:Mine")
    there = tmp_path / "there"
    write(there / "model.py")
    write(there / "mine.py", "from model import GPT\nclass Mine(GPT):\n    pass\n")
    monkeypatch.chdir(there)
    assert load_class("mine:Mine").place == "model.py"


def test_a_module_that_fails_leaves_nothing_behind(here: Path) -> None:
    write(here / "queue.py", "raise ValueError('no')\n")
    for _ in range(2):
        with pytest.raises(NetworkError, match="importing queue failed: ValueError: no"):
            load_class("queue:GPT")
    assert not [name for name in sys.modules if name.endswith("_queue") and name.startswith("hpo_network")]
