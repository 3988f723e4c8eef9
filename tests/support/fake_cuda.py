"""A CUDA device without a GPU: PyTorch's fake tensors, which have a device, a shape and a type but no numbers.

Operations on them compute nothing. They refuse tensors of different devices, as a GPU does, and shapes that depend on
numbers; and whatever would make the host wait for the device is noted, with the function of ours that asked.

What a number read from the device would be is made up: 1.0, and two tensors are equal. What follows from such numbers
is not tested by this.
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import hpo_model

DEVICE = "cuda:0"  # with its number, as workers have it: which device is current only the driver knows
MADE_UP = 1.0
CUDA, META = 1, 14  # numbers of c10::DeviceType
aten = torch.ops.aten
_SOURCES = str(Path(hpo_model.__file__).parent)


class FakeCuda(TorchDispatchMode):
    """Notes who waits for the device."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []  # the functions of the program that asked
        self.equal = True  # what comparing two tensors gives

    def watched(self, work: Callable[[], object]) -> list[str]:
        """The waits of some work, in order."""
        before = len(self.waits)
        work()
        return self.waits[before:]

    def __torch_dispatch__(
        self, func: Any, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return self._read(args[0], MADE_UP if args[0].is_floating_point() else int(MADE_UP))
        if func is aten.equal.default:
            return self._read(args[0], self.equal)
        if func is aten.is_pinned.default:
            return hasattr(args[0], "pinned")
        if func is aten._pin_memory.default:
            pinned = args[0].clone()
            pinned.pinned = True
            return pinned
        if func is aten.bincount.default and args[0].device.type == "cpu":
            return torch.empty(args[2], dtype=torch.int64)  # of ids below `minlength`
        if func is aten._to_copy.default and "device" in kwargs:
            self._copied(args[0], kwargs["device"].type, kwargs.get("non_blocking", False))
        if func is aten.copy_.default:
            self._copied(args[1], args[0].device.type, args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        return func(*args, **kwargs)

    def _read(self, read: Tensor, value: float | bool) -> float | bool:
        if read.device.type == "cuda":
            self.waits.append(caller())
        return value

    def _copied(self, source: Tensor, target: str, non_blocking: bool) -> None:
        """A copy between host and device: only one from pinned memory goes on behind the host's back."""
        crosses = source.device.type != target and "cuda" in (source.device.type, target)
        if crosses and not (non_blocking and hasattr(source, "pinned")):
            self.waits.append(caller())


def caller() -> str:
    """The innermost function of the program on the stack, or "test" where there is none."""
    frame: FrameType | None = sys._getframe()
    while frame is not None and not frame.f_code.co_filename.startswith(_SOURCES):
        frame = frame.f_back
    return "test" if frame is None else frame.f_code.co_qualname


@contextlib.contextmanager
def fake_cuda() -> Iterator[FakeCuda]:
    """Make `DEVICE` usable, with no number in any tensor made meanwhile, wherever it is.

    Replaced is what asks the driver: random states, marks of memory, whether a GPU knows bfloat16; and what fake
    tensors cannot do: to be moved in place, to be copied with all that belongs to them, and to have gradients handed
    on by PyTorch's engine, which asks the driver for streams.
    """
    precision = torch.get_float32_matmul_precision()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "get_rng_state", lambda device: torch.zeros(16, dtype=torch.uint8))
        patch.setattr(torch.cuda, "set_rng_state", lambda state, device: None)
        patch.setattr(torch, "set_rng_state", lambda state: None)  # a state read from a file has no numbers
        patch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: None)
        patch.setattr(torch.cuda, "max_memory_allocated", lambda device: 0)
        patch.setattr(nn.Module, "_apply", _apply)
        patch.setattr(Tensor, "backward", backward)
        patch.setattr(FakeTensor, "__deepcopy__", _deepcopy)
        try:
            with (
                _device_guard(),
                FakeTensorMode(allow_non_fake_inputs=True),
                FakeCuda() as watch,
                torch.serialization.skip_data(materialize_fake_tensors=True),
            ):
                yield watch
        finally:
            torch.set_float32_matmul_precision(precision)


def _apply(module: nn.Module, convert: Callable[[Tensor], Tensor]) -> nn.Module:
    """What `nn.Module.to` does to all tensors of a module, with new parameters in place of the old ones."""
    converted: dict[nn.Parameter, nn.Parameter] = {}
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None and parameter not in converted:  # two parts may share one
                with torch.no_grad():
                    converted[parameter] = nn.Parameter(convert(parameter), parameter.requires_grad)
            part._parameters[name] = None if parameter is None else converted[parameter]
        for name, buffer in part._buffers.items():
            part._buffers[name] = None if buffer is None else convert(buffer)
    return module


def _deepcopy(tensor: Tensor, memo: object) -> Tensor:
    """A copy of the tensor alone: PyTorch's takes the mode along, which corrupts memory."""
    copied = tensor.detach().clone()
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


@torch.no_grad()
def backward(loss: Tensor) -> None:
    """What `Tensor.backward` does: each node once all that flows into it is there, its gradients as it expects them."""
    waiting: Counter[Any] = Counter()
    nodes = [loss.grad_fn]
    for node in nodes:  # grows
        for following, _ in node.next_functions:
            if following is not None:
                waiting[following] += 1
                if waiting[following] == 1:
                    nodes.append(following)
    received: dict[Any, dict[int, Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    ready = [loss.grad_fn]
    while ready:
        node = ready.pop()
        flowing = received.pop(node, {})
        inputs = [flowing.get(number) for number in range(len(node._input_metadata))]
        outputs = getattr(node, "apply", node)(*inputs)  # apply: of an autograd.Function of ours
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        for (following, number), gradient in zip(node.next_functions, outputs, strict=True):
            if following is None:
                continue
            if gradient is not None:
                expected = following._input_metadata[number]
                gradient = gradient.sum_to_size(expected.shape).to(expected.dtype)
                sums = received.setdefault(following, {})
                sums[number] = sums[number] + gradient if number in sums else gradient
            waiting[following] -= 1
            if waiting[following] == 0:
                ready.append(following)


@contextlib.contextmanager
def _device_guard() -> Iterator[None]:
    """A guard that does nothing for CUDA, where PyTorch was built without it and has none.

    A guard makes a device the current one while an operation runs. PyTorch with CUDA but without a GPU puts such a one
    in place itself (`torch._C._ensureCUDADeviceGuardSet`); here it is that of the meta device.
    """
    if torch.version.cuda is not None:
        yield
        return
    library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libc10.so"))
    guards = (ctypes.c_void_p * (META + 1)).in_dll(library, "_ZN3c104impl26device_guard_impl_registryE")
    before, guards[CUDA] = guards[CUDA], guards[META]
    try:
        yield
    finally:
        guards[CUDA] = before
