"""`hpo train` without a study, as a user calls it: a preset, values of one's own, the best checkpoint, patience."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

import hpo.files
import hpo.long_run.run
from hpo.errors import UsageError
from hpo.home import Home
from hpo.long_run.request import PresetRequest, prepare_preset_run, read_values
from hpo.long_run.run import LongRun, RuntimeOptions, run_long
from hpo_model.config import TokenizerChoice
from hpo_model.errors import CheckpointError
from hpo_model.training.checkpoint import load_checkpoint, load_history
from hpo_model.training.history import Evaluation
from hpo_model.training.loop import Decision, TrainingResult
from tests.support.in_process import Hpo, refused
from tests.support.sweeps import make_evaluation
from tests.support.texts import TOPICS, write_text

SMALL = ("--set", "width=32", "--set", "layers=1", "--set", "heads=2", "--set", "sequence_length=32")
VALUES = read_values([value for value in SMALL if value != "--set"])


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = {"train": TOPICS[:8], "valid": TOPICS[30:32], "test": TOPICS[33:35]}
    return write_text(tmp_path_factory.mktemp("text"), parts)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HPO_HOME", str(tmp_path / "runs"))
    return tmp_path / "runs"


def only(folder: Path, pattern: str) -> Path:
    [found] = folder.glob(pattern)
    return found


def last_checkpoint(home: Path) -> Path:
    [last] = [path for path in (home / "trained").glob("*/*.pt") if not path.stem.endswith("-best")]
    return last


# ---------------------------------------------------------------------------------------------- whole runs


def test_a_preset_is_trained_with_ones_own_values_and_goes_on_where_it_was(hpo: Hpo, text: Path, home: Path) -> None:
    call = (
        "train", "--preset", "nano", "--corpus", text, "--vocabulary", "300", "--batch-size", "4", "--lr", "2e-3",
        "--lambda-phi", "0.2", "--dropout", "0.2", "--seed", "42", "--epochs", "2", *SMALL,
    )  # fmt: skip
    first = hpo(*call)
    assert first.code == 0, first.err
    lines = first.out.splitlines()
    assert sum(line.startswith("epoch") for line in lines) == 10
    assert " left" in lines[-3]
    last = last_checkpoint(home)
    best = only(home, "trained/*/*-best.pt")
    config = load_checkpoint(last)["config"]
    assert {name: config[name] for name in ("batch_size", "learning_rate", "lambda_phi", "dropout", "seed")} == {
        "batch_size": 4, "learning_rate": 2e-3, "lambda_phi": 0.2, "dropout": 0.2, "seed": 42,
    }  # fmt: skip
    history = load_history(last)
    lowest = min(history, key=lambda evaluation: evaluation.val_loss)
    assert load_history(best)[-1] == lowest
    assert f"best: epoch {lowest.epoch:.2f}, val ppl {lowest.val_ppl:.2f} · {best}" in lines[-1]
    record = json.loads(only(home, "trained/*/*.json").read_text(encoding="utf-8"))
    assert record["outcome"] == "complete"
    assert record["parameters"] == config
    assert [each["val_loss"] for each in record["history"]] == [each.val_loss for each in history]

    again = hpo(*call)
    assert again.out.count("(before)") == 10
    assert load_history(last) == history
    shown = hpo("generate", best, "--prompt", "The", "--max-tokens", "3")
    assert shown.code == 0, shown.err


def test_words_are_a_tokenizer_too(hpo: Hpo, text: Path, home: Path) -> None:
    answer = hpo("train", "--preset", "nano", "--data", text, "--tokenizer", "word", "--epochs", "1", *SMALL)
    assert answer.code == 0, answer.err
    last = last_checkpoint(home)
    assert load_checkpoint(last)["tokenizer"]["kind"] == "word"


def test_event_files_hold_every_evaluation_once_although_the_run_was_begun_twice(
    hpo: Hpo, text: Path, home: Path, tmp_path: Path
) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = tmp_path / "events"
    call = ("train", "--preset", "nano", "--data", text, "--vocabulary", "300", "--epochs", "1", *SMALL)
    for _ in range(2):
        for path in (home / "trained").glob("*/*.pt"):
            path.unlink()
        whole = hpo(*call, "--tensorboard", folder)
        assert whole.code == 0, whole.err
        time.sleep(1.1)  # the names of event files hold seconds
    last = last_checkpoint(home)
    events = EventAccumulator(str(folder)).Reload()
    history = load_history(last)
    assert [(each.step, each.value) for each in events.Scalars("val_loss")] == [
        (each.step, pytest.approx(each.val_loss)) for each in history
    ]
    assert {"val_ppl", "train_loss", "phi", "learning_rate", "tokens_per_s"} <= set(events.Tags()["scalars"])


def test_a_killed_run_goes_on_from_its_last_evaluation_and_ctrl_c_says_so(text: Path, home: Path) -> None:
    command = [
        sys.executable, "-m", "hpo", "train", "--preset", "nano", "--data", str(text), "--vocabulary", "300",
        "--epochs", "16", *SMALL,
    ]  # fmt: skip

    def started() -> subprocess.Popen[str]:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert process.stdout is not None
        while " left" not in (line := process.stdout.readline()) or "(before)" in line:
            assert process.poll() is None
        return process

    killed = started()
    killed.kill()
    killed.communicate()
    stopped = started()
    time.sleep(0.1)
    stopped.send_signal(2)
    _, errors = stopped.communicate()
    assert stopped.returncode == 130
    assert errors == "interrupted; the same command goes on from the last evaluation\n"
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("(before)") >= 2
    last = last_checkpoint(home)
    assert [each.milestone for each in load_history(last)] == list(range(1, 17))
    assert "projected after epoch 8: ppl" in ended.stdout


def test_a_run_that_diverges_says_so_names_no_file_that_is_not_there_and_fails(
    hpo: Hpo, text: Path, home: Path
) -> None:
    call = ("train", "--preset", "nano", "--data", text, "--vocabulary", "300", "--epochs", "1", *SMALL)
    answer = hpo(*call, "--lr", "1e300")
    assert answer.code == 3
    assert answer.out.splitlines()[-2].startswith("epoch  0.1")
    assert re.fullmatch(r"diverged: validation loss \w+ at [\d,]+ tokens", answer.out.splitlines()[-1])


def test_updates_too_large_for_the_text_are_one_line(hpo: Hpo, text: Path, home: Path) -> None:
    call = ("train", "--preset", "nano", "--data", text, "--vocabulary", "300", "--epochs", "3")
    answer = hpo(*call, "--batch-size", "1000000", *SMALL)
    assert answer.code == 1
    assert answer.err.startswith("hpo: 1 updates in 3 epochs of this text are fewer than 12 evaluations; a smaller")
    answer = hpo(*call, "--set", "sequence_length=1000000")
    assert answer.code == 1
    assert "1000000" in answer.err or "1,000,000" in answer.err


@pytest.mark.skipif(sys.platform == "win32", reason="terminals of POSIX")
def test_in_a_terminal_evaluations_stand_above_the_line_that_moves(text: Path, home: Path) -> None:
    command = [
        sys.executable, "-m", "hpo", "train", "--preset", "nano", "--data", str(text), "--vocabulary", "300",
        "--epochs", "1", *SMALL,
    ]  # fmt: skip
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, stdin=theirs, env=environment)
    os.close(theirs)
    written = b""
    while part := _read(ours):
        written += part
    os.close(ours)
    assert process.wait() == 0
    lines = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "\r", written.decode()).split("\n")
    shown = [line.rstrip("\r").rpartition("\r")[2] for line in lines]
    evaluations = [line for line in shown if "val ppl" in line and "best:" not in line]
    assert len(evaluations) == 10
    assert all(line.startswith("epoch ") and "━" not in line for line in evaluations)
    assert "━" in written.decode()


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux's way to say that the other end is closed
        return b""


# ---------------------------------------------------------------------------------------------- patience


def prepared(text: Path, folder: Path) -> LongRun:
    request = PresetRequest(
        preset="nano", corpus=str(text), tokenizer=TokenizerChoice(vocabulary=300), epochs=10, values=VALUES
    )
    return prepare_preset_run(Home(folder), request)


def trains_with(losses: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    """A training whose validation losses are these, from where its checkpoint ends."""

    def train(config, corpus, *, save_to, resume_from, on_evaluation, **options) -> TrainingResult:
        history: list[Evaluation] = [] if resume_from is None else written(resume_from)
        for milestone in range(len(history) + 1, len(losses) + 1):
            loss = losses[milestone - 1]
            history.append(make_evaluation(milestone, val_loss=loss, val_ppl=math.exp(loss), epoch=float(milestone)))
            save_to.parent.mkdir(parents=True, exist_ok=True)
            draft = save_to.with_suffix(".draft")
            draft.write_text(json.dumps([each.val_loss for each in history]), encoding="utf-8")
            draft.replace(save_to)
            if on_evaluation(history[-1]) is Decision.STOP:
                return TrainingResult(outcome="stopped", reason="no more progress", history=tuple(history))
        return TrainingResult(outcome="complete", reason="all", history=tuple(history))

    def written(path: Path) -> list[Evaluation]:
        losses = json.loads(path.read_text(encoding="utf-8"))
        return [
            make_evaluation(n, val_loss=loss, val_ppl=math.exp(loss), epoch=float(n))
            for n, loss in enumerate(losses, 1)
        ]

    monkeypatch.setattr(hpo.long_run.run, "train", train)
    monkeypatch.setattr(hpo.long_run.run, "load_history", lambda path: tuple(written(path)))


def test_a_run_stops_when_its_patience_ends_and_goes_on_with_more(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = [5.0, 4.0, 4.1, 4.2, 4.3, 3.9, 3.8, 4.0, 4.0, 4.0]
    trains_with(losses, monkeypatch)
    run = prepared(text, tmp_path)

    def ended(patience: int | None) -> tuple[str, int, list[float]]:
        result = run_long(run, RuntimeOptions(patience=patience))
        best = json.loads(run.best_checkpoint.read_text(encoding="utf-8"))
        return result.outcome, len(result.history), best

    assert ended(2) == ("stopped", 4, losses[:2])
    assert ended(2) == ("stopped", 4, losses[:2])  # nothing more is trained
    assert ended(3) == ("stopped", 5, losses[:2])
    assert ended(None) == ("complete", 10, losses[:7])


def test_the_best_checkpoint_is_kept_although_the_process_died_before_it_was_named(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains_with([5.0, 4.0, 3.0], monkeypatch)
    run = prepared(text, tmp_path)
    run_long(run, RuntimeOptions())
    run.best_checkpoint.unlink()
    run_long(run, RuntimeOptions())
    assert json.loads(run.best_checkpoint.read_text(encoding="utf-8")) == [5.0, 4.0, 3.0]


def test_a_file_system_without_links_gets_a_copy(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_links(source: Path, target: Path) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(hpo.files.os, "link", no_links)
    trains_with([5.0, 6.0], monkeypatch)
    run = prepared(text, tmp_path)
    run_long(run, RuntimeOptions())
    assert json.loads(run.best_checkpoint.read_text(encoding="utf-8")) == [5.0]


def test_a_run_is_trained_by_one_process_at_a_time(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trains_with([5.0, 4.0], monkeypatch)
    run = prepared(text, tmp_path)
    said: list[str] = []

    def second(template: str, *facts: object) -> None:
        with pytest.raises(UsageError, match="another process trains this run"):
            run_long(run, RuntimeOptions())
        said.append(template)

    monkeypatch.setattr(hpo.long_run.run.logger, "info", second)
    run_long(run, RuntimeOptions())
    assert len(said) == 4  # two evaluations, two projections


def test_a_best_checkpoint_that_cannot_be_written_is_one_line(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trains_with([5.0], monkeypatch)
    run = prepared(text, tmp_path)
    run.best_checkpoint.mkdir(parents=True)
    with pytest.raises(CheckpointError, match=r"-best\.pt: checkpoint cannot be written"):
        run_long(run, RuntimeOptions())
    assert not list(run.checkpoint.parent.glob(".*.pt.*"))


def test_a_damaged_checkpoint_names_the_best_one(text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = prepared(text, tmp_path)
    with monkeypatch.context() as patched:
        trains_with([5.0, 4.0], patched)
        run_long(run, RuntimeOptions())
    run.checkpoint.write_bytes(b"torn")
    with pytest.raises(CheckpointError, match=r"starts over, and goes on from its best with .*-best"):
        run_long(run, RuntimeOptions())


# ---------------------------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("--from STUDY", "--preset NAME")),
        (("--from", "x", "--preset", "nano"), ("--from STUDY", "--preset NAME")),
        (("--preset", "huge"), ("huge", "small_iit")),
        (("--preset", "nano", "--epochs", "0"), ("--epochs", "at least 1")),
        (("--preset", "nano", "--patience", "0"), ("--patience", "at least 1")),
        (("--preset", "nano", "--micro-batch", "0"), ("--micro-batch", "at least 1")),
        (("--preset", "nano", "--trial", "3"), ("--trial", "--from")),
        (("--preset", "nano", "--corpus", "a", "--data", "b"), ("--corpus", "--data")),
        (("--preset", "nano", "--lr", "-1"), ("learning_rate", "-1")),
        (("--preset", "nano", "--set", "width"), ("NAME=VALUE", "width")),
        (("--preset", "nano", "--set", "colour=3"), ("colour",)),
        (("--preset", "nano", "--set", "width=wide"), ("width", "int", "wide")),
        (("--preset", "nano", "--set", "budget_tokens=5"), ("budget_tokens", "--epochs")),
        (("--preset", "nano", "--set", "tie_embeddings=1"), ("tie_embeddings", "bool")),
        (("--preset", "nano", "--corpus", "/no/such/place"), ("/no/such/place",)),
        (("--preset", "nano", "--storage", "sqlite:///x.db"), ("--storage", "--from")),
        (("--preset", "nano", "--set", "network=nowhere:Net"), ("nowhere",)),
        (("--from", "x", "--corpus", "wikitext-2"), ("--corpus", "--preset")),
        (("--from", "x", "--trial", "first"), ("--trial", "first")),
    ],
)
def test_what_cannot_be_trained_is_one_line(
    arguments: tuple[str, ...], words: tuple[str, ...], hpo: Hpo, home: Path
) -> None:
    refused(hpo("train", *arguments), *words)
    assert not (home / "trained").exists()


def test_event_files_without_tensorboard_are_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hpo.long_run.tensorboard import EventFiles

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(UsageError, match=r"\A--tensorboard needs TensorBoard: pip install"):
        EventFiles(tmp_path)
