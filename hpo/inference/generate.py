"""Text from a checkpoint.

hpo generate lambda_phi:34 --prompt "The city of"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpo.errors import UsageError
from hpo_model.data.tokenizer import StreamDecoder, Tokenizer
from hpo_model.generation.sampling import (
    Continuation,
    Sampling,
    StoppingCriteria,
    beam_search,
    generate,
    phi_per_step,
    sample,
    window_start,
)
from hpo_model.generation.trained import Trained

ROWS_AT_ONCE = 64  # texts side by side
MAX_SAMPLES = 10_000
DEFAULTS = {"temperature": 0.8, "top_p": 0.95}  # a little more cautious than the network; see docs/generation.md
DRAWING = ("temperature", "top_k", "top_p", "min_p", "seed")  # what beam search has no use for


@dataclass(frozen=True, kw_only=True)
class GenerateRequest:
    """What the user asked for."""

    sampling: Sampling
    max_tokens: int = 100
    samples: int = 1  # texts per prompt
    beams: int = 0  # 0: sampling
    one_line: bool = False  # a text ends with its line
    phi: bool = False  # whether to compute Φ of each step

    def __post_init__(self) -> None:
        if not 1 <= self.samples <= MAX_SAMPLES:
            raise UsageError(f"--samples must be between 1 and {MAX_SAMPLES}, got {self.samples}")
        if self.beams < 0:
            raise UsageError(f"--beams must be 0 (sampling) or more, got {self.beams}")
        if self.beams and self.samples > self.beams:
            raise UsageError(f"--samples of a beam search are its best beams, at most {self.beams}, got {self.samples}")


@dataclass(frozen=True, kw_only=True)
class Step:
    """One token of a text."""

    text: str  # whole characters; "" where the character ends with a later token
    phi: float | None  # of what the network saw when it chose the token


@dataclass(frozen=True, kw_only=True)
class GeneratedText:
    """A prompt and what came after it."""

    prompt: str
    sample: int  # from 0; of a beam search its rank
    text: str
    tokens: int
    end: str  # "length" or "line"
    mean_nats: float | None  # of a beam search
    steps: tuple[Step, ...] | None  # where Φ was asked for
    unknown_words: int  # of the prompt, read as <unk>
    context_truncations: int  # times that the text outgrew what the network sees at once


def sampling_of(values: dict[str, float | int | None], beams: int) -> Sampling:
    """The sampling that the given flags mean; those that were not given are None.

    Raises:
        UsageError: a flag of drawing beside beam search, which draws nothing.
        ConfigError: a value outside its range.
    """
    given = {name: value for name, value in values.items() if value is not None}
    if beams:
        idle = [f"--{name.replace('_', '-')}" for name in DRAWING if name in given]
        if idle:
            raise UsageError(f"beam search draws nothing: leave out {', '.join(idle)}, or --beams")
        return Sampling(**given)  # type: ignore[arg-type]
    return Sampling(**{**DEFAULTS, **given})  # type: ignore[arg-type]


def read_prompts(prompt: str | None, file: Path | None) -> list[str]:
    """The prompt of the command line, or the lines of a file.

    Raises:
        UsageError: none or both given, an empty one, a file that is missing or not UTF-8.
    """
    if (prompt is None) == (file is None):
        raise UsageError("give a prompt by --prompt TEXT, or a file with one per line by --prompts FILE")
    if prompt is not None:
        _check_text("--prompt", prompt)
        return [prompt]
    assert file is not None
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: not UTF-8 at byte {error.start}; convert it, for example with iconv") from error
    except OSError as error:
        raise UsageError(f"{file}: cannot be read ({error.strerror})") from error
    lines = [line.removesuffix("\r") for line in (lines[:-1] if lines[-1] == "" else lines)]
    if not lines:
        raise UsageError(f"{file}: empty; put one prompt on each line")
    for number, line in enumerate(lines, start=1):
        _check_text(f"{file}: line {number}", line)
    return lines


def _check_text(where: str, text: str) -> None:
    if not text.strip():
        raise UsageError(f"{where}: an empty prompt; give it at least one word")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{where}: not UTF-8 at character {error.start}; check the terminal's encoding") from error


def encode_prompt(trained: Trained, prompt: str) -> list[int]:
    """The prompt's ids after the start token.

    Raises:
        UsageError: it does not fit into what the network sees at once.
    """
    room = trained.config.architecture.sequence_length - 1
    ids = trained.tokenizer.encode(prompt)
    if len(ids) > room:
        raise UsageError(
            f"prompt {prompt[:24]!r}...: {len(ids)} tokens, but {trained.path.name} sees {room} and a start token at "
            "once; shorten it"
        )
    return [trained.tokenizer.start_id, *ids]


def rules_for(tokenizer: Tokenizer, max_tokens: int, *, one_line: bool = False) -> StoppingCriteria:
    """Never the start token of BPE, which no text holds; to the end of the line, if that is wanted."""
    banned = [tokenizer.start_id] if tokenizer.kind == "bpe" else []
    return StoppingCriteria(max_tokens=max_tokens, ends=tokenizer.line_ends if one_line else (), banned=banned)


def generate_texts(trained: Trained, prompts: Sequence[str], request: GenerateRequest) -> Iterator[GeneratedText]:
    """Continue each prompt `samples` times, in order.

    Raises:
        UsageError, ConfigError: a prompt or value that cannot be; before any text is made.
    """
    if request.phi and trained.transformer is None:
        raise UsageError(f"{trained.path.name}: {trained.config.architecture.network} has no Φ; leave out --phi")
    rules = rules_for(trained.tokenizer, request.max_tokens, one_line=request.one_line)
    encoded = [encode_prompt(trained, prompt) for prompt in prompts]
    jobs = [(place, number) for place in range(len(prompts)) for number in range(request.samples)]
    if request.beams:
        for prompt, ids in zip(prompts, encoded, strict=True):
            found = beam_search(trained.network, ids, request.beams, request.sampling, rules)
            for rank, continuation in enumerate(found[: request.samples]):
                yield _generated_text(trained, request, prompt, ids, rank, continuation)
        return
    for first in range(0, len(jobs), ROWS_AT_ONCE):
        rows = jobs[first : first + ROWS_AT_ONCE]
        texts = generate(
            trained.network,
            [encoded[place] for place, _ in rows],
            request.sampling,
            rules,
            numbers=[number for _, number in rows],
        )
        for (place, number), continuation in zip(rows, texts, strict=True):
            yield _generated_text(trained, request, prompts[place], encoded[place], number, continuation)


def stream_text(trained: Trained, prompt: str, request: GenerateRequest, show: Callable[[str], None]) -> GeneratedText:
    """One sampled text, shown piece by piece as it comes; the pieces together are the text of `generate_texts`."""
    rules = rules_for(trained.tokenizer, request.max_tokens, one_line=request.one_line)
    ids = encode_prompt(trained, prompt)
    pieces = StreamDecoder(trained.tokenizer, first=prompt.endswith("\n"))
    tokens: list[int] = []
    for [token] in sample(trained.network, [ids], request.sampling, banned=rules.banned):
        if not tokens:
            show(prompt)
        tokens.append(token)
        show(pieces.add(token))
        if token in rules.ends or len(tokens) == rules.max_tokens:
            break
    show(pieces.end())
    end: Literal["length", "line"] = "line" if tokens[-1] in rules.ends else "length"
    return _generated_text(trained, request, prompt, ids, 0, Continuation(tokens=tuple(tokens), end=end))


def _generated_text(
    trained: Trained, request: GenerateRequest, prompt: str, ids: list[int], number: int, made: Continuation
) -> GeneratedText:
    length = trained.config.architecture.sequence_length
    pieces = StreamDecoder(trained.tokenizer, first=prompt.endswith("\n"))
    shown = [pieces.add(token) for token in made.tokens]
    steps = None
    if request.phi:
        assert trained.transformer is not None, "checked above"
        values = phi_per_step(trained.transformer, ids, made.tokens)
        steps = tuple(Step(text=text, phi=value) for text, value in zip(shown, values, strict=True))
    starts = {window_start(read, length) for read in range(len(ids), len(ids) + len(made.tokens))}
    return GeneratedText(
        prompt=prompt,
        sample=number,
        text="".join(shown) + pieces.end(),
        tokens=len(made.tokens),
        end=made.end,
        mean_nats=made.mean_nats,
        steps=steps,
        unknown_words=trained.tokenizer.unknown_words(prompt, ids),
        context_truncations=len(starts) - 1,
    )
