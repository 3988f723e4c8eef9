"""What training promises beside its speed: repetition bit by bit, no second compilation, no waiting, a good estimate.

Shapes: B sequences, T positions, C components of Φ.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from arms import VOCABULARY, Setting, our_run
from torch import Tensor

from hpo_model.network import phi
from hpo_model.training.loop import update
from hpo_model.training.run import Run
from hpo_model.training.step import total_loss

TRIALS = 10
UPDATES_OF_A_TRIAL = 5  # after which CUDA graphs, where they are used, have been recorded
WATCHED_UPDATES = 20
MEASUREMENTS = 10
SEQUENCES = 64  # at most, on which attention diversity is measured


def bitwise(setting: Setting, updates: int, *, compiled: bool) -> dict[str, Any]:
    """Whether two runs with one seed have equal losses at each update, each run in a process of its own."""
    with ProcessPoolExecutor(1, get_context("spawn"), max_tasks_per_child=1) as pool:
        runs = [pool.submit(_losses, setting, updates, compiled) for _ in range(2)]
        (first, first_weights), (second, second_weights) = (run.result() for run in runs)
    unequal = [step for step, pair in enumerate(zip(first, second, strict=True), 1) if pair[0] != pair[1]]
    return {
        "compiled": compiled,
        "updates": updates,
        "equal_losses": updates - len(unequal),
        "first_unequal": unequal[0] if unequal else None,
        "equal_weights": first_weights == second_weights,
        "last_loss": first[-1],
    }


def _losses(setting: Setting, updates: int, compiled: bool) -> tuple[list[float], str]:
    """The loss of each update, and a digest of the weights after the last."""
    losses: list[Tensor] = []

    def recorded(*arguments: Any) -> Tensor:
        loss = total_loss(*arguments)
        losses.append(loss.detach().clone())
        return loss

    with mock.patch("hpo_model.training.loop.total_loss", recorded):
        run = our_run(setting, compiled=compiled, **_budget(setting, updates))
        _make_updates(run, updates)
    digest = hashlib.sha256()
    for parameter in run.network.parameters():
        digest.update(parameter.detach().cpu().numpy().tobytes())
    return torch.stack(losses).tolist(), digest.hexdigest()


def compilations(setting: Setting) -> dict[str, Any]:
    """Graphs that ten compiled trials of one process make, seconds of each until its first update is done, and memory.

    The trials differ in everything that is searched without changing a shape. A trial's network may lie elsewhere than
    the one before; then its CUDA graphs are recorded anew, and the old ones are kept. What a GPU has to confirm: the
    memory reserved after a trial stays what it was after the second.
    """
    graphs, seconds, reserved = [], [], []
    for trial in range(TRIALS):
        searched = dict(
            lambda_phi=0.01 * (trial + 1), dropout=0.04 * trial, learning_rate=1e-4 * (trial + 1), noise=0.002 * trial
        )
        started = time.perf_counter()
        run = our_run(setting, compiled=True, **searched, seed=trial)
        _make_updates(run, 1)
        seconds.append(round(time.perf_counter() - started, 2))
        _make_updates(run, UPDATES_OF_A_TRIAL - 1)
        graphs.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        del run
        if setting.device != "cpu":
            torch.cuda.empty_cache()
            reserved.append(torch.cuda.memory_reserved(torch.device(setting.device)) // 2**20)
    return {
        "graphs_of_first_trial": graphs[0],
        "graphs_of_the_others": graphs[-1] - graphs[0],
        "graph_breaks": sum(torch._dynamo.utils.counters["graph_break"].values()),
        "seconds_to_first_update": seconds,
        "reserved_mib_after_each": reserved or None,
    }


def synchronisations(setting: Setting, *, compiled: bool) -> dict[str, Any]:
    """Places at which an update waits for the GPU, as PyTorch's own debug mode sees them; None on a CPU."""
    places: list[str] | None = None
    run = our_run(setting, compiled=compiled)
    _make_updates(run, UPDATES_OF_A_TRIAL)
    if run.device.type == "cuda":
        sums = torch.zeros(2, device=run.device)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            for _ in range(WATCHED_UPDATES):
                update(run, sums)
            torch.cuda.set_sync_debug_mode("default")
        told = [warning for warning in caught if "synchronizing" in str(warning.message)]
        places = [f"{Path(warning.filename).name}:{warning.lineno}" for warning in told]
    return {
        "compiled": compiled,
        "updates": WATCHED_UPDATES,
        "synchronisations": None if places is None else len(places),
        "at": sorted(set(places or ())),
    }


def _make_updates(run: Run, updates: int) -> None:
    """So many, and wait for them."""
    sums = torch.zeros(2, device=run.device)
    for _ in range(updates):
        update(run, sums)
    sums.tolist()


def _budget(setting: Setting, updates: int) -> dict[str, int]:
    """The values of a run that ends after so many updates, its learning rate with it."""
    return dict(budget_tokens=updates * setting.config().tokens_per_step, evaluations=1)


def diversity(setting: Setting, text: str, updates: int) -> list[dict[str, float]]:
    """How far attention diversity from probes is from that of all queries, along a training on real text."""
    from hpo_model.config import TokenizerChoice
    from hpo_model.data.corpus import load_corpus  # text needs a tokenizer, which speed does not
    from hpo_model.data.tokens import tokenize_corpus

    with tempfile.TemporaryDirectory(prefix="hpo-benchmark-") as folder:
        cache = Path(folder)
        corpus = tokenize_corpus(load_corpus(text, cache, print), TokenizerChoice(vocabulary=VOCABULARY), cache)
        run = our_run(setting, corpus, **_budget(setting, updates))
        length = run.config.architecture.sequence_length
        ids = torch.from_numpy(corpus.span("valid").ids.astype("int64"))
        sequences_BT = ids[: len(ids) // length * length].view(-1, length)
        sequences_BT = sequences_BT[:: -(-len(sequences_BT) // SEQUENCES)].to(run.device)
        found = []
        for measurement in range(MEASUREMENTS + 1):
            _make_updates(run, updates * measurement // MEASUREMENTS - run.step)
            found.append({"updates": run.step, **_error_of_diversity(run, sequences_BT)})
    return found


@torch.no_grad()
def _error_of_diversity(run: Run, sequences_BT: Tensor) -> dict[str, float]:
    """Mean and largest |approximate - exact| over the sequences, and the exact mean."""
    length = sequences_BT.shape[1]
    run.network.eval()
    states = run.network(sequences_BT)
    run.network.train()
    place = phi.COMPONENTS.index("attention_diversity")
    approximate_B, exact_B = (
        phi.components(states.hidden_BTD, phi.attention_received(states.attention, probes))[:, place]
        for probes in (run.config.architecture.phi_probes, length)
    )
    error_B = (approximate_B - exact_B).abs()
    named = {"mean_error": error_B.mean(), "largest_error": error_B.max(), "exact": exact_B.mean()}
    return {name: round(value.item(), 4) for name, value in named.items()}
