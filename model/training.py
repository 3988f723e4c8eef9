"""Train one network on one corpus within a budget of tokens: the visible loop.

Shapes: B sequences, T positions, D channels, V vocabulary, N tokens of a stream.

A run is a function of its configuration and its text. Everything that it draws (initial weights, order of the data,
dropout, noise) comes from `seed`; a run that was killed continues from its last evaluation and ends bit-identical to
one that never was, on the same machine with the same number of threads.
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
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from model import phi
from model.checkpoint import load_checkpoint, save_checkpoint
from model.config import RunConfig
from model.errors import CheckpointError
from model.evaluation import Evaluation, score, too_good
from model.hardware import peak_memory_bytes
from model.schedules import adapt_lambda, learning_rate_at, set_lambda
from model.tokens import TokenizedCorpus
from model.transformer import Transformer, check_causality

ADAM_BETAS = (0.9, 0.95)
EXPLODED_NATS = 1.0  # validation loss this far above that of a uniform guess: the run has diverged
_MEMORY_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)

Outcome = Literal["complete", "pruned", "diverged", "out_of_memory", "interrupted"]


class Decision(enum.Enum):
    """What an observer of a run wants after an evaluation."""

    CONTINUE = "continue"
    PRUNE = "prune"
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
    on_evaluation: Observer = lambda evaluation: Decision.CONTINUE,
) -> TrainingResult:
    """Train a network to the end of its budget, or until its observer or its numbers say stop.

    Args:
        config: the run.
        corpus: text under a tokenizer; its vocabulary is the network's.
        device: a torch device.
        save_to: checkpoint written at each evaluation, before `on_evaluation` hears of it.
        resume_from: checkpoint of the same run to continue; its evaluations are not announced again.
        on_evaluation: told of every new evaluation; decides whether to go on.

    Raises:
        CorpusError: a split is shorter than one sequence.
        CausalityError: the network sees its own future.
        CheckpointError: a checkpoint cannot be written, read, or belongs to another run.
    """
    corpus.check_length(config.architecture.sequence_length)
    micro_batch = config.training.batch_size
    history = load_history(resume_from) if resume_from else ()
    while True:
        run = None
        try:
            with _memory_errors():
                run = _Run(config, corpus, torch.device(device), save_to, resume_from, micro_batch)
            return run.train(on_evaluation, announced=len(history))
        except _OutOfMemory:
            if run is not None:
                history = max(history, tuple(run.history), key=len)
                resume_from = save_to if run.saved else resume_from
            if micro_batch == 1:
                reason = "one sequence at a time does not fit"
                return TrainingResult(outcome="out_of_memory", reason=reason, history=history)
        run = None  # frees what it holds before the next one asks
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        micro_batch = -(-micro_batch // 2)  # the same batch in smaller pieces; gradients add up


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
    run = _Run(config, corpus, torch.device(device), None, None, config.training.batch_size)
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
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _OutOfMemory from error
    except RuntimeError as error:  # the allocators of CPU and cuBLAS have no class of their own
        if not any(sign in str(error) for sign in _MEMORY_SIGNS):
            raise
        raise _OutOfMemory from error


class Losses(NamedTuple):
    """The loss of one piece of a batch, and what the memory may keep of it."""

    total: Tensor  # nats per token plus λ_phi · ΔΦ; the only part that holds a graph
    delta_phi: Tensor
    phi_B: Tensor
    stream_BTD: Tensor
    received_BT: Tensor


class _Run:
    """The state of a run between two updates."""

    def __init__(
        self,
        config: RunConfig,
        corpus: TokenizedCorpus,
        device: torch.device,
        save_to: Path | None,
        resume_from: Path | None,
        micro_batch: int,
    ) -> None:
        self.config, self.corpus, self.device = config, corpus, device
        self.save_to, self.micro_batch = save_to, micro_batch
        torch.manual_seed(config.training.seed)
        self.network = Transformer(config.architecture, corpus.tokenizer.vocabulary).to(device)
        if device.type == "cuda":
            torch.set_float32_matmul_precision("high")
            torch.cuda.reset_peak_memory_stats(device)  # only after the first use of a device is it there to be asked
        self.network.set_regularisation(dropout=config.training.dropout, noise=config.training.noise)
        self.optimizer = make_optimizer(self.network, config.training.weight_decay)
        self.lambda_phi = torch.tensor(config.phi.lambda_phi, device=device)
        self.batches = TrainingBatches(corpus, config, device)
        self.valid_slice = corpus.sample("valid", config.training.evaluation_tokens)
        self.train_slice = corpus.sample("train", config.training.evaluation_tokens)
        self.step = 0
        self.seconds = 0.0
        self.history: list[Evaluation] = []
        self.saved = False
        if resume_from is not None:
            self.load(resume_from)
        check_causality(self.network)

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
            if decision is Decision.INTERRUPT and milestone < evaluations:
                return self.result("interrupted", f"stopped {at}")
        return self.result("complete", f"all of {self.history[-1].tokens:,} tokens")

    def advance(self, milestone: int) -> Evaluation:
        """Train up to a milestone and evaluate there. Nothing on the way waits for the device."""
        started = time.perf_counter()
        self.network.train()
        first_step = self.step
        sums = torch.zeros(2, device=self.device)
        gradient_norm = torch.zeros(())
        while self.step < self.config.milestone_step(milestone):
            gradient_norm = self.update(sums)
        sums = sums / max(self.step - first_step, 1)
        train_phi, delta_phi_loss = sums.tolist()  # waits for the device, so that the clock below is true
        trained_s = time.perf_counter() - started

        evaluation = self.evaluate(milestone, train_phi, delta_phi_loss, float(gradient_norm))
        self.seconds += time.perf_counter() - started
        tokens = (self.step - first_step) * self.config.tokens_per_step
        return dataclasses.replace(evaluation, tokens_per_s=tokens / max(trained_s, 1e-9), seconds=self.seconds)

    def update(self, sums: Tensor) -> Tensor:
        """One update; adds the batch's Φ and λ·ΔΦ to `sums` and returns the gradient norm before clipping."""
        config = self.config
        learning_rate = learning_rate_at(config, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        set_lambda(config, self.step, self.lambda_phi)

        inputs_BT, targets_BT = self.batches.at(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        pieces: list[Losses] = []
        for first in range(0, len(inputs_BT), self.micro_batch):
            rows = slice(first, first + self.micro_batch)
            losses = self.losses(inputs_BT[rows], targets_BT[rows])
            (losses.total * (len(losses.phi_B) / len(inputs_BT))).backward()  # type: ignore[no-untyped-call]
            pieces.append(losses._replace(total=losses.total.detach()))
        gradient_norm = torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.training.clip_norm)
        self.optimizer.step()
        self.step += 1

        if config.architecture.iit:
            self.after_update(pieces, sums)
        return gradient_norm

    def losses(self, inputs_BT: Tensor, targets_BT: Tensor) -> Losses:
        """The loss of some sequences: nats per token, plus λ_phi · ΔΦ unless this is the control arm."""
        config, network = self.config, self.network
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            states = network(inputs_BT)
            logits_BTV = network.logits(states.hidden_BTD)
        nats = F.cross_entropy(logits_BTV.flatten(0, 1).float(), targets_BT.flatten())
        if not config.architecture.iit:
            nothing = nats.new_zeros(len(inputs_BT))
            return Losses(nats, nothing, nothing, nothing, nothing)

        received_BT = phi.attention_received(states.attention, config.architecture.phi_probes)
        components_BC = phi.components(states.hidden_BTD, received_BT)
        phi_B = phi.weighted(components_BC, network.phi_weight_logits)
        fixed_phi_B = phi.weighted(components_BC, network.initial_phi_weight_logits)
        input_phi_B = phi_B  # needed by the bounded objective alone
        if config.phi.phi_objective == "bounded":
            input_phi_B = phi.weighted(phi.components(states.embedded_BTD, received_BT), network.phi_weight_logits)
        delta_phi = phi.delta_phi(config.phi.phi_objective, phi_B, fixed_phi_B, input_phi_B, config.phi.phi_target)
        total = nats + self.lambda_phi * delta_phi
        return Losses(total, *(part.detach() for part in (delta_phi, phi_B, states.stream_BTD, received_BT)))

    @torch.no_grad()
    def after_update(self, pieces: list[Losses], sums: Tensor) -> None:
        """Let the memory keep what was best integrated, let λ adapt, and count."""
        phi_B = torch.cat([piece.phi_B for piece in pieces])
        if self.network.memory is not None:
            stream_BTD = torch.cat([piece.stream_BTD for piece in pieces])
            self.network.memory.write(stream_BTD, phi_B, torch.cat([piece.received_BT for piece in pieces]))
        delta_phi = torch.stack([len(piece.phi_B) * piece.delta_phi for piece in pieces]).sum() / len(phi_B)
        mean_phi = phi_B.mean()
        sums += torch.stack((mean_phi, self.lambda_phi * delta_phi))
        adapt_lambda(self.config, self.lambda_phi, mean_phi)

    def evaluate(self, milestone: int, train_phi: float, delta_phi_loss: float, gradient_norm: float) -> Evaluation:
        """Measure the network where it stands, without dropout, noise or writes to the memory."""
        training, iit = self.config.training, self.config.architecture.iit
        memory = self.network.memory
        whole_split = milestone == training.evaluations
        valid = score(self.network, self.corpus.span("valid") if whole_split else self.valid_slice, self.device)
        trained = score(self.network, self.train_slice, self.device)
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
            learning_rate=learning_rate_at(self.config, max(self.step - 1, 0)),
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
        }

    def save(self, path: Path) -> None:
        """Write everything from which the run continues exactly."""
        content = {
            "identity": self.identity(),
            "config": self.config.parameters(),
            "step": self.step,
            "seconds": self.seconds,
            "history": [dataclasses.asdict(evaluation) for evaluation in self.history],
            "network": self.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "lambda_phi": self.lambda_phi,
            "micro_batch": self.micro_batch,
            "threads": torch.get_num_threads(),
            "random": self.random_state(),
        }
        save_checkpoint(path, content)

    def load(self, path: Path) -> None:
        """Take over the state that `save` wrote."""
        content = load_checkpoint(path, self.device)
        for what, digest in self.identity().items():
            if content.get("identity", {}).get(what) != digest:
                raise CheckpointError(f"{path}: written by a run with another {what}; it cannot be continued here")
        try:
            self.network.load_state_dict(content["network"])
            self.optimizer.load_state_dict(content["optimizer"])
            self.lambda_phi.copy_(content["lambda_phi"])
            self.micro_batch = min(self.micro_batch, content["micro_batch"])  # pieces draw their own random numbers
            self.step, self.seconds = content["step"], content["seconds"]
            self.history = [Evaluation(**evaluation) for evaluation in content["history"]]
            self.set_random_state(content["random"])
            torch.set_num_threads(content["threads"])  # sums are rounded as their parts are split over threads
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
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


