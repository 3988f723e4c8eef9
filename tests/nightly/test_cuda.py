"""What a GPU alone can show. Written on a machine without one: these tests have not run yet.

    .venv/bin/python -m pytest tests/nightly/test_cuda.py -rs

Shapes: N tokens, D channels, V vocabulary, B sequences, T positions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.utils import counters

import hpo_model.network.loss
from hpo_model.config import RunConfig, Scalar, build_run
from hpo_model.hardware import compiles
from hpo_model.network.loss import nats_per_token
from hpo_model.network.memory import PhiMemory
from hpo_model.network.transformer import Dropout
from hpo_model.training.loop import TrainingResult, train, update
from hpo_model.training.run import Run

if TYPE_CHECKING:
    from hpo_model.data.tokens import TokenizedCorpus

CUDA = torch.device("cuda")
pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU that this PyTorch can use"),
    # PyTorch about itself: its compiler's imports, the prototype below, and names of TF32's settings
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Synchronization debug mode:UserWarning"),
    pytest.mark.filterwarnings("ignore:Please use the new API settings to control TF32:UserWarning"),
]
with_compiler = pytest.mark.skipif(
    torch.cuda.is_available() and not compiles(CUDA), reason="no Triton, without which nothing is compiled for a GPU"
)
either_way = pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=with_compiler)])


def tiny(**values: Scalar) -> RunConfig:
    return build_run(
        {
            "width": 64, "layers": 2, "heads": 2, "sequence_length": 64, "memory_slots": 8, "phi_probes": 8,
            "batch_size": 32, "budget_tokens": 40 * 32 * 64, "evaluations": 4, "evaluation_tokens": 1024, **values,
        }
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- the training step


@pytest.fixture
def watched() -> Iterator[None]:
    """Leaves PyTorch's watch over synchronisation as it was."""
    before = torch.cuda.get_sync_debug_mode()
    yield
    torch.cuda.set_sync_debug_mode(before)


@pytest.mark.usefixtures("watched")
@either_way
@pytest.mark.parametrize("values", [{}, {"iit": False}, {"lambda_schedule": "adaptive"}], ids=str)
def test_no_update_waits_for_the_device(
    values: dict[str, Scalar], compiled: bool, small_corpus: TokenizedCorpus
) -> None:
    """The first few compile, warm up and record; those after them run over the end of an epoch."""
    run = Run(tiny(**values), small_corpus, device="cuda", compiled=compiled)
    run.network.train()
    sums = torch.zeros(2, device=CUDA)
    for _ in range(5):
        update(run, sums)
    watched_updates = 30
    assert watched_updates * 32 > run.batches.sequences
    torch.cuda.set_sync_debug_mode("error")
    for _ in range(watched_updates):
        gradient_norm = update(run, sums)
    with pytest.raises(RuntimeError, match="synchronizing CUDA operation"):  # so the watch would have told
        gradient_norm.item()
    torch.cuda.set_sync_debug_mode("default")
    assert math.isfinite(gradient_norm.item())
    assert sums.isfinite().all()


def finite(result: TrainingResult) -> bool:
    return result.outcome == "complete" and all(
        math.isfinite(loss) for each in result.history for loss in (each.val_loss, each.train_loss, each.gradient_norm)
    )


@with_compiler
def test_ten_trials_compile_once(small_corpus: TokenizedCorpus) -> None:
    bounded: dict[str, Scalar] = {"phi_objective": "bounded"}
    assert finite(train(tiny(**bounded), small_corpus, device="cuda", compiled=True))
    graphs = counters["stats"]["unique_graphs"]
    assert graphs >= 1
    assert not counters["graph_break"]
    with torch.compiler.set_stance("fail_on_recompile"):
        for trial in range(10):
            config = tiny(
                **bounded,
                seed=trial,
                lambda_phi=0.02 * trial,
                phi_target=0.5 + 0.04 * trial,
                dropout=0.05 * trial,
                noise=0.01 * trial,
                learning_rate=1e-3 * (1 + trial),
            )
            assert finite(train(config, small_corpus, device="cuda", compiled=True))
    assert counters["stats"]["unique_graphs"] == graphs


@with_compiler
def test_recordings_of_earlier_trials_take_no_more_memory_with_each(small_corpus: TokenizedCorpus) -> None:
    """A network elsewhere in memory is recorded anew; old recordings are kept, but in a pool that all share."""
    reserved, elsewhere = [], []
    for seed in range(8):
        assert finite(train(tiny(seed=seed), small_corpus, device="cuda", compiled=True))
        torch.cuda.empty_cache()
        reserved.append(torch.cuda.memory_reserved() - 2**21 * len(elsewhere))
        elsewhere.append(torch.empty(2**21, dtype=torch.uint8, device=CUDA))  # so that the next one cannot lie there
    assert reserved[-1] <= 1.1 * reserved[1]


