"""What one training run is: architecture, Φ objective, training. No torch here.

A run is one flat set of named values (`preset`, `lambda_phi`, `learning_rate`, ...), so that a study file can fix
some of them and search over others by name; `build_run` turns such a set into the frozen, validated `RunConfig`.
"""

from __future__ import annotations

import dataclasses
import json
import math
import re
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hpo_model.digest import short_digest
from hpo_model.errors import ConfigError

Scalar = bool | int | float | str
Presets = Mapping[str, Mapping[str, Scalar]]  # values by name, of each preset
_NETWORK_NAME = r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*"

BlockPattern = Literal["attention", "convolution+attention", "attention+convolution"]
MemoryGate = Literal["static", "dynamic"]
PhiObjective = Literal["v5.2", "bounded"]
LambdaSchedule = Literal["constant", "warmup", "linear", "cosine", "adaptive"]
LearningRateSchedule = Literal["cosine", "constant", "plateau"]
Optimizer = Literal["adamw", "muon"]
TokenizerKind = Literal["bpe", "word"]

MIN_BPE_VOCABULARY = 257  # all bytes and the start token


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The network's shape. Two runs with equal architectures have parameters of equal shapes."""

    width: int  # channels D of the residual stream
    layers: int  # residual blocks
    heads: int  # attention heads; width / heads channels each
    sequence_length: int = 256  # tokens T that the network sees at once
    blocks: BlockPattern = "attention"  # kinds of block, repeated over the layers
    tie_embeddings: bool = True  # one matrix for input embedding and output layer
    bigram_buckets: int = 0  # rows of a table that a token and the one before it are hashed to; 0: none
    attention_taps: int = 1  # positions that queries, keys and values are mixed from: their own and those before it
    iit: bool = True  # False: the control arm, the same network without Φ term, memory and noise
    phi_probes: int = 32  # query positions from which attention diversity is estimated
    memory_slots: int = 64  # 0: no memory
    memory_gate: MemoryGate = "dynamic"  # one gate for all positions, or one computed from each
    network: str = ""  # "module:Class" of a network of the user's own (hpo_model.network.custom); "": the transformer

    def __post_init__(self) -> None:
        _positive(self, "width", "layers", "heads", "phi_probes")
        _require(self.width % self.heads == 0, f"heads must divide width, got {self.heads} and {self.width}")
        _require(self.sequence_length >= 8, f"sequence_length must be at least 8 tokens, got {self.sequence_length}")
        _require(
            not self.network or re.fullmatch(_NETWORK_NAME, self.network) is not None,
            f'network must be "module:Class", importable names, got {self.network!r}',
        )
        _require(0 <= self.bigram_buckets <= 2**24, f"bigram_buckets must be 0 to {2**24:,}, got {self.bigram_buckets}")
        _require(1 <= self.attention_taps <= 8, f"attention_taps must be 1 to 8, got {self.attention_taps}")
        _require(self.memory_slots >= 0, f"memory_slots must be 0 or more, got {self.memory_slots}")
        _require(
            "attention" in self.block_kinds,
            f"blocks = '{self.blocks}' over {self.layers} layer(s) has no attention, which Φ and memory need",
        )

    @property
    def block_kinds(self) -> tuple[str, ...]:
        """The kind of each layer, the pattern repeated."""
        pattern = self.blocks.split("+")
        return tuple(pattern[layer % len(pattern)] for layer in range(self.layers))

    @property
    def has_memory(self) -> bool:
        """Whether the network reads and writes an external memory."""
        return self.iit and self.memory_slots > 0


