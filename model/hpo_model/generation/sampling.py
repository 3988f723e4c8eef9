"""Text from a trained network: sampling, beam search, and the KV cache that makes it quick.

Shapes: B sequences side by side, V vocabulary, T positions that the network sees at once, L tokens of a batch.

A network's learned positions end at T. When a text has grown beyond, its last T // 2 tokens are read again from
position 0 and the text goes on from there: what lies further back is forgotten. A prompt that does not fit is refused.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hpo_model.errors import ConfigError
from hpo_model.hardware import mixed_precision, upload
from hpo_model.network import phi
from hpo_model.network.custom import Network
from hpo_model.network.kv_cache import KVCache
from hpo_model.network.transformer import Transformer

GENERATOR_STRIDE = 1_000_003  # between the seeds of two seeds' first samples
MIN_PHI_POSITIONS = 4  # positions


@dataclass(frozen=True, kw_only=True)
class Sampling:
    """How the next token is drawn. The defaults draw from the network as it is.

    Penalties come first, then temperature, top-k, top-p, min-p, each on what the one before has left.
    """

    temperature: float = 1.0  # logits are divided by it; 0: always the likeliest token
    top_k: int = 0  # keep the k likeliest tokens; 0: all
    top_p: float = 1.0  # keep the fewest tokens whose probabilities reach p together (nucleus)
    min_p: float = 0.0  # keep tokens at least this share as likely as the likeliest
    repetition_penalty: float = (
        1.0  # of tokens of prompt and text: positive logits are divided by it, others multiplied
    )
    frequency_penalty: float = 0.0  # taken off a logit for each time that the text, without prompt, has the token
    presence_penalty: float = 0.0  # taken off a logit once if the text, without prompt, has the token
    seed: int = 1  # of the draws; each sample has a generator of its own

    def __post_init__(self) -> None:
        _require(0 <= self.temperature <= 100, "temperature must be at least 0 and at most 100", self.temperature)
        _require(self.top_k >= 0, "top_k must be 0 (all) or more", self.top_k)
        _require(0 < self.top_p <= 1, "top_p must be above 0 and at most 1", self.top_p)
        _require(0 <= self.min_p <= 1, "min_p must be at least 0 and at most 1", self.min_p)
        _require(0 < self.repetition_penalty <= 100, "repetition_penalty must be above 0", self.repetition_penalty)
        for name in ("frequency_penalty", "presence_penalty"):
            _require(-100 <= getattr(self, name) <= 100, f"{name} must be between -100 and 100", getattr(self, name))
        _require(0 <= self.seed < 2**31, "seed must be at least 0 and below 2**31", self.seed)

    @property
    def penalises(self) -> bool:
        """Whether any penalty is set."""
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)


@dataclass(frozen=True, kw_only=True)
class StoppingCriteria:
    """Where a text ends, and which tokens it never holds."""

    max_tokens: int = 100
    ends: Collection[int] = ()  # the text ends after one of these ids
    banned: Collection[int] = ()  # ids that are never taken

    def __post_init__(self) -> None:
        _require(1 <= self.max_tokens <= 10**6, "max_tokens must be between 1 and 1,000,000", self.max_tokens)


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What came after a prompt."""

    tokens: tuple[int, ...]
    end: Literal["length", "line"]  # as many tokens as were asked for, or an id that ends the text
    mean_nats: float | None = None  # of beam search: −log probability per token, by which beams are ranked


def generate(
    network: Network,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    stopping: StoppingCriteria,
    *,
    numbers: Sequence[int] | None = None,
    cached: bool = True,
) -> list[Continuation]:
    """Continue prompts side by side.

    Args:
        network: in whichever mode; it is used in evaluation mode, its memory frozen.
        prompts: ids, of different lengths; each at least 1 and at most T.
        sampling: how to draw.
        stopping: where a text ends.
        numbers: which sample of its prompt each is; a seed and a number give one text, whatever batch it is in.
        cached: whether to keep what was read; False reads all of it again for each token, as is always done
            with a custom network.

    Raises:
        ConfigError: a prompt that is empty or longer than T.
    """
    texts: list[list[int]] = [[] for _ in prompts]
    open_rows = set(range(len(prompts)))
    for drawn in sample(network, prompts, sampling, banned=stopping.banned, numbers=numbers, cached=cached):
        for row in tuple(open_rows):
            texts[row].append(drawn[row])
            if drawn[row] in stopping.ends or len(texts[row]) == stopping.max_tokens:
                open_rows.remove(row)
        if not open_rows:
            break
    return [Continuation(tokens=tuple(text), end="line" if text[-1] in stopping.ends else "length") for text in texts]


