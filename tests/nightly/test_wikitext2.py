"""The real corpus: what nano learns of WikiText-2 in 600,000 tokens."""

from __future__ import annotations

from pathlib import Path

from hpo_model.config import TokenizerChoice, build_run
from hpo_model.data.corpus import load_corpus
from hpo_model.data.tokens import tokenize_corpus
from hpo_model.training.loop import train


def test_nano_learns_wikitext_2(wikitext2: Path, cache: Path) -> None:
    """A rough prototype reached 138 with these settings; a perplexity that stops falling would be a fault."""
    corpus = tokenize_corpus(load_corpus(str(wikitext2), cache), TokenizerChoice(vocabulary=2048), cache)
    result = train(build_run({"preset": "nano", "budget_tokens": 600_000, "dropout": 0.0}), corpus)
    curve = [evaluation.val_loss for evaluation in result.history[:-1]]  # the last is on more text
    assert curve == sorted(curve, reverse=True)
    assert result.history[-1].whole_split
    assert 60 < result.history[-1].val_ppl <= 138
    assert not result.suspicious
