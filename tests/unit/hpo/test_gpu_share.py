"""What a worker's tensors may fill of a GPU, against a record of what PyTorch is asked."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from hpo.errors import WorkerError
from hpo.executors.allocation import fitting
from hpo.worker.gpu_share import CONTEXT_BYTES, limit_memory

GIB = 2**30
MEMORY = {0: 80 * GIB, 1: 24 * GIB, 2: 10 * GIB}  # the last: a part of a card (MIG), which PyTorch shows as a device


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Of the tensors of this process, by GPU."""
    found: dict[int, float] = {}

    def properties(gpu: int) -> SimpleNamespace:
        return SimpleNamespace(total_memory=MEMORY[gpu])

    def limit(fraction: float, device: torch.device) -> None:
        assert device.type == "cuda"
        assert 0 <= fraction <= 1, "PyTorch takes no other"
        found[device.index or 0] = fraction

    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", limit)
    return found


@pytest.mark.parametrize(("device", "gpu"), [("cuda:1", 1), ("cuda", 0)])
def test_a_gpu_of_its_own_may_be_filled(device: str, gpu: int, limits: dict[int, float]) -> None:
    limit_memory(device, 1.0)
    assert limits == {gpu: 1.0}


@pytest.mark.parametrize("gpu", MEMORY)
@pytest.mark.parametrize("sharers", [2, 3, 7])
def test_the_tensors_of_all_who_share_a_gpu_fit_beside_their_contexts(
    sharers: int, gpu: int, limits: dict[int, float]
) -> None:
    limit_memory(f"cuda:{gpu}", 1 / sharers)
    each = limits[gpu] * MEMORY[gpu]
    assert sharers * (each + CONTEXT_BYTES) == pytest.approx(MEMORY[gpu])
    # and a trial that was found to fit is not refused its memory
    assert fitting(MEMORY[gpu], int(each) - 1) >= sharers


def test_a_share_that_a_context_fills_is_refused(limits: dict[int, float]) -> None:
    message = (
        r"\A0\.05 of a GPU with 10\.0 GiB is less than a worker takes before it has a trial; fewer workers on .*\Z"
    )
    with pytest.raises(WorkerError, match=message):
        limit_memory("cuda:2", 0.05)
    assert limits == {}
