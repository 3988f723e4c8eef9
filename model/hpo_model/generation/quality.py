"""How much generated text is like text that people wrote: statistics of words, a diagnosis, one score.

All of it is about form: a text can score high and mean nothing. Statistics depend on length, so texts are compared
only where they have equally many words; `measure` refuses others. Words, not tokens, so that tokenizers compare.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from hpo_model.errors import ConfigError

BLEU_ORDER = 4
BLEU_EPSILON = 0.1  # in place of no match at all: Chen & Cherry 2014, method 1
REPEATED = 4  # words of a run that counts as repeated
COMMONEST = 20  # words of people's text that count as its function words
MAX_WORD, MAX_BLANK = 20, 8  # signs; longer runs are cut, so that no text is without words
# <unk>, WikiText's @-@ and kin, words, signs, and blanks where there are several: layout is part of a text
_WORD = re.compile(rf"<unk>|@[-,.]@|\w{{1,{MAX_WORD}}}|[^\w\s]|\s{{2,{MAX_BLANK}}}")

Collapse = Literal["none", "uniform", "repetition loop", "function-word loop"]
Words = Sequence[str]
Run = tuple[str, ...]


def words_of(text: str) -> list[str]:
    """The words of a text: letters and digits, single signs, and stretches of several blanks."""
    return _WORD.findall(text)


# ---------------------------------------------------------------------------------------------- statistics


def entropy_bits(words: Words) -> float:
    """Entropy of the distribution of the words, in bits per word."""
    shares = np.array(list(Counter(words).values())) / len(words)
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def ngrams(words: Words, order: int) -> list[Run]:
    """All runs of `order` words."""
    return list(zip(*(words[first:] for first in range(order)), strict=False))


def distinct(texts: Sequence[Words], order: int) -> float:
    """Distinct-n: different runs of n words over all runs, of all texts together (Li et al. 2016)."""
    runs = [run for words in texts for run in ngrams(words, order)]
    return len(set(runs)) / len(runs)


def repetition(texts: Sequence[Words], order: int) -> float:
    """Share of the runs of n words that stood in the same text before (Welleck et al. 2020, seq-rep-n)."""
    runs = [ngrams(words, order) for words in texts]
    return 1 - sum(len(set(each)) for each in runs) / sum(map(len, runs))


def type_token_ratio(texts: Sequence[Words]) -> float:
    """Different words over words within a text, the mean over texts."""
    return sum(len(set(words)) / len(words) for words in texts) / len(texts)


def _bleu(words: Words, lengths: Sequence[int], most: Sequence[Mapping[Run, int]]) -> float:
    """BLEU-4 of a text against several, smoothed (Papineni et al. 2002; Chen & Cherry 2014, method 1).

    Args:
        words: the text.
        lengths: of the others, in words.
        most: for each order from 1 on, the most times that a run of so many words comes in one of the others.
    """
    logs = []
    for order, allowed in enumerate(most, start=1):
        counts = Counter(ngrams(words, order))
        matched = sum(min(count, allowed.get(run, 0)) for run, count in counts.items())
        logs.append(math.log((matched or BLEU_EPSILON) / max(counts.total(), 1)))
    nearest = min((abs(length - len(words)), length) for length in lengths)[1]
    return math.exp(min(0.0, 1 - nearest / len(words)) + sum(logs) / BLEU_ORDER)


def self_bleu(texts: Sequence[Words]) -> float | None:
    """Mean BLEU of each text against all others (Zhu et al. 2018): how alike they are; None of a single text."""
    if len(texts) < 2:
        return None
    elsewhere = [_most_elsewhere(texts, order) for order in range(1, BLEU_ORDER + 1)]
    total = 0.0
    for place, words in enumerate(texts):
        others = [len(other) for other in (*texts[:place], *texts[place + 1 :])]
        total += _bleu(words, others, [most[place] for most in elsewhere])
    return total / len(texts)


def _most_elsewhere(texts: Sequence[Words], order: int) -> list[dict[Run, int]]:
    """For each text, the most times that each of its runs comes in one of the others."""
    counts = [Counter(ngrams(words, order)) for words in texts]
    best: dict[Run, tuple[int, int]] = {}  # the highest count, and the highest but one text
    for each in counts:
        for run, count in each.items():
            first, second = best.get(run, (0, 0))
            best[run] = (count, first) if count > first else (first, max(second, count))
    return [{run: best[run][count == best[run][0]] for run, count in each.items()} for each in counts]


def zipf_slope(words: Words) -> float | None:
    """Slope of log frequency over log rank, by least squares over the words that come twice or more.

    About −1 in natural text. None where fewer than three words come twice.
    """
    frequencies = np.array(sorted(Counter(words).values(), reverse=True), dtype=float)
    frequencies = frequencies[frequencies >= 2]
    if len(frequencies) < 3:
        return None
    ranks = np.arange(1, len(frequencies) + 1)
    return float(np.polyfit(np.log(ranks), np.log(frequencies), 1)[0])


# ---------------------------------------------------------------------------------------------- beside people's text


@dataclass(frozen=True, kw_only=True)
class Measures:
    """Statistics of some texts of equal lengths."""

    entropy_bits: float  # per word, of all texts together
    distinct_1: float
    distinct_2: float
    distinct_3: float
    repetition: float  # share of runs of four words that stood in the same text before
    type_token_ratio: float
    self_bleu: float | None
    zipf_slope: float | None
    surprise_bits: float  # per word, under the frequencies of words in people's text: low where words are common ones
    known_pairs: float  # share of runs of two words that people's text has too
    known_triples: float  # the same of three
    commonest_share: float  # share of words that are among the twenty commonest of people's text


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """Texts beside people's: what they measure, what is wrong with them, one score."""

    measures: Measures
    score: float  # 0 to 1
    grade: str  # A to F, see `GRADES`
    collapse: Collapse
    evidence: str  # of the collapse; "" where there is none


