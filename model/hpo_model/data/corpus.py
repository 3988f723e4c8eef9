"""Text to learn from: named corpora, folders of the user's own, and two that need no network."""

from __future__ import annotations

import ast
import codecs
import hashlib
import math
import os
import pydoc_data.topics
import re
import shutil
import sys
import sysconfig
import tempfile
import threading
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpo_model.data import markov
from hpo_model.errors import CorpusError

SPLITS = ("train", "valid", "test")
HUB = "https://huggingface.co"
HUB_TIMEOUT_S = 4.0  # `auto` decides within five seconds, name resolution included
WIKITEXT = {
    "wikitext-2": "wikitext-2-v1",
    "wikitext-2-raw": "wikitext-2-raw-v1",
    "wikitext-103": "wikitext-103-v1",
    "wikitext-103-raw": "wikitext-103-raw-v1",
}
NAMES = ("auto", "python-docs", "markov", *WIKITEXT)
MIN_LONG_LINE = 40  # characters
_SPLIT_WORDS = {"train": ("train",), "valid": ("valid", "validation", "val", "dev"), "test": ("test",)}
_TEXT_SUFFIXES = (".txt", ".tokens", ".raw")
_TABLE_SUFFIXES = {".parquet": "parquet", ".jsonl": "json", ".json": "json", ".csv": "csv"}


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Text in splits. Equal digests mean equal text."""

    name: str
    source: str  # what to pass to `load_corpus` to get the same text again: a name or an absolute path
    origin: str  # where the text came from, for people
    texts: dict[str, str] = field(repr=False)  # by split; train and valid always, test where there is one
    # −log p of each line under the process that wrote the text, where that is known
    line_nats: Callable[[list[str]], NDArray[np.float64]] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        for split in ("train", "valid"):
            if not self.texts.get(split, "").strip():
                raise CorpusError(
                    f"{self.source}: the {split} split is empty or missing; a corpus needs train and valid"
                )

    @property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the content of all splits."""
        digest = hashlib.sha256()
        for split in SPLITS:
            digest.update(f"{split}\0{len(self.texts.get(split, ''))}\0".encode())
            digest.update(self.texts.get(split, "").encode())
        return digest.hexdigest()[:16]


def load_corpus(source: str, cache: Path, announce: Callable[[str], None] = lambda line: None) -> Corpus:
    """Load a corpus by name or from a folder.

    Args:
        source: a name of `NAMES`, or a folder with train, valid and optionally test text.
        cache: folder in which fetched and generated text is kept.
        announce: told, in one line, what `auto` chose and why.

    Raises:
        CorpusError: the text is missing, empty or not UTF-8, or cannot be reached.
    """
    if source == "auto":
        return _load_auto(cache, announce)
    if source == "python-docs":
        return _load_cached(
            source, cache / f"python-docs-{sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}"
        )
    if source == "markov":
        return _markov()
    if source in WIKITEXT:
        return _load_cached(source, cache / source)
    return _load_folder(Path(source))


# ---------------------------------------------------------------------------------------------- by name


def _load_auto(cache: Path, announce: Callable[[str], None]) -> Corpus:
    kept = (cache / "wikitext-2").is_dir() or _hub_cache_has_wikitext()
    if kept or _hub_is_reachable():
        try:
            corpus = load_corpus("wikitext-2", cache)
        except CorpusError as error:
            announce(f"corpus auto: python-docs, because WikiText-2 could not be loaded ({error})")
        else:
            announce(f"corpus auto: WikiText-2 ({corpus.origin})")
            return corpus
    else:
        announce(
            "corpus auto: python-docs, because WikiText-2 is neither cached nor reachable; --data PATH takes your own"
        )
    return load_corpus("python-docs", cache)


def _hub_is_reachable() -> bool:
    answered = threading.Event()

    def ask() -> None:
        try:
            hub = os.environ.get("HF_ENDPOINT", HUB)
            with urllib.request.urlopen(urllib.request.Request(hub, method="HEAD"), timeout=HUB_TIMEOUT_S):
                answered.set()
        except (OSError, ValueError):  # the latter for an HF_ENDPOINT that is no URL
            return

    asking = threading.Thread(target=ask, daemon=True)  # a name server may hang far longer than any timeout
    asking.start()
    asking.join(HUB_TIMEOUT_S)
    return answered.is_set()


