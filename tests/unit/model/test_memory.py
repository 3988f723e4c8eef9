"""Shapes: B sequences, T positions, D channels, K channels of a key, M slots."""

from __future__ import annotations

import copy
import math
import random
from typing import get_args

import pytest
import torch
from torch import Tensor

from hpo_model.config import MemoryGate
from hpo_model.network.memory import CLOSED_GATE, INITIAL_THRESHOLD, PHI_SHARE, RECENCY, RECENCY_WRITES, PhiMemory

WIDTH, KEY_WIDTH, SLOTS, LENGTH = 8, 4, 6, 12
both_gates = pytest.mark.parametrize("gate", get_args(MemoryGate))


def memory(gate: MemoryGate = "static", slots: int = SLOTS) -> PhiMemory:
    torch.manual_seed(0)
    return PhiMemory(WIDTH, KEY_WIDTH, slots, gate)


def received(batch: int) -> Tensor:
    return torch.randn(batch, LENGTH).softmax(-1)


def offer(into: PhiMemory, stream_BTD: Tensor, phi_B: Tensor, received_BT: Tensor) -> None:
    into.write(into.candidates(stream_BTD, received_BT), phi_B)


def write(into: PhiMemory, *phis: float, seed: int = 0) -> None:
    """Offer one random sequence per Φ."""
    torch.manual_seed(seed)
    offer(into, torch.randn(len(phis), LENGTH, WIDTH), torch.tensor(phis), received(len(phis)))


def added(by: PhiMemory, stream_BTD: Tensor) -> Tensor:
    """What the memory reads for each position."""
    added_BTD: Tensor = by(stream_BTD) - stream_BTD
    return added_BTD


def snapshot(of: PhiMemory) -> dict[str, Tensor]:
    return copy.deepcopy(of.state_dict())


def assert_same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


# ---------------------------------------------------------------------------------------------- reading


@both_gates
def test_an_empty_memory_adds_exactly_zero(gate: MemoryGate) -> None:
    stream_BTD = torch.randn(2, LENGTH, WIDTH)
    assert torch.equal(memory(gate)(stream_BTD), stream_BTD)


@both_gates
def test_bfloat16_of_autocast_does_not_round_the_stream_that_passes_through(gate: MemoryGate) -> None:
    empty, filled, stream_BTD = memory(gate), memory(gate), torch.randn(2, LENGTH, WIDTH)
    write(filled, 0.9, 0.7)
    expected_BTD = filled(stream_BTD)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(empty(stream_BTD), stream_BTD)
        assert torch.equal(filled(stream_BTD), expected_BTD)


@both_gates
def test_a_memory_that_refused_every_candidate_adds_exactly_zero(gate: MemoryGate) -> None:
    refusing = memory(gate)
    write(refusing, 0.1, 0.2, 0.3)
    assert int(refusing.used()) == 0
    stream_BTD = torch.randn(2, LENGTH, WIDTH)
    assert torch.equal(refusing(stream_BTD), stream_BTD)


@both_gates
def test_a_filled_memory_adds_what_the_written_out_reading_says(gate: MemoryGate) -> None:
    filled = memory(gate)
    write(filled, 0.9, 0.7, 0.55, 0.95)
    filled.gate_bias.data.fill_(-0.5)  # open enough for every digit of what is read to count
    stream_BTD = torch.randn(2, LENGTH, WIDTH)
    added_BTD = added(filled, stream_BTD)
    slots = [slot for slot in range(SLOTS) if filled.written_M[slot] > -math.inf]
    assert len(slots) == 4
    for sequence in range(2):
        for t in range(LENGTH):
            normed = filled.norm(stream_BTD[sequence, t])
            query = filled.query.weight @ normed
            scores = torch.stack([query @ filled.key_MK[slot] / math.sqrt(KEY_WIDTH) for slot in slots]).softmax(0)
            read = torch.zeros(WIDTH)
            for share, slot in zip(scores, slots, strict=True):
                trust = torch.sigmoid((filled.phi_M[slot] - filled.threshold) / 0.1)
                read = read + share * trust * (filled.value.weight @ filled.value_MD[slot])
            weight = 0.0 if filled.gate_weight is None else filled.gate_weight.weight[0] @ normed
            expected = torch.sigmoid(weight + filled.gate_bias) * read
            torch.testing.assert_close(added_BTD[sequence, t], expected, rtol=1e-5, atol=1e-6)


