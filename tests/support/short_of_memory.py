"""A run that may take only so much memory more than its process has, in a process of its own.

    python tests/support/short_of_memory.py TOKENS CHECKPOINT PARAMETERS SPARE_MIB

Prints how it ended, its losses and into what pieces it had to cut its batches, as JSON.
"""

from __future__ import annotations

import json
import resource
import sys
from pathlib import Path

import torch

from hpo_model.config import Scalar, build_run
from hpo_model.data.tokens import open_tokens
from hpo_model.training.checkpoint import load_checkpoint
from hpo_model.training.loop import train

WARM_UP: dict[str, Scalar] = {
    "width": 16, "sequence_length": 8, "batch_size": 1, "budget_tokens": 16, "evaluations": 1, "evaluation_tokens": 16,
}  # fmt: skip


def main(tokens: Path, checkpoint: Path, parameters: str, spare_mib: int) -> None:
    torch.set_num_threads(1)  # the stack of a thread is address space too
    corpus, config = open_tokens(tokens), build_run(json.loads(parameters))
    train(build_run({**config.parameters(), **WARM_UP}), corpus)  # torch loads much at its first use, and frees little
    own_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (own_bytes + spare_mib * 2**20, resource.RLIM_INFINITY))
    result = train(config, corpus, save_to=checkpoint)
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(
        json.dumps(
            {
                "outcome": result.outcome,
                "reason": result.reason,
                "losses": [evaluation.val_loss for evaluation in result.history],
                "micro_batch": load_checkpoint(checkpoint)["micro_batch"] if result.history else None,
            }
        )
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))