def _hub_cache_has_wikitext() -> bool:
    home = Path(os.environ.get("HF_HOME") or os.path.expanduser("~/.cache/huggingface"))
    return any(home.glob("hub/datasets--Salesforce--wikitext/snapshots/*")) or any(
        home.glob("datasets/Salesforce___wikitext/wikitext-2-v1")
    )


def _load_cached(name: str, folder: Path) -> Corpus:
    """Read a named corpus from the cache, where it is generated or fetched first."""
    origin = _PYTHON_DOCS_ORIGIN if name == "python-docs" else f"{HUB}/datasets/Salesforce/wikitext, {WIKITEXT[name]}"
    if not folder.is_dir():
        texts = _python_docs() if name == "python-docs" else _fetch_wikitext(name)
        _keep(texts, folder)
    texts = {split: _read(folder / f"{split}.txt") for split in SPLITS}
    return Corpus(name=name, source=name, origin=origin, texts=texts)


def _keep(texts: dict[str, str], folder: Path) -> None:
    """Write all splits beside the target, then move the folder into place."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=folder.name) as unfinished:
            draft = Path(unfinished) / "text"
            draft.mkdir()
            for split, text in texts.items():
                (draft / f"{split}.txt").write_text(text, encoding="utf-8", newline="\n")
            draft.rename(folder)
    except OSError as error:
        if not folder.is_dir():  # else another process was first: its text is the same
            raise CorpusError(f"{folder}: cannot be written ({error.strerror})") from error


def _fetch_wikitext(name: str) -> dict[str, str]:
    offline = "HF_HUB_OFFLINE" not in os.environ and not _hub_is_reachable()
    if offline:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read at import; else the client tries again for 23 s before it gives up
    import datasets

    if offline:
        del os.environ["HF_HUB_OFFLINE"]
    datasets.disable_progress_bars()
    try:
        loaded = datasets.load_dataset("Salesforce/wikitext", WIKITEXT[name])
    except Exception as error:  # the hub's client raises many kinds, none of them ours
        raise CorpusError(
            f"{name} is neither cached nor reachable ({type(error).__name__}); "
            "use --data PATH with the text, or corpus = 'python-docs'"
        ) from error
    names = {"train": "train", "valid": "validation", "test": "test"}
    return {split: _lines(loaded[theirs]["text"]) for split, theirs in names.items()}


def _lines(rows: Iterable[str]) -> str:
    return "".join(row if row.endswith("\n") else row + "\n" for row in rows)


# ---------------------------------------------------------------------------------------------- python-docs

_PYTHON_DOCS_ORIGIN = (
    f"documentation of Python {sys.version.split()[0]}: language topics and standard library docstrings"
)
_HELD_OUT = {7: "valid", 17: "test"}  # every twentieth document, by its place in the order


def _python_docs() -> dict[str, str]:
    documents: dict[str, list[str]] = {split: [] for split in SPLITS}
    for place, document in enumerate(_documents()):
        documents[_HELD_OUT.get(place % 20, "train")].append(document)
    texts: dict[str, str] = {}
    held_out: set[str] = set()
    for split in ("test", "valid", "train"):  # docstrings repeat each other: nothing held out may stand in train
        texts[split] = _without(held_out, "".join(documents[split]))
        held_out |= _long_lines(texts[split])
    return {split: texts[split] for split in SPLITS}


def _without(lines: set[str], text: str) -> str:
    """The text without the paragraphs that hold one of the lines."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(paragraph for paragraph in paragraphs if lines.isdisjoint(_long_lines(paragraph)))


def _long_lines(text: str) -> set[str]:
    """Lines that two documents do not share by chance."""
    return {line.strip() for line in text.split("\n") if len(line.strip()) > MIN_LONG_LINE}


def _documents() -> Iterator[str]:
    for title, text in sorted(pydoc_data.topics.topics.items()):
        yield f"{title}\n{text.strip()}\n\n"
    library = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"test", "tests", "idlelib", "site-packages", "lib2to3", "pydoc_data", "__pycache__"}
    for path in sorted(library.rglob("*.py")):
        if skipped.isdisjoint(path.relative_to(library).parts):
            docstrings = _docstrings(path)
            if docstrings:
                yield f"{path.relative_to(library).with_suffix('').as_posix()}\n" + "\n".join(docstrings) + "\n\n"