@both_gates
def test_the_gate_starts_closed(gate: MemoryGate) -> None:
    fresh = memory(gate)
    assert float(torch.sigmoid(fresh.gate_bias.detach())) == pytest.approx(0.0067, abs=1e-4)
    write(fresh, 0.9, 0.7)
    at_zero = torch.zeros(1, 1, WIDTH)  # where a dynamic gate is its bias alone
    closed = added(fresh, at_zero)
    fresh.gate_bias.data.fill_(100.0)
    open_wide = added(fresh, at_zero)
    assert open_wide.abs().max() > 0.01
    torch.testing.assert_close(closed, open_wide / (1 + math.exp(-CLOSED_GATE)))


def test_a_dynamic_gate_differs_between_positions_and_a_static_one_does_not() -> None:
    """With one slot, every position reads the same, so that its share of it is the gate."""
    stream_BTD = torch.randn(1, 4, WIDTH)
    for gate, different in (("dynamic", 4), ("static", 1)):
        single = memory(gate, slots=1)
        write(single, 0.9)
        single.gate_bias.data.fill_(0.0)
        read_TD = added(single, stream_BTD)[0].detach()
        shares_T = read_TD @ read_TD[0] / (read_TD[0] @ read_TD[0])
        torch.testing.assert_close(read_TD, shares_T[:, None] * read_TD[0], rtol=1e-4, atol=1e-6)
        assert shares_T.mul(1e4).round().unique().numel() == different


@both_gates
def test_every_parameter_learns_from_reading_the_threshold_included(gate: MemoryGate) -> None:
    filled = memory(gate)
    write(filled, 0.9, 0.7, 0.55)
    added(filled, torch.randn(2, LENGTH, WIDTH)).square().sum().backward()
    for name, parameter in filled.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_the_gradient_of_the_threshold_is_that_of_finite_differences() -> None:
    filled = memory().double()
    offer(filled, torch.randn(3, LENGTH, WIDTH).double(), torch.tensor([0.9, 0.7, 0.55]).double(), received(3).double())
    stream_BTD = torch.randn(2, LENGTH, WIDTH).double()

    def loss(threshold: Tensor) -> Tensor:
        return torch.func.functional_call(filled, {"threshold": threshold}, stream_BTD).square().sum()

    assert torch.autograd.gradcheck(loss, torch.tensor(0.6, dtype=torch.float64, requires_grad=True))


def test_a_slot_counts_less_the_further_its_phi_is_below_the_threshold() -> None:
    filled = memory(slots=1)
    write(filled, 0.8)
    filled.gate_bias.data.fill_(100.0)  # as far above the rounding of the sum as can be
    stream_BTD = torch.randn(1, LENGTH, WIDTH)
    sizes = []
    for threshold in (0.2, 0.8, 1.4):
        filled.threshold.data.fill_(threshold)
        sizes.append(float(added(filled, stream_BTD).detach().norm()))
    assert sizes[0] > 1.9 * sizes[1] > 1.9 * 100 * sizes[2]


def test_no_slot_carries_gradient_into_the_update_that_wrote_it() -> None:
    filled = memory()
    stream_BTD = torch.randn(2, LENGTH, WIDTH, requires_grad=True)
    offer(filled, stream_BTD, torch.tensor([0.9, 0.8]), received(2))
    assert not any(buffer.requires_grad for buffer in filled.buffers())
    filled(torch.randn(1, LENGTH, WIDTH)).sum().backward()
    assert stream_BTD.grad is None


# ---------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("training", [True, False])
def test_reading_never_writes(training: bool) -> None:
    filled = memory().train(training)
    write(filled, 0.9, 0.7)
    before = snapshot(filled)
    filled(torch.randn(2, LENGTH, WIDTH))
    assert_same(before, snapshot(filled))


def test_a_candidate_below_the_threshold_is_not_written() -> None:
    fresh = memory()
    write(fresh, INITIAL_THRESHOLD - 0.01, INITIAL_THRESHOLD + 0.01, INITIAL_THRESHOLD)
    kept = fresh.phi_M[fresh.written_M > -math.inf]
    assert sorted(kept.tolist()) == pytest.approx([INITIAL_THRESHOLD, INITIAL_THRESHOLD + 0.01])
    fresh.threshold.data.fill_(0.9)
    write(fresh, 0.89)
    assert int(fresh.used()) == 2


def test_a_candidate_whose_phi_is_not_a_number_is_not_written() -> None:
    fresh = memory()
    write(fresh, math.nan, 0.8)
    assert fresh.phi_M[fresh.written_M > -math.inf].tolist() == pytest.approx([0.8])


