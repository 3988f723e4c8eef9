"""What a worker may fill of a GPU that it shares with others."""

from __future__ import annotations

import torch

from hpo.errors import WorkerError
from hpo_model.hardware import gpu_memory

CONTEXT_BYTES = 700 * 2**20  # of GPU memory that a process takes beside its tensors: CUDA's context and libraries


def limit_memory(device: str, share: float) -> None:
    """Let the tensors of this process fill a share of a GPU, less what its context takes; all of one of its own.

    Beyond it the trial is out of memory, and not its neighbours.

    Args:
        device: "cuda:N".
        share: of the memory of all workers on this GPU, above 0 and at most 1.

    Raises:
        WorkerError: a context alone is more than the share.
    """
    gpu = torch.device(device)
    memory = gpu_memory(gpu.index or 0)
    fraction = 1.0 if share == 1 else share - CONTEXT_BYTES / memory
    if fraction <= 0:
        raise WorkerError(
            f"{share:g} of a GPU with {memory / 2**30:.1f} GiB is less than a worker takes before it has a trial; "
            "fewer workers on each GPU fit"
        )
    torch.cuda.set_per_process_memory_fraction(fraction, gpu)
