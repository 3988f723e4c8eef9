"""Predicted memory against what the allocator counts, and runs that do not get as much."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from hpo_model.config import PRESETS, Architecture, RunConfig, Scalar, build_run
from hpo_model.data.tokens import Span, TokenizedCorpus
from hpo_model.network.causality import check_causality
from hpo_model.network.transformer import Transformer
from hpo_model.training.evaluation import TrainingStats, evaluate
from hpo_model.training.loop import train, update
from hpo_model.training.memory_estimate import TOKEN, MemoryEstimate, parameter_count, peak_tensor_bytes
from hpo_model.training.run import Run
from tests.support.paths import REPOSITORY, SUPPORT

MIB = 2**20


class Noise:
    """Text over a vocabulary of any size, as far as training looks at it."""

    def __init__(self, vocabulary: int, tokens: int = 10_000) -> None:
        self.tokenizer = SimpleNamespace(vocabulary=vocabulary)
        self.ids = np.random.default_rng(0).integers(0, vocabulary, tokens + 1).astype(np.uint16)

    def tokens(self, _: str) -> int:
        return len(self.ids) - 1

    def span(self, _: str) -> Span:
        return Span(self.ids, words=1, bytes=1)

    def sample(self, _: str, tokens: int) -> Span:
        return Span(self.ids[: tokens + 1], words=1, bytes=1)


def counted_peak(config: RunConfig, text: Noise, micro_batch: int | None) -> int:
    """The most bytes that PyTorch's allocator had given out, from the making of a run to an evaluation."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run = Run(config, text, micro_batch=micro_batch)
        check_causality(run.network)
        run.network.train()
        for _ in range(2):  # the optimizer has moments after the first
            update(run, torch.zeros(2))
        evaluate(run, 1, TrainingStats(train_phi=0.0, delta_phi_loss=0.0, gradient_norm=0.0, tokens_per_s=0.0))
    return most_bytes(seen) + run.batches.stream_N.nbytes  # the text is NumPy's


def most_bytes(seen: profile) -> int:
    """That the allocator had given out at once."""
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    sizes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(np.cumsum(sizes).max())


def assert_predicted(values: dict[str, Scalar], vocabulary: int, micro_batch: int | None = None) -> None:
    config, text = build_run({"evaluation_tokens": 4096, **values}), Noise(vocabulary)
    counted = counted_peak(config, text, micro_batch)
    predicted = peak_tensor_bytes(config, vocabulary, len(text.ids) - 1, micro_batch=micro_batch)
    assert predicted / counted == pytest.approx(1, abs=0.05), f"{predicted / MIB:.1f} of {counted / MIB:.1f} MiB"


# What is the largest moment differs: evaluation, loss, Φ, the last block.
CASES: dict[str, tuple[dict[str, Scalar], int]] = {
    "evaluation": ({"batch_size": 2}, 300),
    "loss": ({"batch_size": 16}, 2048),
    "control arm": ({"batch_size": 16, "iit": False}, 1024),
    "many probes": ({"batch_size": 16, "phi_probes": 128}, 300),
    "bounded, no memory": ({"batch_size": 16, "phi_objective": "bounded", "memory_slots": 0}, 300),
    "many slots": ({"batch_size": 16, "memory_slots": 512, "memory_gate": "static"}, 300),
    "convolution": ({"batch_size": 16, "blocks": "convolution+attention", "layers": 3}, 300),
    "one layer": ({"batch_size": 16, "layers": 1, "width": 64, "heads": 1}, 300),
    "untied": ({"batch_size": 8, "tie_embeddings": False}, 4096),
    "bigrams": ({"batch_size": 8, "bigram_buckets": 4096}, 2048),
    "earlier positions": ({"batch_size": 16, "attention_taps": 3}, 300),
    "Muon": ({"batch_size": 1, "optimizer": "muon", "layers": 8}, 300),
    "long sequences": ({"batch_size": 4, "sequence_length": 512}, 300),
}


@pytest.mark.parametrize("name", CASES)
def test_the_predicted_peak_is_what_the_allocator_counts(name: str) -> None:
    assert_predicted({"preset": "nano", **CASES[name][0]}, CASES[name][1])


@pytest.mark.parametrize("micro_batch", [1, 4])
def test_pieces_of_a_batch_are_predicted_as_well(micro_batch: int) -> None:
    assert_predicted({"preset": "nano", "batch_size": 8}, 2048, micro_batch)


def test_a_peak_at_the_embedding_is_predicted() -> None:
    assert_predicted({"preset": "nano", "batch_size": 1, "sequence_length": 8, "evaluation_tokens": 16}, 8192, 1)


@pytest.mark.parametrize("micro_batch", [None, 1])
def test_a_batch_of_one_sequence_may_have_plenty_of_memory_or_not(micro_batch: int | None) -> None:
    assert_predicted({"preset": "nano", "batch_size": 1}, 300, micro_batch)


