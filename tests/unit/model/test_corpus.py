"""Corpora by name and from folders. No test reaches the network: the hub is a closed or silent port of this machine."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import datasets
import pytest

import hpo_model.data.corpus
from hpo_model.data.corpus import SPLITS, Corpus, load_corpus
from hpo_model.errors import CorpusError
from tests.support.paths import REPOSITORY

TEXTS = {"train": "the first line\nthe second , ünïcode line\n", "valid": "a valid line\n", "test": "a test line\n"}


def write_folder(folder: Path, names: dict[str, str], texts: dict[str, str] = TEXTS) -> Path:
    folder.mkdir(exist_ok=True)
    for split, name in names.items():
        (folder / name).write_text(texts[split], encoding="utf-8")
    return folder


def write_table(path: Path, lines: list[str], column: str = "text") -> None:
    rows = datasets.Dataset.from_dict({column: lines})
    if path.suffix == ".parquet":
        rows.to_parquet(path)
    elif path.suffix == ".csv":
        rows.to_csv(path)
    else:
        path.write_text("".join(json.dumps({column: line}) + "\n" for line in lines), encoding="utf-8")


# ---------------------------------------------------------------------------------------------- python-docs


def test_python_docs_has_three_splits_of_english(cache: Path) -> None:
    corpus = load_corpus("python-docs", cache)
    assert set(corpus.texts) == set(SPLITS)
    assert len(corpus.texts["train"]) > 1_500_000
    assert min(len(corpus.texts["valid"]), len(corpus.texts["test"])) > 40_000
    assert corpus.texts["valid"].count(" the ") > 500


@pytest.mark.parametrize("held_out", ["valid", "test"])
def test_python_docs_holds_out_text_that_training_does_not_see(cache: Path, held_out: str) -> None:
    corpus = load_corpus("python-docs", cache)
    seen = {line.strip() for line in corpus.texts["train"].splitlines()}
    lines = [line.strip() for line in corpus.texts[held_out].splitlines() if len(line.strip()) > 40]
    assert len(lines) > 500
    assert sum(line in seen for line in lines) < 0.02 * len(lines)


def test_python_docs_is_the_same_text_in_every_process(cache: Path, tmp_path: Path) -> None:
    program = "import sys, pathlib; from hpo_model.data.corpus import load_corpus;" + (
        "print(load_corpus('python-docs', pathlib.Path(sys.argv[1])).digest)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program, str(tmp_path)],
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONHASHSEED": "7", "LC_ALL": "C", "PYTHONUTF8": "0"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == load_corpus("python-docs", cache).digest


def test_python_docs_does_not_depend_on_the_order_of_the_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Path.rglob
    monkeypatch.setattr(hpo_model.data.corpus, "_docstrings", lambda path: ["its text"])  # the order is in the titles
    one = load_corpus("python-docs", tmp_path / "one")
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: reversed(list(real(self, pattern))))
    assert load_corpus("python-docs", tmp_path / "other") == one


def test_python_docs_needs_no_second_making(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_corpus("python-docs", cache)
    monkeypatch.setattr(hpo_model.data.corpus, "_python_docs", lambda: pytest.fail("made twice"))
    assert load_corpus("python-docs", cache) == first


def test_two_makers_of_the_same_cache_leave_one_whole_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def slower() -> dict[str, str]:
        monkeypatch.setattr(hpo_model.data.corpus, "_python_docs", lambda: TEXTS)
        load_corpus("python-docs", tmp_path)  # another process comes first
        return TEXTS

    monkeypatch.setattr(hpo_model.data.corpus, "_python_docs", slower)
    assert load_corpus("python-docs", tmp_path).texts == TEXTS
    assert len(list(tmp_path.iterdir())) == 1


# ---------------------------------------------------------------------------------------------- markov


def test_markov_is_the_same_text_on_every_machine_and_needs_no_cache(tmp_path: Path) -> None:
    corpus = load_corpus("markov", tmp_path / "cache")
    assert corpus.digest == "7091576f47307641"
    assert not (tmp_path / "cache").exists()
    assert load_corpus("markov", tmp_path / "cache") == corpus


def test_markov_says_how_good_a_model_of_it_can_be(tmp_path: Path) -> None:
    assert "2.2805 nats per word, so that no honest model gets below a word perplexity of 9.78" in (
        load_corpus("markov", tmp_path).origin
    )


def test_markov_is_of_a_size_with_python_docs(tmp_path: Path) -> None:
    texts = load_corpus("markov", tmp_path).texts
    words = {split: len(text.split()) + text.count("\n") for split, text in texts.items()}
    assert words == {"train": 440_000, "valid": 21_610, "test": 21_444}


# ---------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize(
    "names",
    [
        {"train": "wiki.train.tokens", "valid": "wiki.valid.tokens", "test": "wiki.test.tokens"},
        {"train": "wiki.train.raw", "valid": "wiki.valid.raw", "test": "wiki.test.raw"},
        {"train": "train.txt", "valid": "valid.txt", "test": "test.txt"},
        {"train": "train.txt", "valid": "validation.txt"},
        {"train": "train.txt", "valid": "val.txt"},
        {"train": "TRAIN.txt", "valid": "ptb.Dev.txt"},
    ],
)
def test_text_files_of_the_usual_names_are_found(tmp_path: Path, names: dict[str, str]) -> None:
    corpus = load_corpus(str(write_folder(tmp_path / "mine", names)), tmp_path / "cache")
    assert corpus.texts == {split: TEXTS[split] for split in names}
    assert corpus.name == "mine"
    assert corpus.source == corpus.origin == str(tmp_path / "mine")


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".json", ".csv"])
def test_tables_with_a_text_column_are_read(tmp_path: Path, suffix: str) -> None:
    home = set(Path.home().glob(".cache/huggingface/datasets/*"))
    for split in SPLITS:
        write_table(tmp_path / f"{split}{suffix}", TEXTS[split].splitlines())
    assert load_corpus(str(tmp_path), tmp_path / "cache").texts == TEXTS
    assert set(Path.home().glob(".cache/huggingface/datasets/*")) == home  # no copy left behind


def test_tables_whose_rows_end_their_lines_do_not_get_them_doubled(tmp_path: Path) -> None:
    for split in SPLITS:
        write_table(tmp_path / f"{split}.parquet", TEXTS[split].splitlines(keepends=True))
    assert load_corpus(str(tmp_path), tmp_path / "cache").texts == TEXTS


@pytest.mark.parametrize("valid", ["valid", "validation", "dev"])
def test_a_dataset_saved_to_disk_is_read(tmp_path: Path, valid: str) -> None:
    splits = {"train": TEXTS["train"], valid: TEXTS["valid"], "test": TEXTS["test"]}
    saved = {name: datasets.Dataset.from_dict({"text": text.splitlines()}) for name, text in splits.items()}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    assert load_corpus(str(tmp_path / "saved"), tmp_path / "cache").texts == TEXTS


def test_a_dataset_saved_without_validation_is_refused(tmp_path: Path) -> None:
    datasets.DatasetDict({"train": datasets.Dataset.from_dict({"text": ["a"]})}).save_to_disk(tmp_path / "saved")
    with pytest.raises(CorpusError, match="saved: the valid split is empty or missing"):
        load_corpus(str(tmp_path / "saved"), tmp_path / "cache")


def test_a_byte_order_mark_and_windows_line_ends_are_no_text(tmp_path: Path) -> None:
    write_folder(tmp_path, {"valid": "valid.txt"})
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfone\r\ntwo\r\n")
    assert load_corpus(str(tmp_path), tmp_path / "cache").texts["train"] == "one\ntwo\n"


def test_other_files_in_the_folder_do_not_matter(tmp_path: Path) -> None:
    names = {"train": "train.txt", "valid": "valid.txt"}
    write_folder(tmp_path, names)
    for other in ("README.md", "training-notes.txt", "train.txt.gz", "retrain.txt", "vocabulary.txt"):
        (tmp_path / other).write_text("not text to learn from")
    assert load_corpus(str(tmp_path), tmp_path / "cache").texts == {split: TEXTS[split] for split in names}


@pytest.mark.parametrize("absent", ["train", "valid"])
def test_a_folder_without_train_or_valid_is_refused_with_the_name_to_use(tmp_path: Path, absent: str) -> None:
    write_folder(tmp_path, {split: f"{split}.txt" for split in SPLITS if split != absent})
    with pytest.raises(CorpusError, match=f"no {absent} text; name it {absent}.txt"):
        load_corpus(str(tmp_path), tmp_path / "cache")


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("text", ["", " \n\n"])
def test_an_empty_split_is_refused_by_its_file(tmp_path: Path, split: str, text: str) -> None:
    write_folder(tmp_path, {name: f"{name}.txt" for name in SPLITS}, {**TEXTS, split: text})
    with pytest.raises(CorpusError, match=rf"{split}\.txt: empty"):
        load_corpus(str(tmp_path), tmp_path / "cache")


def test_text_that_is_not_utf8_is_refused_with_the_position_of_its_first_bad_byte(tmp_path: Path) -> None:
    write_folder(tmp_path, {"valid": "valid.txt"})
    good = "grün\n".encode() * 5_000  # beyond any read buffer
    (tmp_path / "train.txt").write_bytes(good + "größe".encode("latin-1"))
    with pytest.raises(CorpusError, match=rf"train\.txt: not UTF-8 at byte {len(good) + 2}; convert it"):
        load_corpus(str(tmp_path), tmp_path / "cache")


def test_the_position_of_a_bad_byte_counts_the_byte_order_mark(tmp_path: Path) -> None:
    write_folder(tmp_path, {"valid": "valid.txt"})
    (tmp_path / "train.txt").write_bytes(b"\xef\xbb\xbfabc\xff")
    with pytest.raises(CorpusError, match=r"not UTF-8 at byte 6"):
        load_corpus(str(tmp_path), tmp_path / "cache")


def test_a_saved_dataset_with_rows_that_are_no_text_is_refused(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"text": ["a", None]})
    datasets.DatasetDict({"train": rows, "valid": rows}).save_to_disk(tmp_path / "saved")
    with pytest.raises(CorpusError, match="saved"):
        load_corpus(str(tmp_path / "saved"), tmp_path / "cache")


def test_several_files_for_one_split_are_refused_by_name(tmp_path: Path) -> None:
    write_folder(tmp_path, {"train": "train.txt", "valid": "valid.txt"})
    (tmp_path / "validation.txt").write_text("more")
    with pytest.raises(CorpusError, match=r"several valid files, valid\.txt, validation\.txt; keep one"):
        load_corpus(str(tmp_path), tmp_path / "cache")


def test_a_table_without_a_text_column_is_refused_with_its_columns(tmp_path: Path) -> None:
    write_table(tmp_path / "train.parquet", ["a"], column="sentence")
    write_table(tmp_path / "valid.parquet", ["a"])
    with pytest.raises(CorpusError, match=r"train\.parquet: no column 'text', only sentence"):
        load_corpus(str(tmp_path), tmp_path / "cache")


def test_a_table_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not really")
    write_table(tmp_path / "valid.parquet", ["a"])
    with pytest.raises(CorpusError, match=r"train\.parquet: not readable as parquet"):
        load_corpus(str(tmp_path), tmp_path / "cache")


def test_an_unknown_name_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(CorpusError, match=r"no corpus 'wikitext-3': neither a folder nor one of auto, python-docs"):
        load_corpus("wikitext-3", tmp_path)


def test_a_corpus_without_validation_text_cannot_be_made() -> None:
    with pytest.raises(CorpusError, match="mine: the valid split is empty or missing"):
        Corpus(name="mine", source="mine", origin="here", texts={"train": "text"})


def test_the_digest_tells_texts_apart_and_splits_too() -> None:
    def digest(**texts: str) -> str:
        return Corpus(name="n", source="s", origin="o", texts=texts).digest

    assert digest(train="a", valid="b") == digest(valid="b", train="a")
    others = [
        digest(train="a", valid="b"),
        digest(train="b", valid="a"),
        digest(train="a", valid="b", test="c"),
        digest(train="a", valid="bc"),
        digest(train="ab", valid="b"),
    ]
    assert len(set(others)) == len(others)


# ---------------------------------------------------------------------------------------------- WikiText-2, auto


@pytest.fixture
def no_hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path / "huggingface"
    monkeypatch.setenv("HF_HOME", str(home))
    return home


@pytest.fixture
def closed_port() -> str:
    """An address of this machine where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{probe.getsockname()[1]}"


