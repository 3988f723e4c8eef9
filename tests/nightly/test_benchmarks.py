"""The benchmarks of training run, on as little as possible, and write down what they promise to measure."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hpo_model.training.step import forward_with_phi
from tests.support.paths import REPOSITORY

BENCHMARKS = REPOSITORY / "benchmarks"
PEER = """
from dataclasses import dataclass
import torch
from torch import nn
from torch.nn import functional as F

@dataclass
class GPTConfig:
    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    dropout: float
    bias: bool

class GPT(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.table = nn.Embedding(config.vocab_size, config.n_embd)
        print("number of parameters: few")

    def forward(self, inputs, targets):
        logits = self.table(inputs) @ self.table.weight.T
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.view(-1), ignore_index=-1)

    def configure_optimizers(self, weight_decay, learning_rate, betas, device_type):
        return torch.optim.AdamW(self.parameters(), lr=learning_rate, betas=betas, weight_decay=weight_decay)
"""

FEWER = {
    "training": {"WARM_UP": 1, "BROKEN_DOWN": 1},
    "checks": {"TRIALS": 2, "UPDATES_OF_A_TRIAL": 1, "MEASUREMENTS": 2},
}

Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a benchmark's command with `--preset nano`; what it has kept."""
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)  # in the process of other tests

    def run_it(benchmark: str, *arguments: str) -> dict[str, Any]:
        folder = tmp_path / "results"
        for module, constants in FEWER.items():
            for name, value in constants.items():
                monkeypatch.setattr(importlib.import_module(module), name, value)
        importlib.import_module(benchmark).main(["--preset", "nano", "--results", str(folder), *arguments])
        (path,) = folder.iterdir()
        kept: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        assert kept["versions"]["torch"] == torch.__version__
        assert kept["hardware"]
        return kept

    return run_it


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """A folder with a little text."""
    folder = tmp_path / "text"
    folder.mkdir()
    for split, lines in (("train", 400), ("valid", 60)):
        products = (f"{number} times {number} is {number * number}\n" for number in range(lines))
        (folder / f"{split}.txt").write_text("".join(products), encoding="utf-8")
    return folder


def test_training_times_all_arms_in_turns(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "model.py").write_text(PEER, encoding="utf-8")
    kept = run("training", "--updates", "2", "--matrix", "64", "--threads", "1", "--peer", str(tmp_path))
    figures = kept["presets"]["nano"]
    plain = {"plain", "plain, our allocator", "plain, our allocator, our dropout"}
    assert set(figures["arms"]) == {"ours", "control", "nanoGPT", *plain}
    assert set(figures["ours_is_times_as_fast_as"]) == {"control", "nanoGPT", *plain}
    for arm in figures["arms"].values():
        assert arm["tokens_per_s"] == pytest.approx(8 * 128 / arm["ms"] * 1000, rel=0.01)
        assert 0 < arm["share_causal_half"] < arm["share_of_matrix_products"]
    *kinds, _ = figures["ours_by_kind_ms"].values()
    assert min(kinds) > 0
    assert "Φ, memory and noise add" in capsys.readouterr().out


def test_runs_with_one_seed_are_compared_update_by_update(run: Run) -> None:
    (found,) = run("training", "--bitwise", "--updates", "3", "--threads", "1")["presets"]["nano"]
    assert (found["equal_losses"], found["first_unequal"], found["equal_weights"]) == (3, None, True)