def _docstrings(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:
        return []
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return [docstring for docstring in found if docstring]


# ---------------------------------------------------------------------------------------------- markov


def _markov() -> Corpus:
    """Not cached: it is written in 0.1 s, and nothing can go stale."""
    chain = markov.shipped_chain()
    entropy = chain.entropy_rate
    origin = (
        f"a Markov chain over {markov.WORDS} made-up words; its entropy is {entropy:.4f} nats per word, "
        f"so that no honest model gets below a word perplexity of {math.exp(entropy):.2f}"
    )
    texts = markov.write_splits(chain)
    return Corpus(name="markov", source="markov", origin=origin, texts=texts, line_nats=chain.line_nats)


# ---------------------------------------------------------------------------------------------- a user's folder


def _load_folder(folder: Path) -> Corpus:
    if not folder.is_dir():
        raise CorpusError(f"no corpus {str(folder)!r}: neither a folder nor one of {', '.join(NAMES)}")
    if (folder / "dataset_dict.json").is_file():
        texts = _load_saved_dataset(folder)
    else:
        files = {split: _split_file(folder, split) for split in SPLITS}
        for split in ("train", "valid"):
            if files[split] is None:
                names = " or ".join(f"{word}.txt" for word in _SPLIT_WORDS[split])
                raise CorpusError(f"{folder}: no {split} text; name it {names}")
        texts = {split: _read(path) for split, path in files.items() if path}
    return Corpus(name=folder.resolve().name, source=str(folder.resolve()), origin=str(folder.resolve()), texts=texts)


def _split_file(folder: Path, split: str) -> Path | None:
    """The one file of a split: train.txt, wiki.valid.tokens, validation.parquet, ..."""
    suffixes = (*_TEXT_SUFFIXES, *_TABLE_SUFFIXES)
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in suffixes
        and any(word in re.split(r"[.\-_]", path.stem.lower()) for word in _SPLIT_WORDS[split])
    ]
    if len(found) > 1:
        raise CorpusError(f"{folder}: several {split} files, {', '.join(path.name for path in found)}; keep one")
    return found[0] if found else None


def _read(path: Path) -> str:
    if path.suffix in _TABLE_SUFFIXES:
        return _read_table(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        start = error.start + (len(codecs.BOM_UTF8) if path.read_bytes().startswith(codecs.BOM_UTF8) else 0)
        raise CorpusError(f"{path}: not UTF-8 at byte {start}; convert it, for example with iconv") from error
    except OSError as error:
        raise CorpusError(f"{path}: cannot be read ({error.strerror})") from error
    if not text.strip():
        raise CorpusError(f"{path}: empty")
    return text


def _read_table(path: Path) -> str:
    import datasets

    datasets.disable_progress_bars()
    kind = _TABLE_SUFFIXES[path.suffix]
    scratch = tempfile.mkdtemp()  # `datasets` would otherwise leave a copy in the user's home
    try:
        loaded = datasets.load_dataset(kind, data_files=str(path), split="train", cache_dir=scratch)
        return _text_column(path, loaded)
    except CorpusError:
        raise
    except Exception as error:  # pyarrow, json and csv raise kinds of their own
        raise CorpusError(f"{path}: not readable as {kind} ({type(error).__name__})") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _load_saved_dataset(folder: Path) -> dict[str, str]:
    import datasets

    try:
        loaded = datasets.load_from_disk(str(folder))
        found = {
            split: next((loaded[word] for word in words if word in loaded), None)
            for split, words in _SPLIT_WORDS.items()
        }
        return {split: _text_column(folder, rows) for split, rows in found.items() if rows is not None}
    except CorpusError:
        raise
    except Exception as error:  # as above
        raise CorpusError(f"{folder}: not readable as a saved dataset ({type(error).__name__})") from error


def _text_column(path: Path, rows: object) -> str:
    columns = getattr(rows, "column_names", [])
    if "text" not in columns:
        raise CorpusError(f"{path}: no column 'text', only {', '.join(columns)}")
    return _lines(rows["text"])  # type: ignore[index]
