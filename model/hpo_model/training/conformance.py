"""Conformance checks: what a custom network must pass before its perplexities mean anything.

Shapes: B sequences, T positions, V vocabulary.

hpo validate-architecture mine:Network
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from hpo_model.config import RunConfig, Scalar, build_run
from hpo_model.data.tokens import TokenizedCorpus
from hpo_model.errors import ModelError, class_and_message
from hpo_model.network.causality import check_causality
from hpo_model.network.custom import Network, build_network, has_phi
from hpo_model.training.checkpoint import load_checkpoint
from hpo_model.training.evaluation import score
from hpo_model.training.history import Evaluation
from hpo_model.training.loop import Decision, TrainingResult, benchmark, train
from hpo_model.training.memory_estimate import parameter_count
from hpo_model.training.step import forward_with_phi, total_loss

MIN_SPEED = 0.1  # of the control arm's: a slower network is likely a loop in Python
MAX_MEMORY = 4.0  # times the control arm's
ROUNDING = 1e-3  # of the largest logit: another length is another kernel
MIN_GAIN_NATS = 0.2  # per token of validation text, from the untrained network to the end
BENCHMARK_S = 1.0

# A small network that learns in seconds; the control arm has its shape, and the width that makes parameters equal.
RUN: dict[str, Scalar] = {
    "preset": "nano",
    "width": 64,
    "heads": 4,
    "layers": 2,
    "sequence_length": 64,
    "batch_size": 8,
    "learning_rate": 3e-3,
    "budget_tokens": 60_000,
    "evaluations": 3,
    "evaluation_tokens": 4096,
}
BRIEF: dict[str, Scalar] = {"budget_tokens": 8 * 8 * 64, "evaluations": 2, "evaluation_tokens": 512}

State = Literal["passed", "failed", "not run"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """The result of one check."""

    check: str
    state: State
    evidence: str


class CheckFailed(Exception):
    """A check has failed; the message is the evidence."""


@dataclass(frozen=True, kw_only=True)
class CheckContext:
    """What the checks run on."""

    network: str  # module:Class
    corpus: TokenizedCorpus
    config: RunConfig
    brief: RunConfig  # the same, over a few updates

    def build(self, seed: int = 1) -> Network:
        """Build the network as a run of this seed does."""
        torch.manual_seed(seed)
        network = build_network(self.config.architecture, self.vocabulary)
        network.set_regularisation(dropout=self.config.training.dropout, noise=self.config.training.noise)
        return network

    @property
    def vocabulary(self) -> int:
        """V."""
        return self.corpus.tokenizer.vocabulary

    def tokens(self, rows: int) -> Tensor:
        """The first sequences (B, T + 1) of the training text."""
        length = self.config.architecture.sequence_length
        ids = torch.from_numpy(self.corpus.span("train").ids[: rows * length + 1].astype("int64"))
        return ids.unfold(0, length + 1, length)


def validate(network: str, corpus: TokenizedCorpus) -> Iterator[Finding]:
    """Run every check on a network, one after the other; each result is yielded as it is known.

    Args:
        network: `module:Class`; importing it runs its code.
        corpus: real text of at least 20,000 tokens.

    Raises:
        ConfigError, NetworkError: there is no such class.
        CorpusError: the text is too short.
    """
    context = check_context(network, corpus)
    failed: str | None = None  # a prerequisite: nothing is trained after it
    for check, run in CHECKS.items():
        finding = _run(check, run, context) if failed is None else _not_run(check, failed)
        if check in PREREQUISITES and finding.state == "failed":
            failed = check
        yield finding


def check_context(network: str, corpus: TokenizedCorpus) -> CheckContext:
    """Make the context of the checks for a network and a text; importing the network runs its code."""
    build_run({"network": network})  # refuses what is no name before anything is imported
    values: dict[str, Scalar] = {**RUN, "network": network, "iit": has_phi(network)}
    config, brief = build_run(values), build_run({**values, **BRIEF})
    corpus.check_length(8 * config.architecture.sequence_length)
    return CheckContext(network=network, corpus=corpus, config=config, brief=brief)


def _run(check: str, run: Callable[[CheckContext], str], context: CheckContext) -> Finding:
    try:
        return Finding(check=check, state="passed", evidence=run(context))
    except (CheckFailed, ModelError) as error:
        evidence = str(error)
    except Exception as error:  # of the user's code
        evidence = class_and_message(error)
    return Finding(check=check, state="failed", evidence=evidence)


def _not_run(check: str, failed: str) -> Finding:
    return Finding(check=check, state="not run", evidence=f"nothing is trained after this has failed: {failed}")


def _interface(context: CheckContext) -> str:
    network = context.build()
    parameters = sum(each.numel() for each in network.parameters())
    arm = "with Φ and memory" if context.config.architecture.iit else "as the control arm"
    return f"built for {context.vocabulary} tokens, {parameters:,} parameters, trains {arm}"


def _causality(context: CheckContext) -> str:
    network, tokens_BT = context.build(), context.tokens(4)[:, :-1]
    changed_BT = tokens_BT.clone()
    changed_BT[1:] = (changed_BT[1:] + 1) % context.vocabulary
    for training in (False, True):
        network.train(training)
        when = "in training" if training else "in evaluation"
        if moved := _moved(network, tokens_BT, tokens_BT):
            raise CheckFailed(
                f"{when} equal tokens gave logits that differ by up to {moved:.2g}: draw random numbers from "
                "torch, and keep what changes in buffers"
            )
        if moved := _moved(network, tokens_BT, changed_BT):
            raise CheckFailed(f"{when} other sequences of the batch moved a sequence's logits by up to {moved:.2g}")
    check_causality(network)
    return "later tokens and other sequences of the batch moved no logit, in training and in evaluation"


@torch.no_grad()
def _beginnings(context: CheckContext) -> str:
    network, tokens_BT = context.build().eval(), context.tokens(4)[:, :-1]
    whole_BTV = network.logits(network(tokens_BT).hidden_BTD)
    for length in (1, tokens_BT.shape[1] // 2):
        alone_BTV = network.logits(network(tokens_BT[:, :length]).hidden_BTD)
        moved = (alone_BTV - whole_BTV[:, :length]).abs().max().item()
        if not moved <= ROUNDING * whole_BTV.abs().max().item():
            raise CheckFailed(
                f"the first {length} tokens alone gave logits that differ by up to {moved:.2g} from those within the "
                "whole: text is generated from beginnings"
            )
    return "a text's first tokens have the same logits alone and within the whole"


@torch.no_grad()
def _moved(network: Network, one_BT: Tensor, other_BT: Tensor) -> float:
    """How far the first sequence's logits are apart in two batches; dropout and noise are equal in both."""
    logits = []
    for tokens_BT in (one_BT, other_BT):
        with torch.random.fork_rng([]):
            torch.manual_seed(0)
            logits.append(network.logits(network(tokens_BT).hidden_BTD)[0])
    return (logits[0] - logits[1]).abs().max().item()


