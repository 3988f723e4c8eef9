"""The reference runs of the projection: small networks over twenty passes, several of which overfit on purpose.

python benchmarks/reference_runs.py --data PATH --folder runs/reference        # four hours of one core
python benchmarks/reference_runs.py --data PATH --folder runs/fresh --fresh    # runs to test projections with

PATH holds WikiText-2. Each run reads a stretch of its training text, or all of it, again and again, and is evaluated
after each pass on the same stretch of its validation text. A run that was interrupted goes on from its last pass; the
same command again continues, or writes what is done. The reference runs go to the library that is shipped, a line each;
with `--fresh` other configurations on other stretches of text, to FOLDER/runs.jsonl: no reference run shares a
configuration with them, and none but that on the whole text a stretch. Runs on much text have one seed, for their time.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from hpo_model.config import RunConfig, Scalar, TokenizerChoice, build_run
from hpo_model.data.corpus import Corpus, load_corpus
from hpo_model.data.tokens import TokenizedCorpus, tokenize_corpus
from hpo_model.network.transformer import Transformer
from hpo_model.training.loop import train

LIBRARY = Path(__file__).parents[1] / "reports" / "hpo_reports" / "projection" / "reference_runs.jsonl"
EPOCHS = 20
VOCABULARY = 2048
VALID_WORDS = 15_000
WORDS_PER_TOKEN = 0.66  # of WikiText-2 under this vocabulary, about; a stretch is cut in words

NANO: dict[str, Scalar] = {"preset": "nano"}
THIN: dict[str, Scalar] = {"preset": "nano", "width": 64, "heads": 2}
SHALLOW: dict[str, Scalar] = {"preset": "nano", "layers": 1}
CONSTANT: dict[str, Scalar] = {"learning_rate_schedule": "constant"}


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A piece of the training text, and the group of the runs on it."""

    group: str
    first_token: int  # where it begins in the training text, about
    tokens: int  # about


