"""The CUDA path without a GPU: every tensor on `cuda`, none with numbers in it (tests/support/fake_cuda.py).

What shows here: tensors that were left on another device, shapes that depend on numbers, dtypes under autocast, and
where the host waits for the device.

What cannot show here, and waits for a GPU (tests/nightly/test_cuda.py): any number, so no causality, no equality of a
continued run, no memory; kernels (attention is PyTorch's fallback here, not the one that a GPU chooses); the compiled
step and its recordings; random states, whose calls are replaced; the nats of each token (`score(each_token=True)`),
which go through NumPy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensorDeviceMismatchError

import hpo_model.training.run
from hpo_model.config import PRESETS, Architecture, Scalar, build_run
from hpo_model.errors import CausalityError
from hpo_model.generation.sampling import Sampling, StoppingCriteria, beam_search, generate, phi_per_step
from hpo_model.generation.trained import load_trained
from hpo_model.network.causality import check_causality
from hpo_model.network.kv_cache import KVCache
from hpo_model.network.transformer import ForwardOutput, Transformer
from hpo_model.training.checkpoint import restore_run, save_run
from hpo_model.training.evaluation import TrainingStats, evaluate
from hpo_model.training.loop import train, update
from hpo_model.training.run import Run
from hpo_model.training.step import forward_with_phi, total_loss
from tests.support.fake_cuda import DEVICE, FakeCuda, backward, fake_cuda

if TYPE_CHECKING:
    from hpo_model.data.tokens import TokenizedCorpus

SMALL: dict[str, Scalar] = {
    "width": 16, "layers": 2, "heads": 2, "sequence_length": 16, "memory_slots": 8, "phi_probes": 4, "batch_size": 4,
    "budget_tokens": 2 * 4 * 16, "evaluations": 2, "evaluation_tokens": 64,
}  # fmt: skip
KINDS: dict[str, dict[str, Scalar]] = {
    "Φ and memory": {},
    "control arm": {"iit": False},
    "static gate": {"memory_gate": "static"},
    "no memory": {"memory_slots": 0},
    "bounded objective": {"phi_objective": "bounded"},
    "adaptive λ": {"lambda_schedule": "adaptive"},
    "convolution first": {"blocks": "convolution+attention"},
    "attention first": {"blocks": "attention+convolution"},
    "untied": {"tie_embeddings": False},
    "Muon": {"optimizer": "muon"},
    "earlier positions": {"attention_taps": 3},
    "bigrams": {"bigram_buckets": 64},
    "all of it": {
        "optimizer": "muon", "attention_taps": 2, "bigram_buckets": 64, "blocks": "convolution+attention", "layers": 3,
        "phi_objective": "bounded", "lambda_schedule": "adaptive", "tie_embeddings": False,
    },
}  # fmt: skip
SOME = ("Φ and memory", "control arm", "all of it")
GUESSED = TrainingStats(train_phi=0.0, delta_phi_loss=0.0, gradient_norm=0.0, tokens_per_s=0.0)


@pytest.fixture
def cuda() -> Iterator[FakeCuda]:
    with fake_cuda() as device:
        yield device


def made(corpus: TokenizedCorpus, micro_batch: int | None = None, **values: Scalar) -> Run:
    run = Run(build_run({**SMALL, **values}), corpus, device=DEVICE, micro_batch=micro_batch)
    run.network.train()
    return run


def held(run: Run) -> dict[str, Tensor]:
    """All tensors that a run keeps from one update to the next."""
    states = [part.state for part in getattr(run.optimizer, "parts", {"": run.optimizer}).values()]
    moments = {
        f"{number} {name}": each
        for number, state in enumerate(each for states_of in states for each in states_of.values())
        for name, each in state.items()
    }
    network = {**dict(run.network.named_parameters()), **dict(run.network.named_buffers())}
    return {**network, **moments, "λ": run.lambda_phi, "target": run.phi_target, "text": run.batches.stream_N}


def assert_an_update_needs_only_the_device(cuda: FakeCuda, run: Run) -> None:
    sums = torch.zeros(2, device=DEVICE)
    before = {name: each.dtype for name, each in held(run).items()}
    assert cuda.watched(lambda: update(run, sums)) == []  # moments are made
    assert cuda.watched(lambda: update(run, sums)) == []
    after = held(run)
    assert {name: str(each.device) for name, each in after.items()} == dict.fromkeys(after, DEVICE)
    assert {name: after[name].dtype for name in before} == before
    learning = sum(each.requires_grad for each in run.network.parameters())
    moments = [name for name in after if name.endswith((" exp_avg", " momentum"))]
    assert len(moments) == learning, "every parameter had a gradient"


# ---------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize("kind", KINDS)
def test_an_update_stays_on_the_device_and_never_waits_for_it(
    kind: str, cuda: FakeCuda, small_corpus: TokenizedCorpus
) -> None:
    assert_an_update_needs_only_the_device(cuda, made(small_corpus, **KINDS[kind]))


@pytest.mark.parametrize("preset", PRESETS)
def test_so_does_that_of_every_preset_in_its_own_shape(
    preset: str, cuda: FakeCuda, small_corpus: TokenizedCorpus
) -> None:
    assert_an_update_needs_only_the_device(cuda, Run(build_run({"preset": preset}), small_corpus, device=DEVICE))


def test_so_does_one_in_pieces_and_one_over_the_end_of_an_epoch(cuda: FakeCuda, small_corpus: TokenizedCorpus) -> None:
    run = made(small_corpus, micro_batch=3)
    run.step = run.batches.sequences // 4
    assert run.batches.sequences % 4, "the next batch lies in two epochs"
    assert_an_update_needs_only_the_device(cuda, run)


@pytest.mark.parametrize("kind", KINDS)
def test_matrix_products_are_in_bfloat16_and_the_stream_is_not(
    kind: str, cuda: FakeCuda, small_corpus: TokenizedCorpus
) -> None:
    run = made(small_corpus, **KINDS[kind])
    read: list[torch.dtype] = []
    run.network.blocks[-1].contract.register_forward_hook(lambda module, inputs, given: read.append(given.dtype))
    inputs_BT, _ = run.batches.at(0)
    with torch.autocast("cuda", torch.bfloat16):
        states = run.network(inputs_BT)
    assert read == [torch.bfloat16]
    assert {part.dtype for part in states.attention} == {torch.bfloat16}
    assert states.embedded_BTD.dtype == states.stream_BTD.dtype == states.hidden_BTD.dtype == torch.float32


@pytest.mark.parametrize("kind", ["control arm", "all of it"])
def test_a_whole_run_waits_where_it_says_so(
    kind: str, cuda: FakeCuda, small_corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    """Updates are in it, and wait nowhere."""
    config, path = build_run({**SMALL, **KINDS[kind]}), tmp_path / "checkpoint.pt"
    waits = cuda.watched(lambda: train(config, small_corpus, device=DEVICE, save_to=path))
    assert path.is_file()
    begins = {"Run.__init__", "TrainingBatches.__init__"}
    checks = {"_randomise", "_moved.<locals>.<genexpr>"} | ({"PhiMemory.fill"} if config.architecture.iit else set())
    measures = {"train_run", "score"} | ({"evaluate"} if config.architecture.iit else set())
    assert set(waits) == begins | checks | measures


# ---------------------------------------------------------------------------------------------- evaluation


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_waits_for_its_results_alone(kind: str, cuda: FakeCuda, small_corpus: TokenizedCorpus) -> None:
    run = made(small_corpus, micro_batch=40, **KINDS[kind])
    assert small_corpus.tokens("valid") > 2 * 40 * 16, "several pieces"
    waits = Counter(cuda.watched(lambda: evaluate(run, 2, GUESSED)))
    memory = 3 if run.network.memory is not None else 0  # its threshold, gate and filled slots
    weight = 1 if run.config.architecture.iit else 0
    # of two splits: the nats, and the components of Φ
    assert waits == Counter({"score": 2 * 2, "evaluate": memory + weight})
    assert run.network.training


@pytest.mark.parametrize("kind", SOME)
def test_the_check_of_causality_runs_on_the_device(kind: str, cuda: FakeCuda, small_corpus: TokenizedCorpus) -> None:
    """Whether states are equal is made up; here they are."""
    run = made(small_corpus, **KINDS[kind])
    before = held(run)
    waits = cuda.watched(lambda: check_causality(run.network))
    assert waits.count("_moved.<locals>.<genexpr>") == 2 * 2 + 2 * 3, "two sequences, at some pairs of places"
    assert all(each is before[name] for name, each in held(run).items()), "it looks at a copy"


def test_a_leak_that_was_found_on_the_device_is_told(
    cuda: FakeCuda, small_corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cuda, "equal", False)
    run = made(small_corpus)
    with pytest.raises(CausalityError, match="is not causal"):
        check_causality(run.network)


# ---------------------------------------------------------------------------------------------- generation

PROMPTS = [[5, 6, 7], [8]]
DRAWS = {
    "likeliest": Sampling(temperature=0.0),
    "plain": Sampling(),
    "cut": Sampling(top_k=5, top_p=0.9, min_p=0.1),
    "penalties": Sampling(repetition_penalty=1.2, frequency_penalty=0.1, presence_penalty=0.1),
}


@pytest.mark.parametrize(("kind", "cached"), [*((kind, True) for kind in KINDS), *((kind, False) for kind in SOME)])
def test_a_token_is_waited_for_once(kind: str, cached: bool, cuda: FakeCuda, small_corpus: TokenizedCorpus) -> None:
    run = made(small_corpus, **KINDS[kind])
    stopping = StoppingCriteria(max_tokens=3, banned=[3])
    waits = cuda.watched(lambda: generate(run.network, PROMPTS, Sampling(), stopping, cached=cached))
    assert set(waits) == {"sample"}
    assert len(waits) == 3 * len(PROMPTS), "a list is read number by number here, at once on a GPU"


@pytest.mark.parametrize("draw", DRAWS)
def test_so_is_one_that_is_drawn_otherwise(draw: str, cuda: FakeCuda, small_corpus: TokenizedCorpus) -> None:
    run = made(small_corpus)
    waits = cuda.watched(lambda: generate(run.network, PROMPTS, DRAWS[draw], StoppingCriteria(max_tokens=2)))
    assert waits == ["sample"] * 2 * len(PROMPTS)


@pytest.mark.parametrize("cached", [True, False])
def test_a_text_grows_beyond_the_window_on_the_device(
    cached: bool, cuda: FakeCuda, small_corpus: TokenizedCorpus
) -> None:
    run = made(small_corpus, sequence_length=8)
    (text,) = generate(run.network, [[5, 6, 7, 8]], Sampling(), StoppingCriteria(max_tokens=7), cached=cached)
    assert len(text.tokens) == 7


@pytest.mark.parametrize("kind", SOME)
def test_beams_are_searched_on_the_device(kind: str, cuda: FakeCuda, small_corpus: TokenizedCorpus) -> None:
    run = made(small_corpus, **KINDS[kind])
    found = beam_search(run.network, [5, 6], 2, DRAWS["penalties"], StoppingCriteria(max_tokens=3))
    assert [len(each.tokens) for each in found] == [3]  # made-up numbers name one token to go on with


def test_phi_of_a_text_is_measured_on_the_device(cuda: FakeCuda, small_corpus: TokenizedCorpus) -> None:
    run = made(small_corpus)
    assert isinstance(run.network, Transformer)
    assert phi_per_step(run.network, [5, 6, 7], [8, 9]) == [None, 1.0]


# ---------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("kind", SOME)
def test_a_run_goes_on_from_its_checkpoint_on_the_device(
    kind: str, cuda: FakeCuda, small_corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    first, second = (made(small_corpus, **KINDS[kind]) for _ in range(2))
    update(first, torch.zeros(2, device=DEVICE))
    save_run(first, path)
    restore_run(second, path)
    assert second.step == 1
    one, other = held(first), held(second)
    assert {name: (each.device, each.dtype, each.shape) for name, each in one.items()} == {
        name: (each.device, each.dtype, each.shape) for name, each in other.items()
    }
    assert cuda.watched(lambda: update(second, torch.zeros(2, device=DEVICE))) == []


@pytest.mark.parametrize("kind", SOME)
def test_a_trained_network_is_read_onto_the_device(
    kind: str, cuda: FakeCuda, small_corpus: TokenizedCorpus, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoint.pt"
    save_run(made(small_corpus, **KINDS[kind]), path)
    network = load_trained(path, DEVICE).network
    assert {str(each.device) for each in (*network.parameters(), *network.buffers())} == {DEVICE}
    assert len(generate(network, PROMPTS, Sampling(), StoppingCriteria(max_tokens=2))) == 2


# ---------------------------------------------------------------------------------------------- that this can fail


class Broken(Transformer):
    """Forgets one tensor on the host."""

    def __init__(self, architecture: Architecture, vocabulary: int) -> None:
        super().__init__(architecture, vocabulary)
        self.scale = torch.ones(architecture.width)  # neither parameter nor buffer

    def forward(self, tokens_BT: Tensor, past: KVCache | None = None) -> ForwardOutput:
        states = super().forward(tokens_BT, past)
        return states._replace(hidden_BTD=self.altered(states.hidden_BTD))

    def altered(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD * self.scale


class MakesOneOnTheHost(Broken):
    def altered(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD + torch.zeros(hidden_BTD.shape[-1])


class Selects(Broken):
    def altered(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD - hidden_BTD[hidden_BTD > 0].mean()


class Reads(Broken):
    def altered(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD * hidden_BTD.abs().max().item()


class Decides(Broken):
    def altered(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD if hidden_BTD.isfinite().all() else hidden_BTD.nan_to_num()


class Uploads(Broken):
    def altered(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD * self.scale.to(hidden_BTD.device, non_blocking=True)  # from memory that is not pinned


class Fetches(Broken):
    def altered(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD * hidden_BTD.mean().cpu()  # a number of the host may enter an operation


def broken(network: type[Broken], corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch) -> Run:
    monkeypatch.setattr(hpo_model.training.run, "build_network", network)
    return made(corpus)


@pytest.mark.parametrize("network", [Broken, MakesOneOnTheHost])
def test_a_tensor_on_the_host_fails_an_update_and_an_evaluation(
    network: type[Broken], cuda: FakeCuda, small_corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = broken(network, small_corpus, monkeypatch)
    with pytest.raises(FakeTensorDeviceMismatchError, match="cuda:0 and cpu"):
        update(run, torch.zeros(2, device=DEVICE))
    with pytest.raises(FakeTensorDeviceMismatchError, match="cuda:0 and cpu"):
        evaluate(run, 1, GUESSED)


def test_a_moment_on_the_host_fails_an_update(cuda: FakeCuda, small_corpus: TokenizedCorpus) -> None:
    run = made(small_corpus, optimizer="muon")
    update(run, torch.zeros(2, device=DEVICE))
    momentum = next(iter(run.optimizer.parts["muon"].state.values()))  # type: ignore[union-attr]
    momentum["momentum"] = torch.zeros(momentum["momentum"].shape)
    with pytest.raises(FakeTensorDeviceMismatchError, match="cpu and cuda:0"):
        update(run, torch.zeros(2, device=DEVICE))


def test_a_shape_that_depends_on_numbers_fails_an_update(
    cuda: FakeCuda, small_corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(DynamicOutputShapeException):
        update(broken(Selects, small_corpus, monkeypatch), torch.zeros(2, device=DEVICE))


@pytest.mark.parametrize("network", [Reads, Decides, Uploads, Fetches])
def test_a_wait_in_an_update_is_seen(
    network: type[Broken], cuda: FakeCuda, small_corpus: TokenizedCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = broken(network, small_corpus, monkeypatch)
    assert cuda.watched(lambda: update(run, torch.zeros(2, device=DEVICE))) == ["forward_with_phi"]


def test_gradients_flow_here_as_pytorch_lets_them_flow(small_corpus: TokenizedCorpus) -> None:
    """On the CPU, with numbers: the stand-in for its engine."""
    config = build_run({**SMALL, **KINDS["all of it"]})
    torch.manual_seed(0)
    run = Run(config, small_corpus)
    inputs_BT, targets_BT = run.batches.at(0)
    found = []
    for flow in (torch.Tensor.backward, backward):
        torch.manual_seed(1)
        hidden_BTD, stats = forward_with_phi(run.network, "bounded", run.phi_target, inputs_BT)
        flow(total_loss(run.network, hidden_BTD, targets_BT, stats, run.lambda_phi))  # type: ignore[operator]
        found.append(
            {name: each.grad.clone() for name, each in run.network.named_parameters() if each.grad is not None}
        )
        run.network.zero_grad(set_to_none=True)
    one, other = found
    assert len(one) > 20
    assert one.keys() == other.keys()
    for name, gradient in one.items():
        torch.testing.assert_close(other[name], gradient)
