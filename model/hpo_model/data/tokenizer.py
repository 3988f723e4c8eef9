"""Tokenizers trained on the training split: byte-level BPE, and the literature's words.

`bpe`   byte-level byte-pair encoding (Radford et al. 2019); any text comes back byte for byte.
`word`  WikiText's convention: white-space separated words plus one `<eos>` per line; unknown words become `<unk>`.
"""

from __future__ import annotations

import codecs
import io
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cached_property

import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from hpo_model.config import TokenizerChoice, TokenizerKind
from hpo_model.digest import short_digest

BPE_START = "<|endoftext|>"
END_OF_LINE = "<eos>"
UNKNOWN = "<unk>"


class Tokenizer:
    """Lines of text to token ids and back."""

    def __init__(self, kind: TokenizerKind, backend: tokenizers.Tokenizer) -> None:
        self.kind = kind
        self.backend = backend

    @property
    def vocabulary(self) -> int:
        """Number of token ids."""
        return int(self.backend.get_vocab_size())

    @cached_property
    def start_id(self) -> int:
        """The token before the first, from which the first is predicted."""
        start = BPE_START if self.kind == "bpe" else END_OF_LINE
        found = self.backend.token_to_id(start)
        assert found is not None, "both kinds are trained with their start token"
        return found

    @cached_property
    def definition(self) -> str:
        """Everything from which `load_tokenizer` builds it again, as JSON."""
        return str(self.backend.to_str())

    @cached_property
    def digest(self) -> str:
        """Sixteen hexadecimal digits of the tokenizer's whole definition."""
        return short_digest(self.definition)

    def encode_lines(self, lines: Sequence[str]) -> list[list[int]]:
        """Ids of each line, its end included; no token spans two lines."""
        if self.kind == "word":
            lines = [f"{line} {END_OF_LINE}" for line in lines]
        return [encoding.ids for encoding in self.backend.encode_batch_fast(list(lines), add_special_tokens=False)]

    def encode(self, text: str) -> list[int]:
        """Ids of a text that may end within a line: no end of line is added to its last one."""
        *whole, last = [*io.StringIO(text), ""] if text.endswith("\n") else list(io.StringIO(text)) or [""]
        ids = [each for line in self.encode_lines(whole) for each in line]
        return ids + list(self.backend.encode(last, add_special_tokens=False).ids)

    @cached_property
    def line_ends(self) -> frozenset[int]:
        """Ids of the tokens with which a line ends."""
        if self.kind == "word":
            return frozenset({self.start_id})
        return frozenset(id_ for id_ in range(self.vocabulary) if b"\n" in self.bytes_of(id_))

    def bytes_of(self, id_: int) -> bytes:
        """What a token of byte-level BPE stands for; a part of a character, perhaps."""
        text = self.backend.id_to_token(id_)
        assert text is not None, "an id below the vocabulary's size"
        return text.encode() if id_ == self.start_id else bytes(_BYTES[sign] for sign in text)

    def recoverable(self, line: str) -> str:
        """What of a line its tokens give back: all of it, or words with one blank between them."""
        return line if self.kind == "bpe" else " ".join(line.split()) + "\n"

    def unknown_words(self, line: str, ids: Sequence[int]) -> int:
        """How many of a line's words became `<unk>` that were not `<unk>` in the text; BPE knows all."""
        if self.kind == "bpe":
            return 0
        return ids.count(self.backend.token_to_id(UNKNOWN)) - line.split().count(UNKNOWN)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of the ids; words come back separated by one space."""
        text: str = self.backend.decode(list(ids), skip_special_tokens=False)
        return text.replace(END_OF_LINE, "\n") if self.kind == "word" else text


class StreamDecoder:
    """Text that is shown while its tokens come: whole characters only, and together what `decode` gives.

    Args:
        tokenizer: whose ids come.
        first: whether nothing stands before; else words are set off by a blank.
    """

    def __init__(self, tokenizer: Tokenizer, *, first: bool = True) -> None:
        self._tokenizer = tokenizer
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._first = first

    def add(self, id_: int) -> str:
        """The text that this token completes; empty while it ends within a character."""
        if self._tokenizer.kind == "bpe":
            return self._utf8.decode(self._tokenizer.bytes_of(id_))
        blank, self._first = "" if self._first else " ", False
        return blank + self._tokenizer.decode([id_])

    def end(self) -> str:
        """What is left: the sign for a character that never became whole."""
        return self._utf8.decode(b"", final=True)


def _byte_alphabet() -> dict[str, int]:
    """The byte of each sign in which byte-level BPE writes, as GPT-2 defined it: printable Latin-1 is itself."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + place): byte for place, byte in enumerate(others)}


_BYTES = _byte_alphabet()


def train_tokenizer(choice: TokenizerChoice, lines: Sequence[str]) -> Tokenizer:
    """Train a tokenizer on lines of the training split (each with its end of line, if it has one)."""
    if choice.kind == "word":
        return Tokenizer("word", _word_backend(choice.vocabulary, lines))
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=choice.vocabulary or 8192,
        special_tokens=[BPE_START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator(lines, trainer)
    return Tokenizer("bpe", backend)


def _word_backend(vocabulary: int, lines: Sequence[str]) -> tokenizers.Tokenizer:
    counts = Counter(word for line in lines for word in line.split())
    del counts[UNKNOWN], counts[END_OF_LINE]
    room = vocabulary - 2 if vocabulary else None
    ranked = sorted(counts, key=lambda word: (-counts[word], word))[:room]
    words: Iterator[str] = iter((END_OF_LINE, UNKNOWN, *ranked))
    backend = tokenizers.Tokenizer(
        models.WordLevel({word: place for place, word in enumerate(words)}, unk_token=UNKNOWN)
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return backend


def load_tokenizer(kind: TokenizerKind, definition: str) -> Tokenizer:
    """Rebuild a tokenizer from its JSON definition."""
    return Tokenizer(kind, tokenizers.Tokenizer.from_str(definition))