LIBRARY_STRETCHES = {
    "100k": Stretch(group="100k", first_token=0, tokens=100_000),
    "150k": Stretch(group="150k", first_token=400_000, tokens=150_000),
    "200k": Stretch(group="200k", first_token=800_000, tokens=200_000),
    "300k": Stretch(group="300k", first_token=1_200_000, tokens=300_000),
    "600k": Stretch(group="much", first_token=2_560_000, tokens=540_000),
    "whole": Stretch(group="much", first_token=0, tokens=4_000_000),
}
LIBRARY_RUNS: tuple[tuple[str, dict[str, Scalar]], ...] = (
    ("100k", {**NANO, "dropout": 0.0}),
    ("150k", {**THIN, "dropout": 0.1}),
    ("200k", {**SHALLOW, "dropout": 0.2}),
    ("300k", {**THIN, "dropout": 0.0}),
    ("100k", {**THIN, "dropout": 0.3, "learning_rate": 2e-3}),
    ("150k", {**NANO, **CONSTANT, "dropout": 0.0, "learning_rate": 2e-3}),
    ("200k", {**THIN, "dropout": 0.1, "lambda_phi": 0.3}),
    ("300k", {**NANO, "dropout": 0.2, "learning_rate": 2e-3}),
    ("100k", {**NANO, "dropout": 0.25, "iit": False}),
    ("150k", {**THIN, **CONSTANT, "dropout": 0.0, "learning_rate": 1e-3}),
    ("200k", {**NANO, "dropout": 0.0, "batch_size": 16}),
    ("300k", {**THIN, **CONSTANT, "dropout": 0.1, "learning_rate": 3e-3}),
    ("100k", {**SHALLOW, **CONSTANT, "dropout": 0.1, "learning_rate": 1e-3}),
    ("150k", {**NANO, "dropout": 0.4, "lambda_phi": 0.01}),
    ("200k", {**THIN, "dropout": 0.0, "learning_rate": 8e-3, "weight_decay": 0.0}),
    ("300k", {**SHALLOW, "dropout": 0.0, "iit": False}),
    ("100k", {**NANO, **CONSTANT, "dropout": 0.4, "learning_rate": 1e-3}),
    ("150k", {**SHALLOW, "dropout": 0.0, "batch_size": 4, "learning_rate": 1e-3}),
    ("200k", {**NANO, **CONSTANT, "dropout": 0.2, "learning_rate": 5e-4}),
    ("300k", {**THIN, "dropout": 0.2, "batch_size": 16, "learning_rate": 6e-3}),
    ("100k", {**THIN, "dropout": 0.0, "batch_size": 4}),
    ("150k", {**NANO, "dropout": 0.1, "blocks": "attention+convolution"}),
    ("200k", {**THIN, "dropout": 0.0, "learning_rate": 5e-4, "iit": False}),
    ("300k", {**NANO, "dropout": 0.0}),
    ("whole", {**THIN, "dropout": 0.0, "learning_rate": 4e-3}),
    ("600k", {**THIN, "dropout": 0.1, "learning_rate": 2e-3}),
    ("600k", {**SHALLOW, "dropout": 0.1, "learning_rate": 4e-3}),
)
FRESH_STRETCHES = {
    "120k": Stretch(group="fresh-120k", first_token=1_700_000, tokens=120_000),
    "180k": Stretch(group="fresh-180k", first_token=2_000_000, tokens=180_000),
    "250k": Stretch(group="fresh-250k", first_token=2_300_000, tokens=250_000),
}
FRESH_RUNS: tuple[tuple[str, dict[str, Scalar]], ...] = (
    ("120k", {**NANO, "dropout": 0.15, "learning_rate": 3e-3}),
    ("180k", {**THIN, "dropout": 0.05, "learning_rate": 5e-3, "lambda_phi": 0.1}),
    ("250k", {**SHALLOW, "dropout": 0.1, "learning_rate": 3e-3}),
    ("120k", {**THIN, **CONSTANT, "dropout": 0.0, "learning_rate": 2e-3}),
    ("180k", {**NANO, **CONSTANT, "dropout": 0.3, "learning_rate": 1.5e-3}),
    ("250k", {**NANO, "dropout": 0.05, "learning_rate": 1.5e-3, "iit": False}),
    ("120k", {**SHALLOW, "dropout": 0.0, "batch_size": 16, "learning_rate": 5e-3}),
    ("180k", {**NANO, "dropout": 0.0, "weight_decay": 0.01, "learning_rate": 2.5e-3}),
    ("250k", {**THIN, "dropout": 0.3, "learning_rate": 3e-3}),
    ("120k", {**NANO, "dropout": 0.35, "learning_rate": 5e-3, "lambda_phi": 0.2}),
)


@dataclass(frozen=True, kw_only=True)
class Order:
    """One run; plain data, so that another process can do it."""

    name: str
    stretch: Stretch
    parameters: Mapping[str, Scalar]
    seed: int
    data: Path
    folder: Path


def orders(arguments: argparse.Namespace) -> Iterator[Order]:
    """All runs, every configuration under the first seed before any under the second."""
    runs = FRESH_RUNS if arguments.fresh else LIBRARY_RUNS
    stretches = FRESH_STRETCHES if arguments.fresh else LIBRARY_STRETCHES
    for seed in (3,) if arguments.fresh else (1, 2):
        for number, (stretch, parameters) in enumerate(runs):
            if stretches[stretch].group == "much" and seed == 2:
                continue
            name = f"{stretches[stretch].group}-{number:02d}-seed-{seed}"
            yield Order(
                name=name,
                stretch=stretches[stretch],
                parameters=parameters,
                seed=seed,
                data=arguments.data,
                folder=arguments.folder,
            )


