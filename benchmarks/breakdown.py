"""Where the time of an update goes, by kind of operator.

On CPUs a dispatch mode takes the time of every operator below autograd, in the forward and the backward pass. On CUDA
the profiler adds up the kernels that each operator launches. What an update takes beyond the sum of these is Python,
dispatch, and gaps in which the device waits.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

# The first kind counts of which an operator's name begins with one of the words.
KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "mv", "addmv"),
    "attention": ("_scaled_dot_product", "_flash_attention", "_efficient_attention", "_cudnn_attention"),
    "softmax of the loss": ("log_softmax", "_log_softmax", "exp_", "gather", "scatter_add_", "nll_loss"),
    "random numbers": ("rand", "uniform_", "normal_", "bernoulli", "native_dropout"),
    "norms": ("native_layer_norm",),
    "activation": ("gelu",),
    "optimizer and clipping": ("_fused_adam", "_foreach", "linalg_vector_norm"),
}
ELEMENTWISE = "elementwise, sums and copies"


def kind_of(operator: str) -> str:
    """The kind of an operator of ATen, by its name without namespace and overload."""
    for kind, beginnings in KINDS.items():
        if operator.startswith(beginnings):
            return kind
    return ELEMENTWISE


def breakdown(update: Callable[[], object], device: torch.device) -> dict[str, float]:
    """Seconds of one update by kind."""
    seconds = _on_cuda(update) if device.type == "cuda" else _on_cpu(update)
    return {kind: seconds[kind] for kind in (*KINDS, ELEMENTWISE)}


class _Clock(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seconds: defaultdict[str, float] = defaultdict(float)  # by kind

    def __torch_dispatch__(self, operator: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        started = time.perf_counter()
        result = operator(*args, **(kwargs or {}))
        self.seconds[kind_of(operator.overloadpacket.__name__)] += time.perf_counter() - started
        return result


def _on_cpu(update: Callable[[], object]) -> defaultdict[str, float]:
    with _Clock() as clock:
        update()
    return clock.seconds


def _on_cuda(update: Callable[[], object]) -> defaultdict[str, float]:
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as profile:
        update()
        torch.cuda.synchronize()
    seconds: defaultdict[str, float] = defaultdict(float)
    for event in profile.key_averages():
        if event.key.startswith("aten::"):  # a kernel stands in the list a second time, under its own name
            seconds[kind_of(event.key.removeprefix("aten::"))] += event.self_device_time_total / 1e6
    return seconds
