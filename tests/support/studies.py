"""Toy studies as `hpo run` leaves them in a storage, built by hand and in memory."""

from __future__ import annotations

import math
from typing import Any

import optuna
from optuna.distributions import FloatDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo_reports.records.names import (
    STUDY_LAST_RUN,
    STUDY_RECORD,
    TRIAL_CONTINUED,
    TRIAL_HISTORY,
    TRIAL_MACHINE,
    TRIAL_OUTCOME,
    TRIAL_REASON,
    TRIAL_ROLE,
    TRIAL_RUN,
    TRIAL_SLOT,
    TRIAL_SUSPICIOUS,
)

BUDGET = 300_000
EVALUATIONS = 10
FACTS: dict[str, Any] = {
    "uid": "5f0c",
    "created_at": 1763409600.0,  # 2025-11-17 20:00 UTC
    "profile": "cpu",
    "spec": {
        "name": "lambda_phi",
        "description": "Which weight of the Φ term gives the lowest loss?",
        "trials": 40,
        "text": {"corpus": "auto", "tokenizer": "bpe", "vocabulary": 2048},
        "run": {"preset": "nano", "budget_tokens": BUDGET},
        "search": {
            "lambda_phi": {"low": 0.001, "high": 0.3, "log": True, "step": None, "choices": None},
            "dropout": {"low": 0.0, "high": 0.4, "log": False, "step": None, "choices": None},
            "learning_rate": {"low": 0.0005, "high": 0.008, "log": True, "step": None, "choices": None},
        },
        "baseline": {"lambda_phi": 0.05, "dropout": 0.1},
        "sampler": {"kind": "tpe", "startup_trials": 8, "seed": 1},
        "pruner": {"kind": "successive_halving", "min_resource": 2, "reduction_factor": 3, "n_min_trials": 3},
    },
    "corpus": {
        "name": "python-docs",
        "source": "python-docs",
        "origin": "documentation and docstrings of Python 3.11.2",
        "digest": "a1b2c3d4e5f60718",
        "tokens": {"train": 512_345, "valid": 28_001, "test": 27_650},
    },
    "tokenizer": {"kind": "bpe", "vocabulary": 2048, "digest": "0f1e2d3c4b5a6978"},
    "hardware": "Intel Xeon, 2 cores",
    "versions": {"python": "3.11.2", "torch": "2.13.0+cpu", "optuna": "5.0.0", "hpo": "0.1.0"},
}
HOSTILE = [  # what a user may type, to the grief of Markdown
    "a|b",
    "`rm -rf`",
    "line\nbreak\r\nand\u2028more",
    "<script>alert(1)</script>",
    "&lt;b&gt;",
    "**bold** _it_ ~~no~~",
    "[link](http://x.y) ![image](z)",
    "# heading",
    "heading #",
    "- item",
    "+ item",
    "12. item",
    "===",
    "> quote",
    "    code",
    "\\|",
    "ends in \\",
    "$x$",
    "```",
    "__init__",
    "snake_case_name",
]


def study_of(*trials: FrozenTrial, facts: dict[str, Any] | None = FACTS, **options: Any) -> optuna.Study:
    """A study in memory that holds these trials."""
    study = optuna.create_study(**{"study_name": "lambda_phi", **options})
    if facts is not None:
        study.set_user_attr(STUDY_RECORD, facts)
        study.set_user_attr(STUDY_LAST_RUN, 1763410500.0)
    study.add_trials(trials)
    return study


def run(**values: Any) -> dict[str, Any]:
    """A run's parameters as the worker records them."""
    return {
        "width": 128,
        "layers": 2,
        "heads": 4,
        "sequence_length": 128,
        "iit": True,
        "lambda_phi": 0.05,
        "lambda_schedule": "constant",
        "budget_tokens": BUDGET,
        "batch_size": 8,
        "learning_rate": 0.002,
        "dropout": 0.1,
        "evaluations": EVALUATIONS,
        "seed": 1,
        **values,
    }


