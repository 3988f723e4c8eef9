"""Checkpoints side by side on held-out text: perplexities, Φ, quality of what they write.

hpo evaluate runs/half.pt runs/last.pt --split test
"""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hpo.errors import UsageError
from hpo.home import Home
from hpo.inference.generate import rules_for
from hpo_model.data.corpus import Corpus, load_corpus
from hpo_model.data.documents import Documents, PairedDifference, documents_of, paired_difference
from hpo_model.data.tokens import encode_lines
from hpo_model.generation.quality import Judgement, Passages, Words, passages, words_of
from hpo_model.generation.sampling import Sampling, sample
from hpo_model.generation.trained import Trained, untrained
from hpo_model.training.evaluation import Scores, implausibly_low, score

Split = Literal["valid", "test"]
AS_IT_IS = Sampling()  # temperature 1, nothing cut: what the network has learned, not what decoding makes of it
GREEDY = Sampling(temperature=0)
STEPS_AT_ONCE = 16  # tokens between two counts of words
MAX_TOKENS_PER_WORD = 22  # no word is longer, in bytes; see model/hpo_model/generation/quality.py

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """What the user asked for."""

    splits: tuple[Split, ...] = ("valid",)
    data: Path | None = None  # instead of the text that the checkpoints were trained on
    quality: bool = True  # whether to write and judge texts


@dataclass(frozen=True, kw_only=True)
class OnSplit:
    """A network on a split."""

    split: Split
    tokens: int
    loss: float  # nats per token
    token_perplexity: float  # not comparable across tokenizers
    word_perplexity: float
    bits_per_byte: float | None  # None where the tokenizer lost words
    phi: float | None
    temporal_coherence: float | None
    integration: float | None
    complexity: float | None
    attention_diversity: float | None
    doubt: str | None  # why the loss is implausibly low


@dataclass(frozen=True, kw_only=True)
class Column:
    """One network's part of the table."""

    name: str
    training_tokens: int
    parameters: int
    tokenizer: str  # digest
    splits: tuple[OnSplit, ...]
    sampled: Judgement | None  # of texts drawn from the network as it is
    greedy: Judgement | None  # of the likeliest token each time: where a network loops, it loops here


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Another network minus the first, on the same documents."""

    name: str
    first: str
    split: Split
    unit: Literal["bits per byte", "nats per token"] | None  # None: tokenizers that lost words do not compare
    difference: PairedDifference | None
    documents: str  # their kind


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """All that `hpo evaluate` found."""

    corpus: str
    corpus_digest: str
    notes: tuple[str, ...]  # what a reader must know
    untrained: Column
    networks: tuple[Column, ...]
    human: Judgement | None  # people's text, graded like the networks'
    passages: int | None  # texts judged, of each network
    passage_words: int | None
    comparisons: tuple[Comparison, ...]


def evaluate(checkpoints: Sequence[Trained], request: EvaluateRequest, home: Home) -> Evaluated:
    """Measure checkpoints on one text, and the first one's untrained beginning beside them.

    Raises:
        HpoError, ModelError: what is wrong, in one line.
    """
    corpus, notes = _text(checkpoints, request, home)
    names = _names(checkpoints)
    measured = [_Measured(trained, corpus, request.splits) for trained in checkpoints]
    cut = passages(corpus.texts[request.splits[0]]) if request.quality else None
    if request.quality and cut is None:
        notes.append(f"the {request.splits[0]} split is too short to judge the quality of texts")
    columns = []
    for name, each in zip(names, measured, strict=True):
        logger.info("%s: %s read%s", name, ", ".join(request.splits), "; writing texts" if cut else "")
        columns.append(each.column(name, cut))
    before = _Measured(untrained(checkpoints[0]), corpus, request.splits)
    if len({column.tokenizer for column in columns}) > 1:
        notes.append("tokenizers differ: perplexity and loss per token do not compare, those per word and byte do")
    if "test" in request.splits:
        notes.append("the test split was read: a choice between networks that uses it spends it")
    return Evaluated(
        corpus=corpus.name,
        corpus_digest=corpus.digest,
        notes=tuple(notes),
        untrained=before.column("untrained", cut),
        networks=tuple(columns),
        human=cut.yardstick.judge(cut.human) if cut else None,
        passages=len(cut.human) if cut else None,
        passage_words=cut.words if cut else None,
        comparisons=tuple(
            measured[0].against(other, split, names[0], name)
            for name, other in zip(names[1:], measured[1:], strict=True)
            for split in request.splits
        ),
    )


def _names(checkpoints: Sequence[Trained]) -> list[str]:
    """The files' names, with as much of their folders as keeps them apart."""
    paths = [trained.path.absolute() for trained in checkpoints]
    if len(set(paths)) < len(paths):
        raise UsageError("a checkpoint is named twice; name each once")
    for parts in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-parts:]) for path in paths]
        if len(set(names)) == len(names):
            break
    return names