def perform(order: Order) -> str:
    """Train one run to its end, from its checkpoint where there is one; its line is kept beside it."""
    torch.set_num_threads(1)
    kept = order.folder / f"{order.name}.json"
    if kept.is_file():
        return order.name
    corpus = cut(order)
    config = configured(order, corpus)
    checkpoint = order.folder / f"{order.name}.pt"
    resume_from = checkpoint if checkpoint.is_file() else None
    result = train(config, corpus, save_to=checkpoint, resume_from=resume_from)
    content = {**facts(order, config, corpus), "outcome": result.outcome}
    for name in ("val_loss", "train_loss"):
        content[name] = [round(getattr(each, name), 5) for each in result.history]
    partial = kept.with_suffix(".partial")
    partial.write_text(json.dumps(content), encoding="utf-8")
    partial.replace(kept)
    checkpoint.unlink(missing_ok=True)
    return order.name


def cut(order: Order) -> TokenizedCorpus:
    """The order's stretch of text, in tokens of its own."""
    whole = load_corpus(str(order.data), order.folder / "corpora")
    first, words = (int(n * WORDS_PER_TOKEN) for n in (order.stretch.first_token, order.stretch.tokens))
    texts = {"train": stretch_of(whole.texts["train"], first, words)}
    texts |= {split: stretch_of(whole.texts[split], 0, VALID_WORDS) for split in ("valid", "test")}
    corpus = Corpus(name=order.stretch.group, source=str(order.data), origin=whole.origin, texts=texts)
    return tokenize_corpus(corpus, TokenizerChoice(kind="bpe", vocabulary=VOCABULARY), order.folder / "tokens")


def stretch_of(text: str, first_word: int, words: int) -> str:
    """Whole lines of a text, from about one word on and about so many."""
    lines, seen = [], 0
    for line in text.splitlines(keepends=True):
        if seen >= first_word + words:
            break
        if seen >= first_word:
            lines.append(line)
        seen += len(line.split())
    return "".join(lines)


def configured(order: Order, corpus: TokenizedCorpus) -> RunConfig:
    """The order's run: so many passes, an evaluation of the whole stretch after each."""
    budget = {"budget_tokens": EPOCHS * corpus.tokens("train"), "evaluations": EPOCHS, "seed": order.seed}
    return build_run({"evaluation_tokens": corpus.tokens("valid"), **order.parameters, **budget})


def facts(order: Order, config: RunConfig, corpus: TokenizedCorpus) -> dict[str, Any]:
    """What a projection may know of a run."""
    network = Transformer(config.architecture, corpus.tokenizer.vocabulary)
    return {
        "name": order.name,
        "group": order.stretch.group,
        "seed": order.seed,
        "config": config.parameters(),
        "epoch_tokens": corpus.tokens("train"),
        "unique_tokens": corpus.tokens("train"),
        "parameters": sum(each.numel() for each in network.parameters()),
        "epochs": list(range(1, EPOCHS + 1)),
    }


def collect(names: Iterable[str], folder: Path, target: Path) -> int:
    """Write the finished runs as lines of one file, in order; how many they are."""
    lines = [path.read_text("utf-8") for name in names if (path := folder / f"{name}.json").is_file()]
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_suffix(".partial")
    partial.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    partial.replace(target)
    return len(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with WikiText-2")
    parser.add_argument("--folder", type=Path, required=True, help="of checkpoints and finished runs")
    parser.add_argument("--workers", type=int, default=1, help="runs at once, one thread each")
    parser.add_argument("--fresh", action="store_true", help="the runs that projections are tested with")
    arguments = parser.parse_args()
    arguments.data, arguments.folder = arguments.data.resolve(), arguments.folder.resolve()
    arguments.folder.mkdir(parents=True, exist_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    wanted = list(orders(arguments))
    target = arguments.folder / "runs.jsonl" if arguments.fresh else LIBRARY
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        for done in as_completed(pool.submit(perform, order) for order in wanted):
            finished = collect((order.name for order in wanted), arguments.folder, target)
            print(f"{done.result()}: {finished} of {len(wanted)}", flush=True)


if __name__ == "__main__":
    main()
