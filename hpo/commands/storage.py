"""`hpo storage copy` and `hpo storage upgrade`."""

from __future__ import annotations

from typing import Annotated

import typer

from hpo.commands.options import StorageOption


def copy(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="URL of the database that has the study.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="URL of the one that is to have it too.")],
    study: Annotated[str | None, typer.Option(metavar="NAME", help="The study; default: all of them.")] = None,
) -> None:
    """Copy studies to another database, with their slots: the copy goes on where the original stands."""
    from hpo.home import Home
    from hpo.transfer.copying import copy_studies

    for line in copy_studies(source, target, study, Home.from_environment()):
        typer.echo(line)


def upgrade(storage: StorageOption = None) -> None:
    """Bring a database that an older version made to this one's tables."""
    from hpo.database.connection import upgrade as upgrade_tables
    from hpo.database.url import storage_url
    from hpo.home import Home

    for line in upgrade_tables(storage_url(storage, Home.from_environment())) or [
        "nothing to do: its tables are of this version"
    ]:
        typer.echo(line)