@pytest.fixture
def silent_port() -> Iterator[str]:
    """An address of this machine that takes connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


@pytest.mark.parametrize("port", ["closed_port", "silent_port"])
def test_auto_without_a_hub_takes_python_docs_within_five_seconds_and_says_so(
    cache: Path, no_hub_cache: Path, port: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_corpus("python-docs", cache)
    monkeypatch.setattr(hpo_model.data.corpus, "HUB", request.getfixturevalue(port))
    said: list[str] = []
    started = time.monotonic()
    corpus = load_corpus("auto", cache, said.append)
    assert time.monotonic() - started < 5
    assert corpus.name == "python-docs"
    assert len(said) == 1
    assert "python-docs, because WikiText-2 is neither cached nor reachable" in said[0]


def test_auto_takes_a_cached_wikitext_2_without_asking_the_hub(
    tmp_path: Path, no_hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_folder(tmp_path / "wikitext-2", {split: f"{split}.txt" for split in SPLITS})
    monkeypatch.setattr(hpo_model.data.corpus, "_hub_is_reachable", lambda: pytest.fail("asked the hub"))
    said: list[str] = []
    corpus = load_corpus("auto", tmp_path, said.append)
    assert corpus.name == "wikitext-2"
    assert corpus.texts == TEXTS
    assert said == ["corpus auto: WikiText-2 (https://huggingface.co/datasets/Salesforce/wikitext, wikitext-2-v1)"]


def test_auto_falls_back_where_the_hub_is_reachable_but_does_not_deliver(
    cache: Path, no_hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*names: str) -> None:
        raise ConnectionError("dropped")

    monkeypatch.setattr(hpo_model.data.corpus, "_hub_is_reachable", lambda: True)
    monkeypatch.setattr(datasets, "load_dataset", refuse)
    said: list[str] = []
    assert load_corpus("auto", cache, said.append).name == "python-docs"
    assert len(said) == 1
    assert "python-docs, because WikiText-2 could not be loaded" in said[0]


def test_wikitext_2_from_the_hub_is_the_text_of_its_files(
    tmp_path: Path, no_hub_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hub gives one row per line, blank lines as empty rows."""
    rows = {
        "train": ["", " = Title = \n", "", " Text of <unk> . \n"],
        "validation": [" valid \n"],
        "test": [" test \n"],
    }
    asked: list[tuple[str, ...]] = []

    def fetch(*names: str) -> datasets.DatasetDict:
        asked.append(names)
        return datasets.DatasetDict({split: datasets.Dataset.from_dict({"text": text}) for split, text in rows.items()})

    monkeypatch.setattr(datasets, "load_dataset", fetch)
    first, again = load_corpus("wikitext-2", tmp_path), load_corpus("wikitext-2", tmp_path)
    assert first.texts == {
        "train": "\n = Title = \n\n Text of <unk> . \n",
        "valid": " valid \n",
        "test": " test \n",
    }
    assert again == first
    assert asked == [("Salesforce/wikitext", "wikitext-2-v1")]


def test_an_unreachable_wikitext_2_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    """In a process of its own, because the hub's client reads its environment when it is imported."""
    program = (
        "import sys, pathlib; from hpo_model.data.corpus import load_corpus; from hpo_model.errors import CorpusError\n"
        "try: load_corpus('wikitext-2', pathlib.Path(sys.argv[1]))\n"
        "except CorpusError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "cache")],
        cwd=REPOSITORY,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "huggingface")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert len(done.stdout.splitlines()) == 1
    assert "wikitext-2 is neither cached nor reachable" in done.stdout
    assert "use --data PATH with the text, or corpus = 'python-docs'" in done.stdout
    assert not (tmp_path / "cache").exists()


def test_wikitext_2_has_the_literature_s_counts(wikitext2: Path, tmp_path: Path) -> None:
    corpus = load_corpus(str(wikitext2), tmp_path)
    lines = {split: corpus.texts[split].count("\n") for split in SPLITS}
    words = {split: len(corpus.texts[split].split()) for split in SPLITS}
    assert lines == {"train": 36_586, "valid": 3_760, "test": 4_358}
    assert words == {"train": 2_048_982, "valid": 213_886, "test": 241_211}
