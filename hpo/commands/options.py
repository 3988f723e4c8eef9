"""What several commands share: options, and how they open the studies' database."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from hpo.database.connection import Database
    from hpo.database.retry import RetryPolicy

INTERRUPTED = 130  # exit code of a command that a signal ended

StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage", metavar="URL", help="Database of the studies; default: HPO_STORAGE, else runs/studies.db."
    ),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="PATH", help="Folder with train, valid and test text.")
]
NetworkOption = Annotated[
    list[str] | None,
    typer.Option(
        "--network", metavar="MODULE:CLASS", help="A network of your own, whose code is run; again for another."
    ),
]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", metavar="MIN", help="Stop after so many minutes, losing nothing.")
]
StudyArgument = Annotated[str | None, typer.Argument(metavar="[STUDY]", help="Default: the study that was run last.")]


def timeout_in_s(timeout_min: float | None) -> float | None:
    """`--timeout` in seconds.

    Raises:
        UsageError: not above 0.
    """
    from hpo.errors import UsageError

    if timeout_min is not None and not timeout_min > 0:
        raise UsageError(f"--timeout must be above 0 minutes, got {timeout_min:g}")
    return None if timeout_min is None else 60 * timeout_min


def open_studies(flag: str | None, retry: RetryPolicy | None = None) -> tuple[str, Database]:
    """The database that must be there already, and its URL."""
    from hpo.database.connection import open_database
    from hpo.database.retry import NO_RETRY
    from hpo.database.url import storage_url
    from hpo.home import Home

    url = storage_url(flag, Home.from_environment())
    return url, open_database(url, create=False, retry=retry or NO_RETRY)


def named_or_last(study: str | None, database: Database) -> str:
    """The study that was named, else the one that was run last."""
    from hpo.errors import StudyError
    from hpo.sweep.sweep import last_run

    if study is None:
        study = last_run(database)
    if study is None:
        raise StudyError("the database holds no study yet; `hpo run` makes the first")
    return study
