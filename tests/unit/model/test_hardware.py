"""What the machine tells of memory."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import hpo_model.hardware
from hpo_model.hardware import energy_joules, keep_freed_memory, peak_memory_bytes, reset_peak_memory

CPU = torch.device("cpu")
MIB = 2**20


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux forgets")
def test_the_peak_of_an_earlier_run_is_forgotten_and_so_is_what_it_freed() -> None:
    keep_freed_memory()
    reset_peak_memory(CPU)
    before = peak_memory_bytes(CPU)
    held = torch.ones(64 * MIB)
    with_tensor = peak_memory_bytes(CPU)
    del held
    assert peak_memory_bytes(CPU) == pytest.approx(with_tensor, abs=MIB)  # the kernel counts in batches of pages
    reset_peak_memory(CPU)
    after = peak_memory_bytes(CPU)
    assert before is not None
    assert with_tensor is not None
    assert after is not None
    assert with_tensor - before > 200 * MIB
    assert with_tensor - after > 200 * MIB


def test_a_system_that_does_not_forget_or_tell_leaves_the_peak_of_the_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hpo_model.hardware, "_STATUS", tmp_path / "nothing")
    monkeypatch.setattr(hpo_model.hardware, "_CLEAR_REFS", tmp_path / "no folder" / "nothing")
    reset_peak_memory(CPU)
    peak = peak_memory_bytes(CPU)
    assert peak is None or peak > 50 * MIB


class NotSupported(Exception):
    pass


def meter(millijoules: int | None) -> SimpleNamespace:
    """NVML of a machine with one GPU, as far as it is asked; None: of a card without a meter."""

    def handle(uuid: str) -> str:
        assert uuid == "GPU-6a1b"
        return uuid

    def taken(handle: str) -> int:
        assert handle == "GPU-6a1b"
        if millijoules is None:
            raise NotSupported
        return millijoules

    return SimpleNamespace(
        NVMLError=NotSupported,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetTotalEnergyConsumption=taken,
    )


@pytest.mark.parametrize(("millijoules", "joules"), [(1_234_500, 1234.5), (None, None)])
def test_energy_is_what_the_gpu_of_this_uuid_has_taken(
    millijoules: int | None, joules: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="6a1b"))
    monkeypatch.setitem(sys.modules, "pynvml", meter(millijoules))
    assert energy_joules(torch.device("cuda")) == joules
    assert energy_joules(CPU) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # not installed
    assert energy_joules(torch.device("cuda")) is None
