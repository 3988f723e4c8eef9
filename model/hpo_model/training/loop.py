"""Train one network on one corpus within a budget of tokens: the visible loop.

Shapes: B sequences, T positions, D channels.

A run is a function of its configuration and its text. Everything that it draws (initial weights, order of the data,
dropout, noise) comes from `seed`; a run that was killed continues from its last evaluation and ends bit-identical to
one that never was, on the same machine with the same number of threads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import enum
import math
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from hpo_model.config import Architecture, RunConfig
from hpo_model.data.batches import TrainingBatches
from hpo_model.errors import CheckpointError, OtherDeviceError
from hpo_model.hardware import (
    compiles,
    energy_joules,
    forget_peak_memory,
    is_out_of_memory,
    keep_freed_memory,
    peak_memory_bytes,
)
from hpo_model.network import phi
from hpo_model.network.causality import check_causality
from hpo_model.network.custom import Network, build_network, source_digest
from hpo_model.network.memory import Candidates
from hpo_model.network.transformer import Transformer
from hpo_model.training.checkpoint import load_checkpoint, save_checkpoint
from hpo_model.training.evaluation import score, too_good
from hpo_model.training.history import Evaluation
from hpo_model.training.schedules import adapt_lambda, learning_rate_at, set_lambda
from hpo_model.training.step import Measured, compiled_observe, make_optimizer, observe, total_loss

if TYPE_CHECKING:  # who trains needs no tokenizer
    from hpo_model.data.tokens import TokenizedCorpus

EXPLODED_NATS = 1.0  # validation loss this far above that of a uniform guess: the run has diverged

Outcome = Literal["complete", "pruned", "stopped", "diverged", "out_of_memory", "interrupted"]


class Decision(enum.Enum):
    """What an observer of a run wants after an evaluation."""

    CONTINUE = "continue"
    PRUNE = "prune"
    STOP = "stop"  # more would not help this run; what it has is its result
    INTERRUPT = "interrupt"  # leave now, to be continued from the checkpoint


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """How a run ended, and its evaluations in order."""

    outcome: Outcome
    reason: str
    history: tuple[Evaluation, ...]
    suspicious: bool = False  # too good to be true; the reason says why


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

    Args:
        config: the run.
        corpus: text under a tokenizer; its vocabulary is the network's.
        device: a torch device.
        save_to: checkpoint written at each evaluation, before `on_evaluation` hears of it.
        resume_from: checkpoint of the same run to continue; its evaluations are not announced again.
        micro_batch: sequences at once, the gradients of a batch adding up; None: the whole batch. A continued run's
            pieces grow no larger.
        compiled: whether to compile the step; None: where it pays. A continued run stays what it was.
        on_evaluation: told of every new evaluation; decides whether to go on.
        on_update: told the number of updates after each of them; a GPU may not have finished it yet.

    Raises:
        CorpusError: a split is shorter than one sequence.
        CausalityError: the network sees its own future.
        CheckpointError: a checkpoint cannot be written, read, or belongs to another run.
    """
    corpus.check_length(config.architecture.sequence_length)
    options = RunOptions(device=device, save_to=save_to, compiled=compiled, on_update=on_update)
    history = load_history(resume_from, device) if resume_from else ()
    while True:
        run = None
        try:
            with _memory_errors():
                run = Run(
                    config, corpus, dataclasses.replace(options, resume_from=resume_from, micro_batch=micro_batch)
                )
            return run.train(on_evaluation, announced=len(history))
        except _OutOfMemory:
            if run is not None:
                history = max(history, tuple(run.history), key=len)
                resume_from = save_to if run.saved else resume_from
                micro_batch = run.micro_batch  # a continued run may have been cut before
            if micro_batch == 1:
                reason = "one sequence at a time does not fit"
                return TrainingResult(outcome="out_of_memory", reason=reason, history=history)
        run = None  # frees what it holds before the next one asks
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        micro_batch = -(-(micro_batch or config.training.batch_size) // 2)  # the same batch in pieces; gradients add up


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a run takes of its machine."""

    tokens_per_s: float  # while it trains
    peak_memory_bytes: int | None  # largest memory held; None where the system does not tell


def rehearse(
    config: RunConfig,
    corpus: TokenizedCorpus,
    *,
    device: str = "cpu",
    seconds: float = 1.0,
    on_ready: Callable[[], object] = lambda: None,
) -> Pace:
    """Measure the pace of a run by its first updates and an evaluation; nothing is kept.

    Args:
        config: the run.
        corpus: text under a tokenizer.
        device: a torch device.
        seconds: time for updates, of which there are at least two after the first.
        on_ready: called after the first update, before the clock starts: where several rehearse at once, they meet.
    """
    run = Run(config, corpus, RunOptions(device=device))
    run.network.train()
    sums = torch.zeros(2, device=run.device)
    run.update(sums)
    sums.tolist()  # waits for the device
    on_ready()
    started, first_step = time.perf_counter(), run.step
    while run.step < first_step + 2 or time.perf_counter() < started + seconds:
        run.update(sums)
        sums.tolist()
    trained_s = time.perf_counter() - started
    score(run.network, run.valid_slice, run.device)
    return Pace(
        tokens_per_s=(run.step - first_step) * config.tokens_per_step / trained_s,
        peak_memory_bytes=peak_memory_bytes(run.device),
    )


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


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What a run needs to know besides its configuration and its text."""

    device: str = "cpu"
    save_to: Path | None = None  # checkpoint written at each evaluation
    resume_from: Path | None = None  # checkpoint to continue
    micro_batch: int | None = None  # sequences at once where memory is short; None: the whole batch
    compiled: bool | None = None  # whether to compile the step; None: where it pays
    on_update: Callable[[int], object] = lambda step: None  # told the number of updates after each


class Run:
    """The state of a run between two updates.

    Args:
        config: the run.
        corpus: text under a tokenizer.
        options: device, checkpoints, memory.

    Raises:
        CausalityError, CheckpointError: as `train`.
    """

    def __init__(self, config: RunConfig, corpus: TokenizedCorpus, options: RunOptions) -> None:
        device = torch.device(options.device)
        self.config, self.corpus, self.device = config, corpus, device
        self.save_to, self.micro_batch, self.on_update = options.save_to, options.micro_batch, options.on_update
        self.compiled = compiles(device) if options.compiled is None else options.compiled
        keep_freed_memory()
        torch.manual_seed(config.training.seed)
        own, vocabulary = config.architecture.network, corpus.tokenizer.vocabulary
        self.source = source_digest(own) if own else None  # of the user's code
        build: Callable[[Architecture, int], Network] = build_network if own else Transformer
        self.network = build(config.architecture, vocabulary).to(device)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
        forget_peak_memory(device)
        self.network.set_regularisation(dropout=config.training.dropout, noise=config.training.noise)
        self.optimizer = make_optimizer(self.network, config.training.weight_decay)
        self.lambda_phi = torch.tensor(config.phi.lambda_phi, device=device)
        self.phi_target = torch.tensor(config.phi.phi_target, device=device)
        self.batches = TrainingBatches(corpus, config, device)
        self.valid_slice = corpus.sample("valid", config.training.evaluation_tokens)
        self.train_slice = corpus.sample("train", config.training.evaluation_tokens)
        self.step = 0
        self.seconds = 0.0
        self.history: list[Evaluation] = []
        self.saved = False
        if options.resume_from is not None:
            self.load(options.resume_from)
        replayed = device.type == "cuda" and self.rows == config.training.batch_size
        self.observe = compiled_observe(replayed=replayed) if self.compiled else observe
        check_causality(self.network)

    @property
    def rows(self) -> int:
        """Sequences that go through the network at once in an update."""
        return min(self.micro_batch or sys.maxsize, self.config.training.batch_size)

    def train(self, on_evaluation: Observer, announced: int) -> TrainingResult:
        """Run from where the state stands to the end; tell of each evaluation after the first `announced`."""
        evaluations = self.config.training.evaluations
        for milestone in range(len(self.history) + 1, evaluations + 1):
            with _memory_errors():
                evaluation = self.advance(milestone)
            self.history.append(evaluation)
            at = f"at {evaluation.tokens:,} tokens"
            if self.diverged(evaluation):
                return self.result("diverged", f"validation loss {evaluation.val_loss:.4g} {at}")
            if self.save_to is not None:
                self.save(self.save_to)
                self.saved = True
            if milestone <= announced:
                continue
            random = self.random_state()
            decision = on_evaluation(evaluation)
            self.set_random_state(random)  # an observer that draws numbers does not change the run
            if decision is Decision.PRUNE:
                return self.result("pruned", f"behind its peers {at}")
            if decision is Decision.STOP and milestone < evaluations:
                return self.result("stopped", f"no more progress {at}")
            if decision is Decision.INTERRUPT and milestone < evaluations:
                return self.result("interrupted", f"stopped {at}")
        return self.result("complete", f"all of {self.history[-1].tokens:,} tokens")

    def advance(self, milestone: int) -> Evaluation:
        """Train up to a milestone and evaluate there. Nothing on the way waits for the device."""
        started, energy_before = time.perf_counter(), energy_joules(self.device)
        self.network.train()
        first_step = self.step
        sums = torch.zeros(2, device=self.device)
        gradient_norm = torch.zeros(())
        while self.step < self.config.milestone_step(milestone):
            gradient_norm = self.update(sums)
            self.on_update(self.step)
        sums = sums / max(self.step - first_step, 1)
        train_phi, delta_phi_loss = sums.tolist()  # waits for the device, so that the clock below is true
        trained_s = time.perf_counter() - started

        evaluation = self.evaluate(milestone, train_phi, delta_phi_loss, float(gradient_norm))
        self.seconds += time.perf_counter() - started
        tokens = (self.step - first_step) * self.config.tokens_per_step
        return dataclasses.replace(
            evaluation,
            tokens_per_s=tokens / max(trained_s, 1e-9),
            seconds=self.seconds,
            energy_joules=self.energy_since(energy_before),
        )

    def energy_since(self, before: float | None) -> float | None:
        """All that the run has taken, by what its GPU's meter showed before; None where any of it is unknown."""
        now, earlier = energy_joules(self.device), self.history[-1].energy_joules if self.history else 0.0
        return None if now is None or before is None or earlier is None else earlier + now - before

    def update(self, sums: Tensor) -> Tensor:
        """One update; adds the batch's Φ and λ·ΔΦ to `sums` and returns the gradient norm before clipping."""
        config = self.config
        learning_rate = self.learning_rate_of(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        set_lambda(config, self.step, self.lambda_phi)

        inputs_BT, targets_BT = self.batches.at(self.step)
        pieces: list[Measured] = []
        for first in range(0, len(inputs_BT), self.rows):
            rows = slice(first, first + self.rows)
            hidden_BTD, measured = self.observe(
                self.network, config.phi.phi_objective, self.phi_target, inputs_BT[rows]
            )
            loss = total_loss(self.network, hidden_BTD, targets_BT[rows], measured, self.lambda_phi)
            (loss * (len(hidden_BTD) / len(inputs_BT))).backward()  # type: ignore[no-untyped-call]
            if measured is not None:
                pieces.append(measured._replace(delta_phi=measured.delta_phi.detach()))
        gradient_norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.training.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # now, not before the next update: an evaluation may come between
        self.step += 1

        if pieces:
            self.after_update(pieces, sums)
        return gradient_norm

    def learning_rate_of(self, step: int) -> float:
        """Of an update since the last evaluation."""
        return learning_rate_at(self.config, step, [evaluation.val_loss for evaluation in self.history])

    @torch.no_grad()
    def after_update(self, pieces: list[Measured], sums: Tensor) -> None:
        """Let the memory keep what was best integrated, let λ adapt, and count."""
        phi_B = torch.cat([piece.phi_B for piece in pieces])
        offers = [piece.candidates for piece in pieces if piece.candidates is not None]
        if self.network.memory is not None:
            self.network.memory.write(Candidates(*map(torch.cat, zip(*offers, strict=True))), phi_B)
        delta_phi = torch.stack([len(piece.phi_B) * piece.delta_phi for piece in pieces]).sum() / len(phi_B)
        mean_phi = phi_B.mean()
        sums += torch.stack((mean_phi, self.lambda_phi * delta_phi))
        adapt_lambda(self.config, self.lambda_phi, mean_phi)

    def evaluate(self, milestone: int, train_phi: float, delta_phi_loss: float, gradient_norm: float) -> Evaluation:
        """Measure the network where it stands, without dropout, noise or writes to the memory."""
        training, iit = self.config.training, self.config.architecture.iit
        memory = self.network.memory
        sampled = training.evaluation_tokens < self.corpus.tokens("valid")
        whole_split = milestone == training.evaluations or not sampled
        valid_span = self.corpus.span("valid") if whole_split else self.valid_slice
        valid = score(self.network, valid_span, self.device, self.micro_batch)
        trained = score(self.network, self.train_slice, self.device, self.micro_batch)
        tokens = self.step * self.config.tokens_per_step
        return Evaluation(
            milestone=milestone,
            tokens=tokens,
            step=self.step,
            epoch=tokens / self.batches.tokens,
            whole_split=whole_split,
            val_loss=valid.loss,
            val_ppl=valid.perplexity,
            val_word_ppl=valid.word_perplexity,
            val_bits_per_byte=valid.bits_per_byte,
            train_loss=trained.loss,
            train_ppl=trained.perplexity,
            **dict(zip(("phi", *phi.COMPONENTS), (valid.phi, *valid.components), strict=True)),
            train_phi=train_phi if iit else None,
            delta_phi_loss=delta_phi_loss if iit else None,
            lambda_phi=float(self.lambda_phi) if iit else None,
            threshold=memory.threshold.item() if memory is not None else None,
            gate=torch.sigmoid(memory.gate_bias).item() if memory is not None else None,
            memory_used=int(memory.used()) if memory is not None else None,
            learning_rate=self.learning_rate_of(max(self.step - 1, 0)),
            gradient_norm=gradient_norm,
            tokens_per_s=0.0,
            seconds=0.0,
            peak_memory_bytes=peak_memory_bytes(self.device),
        )

    def diverged(self, evaluation: Evaluation) -> bool:
        """Whether the loss is not a number, or far above that of a uniform guess."""
        uniform = math.log(self.corpus.tokenizer.vocabulary)
        return not math.isfinite(evaluation.val_loss) or evaluation.val_loss > uniform + EXPLODED_NATS

    def result(self, outcome: Outcome, reason: str) -> TrainingResult:
        """How the run ended; what is too good to be true is said and flagged."""
        last = self.history[-1]
        doubt = too_good(last.val_loss, self.corpus.span("valid") if last.whole_split else self.valid_slice)
        reason = reason if doubt is None else f"{reason}; too good to be true: {doubt}"
        return TrainingResult(outcome=outcome, reason=reason, history=tuple(self.history), suspicious=doubt is not None)

    # ------------------------------------------------------------------------------------------ checkpoints

    def identity(self) -> dict[str, str]:
        """What a checkpoint must share with the run that continues it."""
        return {
            "run": self.config.digest(),
            "corpus": self.corpus.corpus_digest,
            "tokenizer": self.corpus.tokenizer.digest,
            "device": self.device.type,  # each kind rounds in its own way and draws its own random numbers
            **({} if self.source is None else {"network": self.source}),
        }

    def save(self, path: Path) -> None:
        """Write everything from which the run continues exactly."""
        content = {
            "identity": self.identity(),
            "config": self.config.parameters(),
            "corpus": {"name": self.corpus.corpus_name, "source": self.corpus.corpus_source},
            "tokenizer": {"kind": self.corpus.tokenizer.kind, "definition": self.corpus.tokenizer.definition},
            "step": self.step,
            "seconds": self.seconds,
            "history": [dataclasses.asdict(evaluation) for evaluation in self.history],
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lambda_phi": self.lambda_phi,
            "micro_batch": self.micro_batch,
            "compiled": self.compiled,
            "threads": torch.get_num_threads(),
            "random": self.random_state(),
        }
        save_checkpoint(path, content)

    def load(self, path: Path) -> None:
        """Take over the state that `save` wrote."""
        content = load_checkpoint(path, self.device)
        for what, mine in self.identity().items():
            if content.get("identity", {}).get(what) != mine:
                raise CheckpointError(f"{path}: written by a run with another {what}; it cannot be continued here")
        try:
            self.network.load_state_dict(content["network"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.lambda_phi.copy_(content["lambda_phi"])
            pieces = [each for each in (self.micro_batch, content["micro_batch"]) if each is not None]
            self.micro_batch = min(pieces, default=None)  # they draw their own random numbers
            self.compiled = content["compiled"]  # fused arithmetic rounds elsewhere
            self.step, self.seconds = content["step"], content["seconds"]
            self.history = [Evaluation(**evaluation) for evaluation in content["history"]]
            self.set_random_state(content["random"])
            torch.set_num_threads(content["threads"])  # sums are rounded as their parts are split over threads
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
            raise CheckpointError(
                f"{path}: does not fit this program ({reason}); without it the run starts over"
            ) from error

    def random_state(self) -> list[Tensor]:
        """Of the CPU's generator, and of the device's if it has one."""
        states = [torch.get_rng_state()]
        return [*states, torch.cuda.get_rng_state(self.device)] if self.device.type == "cuda" else states

    def set_random_state(self, states: list[Tensor]) -> None:
        """Take over what `random_state` returned."""
        torch.set_rng_state(states[0].cpu())
        if self.device.type == "cuda":
            torch.cuda.set_rng_state(states[1].cpu(), self.device)


def load_history(path: Path, device: str | None = None) -> tuple[Evaluation, ...]:
    """The evaluations that a checkpoint of this module holds.

    Args:
        path: the checkpoint.
        device: where the run is to go on; None: nowhere.

    Raises:
        OtherDeviceError: it cannot go on there.
        CheckpointError: the file cannot be read, or holds no run.
    """
    content: dict[str, Any] = load_checkpoint(path)
    if not {"history", "identity"} <= content.keys():
        raise CheckpointError(f"{path}: holds no run")
    written_on = content["identity"]["device"]
    if device is not None and torch.device(device).type != written_on:
        raise OtherDeviceError(
            f"{path}: written on {written_on}, which {device} cannot continue exactly; go on there, or move the file "
            "away to start over"
        )
    return tuple(Evaluation(**evaluation) for evaluation in content["history"])
