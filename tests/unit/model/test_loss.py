"""Nats per token in rows against PyTorch's own cross-entropy over whole logits.

Shapes: N tokens, D channels, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import hpo_model.network.loss
from hpo_model.network.loss import NOT_A_TARGET, nats_of, nats_per_token

TOKENS, CHANNELS, VOCABULARY = 30, 16, 101
rows_at_once = pytest.mark.parametrize("rows", [1, 7, 10, 29, 30, 31, 1000])  # 10 and 30 divide the 30 tokens

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]


class Case(NamedTuple):
    hidden_ND: Tensor
    weight_VD: Tensor
    targets_N: Tensor


def case(scale: float = 1.0) -> Case:
    torch.manual_seed(0)
    hidden_ND, weight_VD = scale * torch.randn(TOKENS, CHANNELS), torch.randn(VOCABULARY, CHANNELS)
    return Case(hidden_ND, weight_VD, torch.randint(VOCABULARY, (TOKENS,)))


def hold(rows: int, patch: pytest.MonkeyPatch) -> None:
    """Let so many rows of logits be held at once."""
    patch.setitem(hpo_model.network.loss.LOGITS_AT_ONCE, "cpu", rows * VOCABULARY + VOCABULARY - 1)


def cross_entropy(hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor) -> Tensor:
    return F.cross_entropy(hidden_ND @ weight_VD.T, targets_N)


def with_gradients(loss: Loss, of: Case, factor: float = 1.0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """The loss, and what `factor` of it says about states and weights."""
    hidden_ND, weight_VD = (part.to(dtype, copy=True).requires_grad_() for part in of[:2])
    nats = loss(hidden_ND, weight_VD, of.targets_N)
    (factor * nats).backward()  # type: ignore[no-untyped-call]
    assert hidden_ND.grad is not None
    assert weight_VD.grad is not None
    return [nats.detach(), hidden_ND.grad, weight_VD.grad]


def assert_near(computed: Sequence[Tensor], expected: Sequence[Tensor], rtol: float = 1e-5) -> None:
    """Equal up to `rtol` of the largest element."""
    for one, other in zip(computed, expected, strict=True):
        torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=rtol * float(other.abs().max()))


# ---------------------------------------------------------------------------------------------- the loss of training


@rows_at_once
@pytest.mark.parametrize("factor", [1.0, -0.375])
def test_loss_and_gradients_are_those_of_cross_entropy_in_double_precision(
    rows: int, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    hold(rows, monkeypatch)
    expected = with_gradients(cross_entropy, case(), factor, torch.float64)
    assert_near(with_gradients(nats_per_token, case(), factor), expected, rtol=1e-6)


@rows_at_once
def test_equal_inputs_give_bitwise_equal_results(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(rows, monkeypatch)
    first, again = (with_gradients(nats_per_token, case()) for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))


@pytest.mark.parametrize("scale", [0.0, 1e-4, 100.0])
def test_probabilities_that_vanish_leave_loss_and_gradients_right(scale: float) -> None:
    """At 100, logits differ by over a thousand nats and all but one probability of a row is zero."""
    expected = with_gradients(cross_entropy, case(scale), dtype=torch.float64)
    computed = with_gradients(nats_per_token, case(scale))
    assert all(part.isfinite().all() for part in computed)
    assert_near(computed, expected)
    assert (float(expected[0]) > 500) is (scale == 100.0)


def test_one_huge_logit_costs_its_distance_and_no_more() -> None:
    hidden_ND, weight_VD = torch.ones(2, 1), torch.zeros(3, 1)
    weight_VD[0] = 1e4
    nats, to_hidden_ND, to_weight_VD = with_gradients(nats_per_token, Case(hidden_ND, weight_VD, torch.tensor([0, 1])))
    assert float(nats) == pytest.approx((0 + 1e4) / 2)
    assert to_hidden_ND.flatten().tolist() == pytest.approx([0.0, 1e4 / 2])
    assert to_weight_VD.flatten().tolist() == pytest.approx([0.5, -0.5, 0.0])


def test_a_matrix_that_is_embedding_as_well_collects_both_gradients() -> None:
    of = case()
    tokens_N = torch.arange(TOKENS) % VOCABULARY
    gradients = []
    for loss, dtype in ((nats_per_token, torch.float32), (cross_entropy, torch.float64)):
        weight_VD = of.weight_VD.to(dtype, copy=True).requires_grad_()
        embedded_ND = F.embedding(tokens_N, weight_VD).tanh()
        loss(embedded_ND, weight_VD, of.targets_N).backward()  # type: ignore[no-untyped-call]
        gradients.append(weight_VD.grad)
    assert gradients[0] is not None
    assert gradients[1] is not None
    assert_near(gradients[:1], gradients[1:])


def test_gradients_of_several_pieces_add_up() -> None:
    of = case()
    whole = with_gradients(nats_per_token, of)[2]
    weight_VD = of.weight_VD.clone().requires_grad_()
    for rows in (slice(0, 12), slice(12, TOKENS)):
        share = len(of.targets_N[rows]) / TOKENS
        nats = nats_per_token(of.hidden_ND[rows], weight_VD, of.targets_N[rows])
        (share * nats).backward()  # type: ignore[no-untyped-call]
    assert weight_VD.grad is not None
    assert_near([weight_VD.grad], [whole])


@pytest.mark.parametrize(
    ("kept", "error"), [(False, "backward through the graph a second time"), (True, "modified by an inplace operation")]
)
def test_a_second_backward_raises_instead_of_giving_a_wrong_gradient(kept: bool, error: str) -> None:
    of = case()
    weight_VD = of.weight_VD.clone().requires_grad_()
    nats = nats_per_token(of.hidden_ND, weight_VD, of.targets_N)
    nats.backward(retain_graph=kept)  # type: ignore[no-untyped-call]
    with pytest.raises(RuntimeError, match=error):
        nats.backward()  # type: ignore[no-untyped-call]


def test_the_inputs_stay_as_they_were() -> None:
    of = case()
    with_gradients(nats_per_token, of)
    assert all(torch.equal(one, other) for one, other in zip(of, case(), strict=True))


@rows_at_once
def test_bfloat16_of_autocast_stays_near_single_precision(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(rows, monkeypatch)
    expected = with_gradients(cross_entropy, case(), dtype=torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        computed = with_gradients(nats_per_token, case())
    assert {part.dtype for part in computed} == {torch.float32}
    assert_near(computed, expected, rtol=0.02)
    assert not torch.equal(computed[1], with_gradients(nats_per_token, case())[1])  # it did round


def test_gradients_of_many_pieces_in_bfloat16_are_summed_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    """1,024 equal pieces: a sum in bfloat16 stops growing at some 256 of them."""
    monkeypatch.setitem(hpo_model.network.loss.LOGITS_AT_ONCE, "cpu", 1)
    tokens = 1024
    of = Case(torch.ones(tokens, 2), torch.zeros(4, 2), torch.zeros(tokens, dtype=torch.int64))
    with torch.autocast("cpu", torch.bfloat16):
        nats, _, to_weight_VD = with_gradients(nats_per_token, of)
    assert float(nats) == pytest.approx(float(torch.tensor(4.0).log()), rel=1e-6)
    torch.testing.assert_close(to_weight_VD, torch.tensor([[-0.75], [0.25], [0.25], [0.25]]).expand(4, 2))


# ---------------------------------------------------------------------------------------------- the loss of evaluation


@rows_at_once
def test_nats_of_each_target_are_those_of_cross_entropy(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    hold(rows, monkeypatch)
    of = case(scale=3.0)
    of.targets_N[[0, 4, 5, TOKENS - 1]] = NOT_A_TARGET
    logits_NV = of.hidden_ND.double() @ of.weight_VD.double().T
    expected_N = F.cross_entropy(logits_NV, of.targets_N, ignore_index=NOT_A_TARGET, reduction="none")
    computed_N = nats_of(of.hidden_ND, of.weight_VD.requires_grad_(), of.targets_N)
    assert not computed_N.requires_grad
    assert torch.equal(computed_N == 0, of.targets_N == NOT_A_TARGET)
    torch.testing.assert_close(computed_N.double(), expected_N, rtol=1e-6, atol=1e-5)


def test_training_and_evaluation_measure_the_same() -> None:
    of = case()
    torch.testing.assert_close(nats_of(*of).mean(), nats_per_token(*of), rtol=1e-6, atol=0.0)


# ---------------------------------------------------------------------------------------------- memory


class LargestTensor(TorchDispatchMode):
    """Notes how many elements the largest tensor has that an operation returns."""

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for part in result if isinstance(result, tuple | list) else (result,):
            if isinstance(part, Tensor):
                self.elements = max(self.elements, part.numel())
        return result


@pytest.mark.parametrize("autocast", [False, True])
def test_no_tensor_is_ever_as_large_as_the_logits(autocast: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, vocabulary, channels = 600, 500, 8
    monkeypatch.setitem(hpo_model.network.loss.LOGITS_AT_ONCE, "cpu", 20 * vocabulary)
    of = Case(torch.randn(tokens, channels), torch.randn(vocabulary, channels), torch.randint(vocabulary, (tokens,)))
    largest: dict[Loss, int] = {}
    for loss in (nats_per_token, nats_of, cross_entropy):
        with LargestTensor() as watched, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            if loss is nats_of:
                loss(*of)
            else:
                with_gradients(loss, of)
        largest[loss] = watched.elements
    assert largest[nats_per_token] == largest[nats_of] == 20 * vocabulary
    assert largest[cross_entropy] == tokens * vocabulary  # so the watch sees what there is to see
