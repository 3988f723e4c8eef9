"""`hpo evaluate`: checkpoints side by side on held-out text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hpo.commands.options import DataOption, NetworkOption, StorageOption

if TYPE_CHECKING:
    from hpo.inference.evaluate import Evaluated


def evaluate(
    checkpoints: Annotated[
        list[str], typer.Argument(metavar="CHECKPOINT...", help="Files, STUDY (its best trial) or STUDY:TRIAL.")
    ],
    data: DataOption = None,
    split: Annotated[
        Literal["valid", "test", "both"], typer.Option(help="Held-out text to read; test only when all is decided.")
    ] = "valid",
    quality: Annotated[bool, typer.Option(help="Write texts and judge them.")] = True,
    json: Annotated[bool, typer.Option("--json", help="Everything that was measured, as JSON.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there instead of the terminal.")] = None,
    network: NetworkOption = None,
    storage: StorageOption = None,
) -> None:
    """Measure trained networks: perplexities, Φ, and the quality of what they write, beside human text."""
    from hpo.files import write_text
    from hpo.home import Home
    from hpo.inference.evaluate import EvaluateRequest
    from hpo.inference.evaluate import evaluate as measure
    from hpo.inference.find import find_checkpoint, open_checkpoints
    from hpo.inference.tables import evaluation_text

    home = Home.from_environment()
    trained = open_checkpoints([find_checkpoint(named, storage, home) for named in checkpoints], network or [])
    request = EvaluateRequest(splits=("valid", "test") if split == "both" else (split,), data=data, quality=quality)
    found = measure(trained, request, home)
    text = _json(found) if json else evaluation_text(found)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)


def _json(found: Evaluated) -> str:
    import dataclasses
    import json

    return json.dumps(dataclasses.asdict(found), ensure_ascii=False, indent=1) + "\n"
