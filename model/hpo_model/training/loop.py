"""Train one network on one corpus within a budget of tokens: the visible loop.

Shapes: B sequences, T positions, D channels.

A run is a function of its configuration and its text. Everything that it draws (initial weights, order of the data,
dropout, noise) comes from `seed`. A run that was killed continues from its last evaluation and ends bit-identical to
one that never was, on the same machine with the same number of threads.

    train        attempts: a batch that does not fit into memory is cut into smaller pieces
    train_run    from milestone to milestone: updates, evaluation, checkpoint, decision
    update       forward with Φ, loss, backward, clip, optimizer, memory, λ
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from hpo_model.config import RunConfig
from hpo_model.hardware import energy_joules, is_out_of_memory, peak_memory_bytes
from hpo_model.network.causality import check_causality
from hpo_model.network.memory import Candidates
from hpo_model.training.checkpoint import load_history, restore_run, save_run
from hpo_model.training.evaluation import TrainingStats, evaluate, implausibly_low, score, valid_span
from hpo_model.training.history import Evaluation
from hpo_model.training.run import Run, random_state, set_random_state
from hpo_model.training.schedules import adapt_lambda, learning_rate_at, set_lambda
from hpo_model.training.step import PhiStats, compiled_forward_with_phi, forward_with_phi, total_loss

if TYPE_CHECKING:  # importing it loads the tokenizers package, which training does not need
    from hpo_model.data.tokens import TokenizedCorpus

DIVERGED_NATS = 1.0  # validation loss above that of a uniform guess from which a run counts as diverged

TrainingStatus = Literal["complete", "pruned", "stopped", "diverged", "out_of_memory", "interrupted"]


class Decision(enum.Enum):
    """What the observer of a run wants after an evaluation."""

    CONTINUE = "continue"
    PRUNE = "prune"
    STOP = "stop"  # more training would not help; the result so far is the run's result
    INTERRUPT = "interrupt"  # leave now, to be continued from the checkpoint


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended, and its evaluations in order."""

    outcome: TrainingStatus
    reason: str
    history: tuple[Evaluation, ...]
    suspicious: bool = False  # its loss is implausibly low; the reason says why


Observer = Callable[[Evaluation], Decision]