def sample(
    network: Network,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    banned: Collection[int] = (),
    numbers: Sequence[int] | None = None,
    cached: bool = True,
) -> Iterator[list[int]]:
    """Yield the next token of each prompt, then the one after it, without end. Arguments as for `generate`."""
    numbers = numbers or [0] * len(prompts)
    generators = [torch.Generator().manual_seed(sampling.seed * GENERATOR_STRIDE + number) for number in numbers]
    reader = Reader(network, prompts, cached=cached)
    generated_BV = None
    with evaluating(network):
        while True:
            logits_BV = mask(reader.logits(), banned)
            if sampling.penalises:
                generated_BV = generated_BV if generated_BV is not None else torch.zeros_like(logits_BV)
                seen_BV = _counts(prompts, logits_BV) + generated_BV
                logits_BV = apply_penalties(logits_BV, sampling, seen_BV, generated_BV)
            drawn_B = sample_token(logits_BV, sampling, generators)
            if generated_BV is not None:
                generated_BV.scatter_add_(1, drawn_B[:, None], torch.ones_like(generated_BV[:, :1]))
            drawn = drawn_B.tolist()
            yield drawn
            reader.append(drawn)


@contextlib.contextmanager
def evaluating(network: Network) -> Iterator[None]:
    """No dropout, no noise, no writes to the memory; the network's mode is given back."""
    training = network.training
    network.eval()
    try:
        yield
    finally:
        network.train(training)


