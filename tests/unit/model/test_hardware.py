"""What the machine tells of memory."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
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


# ---------------------------------------------------------------------------------------------- energy, by NVML

OURS, OTHER = "6a1b2c3d-0000-0000-0000-000000000001", "6a1b2c3d-0000-0000-0000-000000000002"
CUDA = torch.device("cuda:0")
SUCCESS = 0


class Library:
    """libnvidia-ml.so as far as it is asked, beneath NVIDIA's own Python bindings: two cards, and what they answer.

    Args:
        millijoules: of each card, by its UUID.
        refusals: the code that a function answers, where it is not success.
    """

    def __init__(self, millijoules: dict[str, int], refusals: dict[str, int] | None = None) -> None:
        self.millijoules, self.refusals = millijoules, refusals or {}
        self.uuids = list(millijoules)

    def nvmlInitWithFlags(self, _: int) -> int:  # noqa: N802
        return self.refusals.get("init", SUCCESS)

    def nvmlDeviceGetHandleByUUID(self, uuid: Any, handle: Any) -> int:  # noqa: N802
        name = uuid.value.decode()
        if name not in self.uuids:
            return pynvml.NVML_ERROR_NOT_FOUND
        handle._obj.contents = pynvml.struct_c_nvmlDevice_t()
        self.asked = name
        return self.refusals.get("handle", SUCCESS)

    def nvmlDeviceGetTotalEnergyConsumption(self, _: Any, total: Any) -> int:  # noqa: N802
        total._obj.value = self.millijoules[self.asked]
        return self.refusals.get("energy", SUCCESS)


def install(monkeypatch: pytest.MonkeyPatch, library: object, uuid: str = OURS) -> None:
    """Put a library in the place of the driver's, and a GPU of this UUID where PyTorch looks."""
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid=uuid))
    monkeypatch.setattr(pynvml, "nvmlLib", library)
    monkeypatch.setattr(pynvml, "_nvmlGetFunctionPointer_cache", {})


CARDS = {f"GPU-{OTHER}": 5_000, f"GPU-{OURS}": 1_234_500}


def test_energy_is_what_the_gpu_of_this_uuid_has_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not that of this number: numbers follow CUDA_VISIBLE_DEVICES here, and not there."""
    install(monkeypatch, Library(CARDS))
    assert energy_joules(CUDA) == 1234.5
    install(monkeypatch, Library(CARDS), OTHER)
    assert energy_joules(CUDA) == 5.0
    assert energy_joules(CPU) is None


def test_a_part_of_a_card_has_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch gives a part (MIG) a UUID of its own, and the card's meter would count its neighbours too."""
    install(monkeypatch, Library(CARDS), "9f8e7d6c-0000-0000-0000-00000000000a")
    assert energy_joules(CUDA) is None


@pytest.mark.parametrize(
    ("function", "code"),
    [
        ("init", pynvml.NVML_ERROR_DRIVER_NOT_LOADED),
        ("init", pynvml.NVML_ERROR_LIB_RM_VERSION_MISMATCH),  # the driver was updated under a running machine
        ("init", pynvml.NVML_ERROR_NO_PERMISSION),
        ("handle", pynvml.NVML_ERROR_GPU_IS_LOST),
        ("energy", pynvml.NVML_ERROR_NOT_SUPPORTED),  # cards before Volta
        ("energy", pynvml.NVML_ERROR_UNKNOWN),
    ],
)
def test_a_meter_that_does_not_answer_is_none(function: str, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, Library(CARDS, {function: code}))
    assert energy_joules(CUDA) is None


def test_a_library_older_than_the_meter_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, SimpleNamespace(nvmlInitWithFlags=lambda flags: SUCCESS))
    assert energy_joules(CUDA) is None


def test_without_nvml_there_is_no_meter(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file: No such file or directory")

    install(monkeypatch, None)
    monkeypatch.setattr(pynvml, "CDLL", missing)
    assert energy_joules(CUDA) is None
    monkeypatch.setitem(sys.modules, "pynvml", None)  # its bindings are not installed
    assert energy_joules(CUDA) is None
