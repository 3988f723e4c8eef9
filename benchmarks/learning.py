"""What a network has learned from the same text: ours beside the Transformer of PyTorch's `word_language_model`.

python benchmarks/learning.py --data PATH                        # a pass of words by both: half an hour of two cores
python benchmarks/learning.py --data PATH --long-run CHECKPOINT  # the example reads what that run of ours has read

The example's network and its training are written out here from its description: post-norm encoder layers with ReLU,
sine positions, embeddings scaled by the root of the width, untied output, 20 streams cut into pieces of 35 tokens, SGD
at learning rate 5, a quarter of it after each pass that did not better the validation loss, gradients clipped at 0.25.
Equal: tokens, width, layers, heads, feed-forward width, dropout, tokens read. The example has more parameters, for
its output has a matrix of its own.

With `--long-run` ours is a checkpoint that was trained before, on the same text; the example is trained under its
tokenizer for as many tokens, keeps its state after each pass beside the checkpoint, and goes on from it when the same
command runs again. Perplexities are per word and end of line, so that tokenizers do not enter, and of each network's
last state.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from results import keep
from torch import Tensor, nn

from hpo_model.config import Scalar, TokenizerChoice, build_run
from hpo_model.data.corpus import Corpus, load_corpus
from hpo_model.data.tokens import Span, TokenizedCorpus, tokenize_corpus
from hpo_model.generation.trained import Trained, load_trained
from hpo_model.hardware import keep_freed_memory
from hpo_model.training.checkpoint import load_checkpoint, save_checkpoint
from hpo_model.training.evaluation import score
from hpo_model.training.loop import train

WIDTH, HEADS, LAYERS, DROPOUT = 200, 2, 2, 0.2  # of the example as it ships
STREAMS, PIECE, LEARNING_RATE, CLIP = 20, 35, 5.0, 0.25


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What both networks have in common."""

    width: int = WIDTH
    heads: int = HEADS
    layers: int = LAYERS
    dropout: float = DROPOUT


class ExampleTransformer(nn.Module):
    """Shapes: B streams, T positions, D channels, V vocabulary."""

    def __init__(self, shape: Shape, vocabulary: int) -> None:
        super().__init__()
        width, self.scale = shape.width, math.sqrt(shape.width)
        self.embedding = nn.Embedding(vocabulary, width)
        layer = nn.TransformerEncoderLayer(width, shape.heads, 4 * width, shape.dropout, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, shape.layers, enable_nested_tensor=False)
        self.output = nn.Linear(width, vocabulary)
        self.dropout = nn.Dropout(shape.dropout)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)
        position_T1 = torch.arange(PIECE)[:, None]
        angle_TD = position_T1 * torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
        self.register_buffer("position_TD", torch.stack((angle_TD.sin(), angle_TD.cos()), -1).flatten(1))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        length = tokens_BT.shape[1]
        states_BTD = self.dropout(self.embedding(tokens_BT) * self.scale + self.position_TD[:length])
        mask_TT = nn.Transformer.generate_square_subsequent_mask(length)
        return self.output(self.encoder(states_BTD, mask=mask_TT, is_causal=True))


@dataclass
class ExampleRun:
    """The example's training, from one pass over the text to the next."""

    network: ExampleTransformer
    corpus: TokenizedCorpus
    learning_rate: float = LEARNING_RATE
    read: int = 0  # tokens
    seconds: float = 0.0  # of training
    best: float = math.inf  # validation perplexity per word
    history: list[dict[str, float]] = dataclasses.field(default_factory=list)

    def train(self, budget_tokens: int, state: Path | None = None) -> dict[str, Any]:
        """Read on until the budget is spent; perplexities on held-out text. A state that is there is gone on from."""
        if state is not None and state.is_file():
            self.restore(state)
        parts = pieces(self.corpus.span("train"))
        while self.read < budget_tokens:
            self.train_pass(parts[: math.ceil((budget_tokens - self.read) / (STREAMS * PIECE))])
            valid = evaluate_example(self.network, self.corpus.span("valid"))
            self.history.append({"tokens": self.read, "val_word_ppl": valid, "learning_rate": self.learning_rate})
            print(f"{self.read:,} tokens, validation perplexity per word {valid:.1f}", flush=True)
            if valid >= self.best:
                self.learning_rate /= 4
            self.best = min(self.best, valid)
            if state is not None:
                self.save(state)
        return {
            "val_word_ppl": self.history[-1]["val_word_ppl"],
            "test_word_ppl": evaluate_example(self.network, self.corpus.span("test")),
            "tokens": self.read,
            "parameters": sum(each.numel() for each in self.network.parameters()),
            "seconds": self.seconds,
            "history": self.history,
        }

    def train_pass(self, parts: list[tuple[Tensor, Tensor]]) -> None:
        """One update per piece, in the order of the text."""
        started = time.perf_counter()
        self.network.train()
        for inputs_BT, targets_BT in parts:
            self.network.zero_grad(set_to_none=True)
            F.cross_entropy(self.network(inputs_BT).flatten(0, 1), targets_BT.flatten()).backward()
            nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
            with torch.no_grad():
                for parameter in self.network.parameters():
                    parameter.sub_(parameter.grad, alpha=self.learning_rate)
            self.read += inputs_BT.numel()
        self.seconds += time.perf_counter() - started

    def save(self, path: Path) -> None:
        numbers = {name: getattr(self, name) for name in ("learning_rate", "read", "seconds", "best", "history")}
        save_checkpoint(path, {"network": self.network.state_dict(), "noise": torch.get_rng_state(), "run": numbers})

    def restore(self, path: Path) -> None:
        content = load_checkpoint(path)
        self.network.load_state_dict(content["network"])
        torch.set_rng_state(content["noise"])
        for name, value in content["run"].items():
            setattr(self, name, value)