def _text(checkpoints: Sequence[Trained], request: EvaluateRequest, home: Home) -> tuple[Corpus, list[str]]:
    """The text to evaluate on, and what about it a reader must know."""
    digests = {trained.corpus_digest for trained in checkpoints}
    if request.data is None and len(digests) > 1:
        texts = ", ".join(f"{trained.path.name}: {trained.corpus_name}" for trained in checkpoints)
        raise UsageError(f"these were trained on different texts ({texts}); --data PATH says on which to compare them")
    source = str(request.data or checkpoints[0].corpus_source)
    corpus = load_corpus(source, home.corpora, logger.info)
    if request.data is None and corpus.digest not in digests:
        raise UsageError(
            f"{checkpoints[0].path.name} was trained on {source} with digest {checkpoints[0].corpus_digest}, which is "
            f"{corpus.digest} now; --data PATH names the text to evaluate on"
        )
    for split in request.splits:
        if not corpus.texts.get(split, "").strip():
            raise UsageError(f"{corpus.source} has no {split} split; leave out --split {split}, or add the text")
    others = [trained.path.name for trained in checkpoints if trained.corpus_digest != corpus.digest]
    trained_elsewhere = f"{', '.join(others)}: trained on other text than this; it may have seen some of it"
    return corpus, [trained_elsewhere] if others else []


class _Measured:
    """A network's nats on each document of each split."""

    def __init__(self, trained: Trained, corpus: Corpus, splits: Sequence[Split]) -> None:
        self.trained = trained
        device = trained.network.output.weight.device
        self.scores: dict[Split, Scores] = {}
        self.documents: dict[Split, Documents] = {}
        self.line_counts: dict[Split, NDArray[np.int64]] = {}
        for split in splits:
            lines = list(io.StringIO(corpus.texts[split]))
            encoded = encode_lines(lines, trained.tokenizer)
            nats = None if corpus.line_nats is None or encoded.unknown_words else corpus.line_nats(lines)
            span = encoded.span(true_nats=None if nats is None else float(nats.sum()))
            self.scores[split] = score(trained.network, span, device, each_token=True)
            self.documents[split] = documents_of(lines)
            self.line_counts[split] = np.diff(encoded.counts_L3, axis=0, prepend=0)

    def column(self, name: str, cut: Passages | None) -> Column:
        return Column(
            name=name,
            training_tokens=self.trained.tokens,
            parameters=sum(parameter.numel() for parameter in self.trained.network.parameters()),
            tokenizer=self.trained.tokenizer.digest,
            splits=tuple(_on_split(split, scores) for split, scores in self.scores.items()),
            sampled=cut.yardstick.judge(self.write(cut, AS_IT_IS)) if cut else None,
            greedy=cut.yardstick.judge(self.write(cut, GREEDY)) if cut else None,
        )

    def write(self, cut: Passages, sampling: Sampling) -> list[Words]:
        """Write on from the contexts until each text has as many words as people's passages."""
        tokenizer = self.trained.tokenizer
        room = self.trained.config.architecture.sequence_length // 2
        prompts = [[tokenizer.start_id, *tokenizer.encode(context)[-room:]] for context in cut.contexts]
        rules = rules_for(tokenizer, cut.words * MAX_TOKENS_PER_WORD)
        texts: list[list[int]] = [[] for _ in prompts]
        drawn = sample(self.trained.network, prompts, sampling, banned=rules.banned, numbers=range(len(prompts)))
        for count, tokens in enumerate(drawn, start=1):
            for text, token in zip(texts, tokens, strict=True):
                text.append(token)
            if count % STEPS_AT_ONCE == 0:
                words = [words_of(tokenizer.decode(text)) for text in texts]
                # The last word may still be growing
                if all(len(each) > cut.words for each in words) or count >= rules.max_tokens:
                    break
        return [each[: cut.words] for each in words]

    def against(self, other: _Measured, split: Split, first: str, name: str) -> Comparison:
        """The other's nats minus these, over the documents of a split."""
        known_bytes = all(each.scores[split].span.bytes is not None for each in (self, other))
        same_tokenizer = self.trained.tokenizer.digest == other.trained.tokenizer.digest
        unit: Literal["bits per byte", "nats per token"] | None = None
        difference = None
        if known_bytes or same_tokenizer:
            unit, column = ("bits per byte", 2) if known_bytes else ("nats per token", 0)
            per_nat = 1 / np.log(2) if known_bytes else 1.0
            size_D = self.documents[split].sums(self.line_counts[split][:, column].astype(float))
            nats = [each.document_nats(split) * per_nat for each in (other, self)]
            difference = paired_difference(nats[0], nats[1], size_D)
        return Comparison(
            name=name, first=first, split=split, unit=unit, difference=difference, documents=self.documents[split].kind
        )

    def document_nats(self, split: Split) -> NDArray[np.float64]:
        """Nats (D,) of each document."""
        nats_N = self.scores[split].token_nats
        assert nats_N is not None, "asked for above"
        running = np.concatenate(([0.0], nats_N.astype(np.float64).cumsum()))
        ends_L = self.line_counts[split][:, 0].cumsum()
        of_lines_L = np.diff(running[ends_L], prepend=0.0)
        return self.documents[split].sums(of_lines_L)


def _on_split(split: Split, scores: Scores) -> OnSplit:
    known = [value if np.isfinite(value) else None for value in (scores.phi, *scores.components)]
    return OnSplit(
        split=split,
        tokens=scores.span.tokens,
        loss=scores.loss,
        token_perplexity=scores.perplexity,
        word_perplexity=scores.word_perplexity,
        bits_per_byte=scores.bits_per_byte,
        phi=known[0],
        temporal_coherence=known[1],
        integration=known[2],
        complexity=known[3],
        attention_diversity=known[4],
        doubt=implausibly_low(scores.loss, scores.span),
    )
