"""What a run's history consists of. No torch here: reports, status and the dashboard read histories without it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The state of a run at one of its milestones. `None` is a value that this run does not have.

    A field that is added needs a default: older checkpoints lack it. A trial's `history.csv` and TensorBoard have every
    field; which of them reports show is said in `hpo_reports.document.tables`.
    """

    milestone: int  # 1 to `Training.evaluations`
    tokens: int  # training tokens read so far
    step: int  # updates made so far
    epoch: float  # passes over the training split so far
    whole_split: bool  # whether it read the full validation split, not a fixed sample; the name is a stored one
    val_loss: float  # nats per token
    val_ppl: float  # per token; not comparable across tokenizers
    val_word_ppl: float  # per word and end of line, as the literature reports
    val_bits_per_byte: float | None
    train_loss: float  # nats per token on a fixed slice of the training text, without dropout or noise
    train_ppl: float
    phi: float  # on the validation text, under the initial weights, so that it compares between runs; NaN: no attention
    temporal_coherence: float  # the components of Φ on the validation text
    integration: float
    complexity: float
    attention_diversity: float
    train_phi: float | None  # mean Φ of the training batches since the last evaluation, under the learned weights
    delta_phi_loss: float | None  # mean λ_phi · ΔΦ of the training batches since the last evaluation
    lambda_phi: float | None  # in force now
    threshold: float | None  # of the memory's writes, θ
    gate: float | None  # how far the memory is let in, at a state of zero
    memory_used: int | None  # filled slots
    learning_rate: float
    gradient_norm: float  # before clipping, at the last update
    tokens_per_s: float  # of training alone, since the last evaluation
    seconds: float  # spent on training and evaluations so far, over all processes that worked on the run
    peak_memory_bytes: int | None  # since the run began or went on: its tensors on a GPU, else the whole process
    energy_joules: float | None = None  # used by its GPU meanwhile, including what other programs on it used
