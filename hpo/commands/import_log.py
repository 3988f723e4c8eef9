"""`hpo import-log`: a table of past experiments as a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpo.commands.options import StorageOption


def import_log(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A CSV file with a header, or a JSON list of objects.")],
    name: Annotated[str | None, typer.Option(metavar="NAME", help="Name of the study; default: the file's.")] = None,
    storage: StorageOption = None,
) -> None:
    """Make a study of a table of past experiments, to be reported; it is never run."""
    from shlex import quote

    from hpo.database.connection import open_database, storage_errors
    from hpo.database.url import storage_url
    from hpo.home import Home
    from hpo.transfer.importing import import_experiments, read_experiments

    past = read_experiments(file)
    study = name or file.stem
    url = storage_url(storage, Home.from_environment())
    with storage_errors(url):
        import_experiments(open_database(url, create=True), study, past)
    count = f"{len(past.rows)} experiment{'' if len(past.rows) == 1 else 's'}"
    typer.echo(f"study {study}: {count} of {past.file}; next: hpo report {quote(study)}")
