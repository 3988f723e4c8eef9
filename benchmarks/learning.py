"""What a network has learned from the same text: ours beside the Transformer of PyTorch's `word_language_model`.

python benchmarks/learning.py --data PATH       # word-level WikiText-2, one pass each: twenty minutes on two cores

The example's network and its training are written out here from its description: post-norm encoder layers with ReLU,
sine positions, embeddings scaled by the root of the width, untied output, 20 streams cut into pieces of 35 words, SGD
at learning rate 5, gradients clipped at 0.25, dropout 0.2. Equal: words, width, layers, heads, feed-forward width,
dropout, tokens read. Ours is as the preset `nano` trains, with Φ, memory and noise.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from results import keep
from torch import Tensor, nn

from model.config import Scalar, build_run
from model.corpus import load_corpus
from model.evaluation import score
from model.hardware import keep_freed_memory
from model.tokenizer import TokenizerChoice
from model.tokens import Span, TokenizedCorpus, tokenize_corpus
from model.trained import load_trained
from model.training import train

WIDTH, HEADS, LAYERS, DROPOUT = 200, 2, 2, 0.2
STREAMS, PIECE, LEARNING_RATE, CLIP = 20, 35, 5.0, 0.25


class ExampleTransformer(nn.Module):
    """Shapes: B streams, T positions, D channels, V vocabulary."""

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, HEADS, 4 * WIDTH, DROPOUT, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, enable_nested_tensor=False)
        self.output = nn.Linear(WIDTH, vocabulary)
        self.dropout = nn.Dropout(DROPOUT)
        nn.init.uniform_(self.embedding.weight, -0.1, 0.1)
        nn.init.uniform_(self.output.weight, -0.1, 0.1)
        nn.init.zeros_(self.output.bias)
        position_T1 = torch.arange(PIECE)[:, None]
        angle_TD = position_T1 * torch.exp(torch.arange(0, WIDTH, 2) * (-math.log(10_000.0) / WIDTH))
        self.register_buffer("position_TD", torch.stack((angle_TD.sin(), angle_TD.cos()), -1).flatten(1))

    def forward(self, tokens_BT: Tensor) -> Tensor:
        length = tokens_BT.shape[1]
        states_BTD = self.dropout(self.embedding(tokens_BT) * math.sqrt(WIDTH) + self.position_TD[:length])
        mask_TT = nn.Transformer.generate_square_subsequent_mask(length)
        return self.output(self.encoder(states_BTD, mask=mask_TT, is_causal=True))


def pieces(span: Span) -> list[tuple[Tensor, Tensor]]:
    """The span in parallel streams, cut into pieces: inputs and targets (B, T) in order."""
    ids = torch.from_numpy(span.ids.astype("int64"))
    steps = span.tokens // STREAMS
    inputs_BN = ids[: steps * STREAMS].view(STREAMS, steps)
    targets_BN = ids[1 : steps * STREAMS + 1].view(STREAMS, steps)
    return list(zip(inputs_BN.split(PIECE, dim=1), targets_BN.split(PIECE, dim=1), strict=True))


def train_example(corpus: TokenizedCorpus, budget_tokens: int, seed: int) -> dict[str, float]:
    """Train the example's network over the text until the budget is read; its perplexities on held-out text."""
    torch.manual_seed(seed)
    network = ExampleTransformer(corpus.tokenizer.vocabulary)
    parts = pieces(corpus.span("train"))
    started, read = time.perf_counter(), 0
    while read < budget_tokens:
        inputs_BT, targets_BT = parts[read // (STREAMS * PIECE) % len(parts)]
        network.zero_grad(set_to_none=True)
        F.cross_entropy(network(inputs_BT).flatten(0, 1), targets_BT.flatten()).backward()
        nn.utils.clip_grad_norm_(network.parameters(), CLIP)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.sub_(parameter.grad, alpha=LEARNING_RATE)
        read += STREAMS * PIECE
    seconds = time.perf_counter() - started
    valid, test = (evaluate_example(network, corpus.span(split)) for split in ("valid", "test"))
    return {"val_word_ppl": valid, "test_word_ppl": test, "seconds": seconds}


@torch.no_grad()
def evaluate_example(network: ExampleTransformer, span: Span) -> float:
    """Perplexity per word and end of line, each piece predicted from itself alone."""
    network.eval()
    nats = tokens = 0.0
    for inputs_BT, targets_BT in pieces(span):
        nats += F.cross_entropy(network(inputs_BT).flatten(0, 1), targets_BT.flatten(), reduction="sum").item()
        tokens += targets_BT.numel()
    return math.exp(nats / tokens)


def train_ours(corpus: TokenizedCorpus, budget_tokens: int, seed: int) -> dict[str, float]:
    """Train our network of equal width, layers and heads."""
    shape: dict[str, Scalar] = {"preset": "nano", "width": WIDTH, "heads": HEADS, "layers": LAYERS}
    config = build_run({**shape, "dropout": DROPOUT, "budget_tokens": budget_tokens, "seed": seed, "evaluations": 4})
    with tempfile.TemporaryDirectory(prefix="hpo-learning-") as folder:
        checkpoint = Path(folder) / "checkpoint.pt"
        last = train(config, corpus, save_to=checkpoint).history[-1]
        network = load_trained(checkpoint).network
    test = score(network, corpus.span("test"), torch.device("cpu")).word_perplexity
    return {"val_word_ppl": last.val_word_ppl, "test_word_ppl": test, "seconds": last.seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of text")
    parser.add_argument("--tokens", type=int, help="to read; default: one pass")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    keep_freed_memory()  # for both: speed is not the question here
    with tempfile.TemporaryDirectory(prefix="hpo-learning-") as cache:
        corpus = load_corpus(str(arguments.data), Path(cache))
        words = tokenize_corpus(corpus, TokenizerChoice(kind="word", vocabulary=0), Path(cache))
        budget = arguments.tokens or words.tokens("train")
        ours, example = (each(words, budget, arguments.seed) for each in (train_ours, train_example))
        ratio = ours["val_word_ppl"] / example["val_word_ppl"]
        print(
            f"{corpus.name}, {words.tokenizer.vocabulary:,} words, {budget:,} tokens: validation perplexity per word "
            f"{ours['val_word_ppl']:.1f} ours, {example['val_word_ppl']:.1f} the example's: ratio {ratio:.2f}; test "
            f"{ours['test_word_ppl']:.1f} and {example['test_word_ppl']:.1f}"
        )
    keep("learning", {"text": corpus.name, "tokens": budget, "ours": ours, "example": example, "ratio": ratio})


if __name__ == "__main__":
    main()