def _determinism(context: CheckContext) -> str:
    first, again = (_trained(context.brief, context.corpus) for _ in range(2))
    if difference := _difference(first, again):
        raise CheckFailed(f"two runs of one seed differ in {difference}")
    return f"two runs of one seed gave equal losses and weights, bit for bit, over {context.brief.steps} updates"


def _finite_gradients(context: CheckContext) -> str:
    network = context.build()
    network.train()
    tokens = context.tokens(context.config.training.batch_size)
    phi = context.config.phi
    hidden_BTD, stats = forward_with_phi(network, phi.phi_objective, torch.tensor(phi.phi_target), tokens[:, :-1])
    loss = total_loss(network, hidden_BTD, tokens[:, 1:].contiguous(), stats, torch.tensor(phi.lambda_phi))
    loss.backward()  # type: ignore[no-untyped-call]
    wanted = {name: each for name, each in network.named_parameters() if each.requires_grad}
    without = [name for name, each in wanted.items() if each.grad is None]
    infinite = [name for name, each in wanted.items() if each.grad is not None and not each.grad.isfinite().all()]
    if not loss.isfinite() or infinite:
        raise CheckFailed(f"loss {loss.item():.4g}; not finite: {', '.join(infinite[:3]) or 'the loss'}")
    if without:
        raise CheckFailed(f"no gradient reaches {', '.join(without[:3])}; remove it, or set requires_grad = False")
    uniform = math.log(context.vocabulary)
    return f"all {len(wanted)} parameter tensors, at a loss of {loss.item():.3f} nats (uniform guess {uniform:.3f})"


def _resume(context: CheckContext) -> str:
    whole = _trained(context.brief, context.corpus)
    continued = _trained(context.brief, context.corpus, interrupted=True)
    if difference := _difference(whole, continued):
        raise CheckFailed(
            f"a run that was left and continued differs in {difference}; state belongs into parameters or buffers"
        )
    return "a run that was left at half and continued ended bit-identical to one that was not"