@dataclass(frozen=True, kw_only=True)
class PhiTerm:
    """The Φ term of the loss: λ_phi times the objective's ΔΦ."""

    lambda_phi: float = 0.05  # weight of ΔΦ against nats per token
    phi_objective: PhiObjective = "v5.2"
    phi_target: float = 0.8  # Φ* of the bounded objective
    lambda_schedule: LambdaSchedule = "constant"
    phi_floor: float = 0.7  # the Φ that the adaptive schedule holds

    def __post_init__(self) -> None:
        _require(self.lambda_phi >= 0, f"lambda_phi must be 0 or more, got {self.lambda_phi}")
        for name in ("phi_target", "phi_floor"):
            _require(0 < getattr(self, name) < 1, f"{name} must be between 0 and 1, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class Training:
    """How the network is trained. The budget is in tokens, so that batch sizes compare fairly."""

    budget_tokens: int  # training tokens to read, rounded up to whole updates
    batch_size: int = 16  # sequences per update
    learning_rate: float = 1e-3  # peak
    learning_rate_schedule: LearningRateSchedule = "cosine"  # to a tenth of the peak, flat, or halved on a plateau
    warmup: float = 0.1  # share of the budget over which the learning rate rises
    optimizer: Optimizer = "adamw"  # "muon": for the blocks' matrices, beside AdamW for everything else
    weight_decay: float = 0.1  # on matrices only
    dropout: float = 0.1
    noise: float = 0.01  # standard deviation of the exploration noise on the last hidden states
    clip_norm: float = 1.0  # largest gradient norm
    evaluations: int = 10  # evenly spaced over the budget; the last one reads the full validation split
    evaluation_tokens: int = 65_536  # validation and training tokens read at each interim evaluation
    seed: int = 1  # of initialisation, data order, dropout and noise

    def __post_init__(self) -> None:
        _positive(self, "budget_tokens", "batch_size", "learning_rate", "clip_norm", "evaluations")
        _positive(self, "evaluation_tokens")
        _require(0 <= self.dropout < 1, f"dropout must be at least 0 and below 1, got {self.dropout}")
        _require(0 <= self.warmup < 1, f"warmup must be at least 0 and below 1, got {self.warmup}")
        _require(self.noise >= 0, f"noise must be 0 or more, got {self.noise}")
        _require(self.weight_decay >= 0, f"weight_decay must be 0 or more, got {self.weight_decay}")
        _require(0 <= self.seed < 2**31, f"seed must be at least 0 and below 2**31, got {self.seed}")


@dataclass(frozen=True, kw_only=True)
class TokenizerChoice:
    """Which tokenizer to train."""

    kind: TokenizerKind = "bpe"  # byte-level BPE, or words separated by white space
    vocabulary: int = 0  # tokens at most; 0 keeps every word and means 8,192 for BPE

    def __post_init__(self) -> None:
        if self.kind not in typing.get_args(TokenizerKind):
            raise ConfigError(
                f"tokenizer must be one of {', '.join(typing.get_args(TokenizerKind))}, got {self.kind!r}"
            )
        minimum = MIN_BPE_VOCABULARY if self.kind == "bpe" else 3
        _require(
            self.vocabulary == 0 or self.vocabulary >= minimum,
            f"vocabulary must be at least {minimum} for {self.kind}, got {self.vocabulary}",
        )


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """One complete run."""

    architecture: Architecture
    phi: PhiTerm
    training: Training

    def __post_init__(self) -> None:
        evaluations, length = self.training.evaluations, self.architecture.sequence_length
        _require(
            evaluations <= self.steps,
            f"evaluations must be at most the {self.steps} updates of budget_tokens, got {evaluations}",
        )
        _require(
            self.training.evaluation_tokens
            >= 2 * length,  # a sample of whole lines may hold but half of what was asked
            f"evaluation_tokens must be at least two sequences of {length}, got {self.training.evaluation_tokens}",
        )

    @property
    def tokens_per_step(self) -> int:
        """Training tokens read by one update."""
        return self.training.batch_size * self.architecture.sequence_length

    @property
    def steps(self) -> int:
        """Updates in the whole run: the budget, rounded up to whole updates."""
        return -(-self.training.budget_tokens // self.tokens_per_step)

    def milestone_step(self, milestone: int) -> int:
        """The update after which evaluation number `milestone` (1 to `evaluations`) takes place."""
        return -(-self.steps * milestone // self.training.evaluations)

    def parameters(self) -> dict[str, Scalar]:
        """The run as the flat set of values from which `build_run` builds it again."""
        sections = (self.architecture, self.phi, self.training)
        return {field.name: getattr(part, field.name) for part in sections for field in dataclasses.fields(part)}

    def digest(self) -> str:
        """Sixteen hexadecimal digits that differ between runs that differ in any value.

        Added values count only where they are not what every run did before, so that a run keeps its digest.
        """
        values = self.parameters()
        counted = {name: value for name, value in values.items() if value != ADDED_VALUES.get(name)}
        return short_digest(json.dumps(counted, sort_keys=True))


# Values that runs did not have from the first, and what all runs did before: the defaults of their fields.
ADDED_VALUES: Mapping[str, Scalar] = types.MappingProxyType(
    {"optimizer": "adamw", "attention_taps": 1, "bigram_buckets": 0}
)

# Raised whenever runs of equal values train otherwise than before: initialisation, order of the data, dropout, loss. A
# preset's other value needs no raise, nor does a value that is added, as its default is what runs did before. 2:
# initialisation by width, dropout from sixteen bits.
SEMANTICS_VERSION = 2

# Width, layers and heads are those of the logs this project systematises; micro and small differ in training only.
# Learning rates were measured for nano and tiny_iit; those of the larger ones are of before the present initialisation.
PRESETS: Presets = types.MappingProxyType(
    {
        "nano": dict(
            width=128,
            layers=2,
            heads=4,
            sequence_length=128,
            batch_size=8,
            learning_rate=4e-3,
            warmup=0.2,
            evaluation_tokens=8192,
        ),
        "tiny_iit": dict(width=256, layers=2, heads=4, batch_size=16, learning_rate=2e-3),
        "micro_iit": dict(width=384, layers=3, heads=6, batch_size=16, learning_rate=6e-4, dropout=0.1),
        "small_iit": dict(width=384, layers=3, heads=6, batch_size=32, learning_rate=1e-3, dropout=0.2),
        "medium_iit": dict(width=448, layers=4, heads=8, batch_size=32, learning_rate=6e-4, dropout=0.2),
        "large_iit": dict(width=512, layers=4, heads=8, batch_size=32, learning_rate=5e-4, dropout=0.25),
    }
)
PRESET_BUDGET_TOKENS = 2_000_000  # about one pass over WikiText-2; a study file says its own


def build_run(parameters: Mapping[str, Scalar], presets: Presets = PRESETS) -> RunConfig:
    """Build a run from named values; `preset` names the values that the others override.

    Args:
        parameters: values by field name of `Architecture`, `PhiTerm` or `Training`, and optionally `preset`.
        presets: what each preset stands for; a study made before remembers its own.

    Raises:
        ConfigError: an unknown name, a wrong type, a value outside its range.
    """
    named = dict(parameters)
    preset = named.pop("preset", "nano")
    if preset not in presets:
        raise ConfigError(f"preset: unknown preset {preset!r}, one of {', '.join(presets)}")
    return recorded_run({"budget_tokens": PRESET_BUDGET_TOKENS, **presets[str(preset)], **named})


def recorded_run(parameters: Mapping[str, Scalar]) -> RunConfig:
    """Build a run from all of its values, as a checkpoint or a trial holds them.

    A value that runs did not have when it was stored takes its field's default: the defaults are what runs did before.

    Raises:
        ConfigError: as `build_run`.
    """
    values: dict[str, Any] = {name: _checked(name, value) for name, value in parameters.items()}
    parts = {part: {name: values[name] for name in names if name in values} for part, names in _FIELDS.items()}
    return RunConfig(
        architecture=Architecture(**parts[Architecture]),
        phi=PhiTerm(**parts[PhiTerm]),
        training=Training(**parts[Training]),
    )


def parameter_type(name: str) -> type[Scalar]:
    """The type of a run's value: bool, int, float or str.

    Raises:
        ConfigError: the name is not one of a run's.
    """
    if name not in _TYPES:
        known = ", ".join(sorted(_TYPES))
        raise ConfigError(f"{name}: not a value of a run; known are {known}")
    hint = _TYPES[name]
    return str if typing.get_origin(hint) is Literal else hint


def _checked(name: str, value: Scalar) -> Any:
    expected = parameter_type(name)
    options = typing.get_args(_TYPES[name])
    if options and value not in options:
        raise ConfigError(f"{name} must be one of {', '.join(map(repr, options))}, got {value!r}")
    if expected is float and type(value) is int:
        value = float(value)
    if type(value) is not expected or value in (math.inf, -math.inf) or value != value:
        raise ConfigError(f"{name} must be of type {expected.__name__} and finite, got {value!r}")
    return value


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _positive(config: object, *names: str) -> None:
    for name in names:
        _require(getattr(config, name) > 0, f"{name} must be above 0, got {getattr(config, name)}")


_FIELDS: dict[type, tuple[str, ...]] = {
    part: tuple(field.name for field in dataclasses.fields(part)) for part in (Architecture, PhiTerm, Training)
}
_TYPES: dict[str, Any] = {
    "preset": str,
    **{name: hint for part in _FIELDS for name, hint in typing.get_type_hints(part).items()},
}
