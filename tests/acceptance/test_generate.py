"""`hpo generate`, as a user calls it: texts, streams, and one clear line for what cannot be."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from hpo_model.config import build_run
from hpo_model.data.tokens import TokenizedCorpus
from hpo_model.training.loop import train
from tests.support.in_process import Hpo, refused
from tests.support.paths import SUPPORT

NETWORKS = SUPPORT
TINY = {"width": 32, "layers": 2, "heads": 2, "sequence_length": 32, "batch_size": 8, "memory_slots": 8}


@pytest.fixture(scope="module")
def checkpoint(small_corpus: TokenizedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trained") / "checkpoint.pt"
    values = {"budget_tokens": 5_000, "evaluations": 1, "evaluation_tokens": 512}
    train(build_run({**TINY, **values}), small_corpus, save_to=path)
    return path


# ---------------------------------------------------------------------------------------------- texts


def test_a_text_begins_with_its_prompt_and_its_stream_is_the_same(hpo: Hpo, checkpoint: Path) -> None:
    call = ("generate", checkpoint, "--prompt", "The name of", "--max-tokens", "20")
    shown, streamed = hpo(*call, "--no-stream"), hpo(*call)
    assert shown.code == streamed.code == 0
    assert shown.out.startswith("The name of")
    assert streamed.out == shown.out
    assert hpo(*call, "--seed", "2").out != shown.out


def test_prompts_from_a_file_give_as_many_texts_as_were_asked_for(hpo: Hpo, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("The\r\nA much longer prompt\n", encoding="utf-8")
    answer = hpo("generate", checkpoint, "--prompts", file, "--samples", "2", "--max-tokens", "5", "--json")
    texts = [json.loads(line) for line in answer.out.splitlines()]
    assert [(each["prompt"], each["sample"], each["tokens"], each["end"]) for each in texts] == [
        ("The", 0, 5, "length"),
        ("The", 1, 5, "length"),
        ("A much longer prompt", 0, 5, "length"),
        ("A much longer prompt", 1, 5, "length"),
    ]
    [alone] = hpo("generate", checkpoint, "--prompt", "The", "--max-tokens", "5", "--json").out.splitlines()
    assert json.loads(alone) == texts[0]
    shown = hpo("generate", checkpoint, "--prompts", file, "--max-tokens", "5").out
    assert "--- 'A much longer prompt', 1\nA much longer prompt" in shown


def test_beams_come_best_first(hpo: Hpo, checkpoint: Path) -> None:
    call = ("generate", checkpoint, "--prompt", "The", "--beams", "4", "--samples", "3", "--max-tokens", "6")
    nats = [json.loads(line)["mean_nats"] for line in hpo(*call, "--json").out.splitlines()]
    assert len(nats) == 3
    assert nats == sorted(nats)
    assert f"--- {nats[0]:.3f} nats per token" in hpo(*call).out


def test_phi_is_told_for_each_token(hpo: Hpo, checkpoint: Path) -> None:
    call = ("generate", checkpoint, "--prompt", "T", "--max-tokens", "6", "--phi")
    steps = json.loads(hpo(*call, "--json").out)["steps"]
    assert [step["phi"] is None for step in steps] == [
        True,
        True,
        False,
        False,
        False,
        False,
    ]  # start and T stand first
    assert all(0 < step["phi"] < 1 for step in steps[2:])
    assert f"\n{steps[-1]['phi']:.4f}  {steps[-1]['text']!r}\n" in hpo(*call).out
    assert "\n     —  " in hpo(*call).out


@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_a_text_beyond_the_context_says_what_was_forgotten(hpo: Hpo, checkpoint: Path, stream: str) -> None:
    answer = hpo("generate", checkpoint, "--prompt", "The", "--max-tokens", "80", stream)
    assert answer.code == 0
    assert "outgrew the 32 tokens that the network sees at once" in answer.err
    assert "from the last 16 alone" in answer.err


def test_one_line_is_one_line(hpo: Hpo, checkpoint: Path) -> None:
    answer = hpo("generate", checkpoint, "--prompt", "The", "--one-line", "--max-tokens", "2000", "--json")
    text = json.loads(answer.out)
    assert text["end"] == "line"
    assert text["text"].count("\n") >= 1
    assert text["text"].rstrip(" \n").count("\n") == 0


# ---------------------------------------------------------------------------------------------- what cannot be


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ((), ["--prompt TEXT", "--prompts FILE"]),
        (("--prompt", "a", "--prompts", "b"), ["--prompt TEXT"]),
        (("--prompt", " "), ["--prompt: an empty prompt"]),
        (("--prompt", "\udcff"), ["--prompt: not UTF-8 at character 0"]),
        (("--prompt", "word " * 40), ["tokens, but checkpoint.pt sees 31", "shorten it"]),
        (("--prompts", "none.txt"), ["none.txt: cannot be read (No such file"]),
        (("--prompt", "a", "--max-tokens", "0"), ["max_tokens must be between 1 and 1,000,000, got 0"]),
        (("--prompt", "a", "--temperature", "-1"), ["temperature must be at least 0", "got -1.0"]),
        (("--prompt", "a", "--temperature", "nan"), ["temperature must be", "got nan"]),
        (("--prompt", "a", "--top-p", "0"), ["top_p must be above 0 and at most 1, got 0"]),
        (("--prompt", "a", "--top-k", "-5"), ["top_k must be 0 (all) or more, got -5"]),
        (("--prompt", "a", "--min-p", "1.5"), ["min_p must be", "got 1.5"]),
        (("--prompt", "a", "--repetition-penalty", "0"), ["repetition_penalty must be above 0, got 0"]),
        (("--prompt", "a", "--frequency-penalty", "1e9"), ["frequency_penalty must be between"]),
        (("--prompt", "a", "--presence-penalty", "-1e9"), ["presence_penalty must be between"]),
        (("--prompt", "a", "--seed", "-1"), ["seed must be at least 0"]),
        (("--prompt", "a", "--samples", "0"), ["--samples must be between 1 and 10000, got 0"]),
        (("--prompt", "a", "--beams", "-1"), ["--beams must be 0 (sampling) or more, got -1"]),
        (("--prompt", "a", "--beams", "100000"), ["beams must be from 1 to the vocabulary's size, got 100000"]),
        (("--prompt", "a", "--beams", "2", "--samples", "3"), ["at most 2, got 3"]),
        (("--prompt", "a", "--beams", "2", "--top-p", "0.9", "--seed", "1"), ["leave out --top-p, --seed, or --beams"]),
        (("--prompt", "a", "--samples", "2", "--stream"), ["--stream shows one sampled text"]),
    ],
    ids=str,
)
def test_flags_that_cannot_be(hpo: Hpo, checkpoint: Path, flags: tuple[str, ...], words: list[str]) -> None:
    refused(hpo("generate", checkpoint, *flags), *words)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", ["prompts.txt: empty"]),
        (b"good\n\nbetter\n", ["line 2: an empty prompt"]),
        (b"good\nb\xff\n", ["not UTF-8 at byte 6"]),
    ],
)
def test_prompt_files_that_cannot_be(
    hpo: Hpo, checkpoint: Path, tmp_path: Path, content: bytes, words: list[str]
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    refused(hpo("generate", checkpoint, "--prompts", file), *words)


def test_one_prompt_that_is_too_long_stops_all(hpo: Hpo, checkpoint: Path, tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("short\n" + "long " * 50 + "\n", encoding="utf-8")
    refused(hpo("generate", checkpoint, "--prompts", file), "'long long long long long'...", "shorten it")


def test_checkpoints_that_cannot_be(hpo: Hpo, checkpoint: Path, tmp_path: Path) -> None:
    half = tmp_path / "half.pt"
    half.write_bytes(checkpoint.read_bytes()[:5000])
    code = tmp_path / "code.pt"
    torch.save({"version": 1, "payload": print}, code)
    old = tmp_path / "old.pt"
    torch.save({"version": 2}, old)
    before = {path: path.read_bytes() for path in (half, code, old)}
    for path, words in (
        (half, "not a readable checkpoint"),
        (code, "holds code, which is never run"),
        (old, "version 2"),
    ):
        refused(hpo("generate", path, "--prompt", "a"), path.name, words)
    refused(hpo("generate", tmp_path / "none.pt", "--prompt", "a"), "none.pt: no such file")
    assert {path: path.read_bytes() for path in before} == before


# ---------------------------------------------------------------------------------------------- a user's own network


@pytest.fixture
def own(small_corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint of a network of the user's own, whose code is at hand."""
    monkeypatch.syspath_prepend(str(NETWORKS))
    values = {"iit": False, "network": "networks:Recurrent", "budget_tokens": 5_000, "evaluations": 1}
    train(build_run({**TINY, **values, "evaluation_tokens": 512}), small_corpus, save_to=tmp_path / "own.pt")
    return tmp_path / "own.pt"


