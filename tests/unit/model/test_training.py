"""The training loop: exact resume, budget and milestones, the arms, and how runs end."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

import hpo_model.network.custom
import hpo_model.training.evaluation
import hpo_model.training.loop
from hpo_model.config import RunConfig, Scalar, TokenizerChoice, build_run
from hpo_model.data.corpus import Corpus, load_corpus
from hpo_model.data.tokens import Span, TokenizedCorpus, tokenize_corpus
from hpo_model.errors import CausalityError, CheckpointError, CorpusError, OtherDeviceError
from hpo_model.network.transformer import ForwardOutput, Transformer
from hpo_model.training.checkpoint import load_checkpoint, load_history, save_checkpoint
from hpo_model.training.evaluation import PLAUSIBLE_WORD_PERPLEXITY, Scores
from hpo_model.training.history import Evaluation
from hpo_model.training.loop import Decision, train
from hpo_model.training.schedules import plateaus
from tests.support.paths import REPOSITORY

if TYPE_CHECKING:
    from conftest import Trained

TINY: dict[str, Scalar] = {
    "width": 16, "layers": 2, "heads": 2, "sequence_length": 32, "memory_slots": 8, "phi_probes": 8,
    "batch_size": 4, "budget_tokens": 16 * 128, "evaluations": 4, "evaluation_tokens": 256, "learning_rate": 5e-3,
}  # fmt: skip
MEASURED_BY_THE_CLOCK = {"tokens_per_s": 0.0, "seconds": 0.0, "peak_memory_bytes": 0}


def tiny(**values: Scalar) -> RunConfig:
    return build_run({**TINY, **values})


def exact(history: tuple[Evaluation, ...]) -> list[Evaluation]:
    """A history without what no two runs share."""
    return [dataclasses.replace(evaluation, **MEASURED_BY_THE_CLOCK) for evaluation in history]


def assert_bit_identical(left: Any, right: Any, where: str = "") -> None:
    """Equal checkpoints, tensors bit for bit, but for the clock."""
    assert type(left) is type(right), where
    if isinstance(left, Tensor):
        assert torch.equal(left, right), where
    elif isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for key in left.keys() - {*MEASURED_BY_THE_CLOCK}:
            assert_bit_identical(left[key], right[key], f"{where}/{key}")
    elif isinstance(left, list | tuple):
        assert len(left) == len(right), where
        for place, (one, other) in enumerate(zip(left, right, strict=True)):
            assert_bit_identical(one, other, f"{where}/{place}")
    else:
        assert left == right, where


# ---------------------------------------------------------------------------------------------- exact resume

EVERYTHING: dict[str, Scalar] = {"dropout": 0.2, "noise": 0.05, "lambda_schedule": "adaptive", "phi_floor": 0.9}
RUNS: dict[str, dict[str, Scalar]] = {
    "plain": {"dropout": 0.0, "noise": 0.0, "memory_slots": 0},
    "dropout": {"dropout": 0.3, "noise": 0.0, "memory_slots": 0},
    "noise": {"dropout": 0.0, "noise": 0.1, "memory_slots": 0},
    "memory": {"dropout": 0.0, "noise": 0.0, "memory_gate": "static"},
    "everything": EVERYTHING,
    "bounded objective": {**EVERYTHING, "phi_objective": "bounded"},
    "falling lambda": {"lambda_schedule": "cosine"},
    "hybrid": {**EVERYTHING, "blocks": "convolution+attention", "tie_embeddings": False},
    "control arm": {"iit": False, "dropout": 0.2},
    "Muon, bigrams": {**EVERYTHING, "optimizer": "muon", "attention_taps": 3, "bigram_buckets": 97},
    "uneven milestones": {"evaluations": 3, "budget_tokens": 1700, "batch_size": 3},
}


def disturb() -> None:
    """What else a process may do with its random numbers."""
    torch.manual_seed(99)
    torch.rand(7)
    random.seed(5)
    np.random.seed(5)


def interrupted_at(milestones: set[int]) -> Callable[[Evaluation], Decision]:
    return lambda evaluation: Decision.INTERRUPT if evaluation.milestone in milestones else Decision.CONTINUE


@pytest.mark.parametrize("name", RUNS)
def test_a_run_interrupted_at_every_milestone_ends_bit_identical(
    name: str, small_corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    config = tiny(**RUNS[name])
    whole_file, parts_file = tmp_path / "whole.pt", tmp_path / "parts.pt"
    whole = train(config, small_corpus, save_to=whole_file)
    assert whole.outcome == "complete"

    last = config.training.evaluations
    resume_from = None
    for milestone in range(1, last):
        part = train(
            config,
            small_corpus,
            save_to=parts_file,
            resume_from=resume_from,
            on_evaluation=interrupted_at({milestone}),
        )
        assert (part.outcome, len(part.history)) == ("interrupted", milestone)
        disturb()
        resume_from = parts_file
    ended = train(config, small_corpus, save_to=parts_file, resume_from=parts_file)

    assert ended.outcome == "complete"
    assert exact(ended.history) == exact(whole.history)
    assert_bit_identical(load_checkpoint(parts_file), load_checkpoint(whole_file))


@pytest.fixture(scope="module")
def undisturbed(small_corpus: TokenizedCorpus, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a run with everything on that nothing interrupted."""
    path = tmp_path_factory.mktemp("undisturbed") / "checkpoint.pt"
    train(tiny(**EVERYTHING), small_corpus, save_to=path)
    return path