def load_history(path: Path) -> tuple[Evaluation, ...]:
    """The evaluations that a checkpoint of this module holds."""
    content: dict[str, Any] = load_checkpoint(path)
    if "history" not in content:
        raise CheckpointError(f"{path}: holds no run")
    return tuple(Evaluation(**evaluation) for evaluation in content["history"])


class TrainingBatches:
    """The order in which a run reads its text: a function of seed and update, so that it needs no state.

    Each epoch cuts the stream into sequences at another phase and shuffles them. Runs with equal seeds read the same
    sequences in the same order, whatever their batch size.
    """

    def __init__(self, corpus: TokenizedCorpus, config: RunConfig, device: torch.device) -> None:
        self.stream_N = torch.from_numpy(corpus.span("train").ids.astype("int32")).to(device)
        self.tokens = len(self.stream_N) - 1
        self.length = config.architecture.sequence_length
        self.batch_size = config.training.batch_size
        self.seed = config.training.seed
        self.sequences = max(self.tokens // self.length - 1, 1)  # one less than fit, which leaves room for the phase
        self.window = torch.arange(self.length + 1, device=device)
        self.order: dict[int, Tensor] = {}  # of the epochs that the last batch touched

    def at(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets (B, T) of update number `step`, counted from 0."""
        first, last = step * self.batch_size, (step + 1) * self.batch_size  # sequences read, over all epochs
        epochs = range(first // self.sequences, (last - 1) // self.sequences + 1)
        self.order = {epoch: self.order[epoch] if epoch in self.order else self.shuffled(epoch) for epoch in epochs}
        starts_B = torch.cat(
            [
                order[max(first - epoch * self.sequences, 0) : last - epoch * self.sequences]
                for epoch, order in self.order.items()
            ]
        )
        windows_BT = self.stream_N[starts_B[:, None] + self.window].long()
        return windows_BT[:, :-1], windows_BT[:, 1:]

    def shuffled(self, epoch: int) -> Tensor:
        """Where the sequences of an epoch start, in the order in which they are read."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
        phase = torch.randint(self.tokens - self.sequences * self.length + 1, (), generator=generator)
        starts = torch.randperm(self.sequences, generator=generator) * self.length + phase
        return starts.to(self.stream_N.device)


def make_optimizer(network: Transformer, weight_decay: float) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices only."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
    groups = [
        {"params": [parameter for parameter in parameters if parameter.ndim >= 2], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, betas=ADAM_BETAS, fused=True)