def test_a_network_of_the_user_s_own_writes_where_it_is_named(hpo: Hpo, own: Path) -> None:
    call = ("generate", own, "--prompt", "The name of", "--max-tokens", "40")
    named = ("--network", "networks:Recurrent")
    shown, streamed = hpo(*call, *named, "--no-stream"), hpo(*call, *named)
    assert shown.code == streamed.code == 0
    assert streamed.out == shown.out
    assert len(shown.out) > len("The name of")
    assert "the text outgrew the 32 tokens" in shown.err
    beams = hpo(*call, *named, "--beams", "2", "--json").out
    assert json.loads(beams)["tokens"] == 40
    refused(hpo(*call), "own.pt", "code of a user's own; `--network networks:Recurrent` runs it")
    refused(hpo(*call, *named, "--phi"), "own.pt: networks:Recurrent has no Φ; leave out --phi")


def test_a_network_that_is_named_and_not_there_is_told(hpo: Hpo, checkpoint: Path) -> None:
    answer = hpo("generate", checkpoint, "--prompt", "a", "--network", "os:path")
    refused(answer, "--network os:path: is not the network of ", "checkpoint.pt; leave it out")


# ---------------------------------------------------------------------------------------------- a study's trials

STUDY = """
name = "small/v1.2"
trials = 1
[run]
preset = "nano"
width = 32
heads = 2
sequence_length = 32
budget_tokens = 4000
evaluations = 2
evaluation_tokens = 512
[text]
vocabulary = 300
[search]
learning_rate = {low = 1e-3, high = 5e-3}
"""