def test_written_is_the_best_attended_state_of_the_second_half() -> None:
    fresh = memory(slots=1)
    stream_BTD = torch.randn(1, LENGTH, WIDTH)
    received_BT = torch.full((1, LENGTH), 0.01)
    received_BT[0, 1] = 0.8  # first half: only the measure of the others
    received_BT[0, 8] = 0.2
    offer(fresh, stream_BTD, torch.tensor([0.9]), received_BT)
    torch.testing.assert_close(fresh.value_MD[0], fresh.norm(stream_BTD[0, 8]).detach())
    torch.testing.assert_close(fresh.key_MK[0], fresh.query(fresh.norm(stream_BTD[0, 8])).detach())
    assert float(fresh.attention_M[0]) == pytest.approx(0.25)


def test_candidates_of_pieces_are_those_of_the_whole_batch() -> None:
    fresh, stream_BTD, received_BT = memory(), torch.randn(5, LENGTH, WIDTH), received(5)
    whole = fresh.candidates(stream_BTD, received_BT)
    pieces = [fresh.candidates(stream_BTD[rows], received_BT[rows]) for rows in (slice(0, 2), slice(2, 5))]
    for part, expected in zip(map(torch.cat, zip(*pieces, strict=True)), whole, strict=True):
        torch.testing.assert_close(part, expected)


class ReferenceMemory:
    """The M candidates of highest priority, in a plain list of (Φ, attention, written)."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.kept: list[tuple[float, float, int]] = []
        self.writes = 0

    def write(self, phis: list[float], attentions: list[float]) -> None:
        self.writes += 1
        offered = [(phi, share, self.writes) for phi, share in zip(phis, attentions, strict=True)]
        self.kept += [candidate for candidate in offered if candidate[0] >= INITIAL_THRESHOLD]
        self.kept.sort(key=self.priority, reverse=True)
        del self.kept[self.slots :]

    def priority(self, candidate: tuple[float, float, int]) -> float:
        phi, attention, written = candidate
        recency = RECENCY * math.exp((written - self.writes) / RECENCY_WRITES)
        return PHI_SHARE * phi + (1 - PHI_SHARE) * attention + recency


@pytest.mark.parametrize("seed", range(4))
def test_the_memory_keeps_the_candidates_of_highest_priority(seed: int) -> None:
    """Over 800 writes, so that recency counts, of candidates that differ little in Φ and attention."""
    kept, reference = memory(slots=SLOTS), ReferenceMemory(SLOTS)
    draw = random.Random(seed)
    for _ in range(800):
        phis = [draw.uniform(0.45, 0.7) for _ in range(draw.randint(1, 4))]
        attentions = [draw.uniform(0.1, 0.5) for _ in phis]
        received_BT = torch.zeros(len(phis), LENGTH)
        received_BT[:, 0] = 1.0
        received_BT[:, LENGTH - 1] = torch.tensor(attentions)
        offer(kept, torch.zeros(len(phis), LENGTH, WIDTH), torch.tensor(phis), received_BT)
        reference.write(phis, attentions)
    found = zip(kept.phi_M.tolist(), kept.attention_M.tolist(), kept.written_M.tolist(), strict=True)
    for slot, expected in zip(sorted(found), sorted(reference.kept), strict=True):
        assert slot == pytest.approx(expected)


@pytest.mark.parametrize(("writes_between", "stays"), [(0, 0.81), (200, 0.80)])
def test_a_new_slot_replaces_one_that_is_a_little_better_but_old(writes_between: int, stays: float) -> None:
    full = memory(slots=1)
    received_BT = torch.full((1, LENGTH), 1 / LENGTH)
    for phi in (0.81, *[0.1] * writes_between, 0.80):
        offer(full, torch.randn(1, LENGTH, WIDTH), torch.tensor([phi]), received_BT)
    assert full.phi_M.tolist() == pytest.approx([stays])


def test_a_good_old_slot_outlives_poor_new_ones() -> None:
    full = memory(slots=1)
    write(full, 0.99)
    first = full.value_MD.clone()
    for seed in range(1, 50):
        write(full, 0.6, 0.55, seed=seed)
    assert torch.equal(full.value_MD, first)


def test_the_state_dict_carries_the_whole_memory() -> None:
    filled, other = memory(), memory()
    write(filled, 0.9, 0.8, 0.4)
    other.load_state_dict(filled.state_dict())
    write(filled, 0.7, 0.95, seed=1)
    write(other, 0.7, 0.95, seed=1)
    assert_same(snapshot(filled), snapshot(other))