def evaluation(milestone: int, val_loss: float, **values: Any) -> dict[str, Any]:
    """An entry of a trial's history."""
    return {
        "milestone": milestone,
        "tokens": BUDGET * milestone // EVALUATIONS,
        "step": 293 * milestone // EVALUATIONS,
        "epoch": 0.0585 * milestone,
        "whole_split": milestone == EVALUATIONS,
        "val_loss": val_loss,
        "val_ppl": math.exp(val_loss),
        "val_word_ppl": math.exp(val_loss * 1.6),
        "val_bits_per_byte": val_loss * 0.42,
        "train_ppl": math.exp(val_loss - 0.05),
        "phi": 0.71,
        "train_phi": 0.7212,
        "delta_phi_loss": 0.4567,
        "lambda_phi": 0.05,
        "tokens_per_s": 11_000.0,
        "seconds": 2.75 * milestone,
        "peak_memory_bytes": 400_000_000,
        **values,
    }


def losses_to(final: float, milestones: int = EVALUATIONS) -> list[float]:
    """A falling curve of ten evaluations that would end at `final`, cut off after some of them."""
    return [final + 2.5 * (1 - m / EVALUATIONS) ** 2 for m in range(1, milestones + 1)]


def trial(
    final: float = 5.0,
    *,
    slot: int = 1,
    state: TrialState = TrialState.COMPLETE,
    outcome: str = "complete",
    milestones: int = EVALUATIONS,
    attributes: dict[str, Any] | None = None,
    measured: dict[str, Any] | None = None,
    constraints: dict[str, float] | None = None,
    **parameters: Any,
) -> FrozenTrial:
    """A trial as the worker leaves it; `parameters` are searched ones."""
    losses = losses_to(final, milestones)
    history = [evaluation(place, loss) for place, loss in enumerate(losses, 1)]
    if history:
        history[-1] |= measured or {}
    searched = {"learning_rate": 0.002, "lambda_phi": 0.05, "dropout": 0.1, **parameters}
    searched = {name: value for name, value in searched.items() if isinstance(value, float)}
    return create_trial(
        state=state,
        value=final if state is TrialState.COMPLETE else None,
        params=searched,
        distributions={name: FloatDistribution(-1e9, 1e9) for name in searched},
        intermediate_values=dict(enumerate(losses, 1)),
        constraints=constraints,
        user_attrs={
            TRIAL_SLOT: slot,
            TRIAL_ROLE: "baseline" if slot == 0 else "search",
            TRIAL_OUTCOME: outcome,
            TRIAL_REASON: f"all of {BUDGET:,} tokens",
            TRIAL_SUSPICIOUS: False,
            TRIAL_RUN: run(**parameters),
            TRIAL_HISTORY: history,
            TRIAL_MACHINE: {"device": "cpu", "threads": 2, "worker": "worker-0"},
            TRIAL_CONTINUED: 0,
            **(attributes or {}),
        },
    )


def pruned(final: float = 6.0, milestones: int = 2, **options: Any) -> FrozenTrial:
    """A trial that was ended early."""
    reason = {TRIAL_REASON: f"behind its peers at {BUDGET * milestones // EVALUATIONS:,} tokens"}
    options["attributes"] = {**reason, **options.get("attributes", {})}
    return trial(final, state=TrialState.PRUNED, outcome="pruned", milestones=milestones, **options)


def running(milestones: int = 3) -> FrozenTrial:
    """A trial that goes on: Optuna knows its losses, the rest is written at its end."""
    return create_trial(
        state=TrialState.RUNNING,
        params={"learning_rate": 0.002},
        distributions={"learning_rate": FloatDistribution(0, 1)},
        intermediate_values=dict(enumerate(losses_to(5.0, milestones), 1)),
        user_attrs={TRIAL_SLOT: 39, TRIAL_ROLE: "search"},
    )