def test_a_study_and_a_trial_name_their_checkpoints(
    hpo: Hpo, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    text = tmp_path / "text"
    text.mkdir()
    for split in ("train", "valid"):
        (text / f"{split}.txt").write_text("the cat sat on the mat and the dog on the cat\n" * 200, encoding="utf-8")
    Path("small.toml").write_text(STUDY, encoding="utf-8")
    refused(hpo("generate", "small", "--prompt", "the"), "studies.db")
    refused(hpo("generate", "small/v1.2", "--prompt", "the"), "small/v1.2: no such file")
    assert hpo("run", "--study", "small.toml", "--data", text, "--workers", "1").code == 0
    best = hpo("generate", "small/v1.2", "--prompt", "the", "--no-stream")
    assert best.code == 0
    assert best.out.startswith("the")
    assert hpo("generate", "small/v1.2:0", "--prompt", "the", "--no-stream").out == best.out
    refused(hpo("generate", "small/v1.2:7", "--prompt", "the"), "trial 7 of study 'small/v1.2' has no checkpoint")
    refused(hpo("generate", "large", "--prompt", "the"), "unknown study 'large'")
    shutil.rmtree(tmp_path / "runs" / "studies")
    refused(hpo("generate", "small/v1.2", "--prompt", "the"), "has no checkpoint")
