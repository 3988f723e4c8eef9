"""What keeping the past is worth: tokens per second of generation with and without it, in one run.

python benchmarks/generation.py --presets nano tiny_iit small_iit      # four minutes of one core

Both write the same tokens after the same prompt, in turns; medians. The network is untrained, which costs the same.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from results import FOLDER, keep

from hpo_model.config import PRESETS, build_run
from hpo_model.generation.sampling import Sampling, StoppingCriteria, generate
from hpo_model.network.transformer import Transformer

VOCABULARY = 8192
PROMISED = 5.0  # times as fast with the past, at 256 tokens
CASES = (("attention", 1), ("attention", 16), ("convolution+attention", 1))  # blocks, texts side by side


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--presets", nargs="+", choices=[*PRESETS], default=["nano", "tiny_iit", "small_iit"])
    parser.add_argument("--tokens", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--results", type=Path, default=FOLDER)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    found: dict[str, dict[str, dict[str, float]]] = {}
    for preset, (blocks, rows) in itertools.product(options.presets, CASES):
        figures = measure(preset, blocks, rows, options.tokens, options.rounds)
        found.setdefault(preset, {})[f"{blocks}, {rows} side by side"] = figures
        both = f"{figures['with_past_tokens_per_s']:,.0f} and {figures['without_tokens_per_s']:,.0f} tokens/s"
        ratio = f"{figures['times_as_fast']:.1f} x as fast (promised {PROMISED:g} x at 256 tokens)"
        print(f"{preset}, {blocks}, {rows} side by side: {both} with and without the past, {ratio}", flush=True)
    keep("generation", {"tokens": options.tokens, "presets": found}, folder=options.results)


def measure(preset: str, blocks: str, rows: int, tokens: int, rounds: int) -> dict[str, float]:
    """Tokens per second of both ways, and how often the first is the second."""
    torch.manual_seed(1)
    network = Transformer(build_run({"preset": preset, "blocks": blocks}).architecture, VOCABULARY)
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for cached in (True, False):
        _write(network, rows, 8, cached)  # the first call pays for what is made once
    for _ in range(rounds):
        for cached, kept in seconds.items():
            kept.append(_write(network, rows, tokens, cached))
    pace = {cached: rows * tokens / statistics.median(kept) for cached, kept in seconds.items()}
    return {
        "with_past_tokens_per_s": round(pace[True], 1),
        "without_tokens_per_s": round(pace[False], 1),
        "times_as_fast": round(pace[True] / pace[False], 2),
    }


def _write(network: Transformer, rows: int, tokens: int, cached: bool) -> float:
    started, busy = time.perf_counter(), time.process_time()
    generate(network, [[0]] * rows, Sampling(temperature=0), StoppingCriteria(max_tokens=tokens), cached=cached)
    # What other programs take of the machine is not this one's
    return min(time.perf_counter() - started, time.process_time() - busy)


if __name__ == "__main__":
    main()