def example_run(shape: Shape, corpus: TokenizedCorpus, seed: int) -> ExampleRun:
    torch.manual_seed(seed)
    return ExampleRun(ExampleTransformer(shape, corpus.tokenizer.vocabulary), corpus)


def pieces(span: Span) -> list[tuple[Tensor, Tensor]]:
    """The span in parallel streams, cut into pieces: inputs and targets (B, T) in order."""
    ids = torch.from_numpy(span.ids.astype("int64"))
    steps = span.tokens // STREAMS
    inputs_BN = ids[: steps * STREAMS].view(STREAMS, steps)
    targets_BN = ids[1 : steps * STREAMS + 1].view(STREAMS, steps)
    return list(zip(inputs_BN.split(PIECE, dim=1), targets_BN.split(PIECE, dim=1), strict=True))


@torch.no_grad()
def evaluate_example(network: ExampleTransformer, span: Span) -> float:
    """Perplexity per word and end of line, each piece predicted from itself alone."""
    network.eval()
    nats = tokens = 0.0
    for inputs_BT, targets_BT in pieces(span):
        nats += F.cross_entropy(network(inputs_BT).flatten(0, 1), targets_BT.flatten(), reduction="sum").item()
        tokens += targets_BT.numel()
    return math.exp(nats / tokens * span.tokens / span.words)


def train_ours(corpus: TokenizedCorpus, budget_tokens: int, seed: int) -> dict[str, Any]:
    """Train our network of equal width, layers and heads; its perplexities."""
    shape: dict[str, Scalar] = {"preset": "nano", "width": WIDTH, "heads": HEADS, "layers": LAYERS}
    config = build_run({**shape, "dropout": DROPOUT, "budget_tokens": budget_tokens, "seed": seed, "evaluations": 4})
    with tempfile.TemporaryDirectory(prefix="hpo-learning-") as folder:
        checkpoint = Path(folder) / "checkpoint.pt"
        train(config, corpus, save_to=checkpoint)
        return figures_of(load_trained(checkpoint), corpus)


def figures_of(ours: Trained, corpus: TokenizedCorpus) -> dict[str, Any]:
    """A trained network of ours on the held-out text."""
    scores = {split: score(ours.network, corpus.span(split), torch.device("cpu")) for split in ("valid", "test")}
    return {
        "val_word_ppl": scores["valid"].word_perplexity,
        "test_word_ppl": scores["test"].word_perplexity,
        "tokens": ours.tokens,
        "parameters": sum(each.numel() for each in ours.network.parameters()),
        "seconds": ours.history[-1].seconds,
        "history": [{"tokens": each.tokens, "val_word_ppl": each.val_word_ppl} for each in ours.history],
    }


def after_long_run(path: Path, corpus: Corpus, cache: Path, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A long run of ours, and the example of its shape over as many tokens of the same text."""
    ours = load_trained(path)
    if ours.corpus_digest != corpus.digest:
        raise SystemExit(f"{path}: was trained on other text than {corpus.name}")
    choice = TokenizerChoice(kind=ours.tokenizer.kind, vocabulary=ours.tokenizer.vocabulary)
    tokens = tokenize_corpus(corpus, choice, cache)
    if tokens.tokenizer.digest != ours.tokenizer.digest:
        raise SystemExit(f"{path}: has another tokenizer than this text gives")
    architecture = ours.config.architecture
    shape = Shape(
        width=architecture.width,
        heads=architecture.heads,
        layers=architecture.layers,
        dropout=ours.config.training.dropout,
    )
    state = path.with_name(f"example-of-{path.stem}-seed-{seed}.pt")  # no name that a trial's checkpoint could have
    example = example_run(shape, tokens, seed).train(ours.tokens, state)
    return figures_of(ours, tokens), example


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of text")
    parser.add_argument("--long-run", type=Path, metavar="CHECKPOINT", help="a checkpoint of ours; default: train one")
    parser.add_argument("--tokens", type=int, help="to read; default: one pass")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.long_run and arguments.tokens:
        parser.error("--tokens: a long run says itself how many; leave it out")
    keep_freed_memory()  # for both: speed is not the question here
    with tempfile.TemporaryDirectory(prefix="hpo-learning-") as cache:
        corpus = load_corpus(str(arguments.data), Path(cache))
        if arguments.long_run:
            ours, example = after_long_run(arguments.long_run, corpus, Path(cache), arguments.seed)
        else:
            words = tokenize_corpus(corpus, TokenizerChoice(kind="word", vocabulary=0), Path(cache))
            budget = arguments.tokens or words.tokens("train")
            ours = train_ours(words, budget, arguments.seed)
            example = example_run(Shape(), words, arguments.seed).train(budget)
    ratio = ours["test_word_ppl"] / example["test_word_ppl"]
    for name, figures in (("ours", ours), ("the example's Transformer", example)):
        print(
            f"{name}, {figures['parameters']:,} parameters, {figures['tokens']:,} tokens in "
            f"{figures['seconds'] / 60:.0f} min: perplexity per word "
            f"{figures['val_word_ppl']:.1f} on validation, {figures['test_word_ppl']:.1f} on test text"
        )
    print(f"ratio on test text {ratio:.2f}")
    name = "learning-long-run" if arguments.long_run else "learning"
    keep(name, {"text": corpus.name, "ours": ours, "example": example, "ratio": ratio})


if __name__ == "__main__":
    main()
