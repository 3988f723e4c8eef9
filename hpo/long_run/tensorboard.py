"""Event files of a run for TensorBoard, which is an extra: pip install 'assay-hpo[tensorboard]'."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING

from hpo.errors import UsageError
from hpo_model.training.history import Evaluation

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

NOT_CURVES = ("milestone", "step", "whole_split")


class EventFiles:
    """One scalar per measurement and evaluation, over updates.

    Args:
        folder: None: nothing is written.
        after: updates at which the run goes on; what an earlier process wrote beyond them is forgotten by the reader.

    Raises:
        UsageError: TensorBoard is not installed, or the folder cannot be written.
    """

    def __init__(self, folder: Path | None, after: int = 0) -> None:
        self.writer = None if folder is None else _writer(folder, after)

    def add(self, evaluation: Evaluation) -> None:
        """Write an evaluation."""
        if self.writer is None:
            return
        for name, value in dataclasses.asdict(evaluation).items():
            if name not in NOT_CURVES and value is not None and math.isfinite(value):
                self.writer.add_scalar(name, value, evaluation.step)
        self.writer.flush()

    def close(self) -> None:
        """Nothing more will come."""
        if self.writer is not None:
            self.writer.close()


def _writer(folder: Path, after: int) -> SummaryWriter:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise UsageError("--tensorboard needs TensorBoard: pip install 'assay-hpo[tensorboard]'") from error
    try:
        return SummaryWriter(str(folder), purge_step=after + 1)
    except OSError as error:
        raise UsageError(f"--tensorboard {folder}: cannot be written ({error.strerror})") from error
