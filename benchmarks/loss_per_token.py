"""What each token teaches: validation loss of several arms after equal tokens of one text, under several seeds.

python benchmarks/loss_per_token.py --data PATH                        # before and now, 1.2 million tokens, three seeds
python benchmarks/loss_per_token.py --data PATH --arm before --arm now --tokens 300000 4800000
python benchmarks/loss_per_token.py --data PATH --arm nanogpt --peer NANOGPT --learning-rate 2e-3 4e-3 8e-3

Each run appends a line to a file (`--runs`), and the same command again goes on where it stopped: hours of processor
time may be spread over days. Arms take turns within a seed. Losses are of the full validation split, in nats per token,
of the state after the last update; dropout is 0, because at these budgets every token is read at most twice.

Arms: `now` is the preset; `before` is the preset without the values that runs did not have from the first; NAME=VALUE,…
is the preset with these values; `nanogpt` is the network of a nanoGPT checkout in the same shape, with its own
initialisation and optimizer, on our batches under our schedule.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from arms import peer_network
from results import FOLDER, keep
from torch import nn

from hpo_model.config import ADDED_VALUES, PRESETS, RunConfig, Scalar, TokenizerChoice, build_run
from hpo_model.data.batches import TrainingBatches
from hpo_model.data.corpus import load_corpus
from hpo_model.data.tokens import TokenizedCorpus, tokenize_corpus
from hpo_model.hardware import keep_freed_memory
from hpo_model.training.loop import train
from hpo_model.training.schedules import learning_rate_at

VOCABULARY = 2048
EVALUATED_AT_ONCE = 32  # sequences


@dataclass(frozen=True, kw_only=True)
class Order:
    """One run that is wanted."""

    arm: str
    tokens: int
    seed: int
    learning_rate: float | None  # None: the preset's


def values_of(arm: str) -> dict[str, Scalar]:
    """What an arm has otherwise than the preset.

    Raises:
        SystemExit: an unknown arm.
    """
    if arm in ("before", "now", "nanogpt"):
        return dict(ADDED_VALUES) if arm == "before" else {}
    values: dict[str, Scalar] = {}
    for setting in arm.split(","):
        name, sign, text = setting.partition("=")
        if not sign:
            raise SystemExit(f"--arm {arm}: before, now, nanogpt or NAME=VALUE,…")
        try:
            values[name] = json.loads(text)
        except ValueError:
            values[name] = text
    return values


def run_of(order: Order, preset: str) -> RunConfig:
    """The run of an order; nanoGPT takes its shape, schedule and seed."""
    values: dict[str, Scalar] = {"preset": preset, "dropout": 0.0, **values_of(order.arm)}
    if order.learning_rate is not None:
        values["learning_rate"] = order.learning_rate
    return build_run({**values, "budget_tokens": order.tokens, "seed": order.seed, "evaluations": 1})


def measure(order: Order, preset: str, corpus: TokenizedCorpus, checkout: Path | None) -> dict[str, Any]:
    """Train, and give loss, seconds and parameters."""
    config = run_of(order, preset)
    started = time.process_time()
    if order.arm == "nanogpt":
        if checkout is None:
            raise SystemExit("--arm nanogpt needs --peer, the folder of a nanoGPT checkout")
        figures = train_peer(config, corpus, checkout)
    else:
        last = train(config, corpus).history[-1]
        figures = {"loss": last.val_loss, "word_ppl": last.val_word_ppl, "seconds": last.seconds}
    return {**figures, "cpu_s": round(time.process_time() - started, 1), "threads": torch.get_num_threads()}


def train_peer(config: RunConfig, corpus: TokenizedCorpus, checkout: Path) -> dict[str, Any]:
    """nanoGPT's network and optimizer on our batches; as `train.py` updates it, on a CPU."""
    torch.manual_seed(config.training.seed)
    keep_freed_memory()
    device = torch.device("cpu")
    network, optimizer = peer_network(checkout, config, corpus.tokenizer.vocabulary, device)
    batches = TrainingBatches(corpus, config, device)
    started = time.perf_counter()
    for step in range(config.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate_at(config, step)
        inputs_BT, targets_BT = batches.at(step)
        _, loss = network(inputs_BT, targets_BT.contiguous())
        loss.backward()
        nn.utils.clip_grad_norm_(network.parameters(), config.training.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - started
    nats, tokens = peer_nats(network, corpus, config.architecture.sequence_length)
    words = corpus.span("valid").words
    return {"loss": nats / tokens, "word_ppl": math.exp(nats / words), "seconds": seconds}


@torch.no_grad()
def peer_nats(network: nn.Module, corpus: TokenizedCorpus, length: int) -> tuple[float, int]:
    """Nats of the validation split, cut as `hpo_model.training.evaluation.score` cuts it, and its tokens."""
    network.eval()
    ids = torch.from_numpy(corpus.span("valid").ids.astype("int64"))
    tokens, nats = len(ids) - 1, 0.0
    for first in range(0, tokens, EVALUATED_AT_ONCE * length):
        part = ids[first : first + EVALUATED_AT_ONCE * length + 1]
        padding = -(len(part) - 1) % length
        inputs = F.pad(part[:-1], (0, padding)).view(-1, length)
        targets = F.pad(part[1:], (0, padding), value=-1).view(-1, length)  # what nanoGPT ignores
        _, loss = network(inputs, targets)
        nats += float(loss) * (len(part) - 1)
    return nats, tokens


def wanted(options: argparse.Namespace) -> Iterator[Order]:
    """All runs, seed by seed, so that what is there early compares."""
    for tokens in options.tokens:
        for seed in range(1, options.seeds + 1):
            for arm in options.arm:
                for rate in options.learning_rate:
                    yield Order(arm=arm, tokens=tokens, seed=seed, learning_rate=rate)


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Mean loss and cost of each arm, tokens and learning rate, over its seeds."""
    groups: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["tokens"], row["arm"], row["learning_rate"]), []).append(row)
    return [
        {
            "tokens": tokens,
            "arm": arm,
            "learning_rate": rate,
            "seeds": len(group),
            "loss": round(statistics.fmean(row["loss"] for row in group), 4),
            "losses": [round(row["loss"], 4) for row in group],
            "cpu_s": round(statistics.median(row["cpu_s"] for row in group), 1),
        }
        for (tokens, arm, rate), group in sorted(groups.items(), key=lambda each: (each[0][0], str(each[0][1:])))
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train what is missing, then print and keep a summary of all runs on this text."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="folder of text, or the name of a corpus")
    parser.add_argument("--preset", choices=tuple(PRESETS), default="nano")
    parser.add_argument("--arm", action="append", help="repeatable; default before and now")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1_200_000])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--learning-rate", type=float, nargs="+", default=[None], help="default: the preset's")
    parser.add_argument("--threads", type=int, default=1, help="of each run; results depend on it in the last bits")
    parser.add_argument("--peer", type=Path, help="folder of a nanoGPT checkout")
    parser.add_argument("--runs", type=Path, default=FOLDER / "loss-per-token-runs.jsonl", help="a line for each run")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder for the JSON")
    options = parser.parse_args(arguments)
    options.arm = options.arm or ["before", "now"]
    torch.set_num_threads(options.threads)
    done = [json.loads(line) for line in options.runs.read_text().splitlines()] if options.runs.is_file() else []
    with tempfile.TemporaryDirectory(prefix="hpo-loss-per-token-") as cache:
        text = load_corpus(options.data, Path(cache))
        corpus = tokenize_corpus(text, TokenizerChoice(kind="bpe", vocabulary=VOCABULARY), Path(cache))
        for order in wanted(options):
            key = {
                "text": text.name,
                "preset": options.preset,
                **vars(order),
                "values": run_of(order, options.preset).digest(),
            }
            if any(row.items() >= key.items() for row in done):
                continue
            row = {**key, **measure(order, options.preset, corpus, options.peer)}
            done.append(row)
            with options.runs.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            print(f"{order.arm} at {order.tokens:,} tokens, seed {order.seed}: {row['loss']:.4f}", flush=True)
    rows = [row for row in done if (row["text"], row["preset"]) == (text.name, options.preset)]
    for each in summary(rows):
        print(each)
    keep("loss-per-token", {"text": text.name, "preset": options.preset, "arms": summary(rows)}, folder=options.results)


if __name__ == "__main__":
    main()