class Yardstick:
    """What people's text is like: the words and runs of a large one, and what passages of it measure.

    Args:
        text: words of held-out text, as much as there is.
        passages: some texts that people wrote and that are not in `text`; all of one length.
    """

    def __init__(self, text: Words, passages: Sequence[Words]) -> None:
        self.counts = Counter(text)
        self.runs = {order: frozenset(ngrams(text, order)) for order in (2, 3)}
        self.commonest = frozenset(word for word, _ in self.counts.most_common(COMMONEST))
        self.shape = _shape(passages)
        self.human = self._measured(passages)

    def judge(self, texts: Sequence[Words]) -> Judgement:
        """Measure texts, diagnose them, score them.

        Raises:
            ConfigError: other numbers of texts or words than the passages of people's text have.
        """
        if _shape(texts) != self.shape:
            raise ConfigError(f"quality compares equal lengths: {self.shape} words, got {_shape(texts)}")
        measures = self._measured(texts)
        total = score(measures, self.human)
        collapse, evidence = diagnose(measures, self.human, texts)
        return Judgement(measures=measures, score=total, grade=grade(total), collapse=collapse, evidence=evidence)

    def _measured(self, texts: Sequence[Words]) -> Measures:
        together = [word for words in texts for word in words]
        return Measures(
            entropy_bits=entropy_bits(together),
            distinct_1=distinct(texts, 1),
            distinct_2=distinct(texts, 2),
            distinct_3=distinct(texts, 3),
            repetition=repetition(texts, REPEATED),
            type_token_ratio=type_token_ratio(texts),
            self_bleu=self_bleu(texts),
            zipf_slope=zipf_slope(together),
            surprise_bits=self._surprise_bits(together),
            known_pairs=self._known(texts, 2),
            known_triples=self._known(texts, 3),
            commonest_share=sum(word in self.commonest for word in together) / len(together),
        )

    def _surprise_bits(self, words: Words) -> float:
        """Mean −log₂ of the words' shares in people's text; a word that is not in it counts as half a one."""
        total = self.counts.total()
        return sum(-math.log2((self.counts[word] or 0.5) / total) for word in words) / len(words)

    def _known(self, texts: Sequence[Words], order: int) -> float:
        runs = [run for words in texts for run in ngrams(words, order)]
        return sum(run in self.runs[order] for run in runs) / len(runs)


def _shape(texts: Sequence[Words]) -> str:
    lengths = sorted({len(words) for words in texts})
    return f"{len(texts)} texts of {' or '.join(map(str, lengths))}"


# ---------------------------------------------------------------------------------------------- one score

# How far from people's text a statistic may be before it counts nothing
SURPRISE_REACH_BITS = 4.0  # rarer words only
ENTROPY_REACH_BITS = 2.0
TYPE_TOKEN_REACH = 0.3
REPETITION_REACH = 0.3  # more of it only, as of self-BLEU
DISTINCT_2_REACH = 0.4
SELF_BLEU_REACH = 0.5
WITHOUT_VARIETY = 0.1  # what is left of the score of a text that says one thing for ever
GRADES = ((0.8, "A"), (0.6, "B"), (0.4, "C"), (0.2, "D"), (0.12, "E"), (0.0, "F"))  # from which score on


