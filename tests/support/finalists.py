"""Toy companion studies as `hpo run` leaves them, built by hand and in memory."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from typing import Any

import optuna
from optuna.distributions import FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from hpo_reports.records.names import (
    STUDY_RECORD,
    STUDY_TEST_EVALUATIONS,
    TRIAL_CANDIDATE,
    TRIAL_HISTORY,
    TRIAL_OUTCOME,
    TRIAL_REASON,
    TRIAL_ROLE,
    TRIAL_SLOT,
    TRIAL_SUSPICIOUS,
)
from tests.support.studies import FACTS

Ending = float | str | None  # a loss; how a run ended otherwise; None: not begun


def companion_facts(
    candidates: Sequence[int], seeds: Sequence[int], *, baseline: int | None = 0, screened: int = 9, rounds: int = 1
) -> dict[str, Any]:
    """What a companion study was made from: candidates by their number in the search."""
    facts = copy.deepcopy(FACTS)
    facts["uid"] = "77aa"
    facts["spec"]["name"] = "lambda_phi--finalists"
    facts["spec"]["replication"] = {
        "study": "lambda_phi",
        "created_at": FACTS["created_at"],
        "candidates": [
            {
                "trial": trial,
                "role": "baseline" if trial == baseline else "finalist",
                "parameters": {"lambda_phi": 0.01 * (trial + 1)},
                "val_loss": 4.9 + 0.01 * place,
            }
            for place, trial in enumerate(candidates)
        ],
        "seeds": list(seeds),
        "runs": [[trial, seed] for seed in seeds for trial in candidates],
        "rounds": [len(seeds)] * rounds,
        "screened": screened,
    }
    return facts


def companion_study(
    losses: Mapping[int, Sequence[Ending]], *, tests: list[dict[str, Any]] | None = None, **options: Any
) -> optuna.Study:
    """A companion study in memory.

    Args:
        losses: for each candidate, how its runs under seeds 2, 3, ... ended.
        tests: what was stored of the test split.
        options: of `companion_facts`.
    """
    seeds = range(2, 2 + max(map(len, losses.values())))
    study = optuna.create_study(study_name="lambda_phi--finalists")
    study.set_user_attr(STUDY_RECORD, companion_facts(list(losses), list(seeds), **options))
    if tests is not None:
        study.set_user_attr(STUDY_TEST_EVALUATIONS, tests)
    slot = 0
    for place, seed in enumerate(seeds):
        for candidate, endings in losses.items():
            if place < len(endings) and endings[place] is not None:
                study.add_trial(_trial(slot, candidate, seed, endings[place]))
            slot += 1
    return study


def _trial(slot: int, candidate: int, seed: int, ending: Ending) -> FrozenTrial:
    complete = isinstance(ending, float)
    states = {"running": TrialState.RUNNING, "failed": TrialState.FAIL}
    outcome = "complete" if complete or ending == "suspicious" else str(ending)
    loss = ending if isinstance(ending, float) else 0.5
    state = TrialState.COMPLETE if outcome == "complete" else states.get(outcome, TrialState.PRUNED)
    return create_trial(
        state=state,
        value=loss if state is TrialState.COMPLETE else None,
        params={"lambda_phi": 0.01 * (candidate + 1), "seed": seed},
        distributions={"lambda_phi": FloatDistribution(0.001, 0.9), "seed": IntDistribution(0, 2**31 - 1)},
        user_attrs={
            TRIAL_SLOT: slot,
            TRIAL_CANDIDATE: candidate,
            TRIAL_ROLE: "baseline" if candidate == 0 else "finalist",
            TRIAL_OUTCOME: outcome,
            TRIAL_REASON: "all tokens" if complete else f"{outcome}, as told",
            TRIAL_SUSPICIOUS: ending == "suspicious",
            TRIAL_HISTORY: [{"milestone": 10, "val_loss": loss, "val_ppl": math.exp(loss)}] if complete else [],
        },
    )
