"""The documents of a text, and what two networks' difference over them is worth.

Shapes: D documents, S resamples.

Neighbouring tokens are not independent, so that an interval over tokens would be far too narrow. Documents are drawn
instead, whole, and the same ones for both networks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ARTICLE = re.compile(r" ?= [^=\s].* = ?\n?")  # WikiText's heading of an article; those of sections have = = twice
MIN_ARTICLES = 8
BLOCKS = 48  # of equally many lines, where a text has no such headings
RESAMPLES = 10_000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Documents:
    """Where the documents of a text begin."""

    firsts: tuple[int, ...]  # lines
    kind: str  # "articles" or "blocks of lines"

    def sums(self, of_lines_L: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of each document (D,), from one value per line."""
        sums: NDArray[np.float64] = np.add.reduceat(of_lines_L, self.firsts)
        return sums


def documents_of(lines: Sequence[str]) -> Documents:
    """WikiText's articles, else blocks of equally many lines."""
    headings = [place for place, line in enumerate(lines) if ARTICLE.fullmatch(line) and " = = " not in line]
    if len(headings) >= MIN_ARTICLES:
        return Documents((0, *headings[1:]), "articles")
    blocks = min(BLOCKS, len(lines))
    return Documents(tuple(len(lines) * block // blocks for block in range(blocks)), "blocks of lines")


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """One network's mean minus another's, with its interval over documents."""

    mean: float
    low: float  # of 95 %
    high: float
    documents: int

    @property
    def is_clear(self) -> bool:
        """Whether zero lies outside the interval."""
        return not self.low <= 0 <= self.high


def paired_difference(
    one_D: NDArray[np.float64], other_D: NDArray[np.float64], size_D: NDArray[np.float64], seed: int = 0
) -> PairedDifference:
    """Bootstrap Σ (one − other) / Σ size over whole documents.

    Args:
        one_D: nats (or bits) of each document under one network.
        other_D: the same under the other.
        size_D: bytes (or tokens) of each document.
        seed: of the resampling.

    Returns:
        Percentile interval of 95 % (Efron & Tibshirani 1993, chapter 13).
    """
    count = len(size_D)
    draws_SD = np.random.default_rng(seed).integers(count, size=(RESAMPLES, count))
    gaps_S = (one_D - other_D)[draws_SD].sum(1) / size_D[draws_SD].sum(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(gaps_S, (tail, 1 - tail))
    mean = float((one_D - other_D).sum() / size_D.sum())
    return PairedDifference(mean=mean, low=float(low), high=float(high), documents=count)
