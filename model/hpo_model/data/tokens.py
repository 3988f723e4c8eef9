"""Token files: a corpus under a tokenizer, kept on disk, memory-mapped by whoever trains on it.

A stream starts with one start token, so that every token of the text is predicted once. Beside each stream stand the
running counts of tokens, words and bytes per line: word-level perplexity and bits per byte are exact for any prefix of
whole lines. Where the process that wrote the text is known, so do the nats of each line under it.
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpo_model.config import TokenizerChoice
from hpo_model.data.corpus import Corpus
from hpo_model.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from hpo_model.errors import CorpusError

LINES_AT_ONCE = 20_000
STRETCHES = 16  # places of a split from which a sample is taken
_TOKENS, _WORDS, _BYTES = range(3)


@dataclass(frozen=True)
class Span:
    """Consecutive text: its token ids after one token of context, and how many words and bytes it has."""

    ids: NDArray[np.unsignedinteger]  # (tokens + 1,): the first is context, never predicted
    words: int  # white-space separated words plus one per line, as the literature counts WikiText
    bytes: (
        int | None
    )  # of UTF-8 that the tokens give back; None where the tokenizer lost words, so that bits per byte would flatter
    true_nats: float | None = None  # under the process that wrote the text; None as above, and where it is not known

    @property
    def tokens(self) -> int:
        """Number of predicted tokens."""
        return len(self.ids) - 1


@dataclass(frozen=True, kw_only=True)
class TokenizedCorpus:
    """The token files of one corpus under one tokenizer."""

    folder: Path
    corpus_name: str
    corpus_source: str
    corpus_origin: str
    corpus_digest: str
    tokenizer: Tokenizer
    unknown_words: dict[str, int]  # by split

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits there are."""
        return tuple(self.unknown_words)

    def tokens(self, split: str) -> int:
        """Number of tokens in a split."""
        return int(self._counts(split)[-1, _TOKENS])

    def span(self, split: str) -> Span:
        """A full split."""
        tokens, words, size = (int(count) for count in self._counts(split)[-1])
        true_nats = self._true_nats(split, [slice(None)])
        return Span(self._ids(split)[: tokens + 1], words, self._bytes(split, size), true_nats)

    def sample(self, split: str, tokens: int) -> Span:
        """About `tokens` tokens of a split in stretches of whole lines, evenly spread; always the same ones."""
        counts = self._counts(split)
        if tokens >= counts[-1, _TOKENS]:
            return self.span(split)
        starts = np.vstack((np.zeros((1, 3), np.int64), counts[:-1]))  # counts before each line
        ids = self._ids(split)
        parts = [ids[:1]]
        lines: list[slice] = []
        words = size = 0
        last = -1
        for stretch in range(STRETCHES):
            first = max(len(counts) * stretch // STRETCHES, last + 1)
            if first == len(counts):
                break
            room = starts[first, _TOKENS] + tokens // STRETCHES
            last = max(first, int(np.searchsorted(counts[:, _TOKENS], room, side="right")) - 1)
            lines.append(slice(first, last + 1))
            parts.append(ids[1 + starts[first, _TOKENS] : 1 + counts[last, _TOKENS]])
            words += int(counts[last, _WORDS] - starts[first, _WORDS])
            size += int(counts[last, _BYTES] - starts[first, _BYTES])
        return Span(np.concatenate(parts), words, self._bytes(split, size), self._true_nats(split, lines))

    def check_length(self, sequence_length: int) -> None:
        """Refuse splits that cannot fill one sequence.

        Raises:
            CorpusError: train or valid is shorter than one sequence.
        """
        for split in ("train", "valid"):
            if self.tokens(split) < sequence_length:
                raise CorpusError(
                    f"{self.corpus_source}: the {split} split has {self.tokens(split)} tokens, fewer than one sequence "
                    f"of {sequence_length}; add text or shorten sequence_length"
                )

    def _bytes(self, split: str, size: int) -> int | None:
        return None if self.unknown_words[split] else size

    def _true_nats(self, split: str, stretches: list[slice]) -> float | None:
        path = self.folder / f"{split}.nats.npy"
        if self.unknown_words[split] or not path.is_file():
            return None
        nats_L: NDArray[np.float64] = np.load(path)
        return float(sum(nats_L[lines].sum() for lines in stretches))

    def _ids(self, split: str) -> NDArray[np.unsignedinteger]:
        ids: NDArray[np.unsignedinteger] = np.load(self.folder / f"{split}.npy", mmap_mode="r")
        return ids

    def _counts(self, split: str) -> NDArray[np.int64]:
        counts: NDArray[np.int64] = np.load(self.folder / f"{split}.lines.npy", mmap_mode="r")
        return counts


def tokenize_corpus(corpus: Corpus, choice: TokenizerChoice, cache: Path) -> TokenizedCorpus:
    """Train the tokenizer and write the token files, or find them in the cache.

    Args:
        corpus: text in splits.
        choice: the tokenizer.
        cache: folder under which the files are kept by content.
    """
    digest = corpus.digest
    known = "" if corpus.line_nats is None else "-known"  # else an equal text of unknown origin could leave none
    folder = cache / f"{digest}-{choice.kind}-{choice.vocabulary}{known}"
    if not (folder / "about.json").is_file():
        _write(corpus, digest, choice, folder)
    return dataclasses.replace(
        open_tokens(folder), corpus_name=corpus.name, corpus_source=corpus.source, corpus_origin=corpus.origin
    )


def open_tokens(folder: Path) -> TokenizedCorpus:
    """Open token files that `tokenize_corpus` wrote."""
    try:
        about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        tokenizer = load_tokenizer(about.pop("kind"), (folder / "tokenizer.json").read_text(encoding="utf-8"))
        corpus = TokenizedCorpus(folder=folder, tokenizer=tokenizer, **about)
        for split in corpus.splits:
            corpus.span(split)
    except Exception as error:  # json, numpy and tokenizers raise kinds of their own
        raise CorpusError(f"{folder}: damaged token files ({type(error).__name__}); delete the folder") from error
    return corpus


def _write(corpus: Corpus, digest: str, choice: TokenizerChoice, folder: Path) -> None:
    """Write beside the target, then move the folder into place."""
    lines = {split: list(io.StringIO(text)) for split, text in corpus.texts.items()}  # at "\n" alone
    tokenizer = train_tokenizer(choice, lines["train"])
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = tempfile.TemporaryDirectory(
            dir=folder.parent, prefix=f".{folder.name}-", ignore_cleanup_errors=True
        )
    except OSError as error:
        raise CorpusError(f"{folder.parent}: token files cannot be written ({error.strerror})") from error
    draft = Path(unfinished.name) / "tokens"  # with the user's usual permissions, unlike a temporary folder
    try:
        draft.mkdir()
        unknown_words = {}
        for split, split_lines in lines.items():
            unknown_words[split] = _write_split(split_lines, tokenizer, draft / split)
            if corpus.line_nats is not None:
                np.save(draft / f"{split}.nats.npy", corpus.line_nats(split_lines))
        (draft / "tokenizer.json").write_text(tokenizer.definition, encoding="utf-8")
        about = {
            "kind": choice.kind,
            "corpus_name": corpus.name,
            "corpus_source": corpus.source,
            "corpus_origin": corpus.origin,
            "corpus_digest": digest,
            "unknown_words": unknown_words,
        }
        (draft / "about.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        os.replace(draft, folder)
    except OSError as error:
        if not (folder / "about.json").is_file():  # else another process was first with the same content
            raise CorpusError(f"{folder}: token files cannot be written ({error.strerror or error})") from error
    finally:
        unfinished.cleanup()


def _write_split(lines: list[str], tokenizer: Tokenizer, target: Path) -> int:
    """Write a split's stream and counts; returns how many of its words the tokenizer does not know."""
    encoded = encode_lines(lines, tokenizer)
    np.save(target.with_suffix(".npy"), encoded.ids)
    np.save(target.with_suffix(".lines.npy"), encoded.counts_L3)
    return encoded.unknown_words


@dataclass(frozen=True)
class EncodedLines:
    """Lines of a text under a tokenizer."""

    ids: NDArray[np.unsignedinteger]  # one start token, then those of the lines
    counts_L3: NDArray[np.int64]  # running counts of tokens, words and recoverable bytes at the end of each line
    unknown_words: int  # that the tokenizer does not know

    def span(self, true_nats: float | None = None) -> Span:
        """The whole text, with its nats under the process that wrote it, where they are known."""
        _, words, size = (int(count) for count in self.counts_L3[-1])
        return Span(self.ids, words, None if self.unknown_words else size, true_nats)


def encode_lines(lines: list[str], tokenizer: Tokenizer) -> EncodedLines:
    """The stream and the counts of a text, given by its lines, each with its end."""
    dtype = np.uint16 if tokenizer.vocabulary <= np.iinfo(np.uint16).max + 1 else np.uint32
    parts = [np.array([tokenizer.start_id], dtype)]
    counts = np.empty((len(lines), 3), np.int64)
    unknown_words = 0
    for first in range(0, len(lines), LINES_AT_ONCE):
        batch = lines[first : first + LINES_AT_ONCE]
        encoded = tokenizer.encode_lines(batch)
        parts.extend(np.array(ids, dtype) for ids in encoded)
        for place, (line, ids) in enumerate(zip(batch, encoded, strict=True), start=first):
            counts[place] = len(ids), len(line.split()) + 1, len(tokenizer.recoverable(line).encode())
            unknown_words += tokenizer.unknown_words(line, ids)
    return EncodedLines(np.concatenate(parts), counts.cumsum(axis=0), unknown_words)