def window_start(read: int, length: int) -> int:
    """The first token that a network of T = `length` positions still sees of a text of `read` tokens."""
    forgotten = length + 1 - length // 2  # each time that the window is full
    return 0 if read <= length else -(-(read - length) // forgotten) * forgotten


class Reader:
    """Feeds growing texts to a network, and gives the logits of what comes next."""

    def __init__(self, network: Network, prompts: Sequence[Sequence[int]], *, cached: bool = True) -> None:
        self.network = network
        self.cached = cached and type(network) is Transformer  # a custom network may know no KV cache
        self.length = network.architecture.sequence_length
        for prompt in prompts:
            _require(1 <= len(prompt) <= self.length, f"a prompt must have 1 to {self.length} tokens", len(prompt))
        self.texts = [list(prompt) for prompt in prompts]
        self.device = network.output.weight.device
        self._cache: KVCache | None = None  # None: all has to be read

    def append(self, tokens: Sequence[int]) -> None:
        """One token more for each text."""
        for text, token in zip(self.texts, tokens, strict=True):
            before = window_start(len(text), self.length)
            text.append(token)
            if window_start(len(text), self.length) != before:
                self._cache = None

    def select(self, rows: list[int]) -> None:
        """Go on with these texts, some of them perhaps more than once."""
        self.texts = [list(self.texts[row]) for row in rows]
        if self._cache is not None:
            self._cache.select(rows)

    @torch.no_grad()
    def logits(self) -> Tensor:
        """Logits (B, V) of the token after each text."""
        windows = [text[window_start(len(text), self.length) :] for text in self.texts]
        lengths_B = upload(torch.tensor([len(window) for window in windows]), self.device)
        longest = max(map(len, windows))
        with mixed_precision(self.device):
            if self._cache is not None:
                last_B1 = upload(torch.tensor([window[-1:] for window in windows]), self.device)
                aligned = all(len(window) == longest for window in windows)
                self._cache.begin(lengths_B[:, None] - 1, longest, aligned=aligned)
                hidden_BD = self.network(last_B1, self._cache).hidden_BTD[:, 0]
            else:
                tokens_BL = torch.tensor([window + [0] * (longest - len(window)) for window in windows])
                hidden_BLD = self._read(upload(tokens_BL, self.device))
                hidden_BD = hidden_BLD[torch.arange(len(windows), device=self.device), lengths_B - 1]
            logits_BV: Tensor = self.network.logits(hidden_BD)
        return logits_BV.to(torch.promote_types(logits_BV.dtype, torch.float32))

    def _read(self, tokens_BL: Tensor) -> Tensor:
        """Final states of whole windows, which are kept for the next token."""
        if not self.cached:
            return self.network(tokens_BL).hidden_BTD  # type: ignore[no-any-return]
        rows, longest = tokens_BL.shape
        self._cache = KVCache(rows, self.length, self.device)
        self._cache.begin(torch.arange(longest, device=self.device).expand(rows, -1), longest, aligned=True)
        return self.network(tokens_BL, self._cache).hidden_BTD  # type: ignore[no-any-return]


# ---------------------------------------------------------------------------------------------- the next token


def mask(logits_BV: Tensor, banned: Collection[int]) -> Tensor:
    """Set the logits of the banned ids to −∞."""
    if not banned:
        return logits_BV
    return logits_BV.index_fill(1, upload(torch.tensor(sorted(banned)), logits_BV.device), float("-inf"))


def _counts(texts: Sequence[Sequence[int]], like_BV: Tensor) -> Tensor:
    counts = [torch.bincount(torch.tensor(text, dtype=torch.int64), minlength=like_BV.shape[1]) for text in texts]
    return upload(torch.stack(counts).to(like_BV.dtype), like_BV.device)


def apply_penalties(logits_BV: Tensor, sampling: Sampling, seen_BV: Tensor, generated_BV: Tensor) -> Tensor:
    """Apply the penalties for tokens that prompt and text hold already.

    Args:
        logits_BV: of the next token.
        sampling: the penalties.
        seen_BV: how often each token stands in prompt and text.
        generated_BV: how often it stands in the text alone.

    Returns:
        Logits (B, V). The repetition penalty is that of CTRL (Keskar et al. 2019, section 4.1).
    """
    penalty = sampling.repetition_penalty
    divided_BV = torch.where(logits_BV > 0, logits_BV / penalty, logits_BV * penalty)
    logits_BV = torch.where(seen_BV > 0, divided_BV, logits_BV)
    return logits_BV - sampling.frequency_penalty * generated_BV - sampling.presence_penalty * (generated_BV > 0)


def probabilities(logits_BV: Tensor, sampling: Sampling) -> Tensor:
    """What a token is drawn from (B, V), in double precision; rows sum to 1.

    Source: nucleus sampling, Holtzman et al. 2020; min-p, Nguyen et al. 2024.
    """
    if sampling.temperature == 0:
        return torch.nn.functional.one_hot(logits_BV.argmax(-1), logits_BV.shape[-1]).double()
    kept_BV = (logits_BV.double() / sampling.temperature).softmax(-1)
    if sampling.top_k:
        likeliest = kept_BV.topk(min(sampling.top_k, kept_BV.shape[-1]))
        kept_BV = torch.zeros_like(kept_BV).scatter(1, likeliest.indices, likeliest.values)
    if sampling.top_p < 1:
        ordered = kept_BV.sort(descending=True, stable=True)
        before_BV = ordered.values.cumsum(-1) - ordered.values
        reached = before_BV >= sampling.top_p * kept_BV.sum(-1, keepdim=True)
        kept_BV = torch.zeros_like(kept_BV).scatter(1, ordered.indices, ordered.values.masked_fill(reached, 0.0))
    if sampling.min_p:
        kept_BV = kept_BV.masked_fill(kept_BV < sampling.min_p * kept_BV.amax(-1, keepdim=True), 0.0)
    return kept_BV / kept_BV.sum(-1, keepdim=True)


def sample_token(logits_BV: Tensor, sampling: Sampling, generators: Sequence[torch.Generator]) -> Tensor:
    """Draw one token (B,) per row, each with its own generator of the CPU."""
    if sampling.temperature == 0:
        return logits_BV.argmax(-1)
    cumulative_BV = probabilities(logits_BV, sampling).cumsum(-1)
    uniform_B = torch.stack([torch.rand((), generator=each, dtype=torch.float64) for each in generators])
    places_B1 = upload(uniform_B, cumulative_BV.device)[:, None] * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, places_B1, right=True)[:, 0]


# ---------------------------------------------------------------------------------------------- beam search


@dataclass(frozen=True)
class _Beam:
    tokens: tuple[int, ...]
    log_probability: float

    @property
    def mean(self) -> float:
        return self.log_probability / len(self.tokens)