def _memory(context: CheckContext) -> str:
    own, arm = (_peak_bytes(config, context.corpus) for config in (context.brief, _control_arm(context, context.brief)))
    evidence = f"peak {own / 2**20:.1f} MiB of tensors, {own / arm:.2f} × the control arm's"
    if own > MAX_MEMORY * arm:
        raise CheckFailed(f"{evidence}; at most {MAX_MEMORY:g} × is allowed")
    return evidence


def _speed(context: CheckContext) -> str:
    configs = (context.brief, _control_arm(context, context.brief))
    own, arm = (benchmark(config, context.corpus, seconds=BENCHMARK_S).tokens_per_s for config in configs)
    evidence = f"{own:,.0f} tokens/s, {own / arm:.2f} × the control arm's at about equal parameters"
    if own < MIN_SPEED * arm:
        raise CheckFailed(f"{evidence}; at least {MIN_SPEED:g} × is asked for")
    return evidence


def _learning(context: CheckContext) -> str:
    result = train(context.config, context.corpus)
    before, after = _untrained_loss(context), result.history[-1].val_loss
    evidence = (
        f"validation loss {before:.3f} → {after:.3f} nats per token in {context.config.training.budget_tokens:,} tokens"
    )
    if result.outcome != "complete" or result.suspicious:
        raise CheckFailed(f"{evidence}; {result.outcome}: {result.reason}")
    if not before - after >= MIN_GAIN_NATS:
        raise CheckFailed(f"{evidence}; a gain of {MIN_GAIN_NATS:g} is asked for")
    return evidence


CHECKS: dict[str, Callable[[CheckContext], str]] = {
    "interface": _interface,
    "finite gradients": _finite_gradients,
    "causality": _causality,
    "beginnings": _beginnings,
    "determinism": _determinism,
    "resume": _resume,
    "memory": _memory,
    "speed": _speed,
    "learns": _learning,
}
PREREQUISITES = ("interface", "finite gradients", "causality")


# ------------------------------------------------------------------------------------------------- what checks need


@dataclass(frozen=True, kw_only=True)
class _Trained:
    history: tuple[Evaluation, ...]
    weights: dict[str, Tensor]


def _trained(config: RunConfig, corpus: TokenizedCorpus, *, interrupted: bool = False) -> _Trained:
    """A run of a few updates, left at its first evaluation and continued if so wanted."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.pt"
        if interrupted:
            train(config, corpus, save_to=path, on_evaluation=lambda evaluation: Decision.INTERRUPT)
        result: TrainingResult = train(config, corpus, save_to=path, resume_from=path if interrupted else None)
        weights = load_checkpoint(path)["network"]
    return _Trained(history=result.history, weights=weights)


def _difference(one: _Trained, other: _Trained) -> str | None:
    """What differs first, in a few words; None: nothing, to the last bit."""
    for first, second in zip(one.history, other.history, strict=True):
        if _timeless(first) != _timeless(second):
            return f"evaluation {first.milestone} (loss {first.val_loss!r}, {second.val_loss!r})"
    return next((name for name, weight in one.weights.items() if not weight.equal(other.weights[name])), None)


def _timeless(evaluation: Evaluation) -> str:
    """All that the run and not the machine decides, as text, in which one NaN is like another."""
    return repr(dataclasses.replace(evaluation, tokens_per_s=0.0, seconds=0.0, peak_memory_bytes=None))


def _untrained_loss(context: CheckContext) -> float:
    span = context.corpus.span("valid")
    return score(context.build(context.config.training.seed), span, torch.device("cpu")).loss


def _control_arm(context: CheckContext, config: RunConfig) -> RunConfig:
    """The same run of our transformer without Φ, of the width that makes its parameters as many as the network's."""
    wanted = sum(each.numel() for each in context.build().parameters())
    values: dict[str, Scalar] = {**config.parameters(), "network": "", "iit": False}
    heads = config.architecture.heads
    widths = range(heads, 4096, heads)

    def misses(width: int) -> int:
        return abs(parameter_count(build_run({**values, "width": width}).architecture, context.vocabulary) - wanted)

    return build_run({**values, "width": min(widths, key=misses)})


def _peak_bytes(config: RunConfig, corpus: TokenizedCorpus) -> int:
    """The most bytes that the allocator had given out over a few updates and evaluations."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        train(config, corpus)
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    held = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        most = max(most, held)
    return most