def score(measures: Measures, human: Measures) -> float:
    """How like people's text, from 0 to 1: realism · (0.1 + 0.9 · variety).

    realism   mean of three: are the words as common as people's, and the runs of two and of three words as known?
              Random tokens fail here.
    variety   the least of five: entropy, types per word, runs of two, repetition, likeness of the texts to each other,
              each 1 where it is as in people's text and 0 where it is out of reach. Loops fail here.
    """
    realism = (
        _near(max(0.0, measures.surprise_bits - human.surprise_bits), SURPRISE_REACH_BITS)
        + _share(measures.known_pairs, human.known_pairs)
        + _share(measures.known_triples, human.known_triples)
    ) / 3
    variety = min(
        _near(measures.entropy_bits - human.entropy_bits, ENTROPY_REACH_BITS),
        _near(measures.type_token_ratio - human.type_token_ratio, TYPE_TOKEN_REACH),
        _near(measures.distinct_2 - human.distinct_2, DISTINCT_2_REACH),
        _near(max(0.0, measures.repetition - human.repetition), REPETITION_REACH),
        _near(max(0.0, (measures.self_bleu or 0.0) - (human.self_bleu or 0.0)), SELF_BLEU_REACH),
    )
    return realism * (WITHOUT_VARIETY + (1 - WITHOUT_VARIETY) * variety)


def _near(gap: float, reach: float) -> float:
    return max(0.0, 1 - abs(gap) / reach)


def _share(value: float, of: float) -> float:
    return min(1.0, value / of) if of else 1.0


def grade(total: float) -> str:
    """The letter of a score."""
    return next(letter for least, letter in GRADES if total >= least)


# ---------------------------------------------------------------------------------------------- a diagnosis

LOOPING = 0.5  # share of repeated runs from which a text is a loop
FUNCTION_WORDS_ABOVE = 0.25  # above people's share of their commonest words
POOR_BITS = 1.0  # of entropy, below people's
RARE_BITS = 2.5  # of surprise, above people's


def diagnose(measures: Measures, human: Measures, texts: Sequence[Words]) -> tuple[Collapse, str]:
    """In which of three ways a network has collapsed, if in any, with what shows it."""
    bits = f"{measures.entropy_bits:.2f} bits per word, people's text {human.entropy_bits:.2f}"
    common = f"{measures.commonest_share:.0%} of the words are people's {COMMONEST} commonest, in their text"
    if measures.repetition > LOOPING:
        (run, times), *_ = Counter(run for words in texts for run in ngrams(words, REPEATED)).most_common(1)
        said = f"{measures.repetition:.0%} of runs of {REPEATED} words stood in the same text before"
        return "repetition loop", f"{said}; {' '.join(run)!r} {times} times"
    poor = measures.entropy_bits < human.entropy_bits - POOR_BITS
    if poor and measures.commonest_share > human.commonest_share + FUNCTION_WORDS_ABOVE:
        most = Counter(word for words in texts for word in words).most_common(5)
        listed = " ".join(repr(word) for word, _ in most)
        return "function-word loop", f"{common} {human.commonest_share:.0%}; most often {listed}; {bits}"
    if measures.surprise_bits > human.surprise_bits + RARE_BITS and measures.known_pairs < human.known_pairs / 4:
        rare = f"its words are rare ones, {measures.surprise_bits:.1f} bits each, people's {human.surprise_bits:.1f}"
        return (
            "uniform",
            f"{rare}; {measures.known_pairs:.0%} of its pairs are known, of people's {human.known_pairs:.0%}",
        )
    return "none", ""


# ---------------------------------------------------------------------------------------------- passages

PASSAGES = 32  # texts that are generated, and as many of people's on each side
PASSAGE_WORDS = 200
MIN_PASSAGE_WORDS = 40
CONTEXT_SIGNS = 240  # of people's text before a passage, from which a network writes on


@dataclass(frozen=True, kw_only=True)
class Passages:
    """Held-out text, cut up: what sets the scale, what is graded as people's text, what generation starts from."""

    yardstick: Yardstick
    human: tuple[Words, ...]  # not the passages that set the scale
    contexts: tuple[str, ...]  # the text before each of `human`
    words: int  # of a passage


def passages(text: str) -> Passages | None:
    """Cut held-out text into evenly spread passages, in turns for the scale and for grading.

    Returns:
        None where the text is too short for passages of `MIN_PASSAGE_WORDS` words with as much text between them.
    """
    found = list(_WORD.finditer(text))
    stretch = len(found) // (2 * PASSAGES)
    length = min(PASSAGE_WORDS, stretch // 2)
    if length < MIN_PASSAGE_WORDS:
        return None
    names = [match.group() for match in found]
    firsts = [place * stretch + (stretch - length) // 2 for place in range(2 * PASSAGES)]
    cut = [names[first : first + length] for first in firsts]
    rest = [name for place, first in enumerate(firsts) for name in _around(names, first, length, place, stretch)]
    starts = [found[first].start() for first in firsts]
    # A blank at the end would be a token of its own, after which no word begins as the network has learned it
    contexts = [text[max(0, start - CONTEXT_SIGNS) : start].rstrip(" ") for start in starts]
    return Passages(
        yardstick=Yardstick(rest, cut[::2]), human=tuple(cut[1::2]), contexts=tuple(contexts[1::2]), words=length
    )


def _around(names: Words, first: int, length: int, place: int, stretch: int) -> list[str]:
    """The words of a stretch that are not in its passage."""
    return [*names[place * stretch : first], *names[first + length : (place + 1) * stretch]]
