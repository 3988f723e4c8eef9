"""Token files: streams, counts, samples, and the cache of them."""

from __future__ import annotations

import dataclasses
import io
import multiprocessing
import re
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import hpo_model.data.tokens
from hpo_model.config import TokenizerChoice
from hpo_model.data.corpus import Corpus, load_corpus
from hpo_model.data.tokens import STRETCHES, TokenizedCorpus, open_tokens, tokenize_corpus
from hpo_model.errors import CorpusError

BPE, WORD = TokenizerChoice(vocabulary=300), TokenizerChoice(kind="word")


def corpus(train: str, valid: str = "a valid line\n", test: str = "") -> Corpus:
    texts = {"train": train, "valid": valid, **({"test": test} if test else {})}
    return Corpus(name="mine", source="/mine", origin="/mine", texts=texts)


def numbered(lines: int) -> str:
    """Lines of differing lengths, each of its own words."""
    return "".join(" ".join(f"w{line}ü{place}" for place in range(line * 7 % 11)) + "\n" for line in range(lines))


def file_names(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


# ---------------------------------------------------------------------------------------------- spans


@pytest.mark.parametrize("choice", [BPE, WORD], ids=["bpe", "word"])
@pytest.mark.parametrize("ending", ["\n", ""], ids=["ended", "unended"])
def test_a_span_counts_what_its_text_has(choice: TokenizerChoice, ending: str, tmp_path: Path) -> None:
    text = "one two  three\n\n  naïve \u2028 line\r\n" + "last line" + ending
    tokenized = tokenize_corpus(corpus(text), choice, tmp_path)
    span = tokenized.span("train")
    lines = text.removesuffix("\n").split("\n")
    assert len(lines) == 4
    assert span.words == sum(len(line.split()) + 1 for line in lines)
    words_alone = "".join(" ".join(line.split()) + "\n" for line in lines)
    assert span.bytes == len((text if choice.kind == "bpe" else words_alone).encode())
    assert span.tokens == len(span.ids) - 1 == tokenized.tokens("train")
    assert span.ids[0] == tokenized.tokenizer.start_id
    if choice.kind == "bpe":
        assert tokenized.tokenizer.decode(span.ids[1:].tolist()) == text
    else:
        assert span.tokens == span.words


def test_a_split_of_python_docs_comes_back_byte_for_byte(python_docs: TokenizedCorpus, cache: Path) -> None:
    text = load_corpus("python-docs", cache).texts["valid"]
    span = python_docs.span("valid")
    assert python_docs.tokenizer.decode(span.ids[1:].tolist()) == text
    assert span.bytes == len(text.encode())
    assert span.words == len(text.split()) + text.count("\n")


def test_splits_are_those_of_the_corpus(tmp_path: Path) -> None:
    assert tokenize_corpus(corpus("a\n"), BPE, tmp_path).splits == ("train", "valid")
    assert tokenize_corpus(corpus("a\n", test="b\n"), BPE, tmp_path).splits == ("train", "valid", "test")


def test_ids_are_kept_in_two_bytes_where_they_fit_and_stay_on_disk(tmp_path: Path) -> None:
    span = tokenize_corpus(corpus(numbered(50)), BPE, tmp_path).span("train")
    assert span.ids.dtype == np.uint16
    assert isinstance(span.ids, np.memmap)
    many = " ".join(f"w{number}" for number in range(70_000)) + "\n"
    wide = tokenize_corpus(corpus(many), WORD, tmp_path)
    assert wide.span("train").ids.dtype == np.uint32
    assert wide.span("train").ids.max() == wide.tokenizer.vocabulary - 1


def test_lines_are_counted_the_same_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = tokenize_corpus(corpus(numbered(100)), BPE, tmp_path / "whole")
    monkeypatch.setattr(hpo_model.data.tokens, "LINES_AT_ONCE", 7)
    batched = tokenize_corpus(corpus(numbered(100)), BPE, tmp_path / "batched")
    assert np.array_equal(whole.span("train").ids, batched.span("train").ids)
    assert whole.sample("train", 500).words == batched.sample("train", 500).words


def test_bits_per_byte_are_withheld_where_words_were_lost(tmp_path: Path) -> None:
    tokenized = tokenize_corpus(corpus("a valid line\n", valid="a valid zebra\n", test="a line\n"), WORD, tmp_path)
    assert tokenized.unknown_words == {"train": 0, "valid": 1, "test": 0}
    assert tokenized.span("valid").bytes is None
    assert tokenized.sample("valid", 2).bytes is None
    assert tokenized.span("test").bytes == len("a line\n")


# ---------------------------------------------------------------------------------------------- samples


def recount(tokenized: TokenizedCorpus, ids: np.ndarray) -> tuple[int, int]:
    """Words and bytes of a sample, from its decoded text."""
    text = tokenized.tokenizer.decode(ids[1:].tolist())
    return sum(len(line.split()) + 1 for line in io.StringIO(text)), len(text.encode())


@pytest.fixture(scope="module")
def lines_200(tmp_path_factory: pytest.TempPathFactory) -> TokenizedCorpus:
    return tokenize_corpus(corpus(numbered(200)), BPE, tmp_path_factory.mktemp("tokens"))


@given(tokens=st.integers(1, 12_000))
def test_a_sample_counts_exactly_its_text(lines_200: TokenizedCorpus, tokens: int) -> None:
    sample = lines_200.sample("train", tokens)
    assert (sample.words, sample.bytes) == recount(lines_200, sample.ids)


@pytest.mark.parametrize("tokens", [2_000, 4_000])
def test_a_sample_is_about_as_long_as_asked_and_spread_over_the_split(lines_200: TokenizedCorpus, tokens: int) -> None:
    sample = lines_200.sample("train", tokens)
    assert 0.5 * tokens < sample.tokens <= tokens + STRETCHES * 100
    text = lines_200.tokenizer.decode(sample.ids[1:].tolist())
    numbers = {int(number) for number in re.findall(r"w(\d+)ü", text)}
    assert len({number * STRETCHES // 200 for number in numbers}) == STRETCHES


def test_a_sample_is_always_the_same(lines_200: TokenizedCorpus) -> None:
    first, again = lines_200.sample("train", 1000), open_tokens(lines_200.folder).sample("train", 1000)
    assert np.array_equal(first.ids, again.ids)


@pytest.mark.parametrize("more", [0, 1, 10**9])
def test_a_sample_of_everything_is_the_whole_split(lines_200: TokenizedCorpus, more: int) -> None:
    whole = lines_200.span("train")
    sample = lines_200.sample("train", whole.tokens + more)
    assert np.array_equal(sample.ids, whole.ids)
    assert (sample.words, sample.bytes) == (whole.words, whole.bytes)


@pytest.mark.parametrize("lines", [1, 5])
def test_a_sample_is_never_longer_than_its_split(lines: int, tmp_path: Path) -> None:
    text = "".join(" ".join(f"w{line}x{place}" for place in range(60)) + "\n" for line in range(lines))
    tokenized = tokenize_corpus(corpus(text), BPE, tmp_path)
    whole = tokenized.span("train")
    assert tokenized.sample("train", whole.tokens // 2).tokens <= whole.tokens


def test_a_sample_reads_no_line_twice(tmp_path: Path) -> None:
    short = "".join(f"w{line}\n" for line in range(100))
    text = short + "".join("long " * 40 + f"w{line}\n" for line in range(100, 200))
    tokenized = tokenize_corpus(corpus(text), BPE, tmp_path)
    sample = tokenized.sample("train", tokenized.tokens("train") // 2)
    numbers = re.findall(r"w\d+", tokenized.tokenizer.decode(sample.ids[1:].tolist()))
    assert len(numbers) == len(set(numbers))


# ---------------------------------------------------------------------------------------------- a known source


def of_known_source(train: str, valid: str = "a valid line\n") -> Corpus:
    """A text with half a nat per word and end of line."""
    return dataclasses.replace(
        corpus(train, valid), line_nats=lambda lines: np.array([(len(line.split()) + 1) / 2 for line in lines])
    )


@pytest.mark.parametrize("choice", [BPE, WORD], ids=["bpe", "word"])
def test_spans_and_samples_know_the_nats_of_their_text_under_its_source(
    choice: TokenizerChoice, tmp_path: Path
) -> None:
    tokenized = open_tokens(tokenize_corpus(of_known_source(numbered(200)), choice, tmp_path).folder)
    for tokens in (1, 100, 500, 1000, 10**9):
        sample = tokenized.sample("train", tokens)
        assert sample.true_nats == sample.words / 2
    assert tokenized.span("train").true_nats == tokenized.span("train").words / 2


def test_a_text_of_unknown_source_has_no_such_nats(lines_200: TokenizedCorpus) -> None:
    assert lines_200.span("train").true_nats is None
    assert lines_200.sample("train", 500).true_nats is None


def test_nats_under_the_source_are_withheld_where_words_were_lost(tmp_path: Path) -> None:
    """A network predicts the unknown word where the source had to choose one of many."""
    tokenized = tokenize_corpus(of_known_source("a valid line\n", valid="a valid zebra\n"), WORD, tmp_path)
    assert tokenized.span("train").true_nats == 2
    assert tokenized.span("valid").true_nats is None


@pytest.mark.parametrize("known_first", [True, False])
def test_equal_text_of_unknown_source_does_not_take_the_nats_away(known_first: bool, tmp_path: Path) -> None:
    both = [of_known_source(numbered(20)), corpus(numbered(20))]
    made = [tokenize_corpus(each, BPE, tmp_path) for each in (both if known_first else reversed(both))]
    known, unknown = made if known_first else reversed(made)
    assert known.span("train").true_nats == known.span("train").words / 2
    assert unknown.span("train").true_nats is None


# ---------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("split", ["train", "valid"])
def test_a_split_shorter_than_one_sequence_is_refused(split: str, tmp_path: Path) -> None:
    texts = {"train": "w " * 100, "valid": "w " * 100, split: "w " * 10}
    tokenized = tokenize_corpus(corpus(**texts), WORD, tmp_path)
    assert tokenized.tokens(split) == 11
    tokenized.check_length(11)
    with pytest.raises(
        CorpusError, match=f"/mine: the {split} split has 11 tokens, fewer than one sequence of 12; add"
    ):
        tokenized.check_length(12)


# ---------------------------------------------------------------------------------------------- cache


def test_a_second_call_finds_the_files_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = tokenize_corpus(corpus(numbered(50)), BPE, tmp_path)
    monkeypatch.setattr(hpo_model.data.tokens, "train_tokenizer", lambda choice, lines: pytest.fail("tokenized twice"))
    again = tokenize_corpus(corpus(numbered(50)), BPE, tmp_path)
    assert again.folder == first.folder
    assert again.tokenizer.digest == first.tokenizer.digest
    assert again.span("train").ids.tolist() == first.span("train").ids.tolist()


def test_other_text_and_other_choices_have_files_of_their_own(tmp_path: Path) -> None:
    made = [
        tokenize_corpus(text, choice, tmp_path).folder
        for text in (corpus("a b\n"), corpus("a b\n", test="c\n"))
        for choice in (BPE, TokenizerChoice(vocabulary=280), WORD, TokenizerChoice(kind="word", vocabulary=3))
    ]
    assert len(set(made)) == len(made) == len(list(tmp_path.iterdir()))


def test_equal_text_under_another_name_shares_files_but_keeps_its_name(tmp_path: Path) -> None:
    first = tokenize_corpus(corpus("a b\n"), BPE, tmp_path)
    renamed = dataclasses.replace(corpus("a b\n"), name="yours", source="/yours", origin="there")
    second = tokenize_corpus(renamed, BPE, tmp_path)
    assert second.folder == first.folder
    assert (second.corpus_name, second.corpus_source, second.corpus_origin) == ("yours", "/yours", "there")
    assert second.corpus_digest == first.corpus_digest == renamed.digest


def test_open_tokens_knows_what_was_tokenized(tmp_path: Path) -> None:
    made = tokenize_corpus(corpus(numbered(50), test="c\n"), WORD, tmp_path)
    found = open_tokens(made.folder)
    assert (found.corpus_name, found.corpus_source, found.corpus_digest) == ("mine", "/mine", made.corpus_digest)
    assert (found.splits, found.unknown_words) == (made.splits, made.unknown_words)
    assert found.tokenizer.digest == made.tokenizer.digest


def test_a_process_that_is_second_uses_the_files_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real: Callable = hpo_model.data.tokens.train_tokenizer

    def overtaken(choice: TokenizerChoice, lines: list[str]) -> object:
        monkeypatch.setattr(hpo_model.data.tokens, "train_tokenizer", real)
        tokenize_corpus(corpus(numbered(50)), BPE, tmp_path)  # another process comes first
        return real(choice, lines)

    monkeypatch.setattr(hpo_model.data.tokens, "train_tokenizer", overtaken)
    tokenized = tokenize_corpus(corpus(numbered(50)), BPE, tmp_path)
    assert tokenized.span("train").bytes == len(numbered(50).encode())
    assert [path.name for path in tmp_path.iterdir()] == [tokenized.folder.name]


def test_two_processes_tokenizing_at_once_both_succeed(cache: Path, tmp_path: Path) -> None:
    text = load_corpus("python-docs", cache).texts
    small = Corpus(name="n", source="s", origin="o", texts={"train": text["train"][:300_000], "valid": text["valid"]})
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        list(pool.map(time.sleep, [0.3, 0.3]))  # both are up before either starts
        both = [pool.submit(tokenize_corpus, small, BPE, tmp_path) for _ in range(2)]
        first, second = (tokenized.result() for tokenized in both)
    assert first.folder == second.folder
    assert first.tokenizer.digest == second.tokenizer.digest
    assert first.span("valid").bytes == second.span("valid").bytes == len(text["valid"].encode())
    assert [path.name for path in tmp_path.iterdir()] == [first.folder.name]


def test_token_files_have_the_permissions_of_any_new_folder(tmp_path: Path) -> None:
    (tmp_path / "any").mkdir()
    tokenized = tokenize_corpus(corpus("a b\n"), BPE, tmp_path)
    assert tokenized.folder.stat().st_mode == (tmp_path / "any").stat().st_mode


def test_a_disk_that_cannot_be_written_is_a_corpus_error_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "save", full)
    with pytest.raises(CorpusError, match=r"token files cannot be written \(No space left on device\)"):
        tokenize_corpus(corpus("a b\n"), BPE, tmp_path)
    assert file_names(tmp_path) == []


# ---------------------------------------------------------------------------------------------- WikiText-2


def test_wikitext_2_under_words_is_the_literature_s(wikitext2: Path, tmp_path: Path) -> None:
    """Without its training text, which only the vocabulary needs: valid as train."""
    loaded = load_corpus(str(wikitext2), tmp_path)
    texts = {"train": loaded.texts["valid"], "valid": loaded.texts["test"]}
    tokenized = tokenize_corpus(dataclasses.replace(loaded, texts=texts), WORD, tmp_path)
    train, valid = tokenized.span("train"), tokenized.span("valid")
    assert train.tokens == train.words == 217_646
    assert valid.tokens == valid.words == 245_569
    assert train.bytes == sum(len(" ".join(line.split()).encode()) + 1 for line in texts["train"].splitlines())
    assert valid.bytes is None  # words of test that valid lacks
