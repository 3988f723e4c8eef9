"""The machine as training sees it: device, threads, memory, and a line about them for reports."""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import sys
from pathlib import Path

import torch
from torch.utils._triton import has_triton

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4  # of mallopt(3)
_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of this process, on Linux
_MEMORY_SIGNS = (
    "can't allocate memory",
    "not enough memory",
    "std::bad_alloc",
    "could not create a primitive",  # oneDNN's, which does not say why
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
)
_CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # of version 2: microseconds granted, and of how many


def default_device() -> str:
    """ "cuda" where there is a GPU, else "cpu"."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def gpu_count() -> int:
    """GPUs that this process may use."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def gpu_memory(gpu: int) -> int:
    """Bytes of a GPU's memory, by its number as this process sees it."""
    return int(torch.cuda.get_device_properties(gpu).total_memory)


def cpu_cores() -> int:
    """Cores that this process may use: by its affinity, and by the quota of its container."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _quota(_CGROUP_QUOTA)))


def _quota(path: Path) -> int:
    """Whole cores that a control group grants."""
    try:
        granted, period = path.read_text(encoding="ascii").split()
    except (OSError, ValueError):
        return sys.maxsize
    return sys.maxsize if granted == "max" else int(granted) // int(period)


def energy_joules(device: torch.device) -> float | None:
    """Energy that a GPU has used since its driver was loaded, by all processes; None where NVML does not report it."""
    if device.type != "cuda":
        return None
    try:
        import pynvml
    except ImportError:  # where torch alone is installed
        return None
    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(device).uuid}"  # numbers follow CUDA_VISIBLE_DEVICES
        return float(pynvml.nvmlDeviceGetTotalEnergyConsumption(pynvml.nvmlDeviceGetHandleByUUID(uuid))) / 1000
    except pynvml.NVMLError:  # no library, an old card, a part of a card
        return None


def describe(device: str) -> str:
    """The device and its machine in one line."""
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(torch.device(device))} (CUDA {torch.version.cuda})"
    return f"{_processor()}, {cpu_cores()} cores"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def compiles(device: torch.device) -> bool:
    """Whether compiling a training step pays: on GPUs with a compiler; on CPUs eager steps were as fast (decisions)."""
    return device.type == "cuda" and has_triton()


def is_mixed(device_type: str) -> bool:
    """Whether matrix products are in bfloat16: on GPUs; a CPU's stay in float32."""
    return device_type == "cuda"


def mixed_precision(device: torch.device) -> torch.autocast:
    """A context in which matrix products are in bfloat16 where `is_mixed` says so."""
    return torch.autocast(device.type, torch.bfloat16, enabled=is_mixed(device.type))


def upload(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor of the host to a device. A GPU fetches it when it gets there; nobody waits for it."""
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def keep_freed_memory() -> None:
    """Let the C library (glibc only) keep freed memory for the next step.

    By default every block of some MiB is fetched from the kernel anew, page by page, for a third of a training step.
    Where address space is limited the default stays: kept blocks would leave no room for those of a smaller batch.
    """
    if (library := _glibc()) is not None:
        limited = _address_space_is_limited()
        library.mallopt(_M_MMAP_MAX, 2**16 if limited else 0)
        library.mallopt(_M_MMAP_THRESHOLD, 2**17)
        library.mallopt(_M_TRIM_THRESHOLD, 2**17 if limited else 2**31 - 1)


def _address_space_is_limited() -> bool:
    import resource  # not on Windows

    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


def _glibc() -> ctypes.CDLL | None:
    return ctypes.CDLL(None) if sys.platform == "linux" and platform.libc_ver()[0] == "glibc" else None


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that device or machine have no memory left."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # the allocators of CPU and cuBLAS have no class of their own
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in _MEMORY_SIGNS)


def reset_peak_memory(device: torch.device) -> None:
    """Let `peak_memory_bytes` begin anew; a GPU can be asked only after its first use.

    On Linux the kernel is given back what earlier runs freed, which would count as held, and asked to forget its mark
    (proc(5), clear_refs). Where it may not be asked, the peak stays that of the whole process.
    """
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    if (library := _glibc()) is not None:
        library.malloc_trim(0)
    with contextlib.suppress(OSError):
        _CLEAR_REFS.write_text("5", encoding="ascii")


def peak_memory_bytes(device: torch.device) -> int | None:
    """Largest memory held since `reset_peak_memory`: by tensors on a GPU, else by this process and its libraries.

    On a CPU only Linux can reset it; elsewhere it is the peak of the process's whole life. None where the system does
    not report it (Windows).
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    with contextlib.suppress(OSError):
        for line in _STATUS.read_text(encoding="ascii", errors="replace").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    if sys.platform == "win32":
        return None
    import resource

    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return resident if sys.platform == "darwin" else resident * 1024