def train(
    config: RunConfig,
    corpus: TokenizedCorpus,
    *,
    device: str = "cpu",
    save_to: Path | None = None,
    resume_from: Path | None = None,
    micro_batch: int | None = None,
    compiled: bool | None = None,
    on_evaluation: Observer = lambda evaluation: Decision.CONTINUE,
    on_update: Callable[[int], object] = lambda step: None,
) -> TrainingResult:
    """Train a network to the end of its budget, or until its observer or its numbers say stop.

    A continued run takes the number of threads from its checkpoint; the process has its own back when this returns.

    Args:
        config: the run.
        corpus: text under a tokenizer; its vocabulary is the network's.
        device: a torch device.
        save_to: checkpoint written at each evaluation, before `on_evaluation` is called.
        resume_from: checkpoint of the same run to continue; `on_evaluation` is not called for its evaluations again.
        micro_batch: sequences at once, the gradients of a batch adding up; None: the whole batch. The pieces of a
            continued run never grow.
        compiled: whether to compile the step; None: where it pays. A continued run stays what it was.
        on_evaluation: called with every new evaluation; decides whether to go on.
        on_update: called with the number of updates after each of them; a GPU may not have finished it yet.

    Raises:
        CorpusError: a split is shorter than one sequence.
        CausalityError: the network sees its own future.
        CheckpointError: a checkpoint cannot be written, read, or belongs to another run.
    """
    corpus.check_length(config.architecture.sequence_length)
    history = load_history(resume_from, device) if resume_from else ()
    with restored_threads():
        while True:
            run = None
            try:
                with _memory_errors():
                    run = Run(config, corpus, device=device, micro_batch=micro_batch, compiled=compiled)
                    if resume_from is not None:
                        # Sums are rounded as their parts are split over threads
                        torch.set_num_threads(restore_run(run, resume_from))
                    check_causality(run.network)
                return train_run(run, save_to, on_evaluation, on_update, announced=len(history))
            except _OutOfMemory:
                if run is not None:
                    history = max(history, tuple(run.history), key=len)
                    resume_from = run.checkpoint or resume_from
                    micro_batch = run.micro_batch  # a continued run may have been cut before
                if micro_batch == 1:
                    reason = "one sequence at a time does not fit"
                    return TrainingResult(outcome="out_of_memory", reason=reason, history=history)
            run = None  # frees its tensors before the next attempt
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            micro_batch = -(-(micro_batch or config.training.batch_size) // 2)


def train_run(
    run: Run, save_to: Path | None, on_evaluation: Observer, on_update: Callable[[int], object], announced: int
) -> TrainingResult:
    """Train from where a run stands to its end.

    Args:
        run: where it stands.
        save_to, on_evaluation, on_update: as for `train`.
        announced: how many evaluations `on_evaluation` has had already; an attempt that ran out of memory may have come
            further than this one.
    """
    config, last = run.config, run.config.training.evaluations
    for milestone in range(len(run.history) + 1, last + 1):
        with _memory_errors():
            # Train up to the milestone. Nothing on the way waits for the device.
            started, energy_before = time.perf_counter(), energy_joules(run.device)
            run.network.train()
            first_step = run.step
            sums = torch.zeros(2, device=run.device)
            gradient_norm = torch.zeros(())
            while run.step < config.milestone_step(milestone):
                gradient_norm = update(run, sums)
                on_update(run.step)
            # Reading the sums waits for the device, so that the clock is right
            train_phi, delta_phi_loss = (sums / max(run.step - first_step, 1)).tolist()
            tokens_per_s = (run.step - first_step) * config.tokens_per_step / max(time.perf_counter() - started, 1e-9)

            # Evaluate
            stats = TrainingStats(
                train_phi=train_phi,
                delta_phi_loss=delta_phi_loss,
                gradient_norm=float(gradient_norm),
                tokens_per_s=tokens_per_s,
            )
            evaluation = evaluate(run, milestone, stats)
            run.seconds += time.perf_counter() - started
            energy = _total_energy(run, energy_before)
            evaluation = dataclasses.replace(evaluation, seconds=run.seconds, energy_joules=energy)
        run.history.append(evaluation)
        at = f"at {evaluation.tokens:,} tokens"
        if _has_diverged(run):
            return _result(run, "diverged", f"validation loss {evaluation.val_loss:.4g} {at}")

        # Save
        if save_to is not None:
            save_run(run, save_to)
            run.checkpoint = save_to
        if milestone <= announced:
            continue

        # Decide. An observer that draws random numbers does not change the run.
        state = random_state(run.device)
        decision = on_evaluation(evaluation)
        set_random_state(run.device, state)
        if decision is Decision.PRUNE:
            return _result(run, "pruned", f"behind its peers {at}")
        if decision is Decision.STOP and milestone < last:
            return _result(run, "stopped", f"no more progress {at}")
        if decision is Decision.INTERRUPT and milestone < last:
            return _result(run, "interrupted", f"stopped {at}")
    return _result(run, "complete", f"all of {run.history[-1].tokens:,} tokens")


def update(run: Run, sums: Tensor) -> Tensor:
    """Make one update. Nothing in it waits for the device.

    Args:
        run: where it stands; one step further afterwards.
        sums: two numbers, to which the mean Φ and λ_phi · ΔΦ of the batch are added.

    Returns:
        The gradient norm before clipping, a scalar.
    """
    config, network, optimizer = run.config, run.network, run.optimizer
    learning_rate = learning_rate_at(config, run.step, run.val_losses)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate
    set_lambda(config, run.step, run.lambda_phi)

    # Forward and backward, in pieces where memory is short: their gradients add up to those of the batch
    replayed = run.device.type == "cuda" and run.rows == config.training.batch_size
    forward = compiled_forward_with_phi(replayed=replayed) if run.compiled else forward_with_phi
    inputs_BT, targets_BT = run.batches.at(run.step)
    pieces: list[PhiStats] = []
    for first in range(0, len(inputs_BT), run.rows):
        rows = slice(first, first + run.rows)
        hidden_BTD, stats = forward(network, config.phi.phi_objective, run.phi_target, inputs_BT[rows])
        loss = total_loss(network, hidden_BTD, targets_BT[rows], stats, run.lambda_phi)
        (loss * (len(hidden_BTD) / len(inputs_BT))).backward()  # type: ignore[no-untyped-call]
        if stats is not None:
            pieces.append(stats._replace(delta_phi=stats.delta_phi.detach()))

    gradient_norm = torch.nn.utils.clip_grad_norm_(network.parameters(), config.training.clip_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)  # now, not before the next update: an evaluation may come between
    run.step += 1

    # The memory keeps the best integrated states, and λ adapts; the control arm has neither
    if pieces:
        with torch.no_grad():
            phi_B = torch.cat([piece.phi_B for piece in pieces])
            offered = [piece.candidates for piece in pieces if piece.candidates is not None]
            if network.memory is not None:
                network.memory.write(Candidates(*map(torch.cat, zip(*offered, strict=True))), phi_B)
            delta_phi = torch.stack([len(piece.phi_B) * piece.delta_phi for piece in pieces]).sum() / len(phi_B)
            mean_phi = phi_B.mean()
            sums += torch.stack((mean_phi, run.lambda_phi * delta_phi))
            adapt_lambda(config, run.lambda_phi, mean_phi)
    return gradient_norm


def _has_diverged(run: Run) -> bool:
    """Whether the last loss is not a number, or far above that of a uniform guess."""
    loss, uniform = run.history[-1].val_loss, math.log(run.corpus.tokenizer.vocabulary)
    return not math.isfinite(loss) or loss > uniform + DIVERGED_NATS


def _total_energy(run: Run, before: float | None) -> float | None:
    """Joules over all parts of a run, by what the meter of its GPU showed before; None where a part is unknown."""
    now, earlier = energy_joules(run.device), run.history[-1].energy_joules if run.history else 0.0
    return None if now is None or before is None or earlier is None else earlier + now - before


def _result(run: Run, outcome: TrainingStatus, reason: str) -> TrainingResult:
    """How a run ended; an implausibly low loss is flagged."""
    last = run.history[-1]
    doubt = implausibly_low(last.val_loss, valid_span(run, full=last.whole_split))
    if doubt is not None:
        reason = f"{reason}; implausibly low: {doubt}"
    return TrainingResult(outcome=outcome, reason=reason, history=tuple(run.history), suspicious=doubt is not None)


# ---------------------------------------------------------------------------------------------- the process


@contextlib.contextmanager
def restored_threads() -> Iterator[None]:
    """Restore the number of PyTorch's threads that the process has now."""
    before = torch.get_num_threads()
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)


