"""A trained network as a folder for others: weights, program, tokenizer, configuration, model card.

hpo export lambda_phi --to winner
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

import torch

from hpo.errors import UsageError
from hpo.inference.card import Subject, model_card
from hpo.inference.find import open_checkpoints
from hpo_model.generation.exporting import Program, export_program, save_weights
from hpo_model.generation.trained import Trained

FORMAT = 1  # of config.json

logger = logging.getLogger(__name__)


def export(named: str, checkpoint: Path, target: Path, own: str | None) -> None:
    """Write a checkpoint's network into a new folder, whole or not at all.

    Args:
        named: what the user called it, for the card.
        checkpoint: its file.
        target: the folder, which must not be there.
        own: `module:Class` of the user's own network, if it is that; its code is run.

    Raises:
        UsageError: the folder is there or cannot be written; nothing was changed.
        ModelError: the checkpoint or its network cannot be used.
    """
    if os.path.lexists(target):
        raise UsageError(f"--to {target}: is there already; name a new folder")
    [trained] = open_checkpoints([checkpoint], [own] if own else [], device="cpu")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as unfinished:
            folder = Path(unfinished) / "export"  # with the user's usual permissions, unlike a temporary folder
            folder.mkdir()
            program = _write(named, checkpoint, trained, folder)
            if os.path.lexists(target):
                raise UsageError(f"--to {target}: another process made it meanwhile; name a new folder")
            os.replace(folder, target)
    except OSError as error:
        raise UsageError(f"--to {target}: cannot be written ({error.strerror or error})") from error
    logger.info("%s: weights, tokenizer, model card, and a program for %s", target, program.freedom)


def _write(named: str, checkpoint: Path, trained: Trained, folder: Path) -> Program:
    save_weights(trained.network, folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(trained.tokenizer.definition, encoding="utf-8")
    shutil.copymode(folder / "tokenizer.json", folder / "model.safetensors")  # which its library keeps to the owner
    program = export_program(trained.network, folder / "model.pt2")
    (folder / "config.json").write_text(json.dumps(_config(trained, program), indent=1) + "\n", encoding="utf-8")
    subject = Subject(
        named=checkpoint.stem if Path(named) == checkpoint else named,
        checkpoint=f"{checkpoint.parent.name}/{checkpoint.name}",
        checkpoint_digest=_digest(checkpoint),
        trained=trained,
        program=program,
        files={path.name: (path.stat().st_size, _digest(path)) for path in sorted(folder.iterdir())},
        versions={"hpo": version("assay-hpo"), "torch": torch.__version__, "python": platform.python_version()},
    )
    (folder / "README.md").write_text(model_card(subject), encoding="utf-8")
    return program


def _config(trained: Trained, program: Program) -> dict[str, object]:
    tokenizer = trained.tokenizer
    return {
        "format": FORMAT,
        "run": trained.config.parameters(),
        "vocabulary": tokenizer.vocabulary,
        "tokenizer": {"kind": tokenizer.kind, "digest": tokenizer.digest, "start_id": tokenizer.start_id},
        "corpus": {"name": trained.corpus_name, "digest": trained.corpus_digest},
        "program": {"tokens": program.freedom, "sequence_length": trained.config.architecture.sequence_length},
        "network_source_digest": trained.source,
    }


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