def test_compilations_and_waits_are_counted(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    # compiling takes a quarter of a minute
    monkeypatch.setattr("hpo_model.training.loop.compiled_forward_with_phi", lambda *, replayed: forward_with_phi)
    found = run("training", "--graphs")["presets"]["nano"]
    assert found["compilations"]["graphs_of_the_others"] == 0
    assert len(found["compilations"]["seconds_to_first_update"]) == 2
    assert [each["synchronisations"] for each in found["waits"]] == [None, None]


def test_attention_diversity_is_compared_along_a_training(run: Run, text: Path) -> None:
    found = run("training", "--diversity", "--data", str(text), "--updates", "4")["presets"]["nano"]
    assert [each["updates"] for each in found] == [0, 2, 4]
    assert all(0 <= each["mean_error"] <= each["largest_error"] < 0.05 for each in found)


def test_a_warm_worker_starts_sooner_than_a_process(run: Run, text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trial_start = importlib.import_module("trial_start")
    monkeypatch.setattr(trial_start, "STUDY", trial_start.STUDY.replace("python-docs", str(text)))
    figures = run("trial_start", "--trials", "1")["presets"]["nano"]
    assert 0 < figures["warm_s"] < figures["warm_from_end_of_training_s"] < figures["process_per_trial_s"]


def test_an_aa_test_declares_few_differences_and_goes_on_with_its_real_runs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    monkeypatch.setattr(torch, "set_num_threads", lambda threads: None)
    aa = importlib.import_module("aa")
    found = aa.simulate(200, 0.0, 1, 6, shared=0.5)
    assert found.different <= 0.05 * found.studies
    assert aa.simulate(50, 0.5, 1, 6, shared=0.5).best_found == 50, "a perplexity 40 % lower is always found"
    monkeypatch.setitem(aa.REAL_RUN, "budget_tokens", 1024)
    first = aa.train_real(tmp_path, 1, 1, 2)
    more = aa.train_real(tmp_path, 2, 1, 2)
    assert (more[0] == first[0]).all()
    assert len(set(more.flatten())) == 8, "each run has a seed of its own"
    found, deviation = aa.judge_real(more)
    assert found.different == 0, "two seeds allow no verdict"
    assert deviation > 0


def test_a_part_that_fails_or_runs_out_of_time_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    run_part = importlib.import_module("gpu").run
    until = time.monotonic() + 1
    assert run_part("broken", [sys.executable, "-c", "exit(3)"], until + 60).startswith("FAILED with exit code 3")
    assert run_part("endless", [sys.executable, "-c", "while True: pass"], until) == "FAILED: no time is left"


def test_what_a_gpu_runs_imports_only_what_trains() -> None:
    code = "import sys, training, gpu; print(*{name.partition('.')[0] for name in sys.modules})"
    path = f"{BENCHMARKS}:{BENCHMARKS.parent}"
    printed = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": path}, capture_output=True, text=True, check=True
    ).stdout
    assert not {"hpo", "optuna", "sqlalchemy", "tokenizers", "datasets", "pandas"} & set(printed.split())


def test_what_each_token_teaches_is_measured_by_arm_and_gone_on_with(
    run: Run, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.py").write_text(PEER, encoding="utf-8")
    runs = tmp_path / "runs.jsonl"
    command = ["--data", str(text), "--tokens", "9000", "--seeds", "2", "--runs", str(runs), "--peer", str(tmp_path)]
    arms = ["before", "optimizer=muon,bigram_buckets=50", "nanogpt"]
    figures = run("loss_per_token", *command, *(part for arm in arms for part in ("--arm", arm)))
    assert {each["arm"]: each["seeds"] for each in figures["arms"]} == dict.fromkeys(arms, 2)
    assert all(math.isfinite(loss) for each in figures["arms"] for loss in each["losses"])
    assert len({each["loss"] for each in figures["arms"]}) == 3
    lines = runs.read_text(encoding="utf-8").splitlines()
    assert len(lines) == 6
    runs.write_text("\n".join(lines[:-1]) + "\n", encoding="utf-8")
    capsys.readouterr()
    again = run("loss_per_token", *command, *(part for arm in arms for part in ("--arm", arm)))
    assert capsys.readouterr().out.count(" tokens, seed ") == 1
    assert [each["losses"] for each in again["arms"]] == [each["losses"] for each in figures["arms"]]


def test_generation_is_timed_with_and_without_the_past(run: Run) -> None:
    kept = run("generation", "--tokens", "24", "--rounds", "1")
    assert set(kept["presets"]["nano"]) == {
        "attention, 1 side by side",
        "attention, 16 side by side",
        "convolution+attention, 1 side by side",
    }
    for figures in kept["presets"]["nano"].values():
        ratio = figures["with_past_tokens_per_s"] / figures["without_tokens_per_s"]
        assert figures["times_as_fast"] == pytest.approx(ratio, rel=0.02)


def test_reports_are_timed_beside_optunas_own_loading(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(BENCHMARKS)
    report = importlib.import_module("report")
    report.main(["--trials", "40", "--rounds", "1", "--results", str(tmp_path / "results")])
    (path,) = (tmp_path / "results").iterdir()
    ways = json.loads(path.read_text(encoding="utf-8"))["ways"]
    assert list(ways) == ["optuna", *report.FORMS]
    assert ways["optuna"]["ratio"] == 1
    assert all(each["seconds"] > 0 and each["peak_mib"] > 10 for each in ways.values())
