"""`hpo evaluate`, as a user calls it: one and several checkpoints, other arms and tokenizers, and what cannot be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hpo.inference.evaluate
from hpo.inference.tables import table
from hpo_model.config import TokenizerChoice, build_run
from hpo_model.data.corpus import load_corpus
from hpo_model.data.tokens import tokenize_corpus
from hpo_model.training.checkpoint import load_history
from hpo_model.training.loop import train
from tests.support.in_process import Hpo, refused
from tests.support.paths import SUPPORT

TINY = {"width": 32, "layers": 2, "heads": 2, "sequence_length": 32, "batch_size": 8, "memory_slots": 8}
Make = Callable[..., Path]
NETWORKS = SUPPORT


@pytest.fixture(scope="module")
def text(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of real text, its held-out part just long enough to judge quality by."""
    folder = tmp_path_factory.mktemp("text")
    texts = load_corpus("python-docs", cache).texts
    for split, signs in (("train", 60_000), ("valid", 60_000), ("test", 20_000)):
        (folder / f"{split}.txt").write_text(texts[split][:signs], encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def make(text: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Make:
    """Trains a tiny network and gives its checkpoint."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def make(name: str, tokens: int = 4_000, tokenizer: TokenizerChoice | None = None, **values: Any) -> Path:
        path = folder / name
        if not path.is_file():
            corpus = tokenize_corpus(load_corpus(str(text), cache), tokenizer or TokenizerChoice(vocabulary=300), cache)
            budget = {"budget_tokens": tokens, "evaluations": 1, "evaluation_tokens": 512, "learning_rate": 5e-3}
            train(build_run({**TINY, **budget, **values}), corpus, save_to=path)
        return path

    return make


@pytest.fixture(scope="module")
def measured() -> dict[Any, Any]:
    return {}


@pytest.fixture
def measured_once(measured: dict[Any, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints whose quality was measured before are not measured again: that writes two hundred texts."""
    real = hpo.inference.evaluate.evaluate

    def evaluate(trained: Any, request: Any, *others: Any) -> Any:
        key = (*(each.path for each in trained), request)
        if key not in measured:
            measured[key] = real(trained, request, *others)
        return measured[key]

    monkeypatch.setattr(hpo.inference.evaluate, "evaluate", evaluate)


def evaluated(hpo: Hpo, *arguments: str | Path) -> dict[str, Any]:
    answer = hpo("evaluate", *arguments, "--json")
    assert answer.code == 0, answer.err
    found: dict[str, Any] = json.loads(answer.out)
    return found


# ---------------------------------------------------------------------------------------------- what is found


@pytest.mark.usefixtures("measured_once")
def test_one_checkpoint_beside_its_beginning_and_people(hpo: Hpo, make: Make) -> None:
    path = make("a.pt", 40_000)
    found = evaluated(hpo, path)
    [last] = load_history(path)
    [network], [on_valid] = found["networks"], found["networks"][0]["splits"]
    assert on_valid["split"] == "valid"
    assert on_valid["loss"] == pytest.approx(last.val_loss, abs=1e-6)
    assert on_valid["word_perplexity"] == pytest.approx(last.val_word_ppl, rel=1e-5)
    assert on_valid["bits_per_byte"] == pytest.approx(last.val_bits_per_byte, abs=1e-6)
    assert on_valid["phi"] == pytest.approx(last.phi, abs=1e-6)
    assert found["untrained"]["splits"][0]["loss"] > on_valid["loss"]
    assert (found["untrained"]["training_tokens"], network["training_tokens"]) == (0, last.tokens)
    scores = [each["score"] for each in (found["untrained"]["sampled"], network["sampled"], found["human"])]
    assert scores[0] < scores[1] < scores[2]
    assert [found["untrained"]["sampled"]["collapse"], found["human"]["collapse"]] == ["uniform", "none"]
    assert network["greedy"]["collapse"] == "repetition loop"
    assert found["comparisons"] == []
    assert not any("test" in note for note in found["notes"])


def test_two_checkpoints_with_their_difference_over_documents(hpo: Hpo, make: Make, tmp_path: Path) -> None:
    short, long = make("short.pt", 4_000), make("a.pt", 40_000)
    found = evaluated(hpo, short, long, "--split", "both", "--no-quality")
    assert [column["name"] for column in found["networks"]] == ["short.pt", "a.pt"]
    assert [each["split"] for each in found["comparisons"]] == ["valid", "test"]
    for place, each in enumerate(found["comparisons"]):
        bits = [column["splits"][place]["bits_per_byte"] for column in found["networks"]]
        gap = each["difference"]
        assert each["unit"] == "bits per byte"
        assert gap["mean"] == pytest.approx(bits[1] - bits[0], abs=1e-6)
        assert gap["low"] < gap["mean"] < gap["high"] < 0
        assert gap["documents"] == 48
    assert found["notes"] == ["the test split was read: a choice between networks that uses it spends it"]
    assert found["human"] is None
    written = hpo("evaluate", short, long, "--split", "both", "--no-quality", "--out", tmp_path / "table.md")
    assert (written.code, written.out) == (0, "")
    page = (tmp_path / "table.md").read_text(encoding="utf-8")
    assert "## Valid split" in page
    assert "## Test split" in page
    assert "Note: the test split was read" in page
    assert re.search(r"- test, a.pt minus short.pt: -\d\.\d{4} bits per byte, 95 % interval -", page)
    assert "a clear difference between these two networks" in page
    assert "## Generated text" not in page


def test_a_network_does_not_differ_from_its_copy(hpo: Hpo, make: Make, tmp_path: Path) -> None:
    copy = tmp_path / "a.pt"
    copy.write_bytes(make("a.pt", 40_000).read_bytes())
    found = evaluated(hpo, make("a.pt", 40_000), copy, "--no-quality")
    [each] = found["comparisons"]
    assert (each["difference"]["mean"], each["difference"]["low"], each["difference"]["high"]) == (0, 0, 0)
    assert len({column["name"] for column in found["networks"]}) == 2  # folders keep equal names apart


@pytest.mark.usefixtures("measured_once")
def test_the_page_of_one_checkpoint(hpo: Hpo, make: Make) -> None:
    page = hpo("evaluate", make("a.pt", 40_000)).out
    assert "| human text |" in page
    assert "- untrained, sampled: uniform. " in page
    before_and_after = page[page.index("## Before and after") :]
    assert re.search(r"\| +untrained \| +a\.pt \| +change \|", before_and_after)
    assert "| perplexity per word (valid) " in before_and_after
    assert "| grade " in before_and_after


@pytest.mark.parametrize(
    ("name", "values"),
    [("control.pt", {"iit": False}), ("hybrid.pt", {"blocks": "convolution+attention"}), ("wide.pt", {"width": 64})],
)
def test_other_arms_beside_the_first(hpo: Hpo, make: Make, name: str, values: dict[str, Any]) -> None:
    found = evaluated(hpo, make("short.pt"), make(name, **values), "--no-quality")
    assert found["comparisons"][0]["unit"] == "bits per byte"
    assert found["networks"][1]["splits"][0]["phi"] is not None


def test_a_network_of_the_user_s_own_beside_the_program_s(
    hpo: Hpo, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(NETWORKS))
    own = make("own.pt", iit=False, network="networks:Recurrent")
    found = evaluated(hpo, make("short.pt"), own, "--network", "networks:Recurrent", "--no-quality")
    assert found["networks"][1]["splits"][0]["phi"] is None
    assert found["comparisons"][0]["unit"] == "bits per byte"
    first = evaluated(hpo, own, "--network", "networks:Recurrent", "--no-quality")
    assert first["untrained"]["parameters"] == first["networks"][0]["parameters"]
    assert first["untrained"]["splits"][0]["loss"] > first["networks"][0]["splits"][0]["loss"]
    refused(hpo("evaluate", own), "own.pt", "`--network networks:Recurrent` runs it")


def test_other_tokenizers_compare_by_bytes_or_not_at_all(hpo: Hpo, make: Make) -> None:
    bpe = make("short.pt")
    finer = make("finer.pt", tokenizer=TokenizerChoice(vocabulary=400))
    words = make("words.pt", tokenizer=TokenizerChoice(kind="word", vocabulary=500))
    found = evaluated(hpo, bpe, finer, words, "--no-quality")
    assert [each["unit"] for each in found["comparisons"]] == ["bits per byte", None]
    assert found["networks"][2]["splits"][0]["bits_per_byte"] is None
    assert any("tokenizers differ" in note for note in found["notes"])
    page = hpo("evaluate", bpe, words, "--no-quality").out
    assert "- valid, words.pt against short.pt: not comparable, the tokenizers lost words" in page
    assert "| perplexity per token (valid) |" in page
    same = evaluated(hpo, words, make("words-2.pt", tokenizer=TokenizerChoice(kind="word", vocabulary=500), seed=2))
    assert same["comparisons"][0]["unit"] == "nats per token"
    assert same["networks"][0]["sampled"]["score"] < same["human"]["score"]


def test_held_out_text_that_is_short_gives_no_quality(hpo: Hpo, make: Make) -> None:
    found = evaluated(hpo, make("short.pt"), "--split", "test")
    assert found["human"] is None
    assert found["networks"][0]["sampled"] is None
    assert "the test split is too short to judge the quality of texts" in found["notes"]


# ---------------------------------------------------------------------------------------------- what cannot be


def other_text(text: Path, folder: Path, *splits: str) -> Path:
    folder.mkdir()
    for split in splits:
        content = (text / f"{split}.txt").read_text(encoding="utf-8")
        (folder / f"{split}.txt").write_text(content + "One line more.\n", encoding="utf-8")
    return folder


def test_other_text_is_evaluated_on_only_when_named(hpo: Hpo, make: Make, text: Path, tmp_path: Path) -> None:
    other = other_text(text, tmp_path / "other", "train", "valid")
    found = evaluated(hpo, make("short.pt"), "--data", other, "--no-quality")
    assert found["notes"] == ["short.pt: trained on other text than this; it may have seen some of it"]
    refused(hpo("evaluate", make("short.pt"), "--data", other, "--split", "test"), "has no test split")
    refused(hpo("evaluate", make("short.pt"), "--data", tmp_path / "none"), "none")


def test_text_that_has_changed_since_is_refused(hpo: Hpo, cache: Path, text: Path, tmp_path: Path, make: Make) -> None:
    other = other_text(text, tmp_path / "other", "train", "valid")
    corpus = tokenize_corpus(load_corpus(str(other), cache), TokenizerChoice(vocabulary=300), cache)
    path = tmp_path / "other.pt"
    values = {**TINY, "budget_tokens": 1_000, "evaluations": 1, "evaluation_tokens": 512}
    train(build_run(values), corpus, save_to=path)
    refused(hpo("evaluate", make("short.pt"), path), "trained on different texts", "--data PATH")
    (other / "valid.txt").write_text("a new text\n" * 100, encoding="utf-8")
    refused(hpo("evaluate", path), f"digest {corpus.corpus_digest}, which is", "--data PATH")


def test_a_refusal_leaves_what_was_there(hpo: Hpo, make: Make, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("mine", encoding="utf-8")
    half = tmp_path / "half.pt"
    half.write_bytes(make("short.pt").read_bytes()[:3000])
    refused(hpo("evaluate", make("short.pt"), half, "--out", page), "half.pt: not a readable checkpoint")
    refused(hpo("evaluate", make("short.pt"), make("short.pt"), "--out", page), "named twice")
    assert page.read_text(encoding="utf-8") == "mine"


def test_a_table_lines_up_and_escapes_bars() -> None:
    assert table(["", "a|b"], [["Φ", "—"], ["long", "1.25"]]) == [
        "|      | a\\|b |",
        "| ---- | ---: |",
        "| Φ    |    — |",
        "| long | 1.25 |",
    ]