def beam_search(
    network: Network,
    prompt: Sequence[int],
    beams: int,
    sampling: Sampling,
    stopping: StoppingCriteria,
    *,
    cached: bool = True,
) -> list[Continuation]:
    """Look for the likeliest continuation, by log probability per token, so that long ones are not at a loss.

    Args:
        network, prompt, stopping, cached: as for `generate`.
        beams: partial texts that are followed side by side.
        sampling: its penalties count; nothing is drawn.

    Returns:
        At most `beams` continuations, the best first.
    """
    _require(1 <= beams <= network.output.weight.shape[0], "beams must be from 1 to the vocabulary's size", beams)
    reader = Reader(network, [prompt], cached=cached)
    live, ended = [_Beam((), 0.0)], list[_Beam]()
    with evaluating(network):
        for _ in range(stopping.max_tokens):
            log_probabilities_BV = _beam_logits(reader, prompt, live, sampling, stopping).log_softmax(-1)
            parents, grown = _grow(live, log_probabilities_BV, 2 * beams)
            ended += [beam for beam in grown if beam.tokens[-1] in stopping.ends]
            ended = sorted(ended, key=lambda beam: -beam.mean)[:beams]
            going = [row for row, beam in enumerate(grown) if beam.tokens[-1] not in stopping.ends][:beams]
            live = [grown[row] for row in going]
            # No live beam can do better than to add nothing but certainties
            if not live or (len(ended) == beams and ended[-1].mean >= live[0].log_probability / stopping.max_tokens):
                break
            reader.select([parents[row] for row in going])
            reader.append([beam.tokens[-1] for beam in live])
    best = sorted((*ended, *(beam for beam in live if len(beam.tokens) == stopping.max_tokens)), key=lambda b: -b.mean)
    return [
        Continuation(tokens=b.tokens, end="line" if b.tokens[-1] in stopping.ends else "length", mean_nats=-b.mean)
        for b in best[:beams]
    ]


def _beam_logits(
    reader: Reader, prompt: Sequence[int], live: list[_Beam], sampling: Sampling, stopping: StoppingCriteria
) -> Tensor:
    logits_BV = reader.logits()
    if sampling.penalises:
        generated_BV = _counts([beam.tokens for beam in live], logits_BV)
        seen_BV = _counts([prompt], logits_BV) + generated_BV
        logits_BV = apply_penalties(logits_BV, sampling, seen_BV, generated_BV)
    return mask(logits_BV, stopping.banned).double()


def _grow(live: list[_Beam], log_probabilities_BV: Tensor, most: int) -> tuple[list[int], list[_Beam]]:
    """The likeliest ways to go on by one token, best first, and the rows that they come from."""
    before_B = torch.tensor([beam.log_probability for beam in live], device=log_probabilities_BV.device)
    totals = (before_B.double()[:, None] + log_probabilities_BV).flatten()
    found = totals.topk(min(most, int((totals > float("-inf")).sum())))
    vocabulary = log_probabilities_BV.shape[1]
    places = found.indices.tolist()
    parents = [place // vocabulary for place in places]
    grown = [
        _Beam((*live[parent].tokens, place % vocabulary), total)
        for parent, place, total in zip(parents, places, found.values.tolist(), strict=True)
    ]
    return parents, grown


# ---------------------------------------------------------------------------------------------- Φ


@torch.no_grad()
def phi_per_step(network: Transformer, prompt: Sequence[int], text: Sequence[int]) -> list[float | None]:
    """Φ of what the network saw when it drew each token: the window before it.

    Causality makes one reading of a window do for all its beginnings. Weights are the initial ones, as everywhere that
    runs are compared. None where a window has fewer than four positions.
    """
    length, tokens = network.architecture.sequence_length, [*prompt, *text]
    device = network.output.weight.device
    weights_C = network.initial_phi_weight_logits
    values: list[float | None] = []
    with evaluating(network):
        for start, ends in _windows(len(prompt), len(tokens), length):
            window_1T = torch.tensor([tokens[start : ends[-1]]], device=device)
            with mixed_precision(device):
                states = network(window_1T)
            for end in ends:
                seen = end - start
                if seen < MIN_PHI_POSITIONS:
                    values.append(None)
                    continue
                attention = phi.Attention(*(part[:, :, :seen] for part in states.attention))
                received_1T = phi.attention_received(attention, network.architecture.phi_probes)
                components_1C = phi.components(states.hidden_BTD[:, :seen], received_1T)
                values.append(float(phi.weighted(components_1C, weights_C)))
    return values


def _windows(first: int, last: int, length: int) -> Iterator[tuple[int, list[int]]]:
    """The windows of a text and the ends that each had when tokens number `first` to `last` - 1 were drawn."""
    ends_by_start: dict[int, list[int]] = {}
    for end in range(first, last):
        ends_by_start.setdefault(window_start(end, length), []).append(end)
    yield from ends_by_start.items()


def _require(condition: bool, rule: str, value: object) -> None:
    if not condition:
        raise ConfigError(f"{rule}, got {value}")
