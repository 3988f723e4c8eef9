"""Text whose entropy is known: lines of made-up words that a Markov chain writes.

What the chain does next is drawn from an urn of the state it is in, each ball as likely as another. Urns and draws are
integers from start to end, so that every machine makes the same text; only entropies are floats.

Shapes: S states, B balls of an urn, L lines.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

END = 0  # the state between two lines: a line depends on none before it
WORDS = 100  # few enough for a short run to learn what follows each of them
SEED = 2026
# Balls per successor, Zipf-like: the likeliest word follows one time in four
BALLS = (16, 10, 7, 5, 4, 3, 3, 2, 2, 2, *[1] * 10)
ENDING_BALLS = 5  # of 64: a line has 12.8 words on average
LINES = {"train": 32_000, "valid": 1_500, "test": 1_500}  # 440,000 and 21,000 words, ends of lines included
_CONSONANTS, _VOWELS = "bdfghklmnprstv", "aeiou"


@dataclass(frozen=True, eq=False)
class MarkovChain:
    """A source of lines, each of which begins and ends in the state `END`."""

    urns_SB: NDArray[np.int64]  # the states that may follow a state; all from which `END` can be reached

    @cached_property
    def transitions(self) -> NDArray[np.float64]:
        """The probability of each state after each other: rows of (S, S)."""
        states, balls = self.urns_SB.shape
        counts_SS = np.stack([np.bincount(urn_B, minlength=states) for urn_B in self.urns_SB])
        return np.divide(counts_SS, balls)

    @cached_property
    def nats(self) -> NDArray[np.float64]:
        """The surprise (S, S) of each transition, −log p; infinite where there is none."""
        with np.errstate(divide="ignore"):
            return -np.log(self.transitions)

    @cached_property
    def stationary(self) -> NDArray[np.float64]:
        """The share (S,) of each state in an endless text: π P = π, Σ π = 1."""
        states = len(self.urns_SB)
        equations_SS = self.transitions.T - np.eye(states)
        equations_SS[-1] = 1.0  # in place of an equation that follows from the others
        return np.linalg.solve(equations_SS, np.eye(states)[-1])

    @property
    def entropy_rate(self) -> float:
        """Nats per word, the end of a line counted as one: H = Σ π_s p_st (−log p_st).

        Shannon, "A Mathematical Theory of Communication", 1948, theorem 5.
        """
        joint_SS = self.stationary[:, None] * self.transitions
        possible_SS = joint_SS > 0
        return float(joint_SS[possible_SS] @ self.nats[possible_SS])

    def write(self, lines: int, seed: list[int]) -> str:
        """Write a text.

        Args:
            lines: how many.
            seed: of the draws; texts of different seeds are independent.
        """
        draw = np.random.PCG64(seed).random_raw  # raw bits: NumPy may change how it makes other numbers of them
        urns, balls = self.urns_SB.tolist(), self.urns_SB.shape[1]
        words = [word(state) for state in range(len(urns))]
        written = []
        for _ in range(lines):
            line = []
            state = END
            while (state := urns[state][draw() % balls]) != END:
                line.append(words[state])
            written.append(" ".join(line) + "\n")
        return "".join(written)

    def line_nats(self, lines: list[str]) -> NDArray[np.float64]:
        """The surprise of each line under the chain, −log p, its end included.

        Args:
            lines: of a text that the chain wrote.

        Returns:
            Nats (L,).
        """
        states = {word(state): state for state in range(len(self.urns_SB))}
        walks = ([END, *(states[each] for each in line.split()), END] for line in lines)
        return np.array([self.nats[walk[:-1], walk[1:]].sum() for walk in walks])


def word(state: int) -> str:
    """The word of a state: syllables that count it, so that the commonest words are the shortest."""
    syllables = len(_CONSONANTS) * len(_VOWELS)
    rest, syllable = divmod(state, syllables)
    consonant, vowel = divmod(syllable, len(_VOWELS))
    return (word(rest) if rest else "") + _CONSONANTS[consonant] + _VOWELS[vowel]


def shipped_chain() -> MarkovChain:
    """The chain of the corpus `markov`: each of its words is followed by up to fifteen words or the end of its line."""
    draws_SW = np.random.PCG64([SEED]).random_raw((WORDS + 1) * len(BALLS)).reshape(WORDS + 1, len(BALLS)) >> 44
    successors_SW = 1 + (draws_SW * draws_SW * WORDS >> 40)  # squares of 20 bits: low numbers, short words, are common
    urns_SB = np.repeat(successors_SW.astype(np.int64), BALLS, axis=1)
    urns_SB[1:, -ENDING_BALLS:] = END  # in all urns but that of `END`: no line is empty
    return MarkovChain(urns_SB)


def write_splits(chain: MarkovChain) -> dict[str, str]:
    """The text of the corpus `markov`, by split."""
    return {split: chain.write(lines, [SEED, place]) for place, (split, lines) in enumerate(LINES.items(), start=1)}