@with_compiler
@pytest.mark.parametrize("iit", [True, False])
def test_compiled_and_eager_runs_agree(iit: bool, small_corpus: TokenizedCorpus) -> None:
    config = tiny(iit=iit, dropout=0.0, noise=0.0)
    eager, compiled = (train(config, small_corpus, device="cuda", compiled=each).history for each in (False, True))
    for one, other in zip(eager, compiled, strict=True):
        assert other.val_loss == pytest.approx(one.val_loss, abs=0.02)
        assert other.phi == pytest.approx(one.phi, abs=0.02)
        assert other.memory_used == one.memory_used


def test_a_run_learns_on_a_gpu_what_it_learns_on_a_cpu(small_corpus: TokenizedCorpus) -> None:
    config = tiny(dropout=0.0, noise=0.0)
    cpu, gpu = (train(config, small_corpus, device=device).history for device in ("cpu", "cuda"))
    assert gpu[-1].val_loss == pytest.approx(cpu[-1].val_loss, abs=0.05)
    assert gpu[-1].phi == pytest.approx(cpu[-1].phi, abs=0.05)
    assert gpu[-1].val_loss < gpu[0].val_loss < math.log(small_corpus.tokenizer.vocabulary) + 0.5


@with_compiler
def test_pieces_of_a_batch_add_up_in_a_compiled_run(small_corpus: TokenizedCorpus) -> None:
    """A replayed graph would write over the gradients of the piece before."""
    config = tiny(dropout=0.0, noise=0.0)
    norms = []
    for micro_batch in (None, 16):
        run = Run(config, small_corpus, device="cuda", micro_batch=micro_batch, compiled=True)
        run.network.train()
        norms.append([update(run, torch.zeros(2, device=CUDA)).item() for _ in range(6)])
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


# ---------------------------------------------------------------------------------------------- the loss


def test_the_loss_in_bfloat16_is_near_cross_entropy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(hpo_model.network.loss.LOGITS_AT_ONCE, "cuda", 70 * 1000)
    torch.manual_seed(0)
    hidden_ND, weight_VD, targets_N = torch.randn(500, 64), torch.randn(1000, 64) / 8, torch.randint(1000, (500,))
    there = [part.to(CUDA).requires_grad_() for part in (hidden_ND, weight_VD)]
    here = [part.double().requires_grad_() for part in (hidden_ND, weight_VD)]
    with torch.autocast("cuda", torch.bfloat16):
        nats = nats_per_token(there[0], there[1], targets_N.to(CUDA))
    expected = F.cross_entropy(here[0] @ here[1].T, targets_N)
    for loss in (nats, expected):
        loss.backward()  # type: ignore[no-untyped-call]
    assert nats.item() == pytest.approx(expected.item(), rel=5e-3)
    for one, other in zip(there, here, strict=True):
        assert one.grad is not None
        assert other.grad is not None
        atol = 0.02 * float(other.grad.abs().max())
        torch.testing.assert_close(one.grad.cpu().double(), other.grad, rtol=0, atol=atol)


def test_large_logits_are_never_held_whole() -> None:
    tokens, vocabulary, channels = 16 * 1024, 50_257, 64
    hidden_ND = torch.randn(tokens, channels, device=CUDA, requires_grad=True)
    weight_VD = torch.randn(vocabulary, channels, device=CUDA, requires_grad=True)
    targets_N = torch.randint(vocabulary, (tokens,), device=CUDA)
    torch.cuda.reset_peak_memory_stats(CUDA)
    before = torch.cuda.memory_allocated(CUDA)
    with torch.autocast("cuda", torch.bfloat16):
        nats = nats_per_token(hidden_ND, weight_VD, targets_N)
    nats.backward()  # type: ignore[no-untyped-call]
    whole = 2 * tokens * vocabulary  # bytes in bfloat16, 1.6 GB; PyTorch's own loss holds them in float32 as well
    assert torch.cuda.max_memory_allocated(CUDA) - before < whole / 2
    assert math.isfinite(nats.item())


# ---------------------------------------------------------------------------------------------- parts


def test_an_empty_memory_leaves_the_stream_exact_under_autocast() -> None:
    memory, stream_BTD = PhiMemory(64, 32, 8, "dynamic").to(CUDA), torch.randn(2, 64, 64, device=CUDA)
    with torch.autocast("cuda", torch.bfloat16):
        assert torch.equal(memory(stream_BTD), stream_BTD)


def test_dropout_zeroes_its_share_and_scales_the_rest() -> None:
    dropout = Dropout().to(CUDA)
    dropout.set(0.25)
    mask = dropout(torch.Size((1000, 1000)))
    assert mask.device.type == "cuda"
    assert mask.unique().tolist() == pytest.approx([0.0, 4 / 3])
    assert float((mask == 0).float().mean()) == pytest.approx(0.25, abs=0.005)
