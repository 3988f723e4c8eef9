"""Measure a finished run's network on a split of its text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from model.checkpoint import load_checkpoint
from model.config import build_run
from model.errors import CheckpointError
from model.evaluation import Scores, score
from model.network import build_network

if TYPE_CHECKING:
    from model.tokens import TokenizedCorpus


def score_checkpoint(path: Path, corpus: TokenizedCorpus, split: str, device: str = "cpu") -> Scores:
    """Measure the network of a checkpoint on a whole split.

    Args:
        path: what `train` has saved.
        corpus: the text that it was trained on, which has the split.
        split: `train`, `valid` or `test`.
        device: a torch device.

    Raises:
        CheckpointError: it cannot be read, or was trained on another text.
    """
    content = load_checkpoint(path, device)
    for what, digest in (("corpus", corpus.corpus_digest), ("tokenizer", corpus.tokenizer.digest)):
        if content.get("identity", {}).get(what) != digest:
            raise CheckpointError(f"{path}: written by a run with another {what}; it cannot be measured on this one")
    network = build_network(build_run(content["config"]).architecture, corpus.tokenizer.vocabulary).to(device)
    network.load_state_dict(content["network"])
    return score(network, corpus.span(split), torch.device(device))
