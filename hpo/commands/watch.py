"""`hpo watch`: follow a study that others run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from hpo.commands.options import INTERRUPTED, StorageOption, StudyArgument, named_or_last, open_studies, timeout_in_s

if TYPE_CHECKING:
    from rich.console import Console

MAX_OUTAGE_S = 600.0  # of the database, as for workers


def watch(
    study: StudyArgument = None,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per change, a line each, for scripts.")] = False,
    notify: Annotated[
        str | None,
        typer.Option(
            "--notify", metavar="URL", envvar="HPO_NOTIFY", help="Send a JSON body there when it ends or fails."
        ),
    ] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="MIN", help="Stop watching after so many minutes.")
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Follow a study, wherever its workers are, until it ends; Ctrl-C ends the watching alone.

    Exit codes: 0 the study is finished, 1 a wrong argument or a database that is gone, 3 it failed, 4 the time is up,
    5 nobody works on it, 130 interrupted.
    """
    from hpo.database.connection import storage_errors
    from hpo.database.retry import RetryPolicy
    from hpo.errors import StorageError
    from hpo.monitor.watch import ending_of_loss, watch_study
    from hpo.monitor.webhook import Webhook
    from hpo.sweep.sweep import open_sweep

    limit_s = timeout_in_s(timeout)
    webhook = None if notify is None else Webhook.parse(notify)
    url, opened = open_studies(storage, RetryPolicy(max_elapsed_s=MAX_OUTAGE_S, announce=_warn))
    with storage_errors(url):
        sweep = open_sweep(opened, named_or_last(study, opened))
    try:
        with storage_errors(url):
            ending = watch_study(sweep, None if json else _console(), limit_s)
    except KeyboardInterrupt:
        _warn(f"no longer watched; study {sweep.spec.name} goes on")
        raise typer.Exit(INTERRUPTED) from None
    except StorageError as error:
        if webhook is not None:
            webhook.send(ending_of_loss(sweep, str(error)).to_dict())
        raise
    if webhook is not None and ending.outcome != "timeout":
        webhook.send(ending.to_dict())
    raise typer.Exit(ending.exit_code)


def _console() -> Console:
    from rich.console import Console

    return Console()


def _warn(line: str) -> None:
    typer.echo(line, err=True)
