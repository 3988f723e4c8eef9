"""Fixtures that every suite may use: text under a tokenizer, and the real WikiText-2 where there is one.

    make test                               all tiers but nightly, side by side
    .venv/bin/python -m pytest tests/unit   one of them

Heavy imports stay inside the fixtures, so that suites without a network start at once.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

from tests.support.log import logged
from tests.support.paths import REPOSITORY

if TYPE_CHECKING:
    from hpo_model.data.tokens import TokenizedCorpus

# Before torch is loaded: the machine is shared, and threads that wait for each other on it take minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# A shell without job control starts background jobs deaf to Ctrl-C, which the programs that tests start would inherit.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A hundred processes would each compile our sources anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

pytest_plugins = ["tests.support.budgets", "tests.support.database_fixtures", "tests.support.schedule"]

WIKITEXT2_FILES = ("wiki.train.tokens", "wiki.valid.tokens", "wiki.test.tokens")

# Two shared cores make wall-clock deadlines flaky; a fixed seed makes a failure in CI the failure at the desk.
settings.register_profile("repository", deadline=None, derandomize=True, database=None)
settings.load_profile("repository")


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What our packages log from now on, as a user sees it."""
    with logged() as lines:
        yield lines


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of the whole session, which processes that run tests side by side share."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def cache(shared_folder: Path) -> Path:
    """A cache of corpora and token files for the whole session; holds python-docs once that was asked for."""
    (shared_folder / "cache").mkdir(exist_ok=True)
    return shared_folder / "cache"


@pytest.fixture(scope="session")
def python_docs(cache: Path) -> TokenizedCorpus:
    """python-docs under a BPE of 512 tokens: about a million training tokens."""
    from hpo_model.config import TokenizerChoice
    from hpo_model.data.corpus import load_corpus
    from hpo_model.data.tokens import tokenize_corpus

    return tokenize_corpus(load_corpus("python-docs", cache), TokenizerChoice(vocabulary=512), cache)


@pytest.fixture(scope="session")
def small_corpus(cache: Path) -> TokenizedCorpus:
    """The first pages of python-docs under a BPE of 300 tokens: some 30,000 training and 3,000 validation tokens."""
    from hpo_model.config import TokenizerChoice
    from hpo_model.data.corpus import Corpus, load_corpus
    from hpo_model.data.tokens import tokenize_corpus

    texts = load_corpus("python-docs", cache).texts
    pages = {"train": texts["train"][:60_000], "valid": texts["valid"][:6_000], "test": texts["test"][:6_000]}
    corpus = Corpus(name="small", source="small", origin="first pages of python-docs", texts=pages)
    return tokenize_corpus(corpus, TokenizerChoice(vocabulary=300), cache)


@pytest.fixture(scope="session")
def wikitext2() -> Path:
    """The folder of WikiText-2's token files: HPO_TEST_WIKITEXT2, or shared/data beside the repository."""
    named = os.environ.get("HPO_TEST_WIKITEXT2")
    folder = Path(named) if named else REPOSITORY.parent / "shared" / "data" / "wikitext-2"
    if not all((folder / name).is_file() for name in WIKITEXT2_FILES):
        pytest.skip(f"no WikiText-2 in {folder}; set HPO_TEST_WIKITEXT2 to its folder")
    return folder