class _OutOfMemory(Exception):
    """The device or the machine has no memory left for an update."""


@contextlib.contextmanager
def _memory_errors() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise _OutOfMemory from error


# ---------------------------------------------------------------------------------------------- throughput


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """How fast a run trains on its machine, and what it holds."""

    tokens_per_s: float
    peak_memory_bytes: int | None  # None where the system does not tell


def benchmark(
    config: RunConfig,
    corpus: TokenizedCorpus,
    *,
    device: str = "cpu",
    seconds: float = 1.0,
    on_ready: Callable[[], object] = lambda: None,
) -> Throughput:
    """Measure the throughput of a run by its first updates and an evaluation; nothing is kept.

    Args:
        config: the run.
        corpus: text under a tokenizer.
        device: a torch device.
        seconds: time for updates, of which there are at least two after the first.
        on_ready: called after the first update, before the clock starts, so that several benchmarks can start together.
    """
    run = Run(config, corpus, device=device)
    check_causality(run.network)
    run.network.train()
    sums = torch.zeros(2, device=run.device)
    update(run, sums)
    sums.tolist()  # waits for the device
    on_ready()
    started, first_step = time.perf_counter(), run.step
    while run.step < first_step + 2 or time.perf_counter() < started + seconds:
        update(run, sums)
        sums.tolist()
    trained_s = time.perf_counter() - started
    score(run.network, run.valid_sample, run.device)
    return Throughput(
        tokens_per_s=(run.step - first_step) * config.tokens_per_step / trained_s,
        peak_memory_bytes=peak_memory_bytes(run.device),
    )
