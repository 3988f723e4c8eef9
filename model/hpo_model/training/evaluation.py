"""Measure a run at a milestone, and a network on a span of text.

Shapes: R sequences at once, T positions, C components of Φ.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from hpo_model.hardware import mixed_precision, peak_memory_bytes, upload
from hpo_model.network import phi
from hpo_model.network.custom import Network
from hpo_model.network.loss import NOT_A_TARGET, nats_of
from hpo_model.network.transformer import ForwardOutput
from hpo_model.training.history import Evaluation
from hpo_model.training.run import Run
from hpo_model.training.schedules import learning_rate_at

if TYPE_CHECKING:  # importing it loads the tokenizers package, which training does not need
    from hpo_model.data.tokens import Span

TOKENS_AT_ONCE = {"cpu": 2**12, "cuda": 2**16}  # by device
# 0.6 bits a character (Shannon's lower estimate for English, 1951) at 5.2 characters a word: below it, suspect a leak
PLAUSIBLE_WORD_PERPLEXITY = 8.0
IMPLAUSIBLE_NATS = 100.0  # below the nats of the process that wrote the text; see `implausibly_low`


@dataclass(frozen=True, kw_only=True)
class TrainingStats:
    """What training has measured since the last evaluation."""

    train_phi: float  # mean Φ of the batches
    delta_phi_loss: float  # mean λ_phi · ΔΦ of the batches
    gradient_norm: float  # before clipping, at the last update
    tokens_per_s: float


def evaluate(run: Run, milestone: int, stats: TrainingStats) -> Evaluation:
    """Measure a run where it stands, without dropout, noise or writes to the memory.

    Args:
        run: what to measure.
        milestone: number of the evaluation; the last one reads the full validation split.
        stats: of the training before it.

    Returns:
        The evaluation. Its seconds and joules are those of the evaluation before: the caller's clock still runs.
    """
    training, iit = run.config.training, run.config.architecture.iit
    memory = run.network.memory
    sampled = training.evaluation_tokens < run.corpus.tokens("valid")
    full_split = milestone == training.evaluations or not sampled
    valid = score(run.network, valid_span(run, full=full_split), run.device, run.micro_batch)
    trained = score(run.network, run.train_sample, run.device, run.micro_batch)
    return Evaluation(
        milestone=milestone,
        tokens=run.tokens,
        step=run.step,
        epoch=run.tokens / run.batches.tokens,
        whole_split=full_split,
        val_loss=valid.loss,
        val_ppl=valid.perplexity,
        val_word_ppl=valid.word_perplexity,
        val_bits_per_byte=valid.bits_per_byte,
        train_loss=trained.loss,
        train_ppl=trained.perplexity,
        **dict(zip(("phi", *phi.COMPONENTS), (valid.phi, *valid.components), strict=True)),
        train_phi=stats.train_phi if iit else None,
        delta_phi_loss=stats.delta_phi_loss if iit else None,
        lambda_phi=float(run.lambda_phi) if iit else None,
        threshold=memory.threshold.item() if memory is not None else None,
        gate=torch.sigmoid(memory.gate_bias).item() if memory is not None else None,
        memory_used=int(memory.used()) if memory is not None else None,
        learning_rate=learning_rate_at(run.config, max(run.step - 1, 0), run.val_losses),
        gradient_norm=stats.gradient_norm,
        tokens_per_s=stats.tokens_per_s,
        seconds=run.seconds,
        peak_memory_bytes=peak_memory_bytes(run.device),
    )


def valid_span(run: Run, *, full: bool) -> Span:
    """The validation text of a run's evaluations: the full split, or the fixed sample of it."""
    return run.corpus.span("valid") if full else run.valid_sample


@dataclass(frozen=True, kw_only=True)
class Scores:
    """A network's measurements on a span. Φ is averaged over the span's full sequences."""

    loss: float  # nats per token
    nats: float  # of the whole span
    span: Span
    phi: float
    components: tuple[float, ...]  # in the order of phi.COMPONENTS
    token_nats: NDArray[np.float32] | None = None  # of each token, where they were asked for

    @property
    def perplexity(self) -> float:
        """Per token; not comparable across tokenizers."""
        return _exp(self.loss)

    @property
    def word_perplexity(self) -> float:
        """Per word and end of line: WikiText's convention, comparable across tokenizers."""
        return _exp(self.nats / self.span.words)

    @property
    def bits_per_byte(self) -> float | None:
        """Comparable across tokenizers; None where the tokenizer lost words."""
        return None if self.span.bytes is None else self.nats / math.log(2) / self.span.bytes


