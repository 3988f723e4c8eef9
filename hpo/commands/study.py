"""`hpo stop`, `hpo status`, `hpo studies`: the studies of a database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hpo.commands.options import StorageOption, StudyArgument, named_or_last, open_studies

if TYPE_CHECKING:
    from hpo.database.connection import Database
    from hpo.sweep.sweep import Sweep

MAX_OUTAGE_S = 60.0  # of a database, before `hpo stop` gives up


def stop(
    study: StudyArgument = None,
    wait: Annotated[bool, typer.Option(help="Return when all workers have left.")] = True,
    storage: StorageOption = None,
) -> None:
    """Let all workers of a study leave at their next evaluation, on every machine; `hpo run` goes on later."""
    from hpo.database.connection import storage_errors
    from hpo.database.retry import RetryPolicy
    from hpo.monitor.board import wait_until_idle

    url, opened = open_studies(storage, RetryPolicy(max_elapsed_s=MAX_OUTAGE_S, announce=typer.echo))
    with storage_errors(url):
        sweeps = _with_finalists(opened, study)
        for each in sweeps:
            each.row.request_stop()
        typer.echo(f"study {sweeps[0].spec.name}: workers leave at their next evaluation; nothing is lost")
        if wait:
            for each in sweeps:
                wait_until_idle(each.slots)


def status(study: StudyArgument = None, storage: StorageOption = None) -> None:
    """Show what a study has done and who works on it."""
    from hpo.database.connection import storage_errors
    from hpo.monitor.board import describe_progress

    url, opened = open_studies(storage)
    with storage_errors(url):
        for each in _with_finalists(opened, study):
            for line in describe_progress(each):
                typer.echo(line)


def studies(storage: StorageOption = None) -> None:
    """List the study files that come with the program and the studies of the database."""
    from hpo.database.connection import storage_errors
    from hpo.errors import StorageError
    from hpo.study.toml import shipped_studies
    from hpo.sweep.sweep import describe_studies

    typer.echo("study files:")
    for name, description in shipped_studies().items():
        typer.echo(f"  {name:<18} {description}")
    try:
        url, opened = open_studies(storage)
    except StorageError as error:
        typer.echo(f"studies: {error}")
        return
    typer.echo("studies:")
    with storage_errors(url):
        for line in describe_studies(opened):
            typer.echo(f"  {line}")


def _with_finalists(database: Database, study: str | None) -> list[Sweep]:
    """A study and, if it has them, its finalists."""
    from hpo.sweep.finalists import find_finalists
    from hpo.sweep.sweep import open_sweep

    sweep = open_sweep(database, named_or_last(study, database))
    companion = None if sweep.spec.replication is not None else find_finalists(sweep)
    return [sweep] if companion is None else [sweep, companion]