@pytest.mark.parametrize(
    ("values", "vocabulary"),
    [
        ({}, 2048),
        ({"iit": False}, 300),
        ({"blocks": "convolution+attention", "layers": 4}, 300),
        ({"layers": 1, "width": 64, "heads": 1}, 300),
        ({"width": 16, "heads": 1}, 20_000),  # the drawn matrix is larger than what two sequences take
    ],
)
def test_the_causality_check_is_predicted(values: dict[str, Scalar], vocabulary: int) -> None:
    architecture = build_run({"preset": "nano", **values}).architecture
    network = Transformer(architecture, vocabulary)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        check_causality(network)
    predicted = estimate_of(architecture, vocabulary).in_check()
    assert predicted / most_bytes(seen) == pytest.approx(1, abs=0.05)


def estimate_of(architecture: Architecture, vocabulary: int, device_type: str = "cpu") -> MemoryEstimate:
    """Of one sequence."""
    return MemoryEstimate(
        architecture=architecture,
        objective="v5.2",
        vocabulary=vocabulary,
        device_type=device_type,
        tokens=architecture.sequence_length,
    )


@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(preset, marks=[] if preset in ("tiny_iit", "small_iit") else pytest.mark.nightly)
        for preset in sorted(PRESETS.keys() - {"nano"})
    ],
)
def test_presets_are_predicted(preset: str) -> None:
    assert_predicted({"preset": preset, "batch_size": 4}, 2048)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("iit", [True, False])
@pytest.mark.parametrize("blocks", ["attention", "attention+convolution"])
def test_parameters_are_counted(preset: str, iit: bool, blocks: str) -> None:
    config = build_run({"preset": preset, "iit": iit, "blocks": blocks, "tie_embeddings": iit})
    with torch.device("meta"):
        network = Transformer(config.architecture, 500)
    assert parameter_count(config.architecture, 500) == sum(each.numel() for each in network.parameters())


def test_text_and_pieces_enter_as_they_should() -> None:
    config = build_run({"preset": "tiny_iit"})
    peaks = [peak_tensor_bytes(config, 8192, 1000, micro_batch=rows) for rows in (None, 8, 4, 2, 1)]
    assert peaks == sorted(peaks, reverse=True)
    assert peak_tensor_bytes(config, 8192, 3000) == peaks[0] + TOKEN * 2000
    assert peak_tensor_bytes(config, 8192, 1000, device_type="cuda") > 0  # nobody has measured it


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("iit", [True, False])
@pytest.mark.parametrize("vocabulary", [300, 50_257])
@pytest.mark.parametrize("device_type", ["cpu", "cuda"])
def test_neither_an_evaluation_of_one_sequence_nor_the_check_needs_more_than_an_update_of_one(
    preset: str, iit: bool, vocabulary: int, device_type: str
) -> None:
    """Or a run would be out of memory before it has tried the smallest piece of its batch."""
    estimate = estimate_of(build_run({"preset": preset, "iit": iit}).architecture, vocabulary, device_type)
    moments = 2 * estimate.weights  # which the check does not find yet
    assert estimate.in_evaluation(rows=1) < estimate.in_update()
    assert estimate.in_check() < estimate.in_update() + moments


# ---------------------------------------------------------------------------------------------- short of memory

# No dropout, noise or memory, whose random numbers and writes depend on the pieces.
RUN: dict[str, Scalar] = {
    "preset": "nano", "batch_size": 32, "dropout": 0.0, "noise": 0.0, "memory_slots": 0,
    "budget_tokens": 2 * 32 * 128, "evaluations": 2, "evaluation_tokens": 1024,
}  # fmt: skip


# Whose single sequence wants 56 MiB: several times what the warm-up leaves free inside the process by chance.
LONG: dict[str, Scalar] = {
    **RUN, "sequence_length": 2048, "batch_size": 2, "budget_tokens": 4 * 2 * 2048, "evaluation_tokens": 4096,
}  # fmt: skip


def run_within(spare: float, corpus: TokenizedCorpus, folder: Path, run: dict[str, Scalar]) -> dict[str, Any]:
    script = SUPPORT / "short_of_memory.py"
    arguments = [str(corpus.folder), str(folder / "checkpoint.pt"), json.dumps(run), str(int(spare / MIB))]
    # One arena: each further one is 64 MiB of address space that the limit has counted before anything is in it.
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "MALLOC_ARENA_MAX": "1"}
    command = [sys.executable, str(script), *arguments]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(sys.platform != "linux", reason="the limit is set relative to /proc/self/statm")
class TestARealLimit:
    def test_a_batch_of_which_half_fits_is_read_in_pieces(self, small_corpus: TokenizedCorpus, tmp_path: Path) -> None:
        config = build_run(RUN)
        whole, half = (
            peak_tensor_bytes(config, small_corpus.tokenizer.vocabulary, small_corpus.tokens("train"), micro_batch=rows)
            for rows in (32, 16)
        )
        within = run_within((whole + half) / 2, small_corpus, tmp_path, RUN)
        assert (within["outcome"], within["micro_batch"]) == ("complete", 16)
        unlimited = [evaluation.val_loss for evaluation in train(config, small_corpus).history]
        assert within["losses"] == pytest.approx(unlimited, rel=1e-4)

    def test_a_limit_that_one_sequence_breaks_is_an_outcome(
        self, small_corpus: TokenizedCorpus, tmp_path: Path
    ) -> None:
        within = run_within(8 * MIB, small_corpus, tmp_path, LONG)
        assert (within["outcome"], within["losses"]) == ("out_of_memory", [])
        assert within["reason"] == "one sequence at a time does not fit"