@torch.no_grad()
def score(
    network: Network,
    span: Span,
    device: torch.device,
    max_rows: int | None = None,
    *,
    each_token: bool = False,
) -> Scores:
    """Measure a network on consecutive sequences of a span, each predicted from itself alone.

    Every token of the span is predicted exactly once. Dropout, noise and writes to the memory are off.

    Args:
        network: what to measure.
        span: the text.
        device: of the network.
        max_rows: sequences to read at once where memory is short; None: as many as `TOKENS_AT_ONCE` holds.
        each_token: keep the nats of every token too.
    """
    architecture = network.architecture
    rows = rows_at_once(architecture.sequence_length, device.type, max_rows)
    nats = torch.zeros((), dtype=torch.float64, device=device)
    full = torch.zeros((), dtype=torch.int64, device=device)
    component_sums_C = torch.zeros(len(phi.COMPONENTS), dtype=torch.float64, device=device)
    kept: list[NDArray[np.float32]] = []
    training = network.training
    network.eval()
    for inputs_RT, targets_RT in _pieces(span, architecture.sequence_length, rows):
        inputs_RT, targets_RT = upload(inputs_RT, device), upload(targets_RT, device)
        with mixed_precision(device):
            states = network(inputs_RT)
            nats_N = nats_of(states.hidden_BTD.flatten(0, 1), network.output.weight, targets_RT.flatten())
        nats += nats_N.double().sum()
        if each_token:
            kept.append(nats_N.float().cpu().numpy())
        whole_R = (targets_RT != NOT_A_TARGET).all(dim=1)
        components_RC = _components(states, architecture.phi_probes)
        component_sums_C += (components_RC * whole_R[:, None]).double().sum(0)
        full += whole_R.sum()
        del states  # else they would be held beside the next ones
    network.train(training)

    # Here, and for the nats of each token, the host waits for the device
    all_nats = nats.item()
    means_C = (component_sums_C / full).cpu()  # NaN where no sequence is full
    weights_C = torch.tensor(phi.INITIAL_WEIGHTS, dtype=torch.float64)
    return Scores(
        loss=all_nats / span.tokens,
        nats=all_nats,
        span=span,
        phi=float(means_C @ weights_C),
        components=tuple(means_C.tolist()),
        token_nats=np.concatenate(kept)[: span.tokens] if each_token else None,
    )


def _components(states: ForwardOutput, probes: int) -> Tensor:
    """The components of Φ (R, C); without attention its diversity is not a number, and so is Φ."""
    if states.attention is not None:
        return phi.components(states.hidden_BTD, phi.attention_received(states.attention, probes))
    even_RT = torch.full_like(states.hidden_BTD[..., 0], 1 / states.hidden_BTD.shape[1])
    components_RC = phi.components(states.hidden_BTD, even_RT)
    components_RC[:, phi.COMPONENTS.index("attention_diversity")] = math.nan
    return components_RC


def implausibly_low(loss: float, span: Span) -> str | None:
    """Say why no network that has not seen a text could predict it this well.

    Where the process that wrote the text is known, an honest network undercuts its nats by t with probability e^-t at
    most: Markov's inequality for the ratio of the text's probabilities under the two, whose mean under the process is
    at most 1. That holds under every tokenizer: a network gives all texts in tokens 1 together, and each text stands
    there once. A stretch of a sample ends before the line that would not fit, and to know that is worth no more than
    the mean length of a line: with 42 bytes, 16 ln 42 = 60 nats of the 100.

    Args:
        loss: nats per token of a network on the span.
        span: the text.

    Returns:
        The reason in a few words; None where nothing is wrong.
    """
    nats = loss * span.tokens
    if span.true_nats is None:
        word_perplexity = _exp(nats / span.words)
        plausible = word_perplexity >= PLAUSIBLE_WORD_PERPLEXITY
        return None if plausible else f"word perplexity {word_perplexity:.2f}, fewer bits than text holds"
    below = span.true_nats - nats
    return f"{below:,.0f} nats below the entropy of its source" if below > IMPLAUSIBLE_NATS else None


def rows_at_once(sequence_length: int, device_type: str, max_rows: int | None = None) -> int:
    """How many sequences `score` reads at once."""
    rows = max(1, TOKENS_AT_ONCE[device_type] // sequence_length)
    return rows if max_rows is None else min(rows, max_rows)


def _pieces(span: Span, length: int, rows: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets (R, T) in order; what the last sequence lacks is filled up and is no target."""
    for first in range(0, span.tokens, rows * length):
        ids = torch.from_numpy(span.ids[first : first + rows * length + 1].astype("int64"))
        padding = -(len(ids) - 1) % length
        inputs = F.pad(ids[:-1], (0, padding))
        targets = F.pad(ids[1:], (0, padding), value=NOT_A_TARGET)
        yield inputs.view(-1, length), targets.view(-1, length)


def _exp(nats: float) -> float:
    return math.exp(nats) if nats < 700 else math.inf