@pytest.mark.parametrize("milestone", [1, 2, 3])
def test_a_run_interrupted_once_announces_the_rest_and_ends_bit_identical(
    milestone: int, small_corpus: TokenizedCorpus, undisturbed: Path, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    train(tiny(**EVERYTHING), small_corpus, save_to=path, on_evaluation=interrupted_at({milestone}))
    disturb()
    announced: list[int] = []

    def listen(evaluation: Evaluation) -> Decision:
        announced.append(evaluation.milestone)
        return Decision.CONTINUE

    train(tiny(**EVERYTHING), small_corpus, save_to=path, resume_from=path, on_evaluation=listen)
    assert announced == list(range(milestone + 1, 5))
    assert_bit_identical(load_checkpoint(path), load_checkpoint(undisturbed))


class KilledError(BaseException):
    """Stands for SIGKILL: nothing in the loop may catch it."""


FORWARD_PASSES = 2 + 16 + 4 * 2  # of the guard, of 16 updates, of 4 evaluations on two spans


@settings(max_examples=12)
@given(fatal_pass=st.integers(1, FORWARD_PASSES))
@example(fatal_pass=1)
@example(fatal_pass=FORWARD_PASSES)
def test_a_run_killed_anywhere_ends_bit_identical(
    fatal_pass: int, small_corpus: TokenizedCorpus, undisturbed: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("killed") / "checkpoint.pt"
    real, passes = Transformer.forward, 0

    def mortal(network: Transformer, tokens_BT: Tensor) -> ForwardOutput:
        nonlocal passes
        passes += 1
        if passes == fatal_pass:
            raise KilledError
        return real(network, tokens_BT)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Transformer, "forward", mortal)
        with pytest.raises(KilledError):
            train(tiny(**EVERYTHING), small_corpus, save_to=path)
    disturb()
    train(tiny(**EVERYTHING), small_corpus, save_to=path, resume_from=path if path.is_file() else None)
    assert_bit_identical(load_checkpoint(path), load_checkpoint(undisturbed))


SUICIDAL_RUN = """
import json, os, pathlib, signal, sys, threading
import torch
from hpo_model.config import build_run
from hpo_model.data.tokens import open_tokens
from hpo_model.training.loop import Decision, train

torch.set_num_threads(1)
tokens, path, parameters = pathlib.Path(sys.argv[1]), pathlib.Path(sys.argv[2]), json.loads(sys.argv[3])

def observe(evaluation):
    if evaluation.milestone == 2:  # in the middle of what follows
        threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
    return Decision.CONTINUE

train(build_run(parameters), open_tokens(tokens), save_to=path, on_evaluation=observe)
"""


def test_a_killed_process_is_continued_exactly_by_another(small_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    config = tiny(**EVERYTHING, budget_tokens=100 * 128, evaluations=5)
    path = tmp_path / "checkpoint.pt"
    dead = subprocess.run(
        [sys.executable, "-c", SUICIDAL_RUN, small_corpus.folder, path, json.dumps(config.parameters())],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
    )
    assert dead.returncode == -signal.SIGKILL, dead.stderr
    assert 2 <= len(load_history(path)) < 5
    ended = train(config, small_corpus, save_to=path, resume_from=path)
    whole = train(config, small_corpus, save_to=tmp_path / "whole.pt")
    assert exact(ended.history) == exact(whole.history)
    assert_bit_identical(load_checkpoint(path), load_checkpoint(tmp_path / "whole.pt"))


def test_a_run_does_not_depend_on_what_its_observer_draws(small_corpus: TokenizedCorpus) -> None:
    def drawing(evaluation: Evaluation) -> Decision:
        torch.rand(1)
        return Decision.CONTINUE

    quiet, disturbed = (train(tiny(**EVERYTHING), small_corpus, **kw) for kw in ({}, {"on_evaluation": drawing}))
    assert exact(disturbed.history) == exact(quiet.history)


def test_a_run_does_not_depend_on_how_often_it_is_evaluated(small_corpus: TokenizedCorpus) -> None:
    often, once = (train(tiny(**EVERYTHING, evaluations=evaluations), small_corpus) for evaluations in (4, 1))
    assert often.history[-1].val_loss == once.history[-1].val_loss
    assert often.history[-1].threshold == once.history[-1].threshold


def test_a_finished_run_is_continued_to_the_same_end(small_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    first = train(tiny(), small_corpus, save_to=path)
    again = train(tiny(), small_corpus, resume_from=path, on_evaluation=lambda evaluation: pytest.fail("announced"))
    assert (again.outcome, again.history) == (first.outcome, first.history)
    assert load_history(path) == first.history


def test_time_spent_adds_up_over_the_parts_of_a_run(small_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    first = train(tiny(), small_corpus, save_to=path, on_evaluation=interrupted_at({2}))
    ended = train(tiny(), small_corpus, resume_from=path)
    seconds = [evaluation.seconds for evaluation in ended.history]
    assert seconds[:2] == [evaluation.seconds for evaluation in first.history]
    assert 0 < seconds[0] < seconds[1] < seconds[2] < seconds[3]


def test_a_continued_run_has_the_threads_of_its_checkpoint_and_the_process_its_own_again(
    small_corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    path, before = tmp_path / "checkpoint.pt", torch.get_num_threads()
    train(tiny(), small_corpus, save_to=path, on_evaluation=interrupted_at({1}))
    save_checkpoint(path, {**load_checkpoint(path), "threads": before + 1})
    seen: set[int] = set()
    result = train(
        tiny(), small_corpus, save_to=path, resume_from=path, on_update=lambda step: seen.add(torch.get_num_threads())
    )
    assert result.outcome == "complete"
    assert seen == {before + 1}
    assert load_checkpoint(path)["threads"] == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("threads", [0, -1, "many", None])
def test_a_checkpoint_of_no_number_of_threads_is_refused(
    threads: object, small_corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    train(tiny(), small_corpus, save_to=path, on_evaluation=interrupted_at({1}))
    save_checkpoint(path, {**load_checkpoint(path), "threads": threads})
    with pytest.raises(CheckpointError, match="does not fit this program"):
        train(tiny(), small_corpus, resume_from=path)


def test_a_resume_from_another_run_or_corpus_is_refused(small_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    train(tiny(), small_corpus, save_to=path, on_evaluation=interrupted_at({1}))
    with pytest.raises(
        CheckpointError, match="written by a run with another configuration; it cannot be continued here"
    ):
        train(tiny(lambda_phi=0.051), small_corpus, resume_from=path)
    with pytest.raises(CheckpointError, match="written by a run with another configuration"):
        train(tiny(seed=2), small_corpus, resume_from=path)

    same_tokens = dataclasses.replace(small_corpus, corpus_digest="0" * 16)
    with pytest.raises(CheckpointError, match="written by a run with another corpus"):
        train(tiny(), same_tokens, resume_from=path)
    with pytest.raises(CheckpointError, match="not a readable checkpoint"):
        train(tiny(), small_corpus, resume_from=tmp_path / "absent.pt")


def test_a_resume_on_another_kind_of_device_is_refused(small_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    train(tiny(), small_corpus, save_to=path, on_evaluation=interrupted_at({1}))
    content = load_checkpoint(path)
    save_checkpoint(path, {**content, "identity": {**content["identity"], "device": "cuda"}})
    with pytest.raises(OtherDeviceError, match="written on cuda, which cpu cannot continue exactly; go on there, or"):
        train(tiny(), small_corpus, resume_from=path)
    assert len(load_history(path)) == len(load_history(path, "cuda:1")) == 1


def test_a_resume_with_another_tokenizer_is_refused(tmp_path: Path) -> None:
    text = "".join(f"line {number} of some text\n" for number in range(300))
    corpus = Corpus(name="n", source="s", origin="o", texts={"train": text, "valid": text[:2000]})
    one, other = (tokenize_corpus(corpus, TokenizerChoice(vocabulary=size), tmp_path) for size in (270, 280))
    train(tiny(), one, save_to=tmp_path / "checkpoint.pt", on_evaluation=interrupted_at({1}))
    with pytest.raises(CheckpointError, match="written by a run with another tokenizer"):
        train(tiny(), other, resume_from=tmp_path / "checkpoint.pt")


def test_a_checkpoint_that_is_not_of_a_run_is_refused(small_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "checkpoint.pt", {"weights": torch.zeros(3)})
    with pytest.raises(CheckpointError, match="checkpoint"):
        train(tiny(), small_corpus, resume_from=tmp_path / "checkpoint.pt")


# ---------------------------------------------------------------------------------------------- budget


@pytest.mark.parametrize("batch_size", [1, 2, 4, 8])
def test_evaluations_come_at_the_same_tokens_for_every_batch_size(
    batch_size: int, small_corpus: TokenizedCorpus
) -> None:
    history = train(tiny(batch_size=batch_size, budget_tokens=1024), small_corpus).history
    milestones = [256, 512, 768, 1024]
    assert [evaluation.tokens for evaluation in history] == milestones
    assert [evaluation.step for evaluation in history] == [tokens // (32 * batch_size) for tokens in milestones]
    assert [evaluation.milestone for evaluation in history] == [1, 2, 3, 4]
    assert [evaluation.whole_split for evaluation in history] == [False, False, False, True]
    train_tokens = small_corpus.tokens("train")
    assert [evaluation.epoch for evaluation in history] == [tokens / train_tokens for tokens in milestones]


def test_a_budget_that_no_update_divides_is_rounded_up(small_corpus: TokenizedCorpus) -> None:
    history = train(tiny(batch_size=3, budget_tokens=1000, evaluations=2), small_corpus).history
    assert [evaluation.tokens for evaluation in history] == [
        6 * 96,
        11 * 96,
    ]  # past 500, past 1000


def test_the_last_evaluation_reads_the_whole_validation_split(small_corpus: TokenizedCorpus) -> None:
    last = train(tiny(evaluations=1), small_corpus).history[-1]
    span = small_corpus.span("valid")
    assert span.bytes is not None
    assert last.val_bits_per_byte == pytest.approx(last.val_loss * span.tokens / span.bytes / math.log(2))
    assert last.val_word_ppl == pytest.approx(math.exp(last.val_loss * span.tokens / span.words))


def test_an_evaluation_reports_what_is_in_force(small_corpus: TokenizedCorpus) -> None:
    config = tiny(lambda_phi=0.2, lambda_schedule="linear", learning_rate=1e-3, warmup=0.0)
    history = train(config, small_corpus).history
    lambdas = [0.2 * (1 - step / 16) for step in (3, 7, 11, 15)]
    assert [evaluation.lambda_phi for evaluation in history] == pytest.approx(lambdas)
    assert history[0].learning_rate > history[1].learning_rate > history[-1].learning_rate > 1e-4
    for evaluation in history:
        assert evaluation.val_ppl == pytest.approx(math.exp(evaluation.val_loss))
        assert evaluation.train_ppl == pytest.approx(math.exp(evaluation.train_loss))
        assert evaluation.train_phi is not None
        assert 0 < evaluation.train_phi < 1
        assert evaluation.delta_phi_loss is not None
        assert evaluation.delta_phi_loss > 0
        assert evaluation.gate == pytest.approx(0.0067, abs=1e-3)
        assert evaluation.memory_used == 8
        assert evaluation.gradient_norm > 0
        assert evaluation.peak_memory_bytes > 2**20
        assert evaluation.tokens_per_s > 0


def test_the_phi_term_of_the_history_is_lambda_times_delta_phi(small_corpus: TokenizedCorpus) -> None:
    """With a flat Φ, (Φ − 3.5)² + 3Φ₀ − Φ of the mean is near the mean of it."""
    history = train(tiny(lambda_phi=0.1, learning_rate=1e-6, warmup=0.0), small_corpus).history
    for evaluation in history:
        assert evaluation.train_phi is not None
        expected = 0.1 * ((evaluation.train_phi - 3.5) ** 2 + 2 * evaluation.train_phi)
        assert evaluation.delta_phi_loss == pytest.approx(expected, rel=1e-3)


# ---------------------------------------------------------------------------------------------- the arms


def test_phi_noise_and_memory_do_not_touch_the_control_arm(small_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    quiet = tiny(iit=False, lambda_phi=0.0, noise=0.0, memory_slots=0)
    noisy = tiny(iit=False, lambda_phi=5.0, noise=0.5, memory_gate="static", phi_objective="bounded")
    plain = train(quiet, small_corpus, save_to=tmp_path / "plain.pt")
    loud = train(noisy, small_corpus, save_to=tmp_path / "loud.pt")
    assert exact(plain.history) == exact(loud.history)
    left, right = (load_checkpoint(tmp_path / name)["network"] for name in ("plain.pt", "loud.pt"))
    assert_bit_identical(left, right)
    assert torch.equal(left["phi_weight_logits"], hpo_model.network.phi.initial_weight_logits())


def test_the_control_arm_has_no_value_for_what_it_lacks(small_corpus: TokenizedCorpus) -> None:
    last = train(tiny(iit=False), small_corpus).history[-1]
    lacking = ("train_phi", "delta_phi_loss", "lambda_phi", "threshold", "gate", "memory_used")
    assert [getattr(last, name) for name in lacking] == [None] * len(lacking)
    assert 0 < last.phi < 1  # measured all the same
    without_memory = train(tiny(memory_slots=0), small_corpus).history[-1]
    assert (without_memory.threshold, without_memory.gate, without_memory.memory_used) == (None, None, None)
    assert without_memory.lambda_phi is not None


@pytest.mark.parametrize("values", [{"lambda_phi": 0.5}, {"noise": 0.5}, {"memory_slots": 0}], ids=str)
def test_phi_noise_and_memory_do_touch_the_other_arm(values: dict[str, Scalar], small_corpus: TokenizedCorpus) -> None:
    base, other = (train(tiny(**more), small_corpus).history[-1] for more in ({"noise": 0.0}, {"noise": 0.0, **values}))
    assert base.val_loss != other.val_loss


def test_the_phi_term_raises_phi(small_corpus: TokenizedCorpus) -> None:
    values: dict[str, Scalar] = {"budget_tokens": 60 * 128, "noise": 0.0, "dropout": 0.0}
    without, with_term = (train(tiny(lambda_phi=weight, **values), small_corpus).history[-1] for weight in (0.0, 3.0))
    assert with_term.phi > without.phi + 0.005


def test_the_adaptive_schedule_moves_lambda_towards_the_floor(small_corpus: TokenizedCorpus) -> None:
    values: dict[str, Scalar] = {"lambda_schedule": "adaptive", "lambda_phi": 0.05}
    high = train(tiny(phi_floor=0.99, **values), small_corpus).history
    low = train(tiny(phi_floor=0.2, **values), small_corpus).history
    assert [evaluation.lambda_phi for evaluation in high] == sorted({evaluation.lambda_phi for evaluation in high})
    assert low[-1].lambda_phi == 0.0


def test_evaluation_writes_nothing_into_the_memory(small_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    train(tiny(), small_corpus, save_to=path)
    assert float(load_checkpoint(path)["network"]["memory.writes"]) == 16  # one per update, none per evaluation


# ---------------------------------------------------------------------------------------------- outcomes


@pytest.mark.parametrize("learning_rate", [30.0, 1e30])
def test_an_absurd_learning_rate_diverges_as_an_outcome(learning_rate: float, small_corpus: TokenizedCorpus) -> None:
    config = tiny(learning_rate=learning_rate, warmup=0.0, budget_tokens=64 * 128, clip_norm=1e9)
    result = train(config, small_corpus, on_evaluation=lambda evaluation: Decision.CONTINUE)
    assert result.outcome == "diverged"
    assert result.reason.startswith("validation loss ")
    assert 1 <= len(result.history) <= 4
    loss = result.history[-1].val_loss
    assert not math.isfinite(loss) or loss > math.log(small_corpus.tokenizer.vocabulary) + 1


def test_a_diverged_evaluation_is_neither_announced_nor_saved(small_corpus: TokenizedCorpus, tmp_path: Path) -> None:
    config = tiny(learning_rate=1e30, warmup=0.0, clip_norm=1e9)
    path = tmp_path / "checkpoint.pt"
    announced: list[Evaluation] = []

    def listen(evaluation: Evaluation) -> Decision:
        announced.append(evaluation)
        return Decision.CONTINUE

    result = train(config, small_corpus, save_to=path, on_evaluation=listen)
    assert result.outcome == "diverged"
    assert announced == list(result.history[:-1])


@pytest.mark.parametrize(
    ("decision", "outcome"),
    [(Decision.PRUNE, "pruned"), (Decision.INTERRUPT, "interrupted"), (Decision.STOP, "stopped")],
)
def test_an_observer_ends_the_run_after_its_checkpoint(
    decision: Decision, outcome: str, small_corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    saved: list[int] = []

    def observe(evaluation: Evaluation) -> Decision:
        saved.append(len(load_history(path)))  # the checkpoint is there before the observer hears
        return decision if evaluation.milestone == 2 else Decision.CONTINUE

    result = train(tiny(), small_corpus, save_to=path, on_evaluation=observe)
    assert result.outcome == outcome
    assert f"{result.history[-1].tokens:,} tokens" in result.reason
    assert saved == [1, 2]
    assert result.history == load_history(path)


def test_an_interruption_at_the_end_is_a_complete_run_and_a_pruned_end_is_pruned(small_corpus: TokenizedCorpus) -> None:
    def outcome(decision: Decision) -> str:
        return train(tiny(evaluations=1), small_corpus, on_evaluation=lambda evaluation: decision).outcome

    assert outcome(Decision.INTERRUPT) == "complete"
    assert outcome(Decision.STOP) == "complete"
    assert outcome(Decision.PRUNE) == "pruned"


def test_every_update_is_told_and_a_batch_in_pieces_learns_the_same(small_corpus: TokenizedCorpus) -> None:
    config = tiny(dropout=0.0, noise=0.0, memory_slots=0)
    steps: list[int] = []
    whole = train(config, small_corpus, on_update=steps.append)
    assert steps == list(range(1, config.steps + 1))
    pieces = train(config, small_corpus, micro_batch=1)
    assert [each.val_loss for each in pieces.history] == pytest.approx(
        [each.val_loss for each in whole.history], rel=1e-4
    )


def test_the_plateau_schedule_halves_the_rate_in_a_run_and_goes_on_exactly(
    small_corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    """At a rate too high to learn from, the loss soon stops falling."""
    config = tiny(learning_rate=0.3, warmup=0.0, learning_rate_schedule="plateau", evaluations=8, budget_tokens=16_000)
    whole = train(config, small_corpus)
    rates = [evaluation.learning_rate for evaluation in whole.history]
    assert rates[0] == 0.3
    assert rates[-1] < 0.3
    losses = [evaluation.val_loss for evaluation in whole.history]
    assert rates == [0.3 * 0.5 ** plateaus(losses[:n]) for n in range(len(losses))]
    path = tmp_path / "checkpoint.pt"
    train(config, small_corpus, save_to=path, on_evaluation=interrupted_at({5}))
    again = train(config, small_corpus, save_to=path, resume_from=path)
    assert [each.val_loss for each in again.history] == losses


def test_energy_adds_up_over_the_processes_of_a_run(
    small_corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = itertools.count(0.0, 5.0)  # five joules from one reading to the next
    monkeypatch.setattr(hpo_model.training.loop, "energy_joules", lambda device: next(meter))
    config, path = tiny(evaluations=4), tmp_path / "checkpoint.pt"
    train(config, small_corpus, save_to=path, on_evaluation=interrupted_at({2}))
    next(meter)  # what is taken between the two is nobody's
    history = train(config, small_corpus, save_to=path, resume_from=path).history
    assert [evaluation.energy_joules for evaluation in history] == [5.0, 10.0, 15.0, 20.0]
    monkeypatch.setattr(hpo_model.training.loop, "energy_joules", lambda device: None)
    assert {evaluation.energy_joules for evaluation in train(config, small_corpus).history} == {None}


def test_an_error_of_the_observer_passes_through(small_corpus: TokenizedCorpus) -> None:
    def broken(evaluation: Evaluation) -> Decision:
        raise RuntimeError("lost the storage")

    with pytest.raises(RuntimeError, match="lost the storage"):
        train(tiny(), small_corpus, on_evaluation=broken)


def test_a_corpus_shorter_than_a_sequence_is_refused(small_corpus: TokenizedCorpus) -> None:
    with pytest.raises(CorpusError, match="fewer than one sequence of 8192"):
        train(tiny(sequence_length=8192, evaluation_tokens=16384, budget_tokens=10 * 4 * 8192), small_corpus)


class Leaky(Transformer):
    def forward(self, tokens_BT: Tensor) -> ForwardOutput:
        states = super().forward(tokens_BT)
        return states._replace(hidden_BTD=states.hidden_BTD + 0.01 * states.hidden_BTD.mean(1, keepdim=True))


def test_a_network_that_leaks_is_not_trained(small_corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hpo_model.network.custom, "Transformer", Leaky)
    with pytest.raises(CausalityError, match="not causal"):
        train(tiny(), small_corpus, on_evaluation=lambda evaluation: pytest.fail("trained"))


# ---------------------------------------------------------------------------------------------- out of memory


class SmallDevice:
    """Lets no more than `rows` sequences through a training pass, and notes what was tried."""

    def __init__(self, rows: int, monkeypatch: pytest.MonkeyPatch, error: Exception | None = None) -> None:
        self.rows, self.tried, self.passes = rows, [], 0
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        real = Transformer.forward

        def forward(network: Transformer, tokens_BT: Tensor) -> ForwardOutput:
            if network.training and torch.is_grad_enabled():  # the causality check trains nothing
                self.tried.append(len(tokens_BT))
                if len(tokens_BT) > self.rows:
                    raise self.error
            return real(network, tokens_BT)

        monkeypatch.setattr(Transformer, "forward", forward)


WITHOUT_CHANCE: dict[str, Scalar] = {"dropout": 0.0, "noise": 0.0, "memory_slots": 0}


@pytest.mark.parametrize(
    ("batch_size", "rows", "pieces"),
    [(8, 4, [4, 4]), (8, 3, [2, 2, 2, 2]), (5, 3, [3, 2]), (6, 1, [1, 1, 1, 1, 1, 1])],
)
def test_a_batch_that_does_not_fit_is_read_in_pieces_of_the_same_effect(
    batch_size: int, rows: int, pieces: list[int], small_corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny(**WITHOUT_CHANCE, batch_size=batch_size, budget_tokens=8 * 32 * batch_size)
    whole = train(config, small_corpus)
    device = SmallDevice(rows, monkeypatch)
    split = train(config, small_corpus)
    assert split.outcome == "complete"
    assert device.tried[-len(pieces) :] == pieces
    assert device.tried.count(batch_size) == 1
    for one, other in zip(whole.history, split.history, strict=True):
        assert other.tokens == one.tokens
        assert other.val_loss == pytest.approx(one.val_loss, rel=1e-4)
        assert other.gradient_norm == pytest.approx(one.gradient_norm, rel=1e-3)
        assert other.phi == pytest.approx(one.phi, rel=1e-3)
        assert other.train_phi == pytest.approx(one.train_phi, rel=1e-4)
        assert other.delta_phi_loss == pytest.approx(one.delta_phi_loss, rel=1e-4)


def test_a_run_that_runs_out_of_memory_goes_on_from_its_checkpoint(
    small_corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SmallDevice(4, monkeypatch)
    announced: list[int] = []

    def shrink(evaluation: Evaluation) -> Decision:
        announced.append(evaluation.milestone)
        device.rows = 2  # someone else took the rest
        return Decision.CONTINUE

    result = train(tiny(), small_corpus, save_to=tmp_path / "checkpoint.pt", on_evaluation=shrink)
    assert result.outcome == "complete"
    assert announced == [1, 2, 3, 4]
    assert device.tried == [4] * 5 + [2, 2] * 12


def test_one_sequence_that_does_not_fit_is_the_outcome(
    small_corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SmallDevice(0, monkeypatch)
    result = train(tiny(batch_size=8), small_corpus)
    assert (result.outcome, result.reason) == ("out_of_memory", "one sequence at a time does not fit")
    assert result.history == ()
    assert device.tried == [8, 4, 2, 1]


@pytest.mark.parametrize(
    ("room", "outcome", "asked"),
    [(99, "complete", [None] * 8), (1, "complete", [None, *[1] * 8]), (0, "out_of_memory", [None, 1])],
)
def test_a_batch_of_one_sequence_is_no_sign_of_scarce_memory(
    room: int,
    outcome: str,
    asked: list[int | None],
    small_corpus: TokenizedCorpus,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its evaluations read as many sequences at once as others, and one at a time when memory was short."""
    rows: list[int | None] = []
    real = hpo_model.training.evaluation.score

    def score(network: Transformer, span: Span, device: torch.device, max_rows: int | None) -> Scores:
        rows.append(max_rows)
        if (max_rows or 99) > room:
            raise torch.OutOfMemoryError
        return real(network, span, device, max_rows)

    monkeypatch.setattr(hpo_model.training.evaluation, "score", score)
    result = train(tiny(batch_size=1, budget_tokens=16 * 32), small_corpus)
    assert (result.outcome, rows) == (outcome, asked)


def test_giving_up_keeps_the_evaluations_that_were_made(
    small_corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SmallDevice(4, monkeypatch)

    def shrink(evaluation: Evaluation) -> Decision:
        device.rows = 0
        return Decision.CONTINUE

    result = train(tiny(), small_corpus, save_to=tmp_path / "checkpoint.pt", on_evaluation=shrink)
    assert result.outcome == "out_of_memory"
    assert [evaluation.milestone for evaluation in result.history] == [1]


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 2 bytes."),
    ],
    ids=["python", "linux", "windows"],
)
def test_memory_of_the_host_counts_as_well(
    error: Exception, small_corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallDevice(2, monkeypatch, error)
    assert train(tiny(), small_corpus).outcome == "complete"


@pytest.mark.parametrize(
    "message", ["CUDA error: out of memory", "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"]
)
def test_lack_of_memory_outside_the_allocator_counts_as_well(
    message: str, small_corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallDevice(2, monkeypatch, RuntimeError(message))
    assert train(tiny(), small_corpus).outcome == "complete"


def test_another_runtime_error_is_not_taken_for_lack_of_memory(
    small_corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallDevice(2, monkeypatch, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        train(tiny(), small_corpus)


def test_out_of_memory_does_not_take_up_the_checkpoint_of_an_earlier_run(
    small_corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "checkpoint.pt"
    train(tiny(seed=2), small_corpus, save_to=path)
    SmallDevice(2, monkeypatch)
    assert train(tiny(seed=1), small_corpus, save_to=path).outcome == "complete"


def test_out_of_memory_announces_no_milestone_twice(
    small_corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = SmallDevice(4, monkeypatch)
    announced: list[int] = []

    def shrink(evaluation: Evaluation) -> Decision:
        announced.append(evaluation.milestone)
        device.rows = 2
        return Decision.CONTINUE

    train(tiny(), small_corpus, on_evaluation=shrink)
    assert announced == [1, 2, 3, 4]


def test_pieces_of_a_batch_are_one_write(
    small_corpus: TokenizedCorpus, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    SmallDevice(1, monkeypatch)
    train(tiny(dropout=0.0, noise=0.0), small_corpus, save_to=tmp_path / "checkpoint.pt")
    assert float(load_checkpoint(tmp_path / "checkpoint.pt")["network"]["memory.writes"]) == 16


# ---------------------------------------------------------------------------------------------- learning


def unigram_entropy(corpus: TokenizedCorpus) -> float:
    """Nats per token of the best guess that knows no context, on the validation split."""
    counts = np.bincount(corpus.span("valid").ids[1:])
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def test_the_network_learns_more_of_python_docs_than_its_frequencies(
    trained: Trained, python_docs: TokenizedCorpus
) -> None:
    losses = [evaluation.val_loss for evaluation in trained.result.history]
    assert trained.result.outcome == "complete"
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] < unigram_entropy(python_docs) - 0.3
    assert not trained.result.suspicious


@pytest.fixture(scope="module")
def refrain(tmp_path_factory: pytest.TempPathFactory) -> TokenizedCorpus:
    """A line of distinct words: each is known from the one before."""
    text = "ten green bottles hanging on the wall\n" * 300
    corpus = Corpus(name="refrain", source="refrain", origin="here", texts={"train": text, "valid": text[:4000]})
    return tokenize_corpus(corpus, TokenizerChoice(kind="word"), tmp_path_factory.mktemp("refrain"))


@pytest.mark.parametrize("iit", [True, False])
def test_a_repeated_text_is_learned_by_heart_and_flagged_as_implausibly_low(
    iit: bool, refrain: TokenizedCorpus
) -> None:
    config = tiny(iit=iit, budget_tokens=150 * 128, dropout=0.0, learning_rate=1e-2, evaluations=2)
    result = train(config, refrain)
    assert result.history[-1].val_loss < 0.02
    assert result.history[-1].val_word_ppl == pytest.approx(result.history[-1].val_ppl)
    assert result.suspicious


class Leaking(Transformer):
    """Every fifth position is told the token that it shall predict."""

    def forward(self, tokens_BT: Tensor) -> ForwardOutput:
        states = super().forward(tokens_BT)
        answers_BTD = self.token_embedding(tokens_BT.roll(-1, dims=1))
        told_T1 = torch.arange(tokens_BT.shape[1])[:, None] % 5 == 0
        return states._replace(hidden_BTD=states.hidden_BTD + told_T1 * answers_BTD)


@pytest.fixture(scope="module", params=["word", pytest.param("bpe", marks=pytest.mark.nightly)])
def markov(request: pytest.FixtureRequest, cache: Path) -> TokenizedCorpus:
    """The corpus of a known source; under either tokenizer nearly every word is one token."""
    choice = TokenizerChoice(kind=request.param, vocabulary=512)
    return tokenize_corpus(load_corpus("markov", cache), choice, cache)


BRIEF: dict[str, Scalar] = {"iit": False, "width": 64, "budget_tokens": 100_000, "dropout": 0.0, "learning_rate": 5e-3}


def source_perplexity(corpus: TokenizedCorpus) -> float:
    """Per word of the validation text, of the source itself."""
    span = corpus.span("valid")
    assert span.true_nats is not None
    return math.exp(span.true_nats / span.words)


def test_an_honest_network_learns_markov_and_stays_above_its_source(markov: TokenizedCorpus) -> None:
    result = train(tiny(**BRIEF), markov)
    assert source_perplexity(markov) < result.history[-1].val_word_ppl < 1.6 * source_perplexity(markov)
    assert result.reason == "all of 100,096 tokens"
    assert not result.suspicious


def test_a_leak_that_no_check_of_causality_saw_is_caught_below_the_source(
    markov: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hpo_model.network.custom, "Transformer", Leaking)
    monkeypatch.setattr(hpo_model.training.loop, "check_causality", lambda network: None)
    result = train(tiny(**BRIEF), markov)
    assert PLAUSIBLE_WORD_PERPLEXITY < result.history[-1].val_word_ppl < source_perplexity(markov)
    assert result.reason.startswith("all of 100,096 tokens; implausibly low: ")
    assert result.reason.endswith(" nats below the entropy of its source")
    assert result.suspicious


def test_equal_runs_are_bit_identical_and_other_seeds_are_not(small_corpus: TokenizedCorpus) -> None:
    first, again, other = (train(tiny(**EVERYTHING, seed=seed), small_corpus).history for seed in (1, 1, 2))
    assert exact(first) == exact(again)
    assert first[-1].val_loss != other[-1].val_loss
