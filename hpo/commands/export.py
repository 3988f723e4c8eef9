"""`hpo export`: a trained network as a folder for others."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpo.commands.options import StorageOption


def export(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A file, STUDY (its best trial) or STUDY:TRIAL.")
    ],
    to: Annotated[Path, typer.Option("--to", metavar="DIR", help="A folder that is not there yet.")],
    network: Annotated[
        str | None,
        typer.Option(metavar="MODULE:CLASS", help="The network, where it is code of your own; it is run."),
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Write weights, program, tokenizer, configuration and model card into a new folder."""
    from hpo.home import Home
    from hpo.inference.export import export as write
    from hpo.inference.find import find_checkpoint

    write(checkpoint, find_checkpoint(checkpoint, storage, Home.from_environment()), to, network)
