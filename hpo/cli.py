"""The command line: arguments in, calls, exit codes out. Heavy things are imported inside commands.

hpo run --study lambda_phi --trials 40
hpo report --format markdown
"""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from hpo.errors import HpoError
from model.errors import ModelError
from reports.errors import ReportError

if TYPE_CHECKING:
    from hpo.storage import Database

INTERRUPTED = 130  # exit code of a command that a signal ended
SIGNALS = ("Ctrl-C", "SIGTERM", "SIGHUP")

app = typer.Typer(
    name="hpo",
    help="Honest hyperparameter search for small language models with an integrated-information term.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StorageOption = Annotated[
    str | None,
    typer.Option(
        "--storage", metavar="URL", help="Database of the studies; default: HPO_STORAGE, else runs/studies.db."
    ),
]
DataOption = Annotated[
    Path | None, typer.Option("--data", metavar="PATH", help="Folder with train, valid and test text.")
]
StudyArgument = Annotated[str | None, typer.Argument(metavar="[STUDY]", help="Default: the study that was run last.")]


def main() -> None:
    """Run a command; what a user can mend becomes one line and exit code 1."""
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that wait do not take the cores of other workers
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without Greek letters still gets its report
    try:
        app()
    except (HpoError, ModelError, ReportError) as error:
        typer.echo(f"hpo: {error}", err=True)
        sys.exit(1)


@app.command()
def run(
    study: Annotated[
        str, typer.Option(metavar="NAME|FILE", help="A shipped study (see `hpo studies`) or a .toml file.")
    ],
    trials: Annotated[
        int | None, typer.Option(help="The total that the study ends with; default: the study file's.")
    ] = None,
    data: DataOption = None,
    workers: Annotated[int | None, typer.Option(help="Processes; default: one per GPU, or by CPU cores.")] = None,
    timeout: Annotated[
        float | None, typer.Option(metavar="MIN", help="Stop after so many minutes, losing nothing.")
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Run a study until it has TRIALS finished trials; run it again to resume."""
    from rich.console import Console

    from hpo.errors import UsageError
    from hpo.executors.stop import Stop
    from hpo.home import Home
    from hpo.launch import Request, prepare, run_workers
    from hpo.storage import storage_url
    from hpo.view import Board, open_view

    if timeout is not None and not timeout > 0:
        raise UsageError(f"--timeout must be above 0 minutes, got {timeout:g}")
    home = Home.from_environment()
    request = Request(study=study, trials=trials, data=data, workers=workers)
    launch = prepare(request, storage_url(storage, home), home, typer.echo)
    board = Board(launch.sweep, launch.total)
    typer.echo(launch.describe(board.counts))
    if board.search_is_over():
        typer.echo(f"nothing to do: {board.ending()}")
        return
    stop = Stop(None if timeout is None else 60 * timeout)
    with open_view(board, Console()) as view, stop.on_signals(view.say):
        run_workers(launch, view.hear, view.pulse, stop)
    board.refresh()
    typer.echo(f"{board.ending()}{f' ({stop.reason}); run again to go on' if stop.reason else ''}")
    if stop.reason in SIGNALS:
        raise typer.Exit(INTERRUPTED)


@app.command()
def status(study: StudyArgument = None, storage: StorageOption = None) -> None:
    """Show what a study has done and who works on it."""
    from hpo.storage import storage_errors
    from hpo.sweep import last_run, open_sweep
    from hpo.view import Board

    url, opened = _open(storage)
    with storage_errors(url):
        sweep = open_sweep(opened, study or _last(last_run(opened)))
        total = sweep.slots.total()
        board = Board(sweep, total)
        typer.echo(f"study {sweep.spec.name}: {board.ending()}")
        counts = board.counts
        typer.echo(
            f"slots: {counts.done} done, {counts.leased} leased, {counts.released} interrupted, {counts.open} not begun"
        )
        for number, owner in sorted(sweep.slots.owners().items()):
            typer.echo(f"trial {number}: {owner}")


@app.command()
def studies(storage: StorageOption = None) -> None:
    """List the study files that come with the program and the studies of the database."""
    from hpo.errors import StorageError
    from hpo.storage import storage_errors
    from hpo.study_file import shipped_studies
    from hpo.sweep import describe_studies

    typer.echo("study files:")
    for name, description in shipped_studies().items():
        typer.echo(f"  {name:<18} {description}")
    try:
        url, opened = _open(storage)
    except StorageError as error:
        typer.echo(f"studies: {error}")
        return
    typer.echo("studies:")
    with storage_errors(url):
        for line in describe_studies(opened):
            typer.echo(f"  {line}")


@app.command()
def report(
    study: StudyArgument = None,
    format: Annotated[Literal["markdown", "json", "csv"], typer.Option(help="Form of the report.")] = "markdown",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there instead of the terminal.")] = None,
    storage: StorageOption = None,
) -> None:
    """Print the experiment log of a study: table, verdicts, winner, the command to run next."""
    from hpo.files import write_text
    from hpo.storage import storage_errors
    from hpo.sweep import last_run, load_study
    from reports.records import read_study
    from reports.render import render

    url, opened = _open(storage)
    with storage_errors(url):
        record = read_study(load_study(opened, study or _last(last_run(opened))))
    text = render(record, format)
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)


@app.command()
def train(
    study: Annotated[str, typer.Option("--from", metavar="STUDY", help="A study that `hpo run` made.")],
    epochs: Annotated[int, typer.Option(help="Passes over the training text.")],
    trial: Annotated[
        int | None, typer.Option(help="Number of the trial whose configuration to use; default: the best.")
    ] = None,
    data: DataOption = None,
    storage: StorageOption = None,
) -> None:
    """Train a trial's configuration for longer; run it again to go on after an interruption."""
    from hpo.home import Home
    from hpo.long_run import LongRequest, prepare_long_run, run_long
    from hpo.storage import storage_url

    home = Home.from_environment()
    run = prepare_long_run(storage_url(storage, home), home, LongRequest(study, trial, epochs, data), typer.echo)
    typer.echo(f"trial {run.trial} of {study} for {epochs} epochs, {run.config.training.budget_tokens:,} tokens")
    result = run_long(run, typer.echo)
    typer.echo(f"{result.outcome}: {result.reason} · {run.checkpoint}")


@app.command()
def dashboard(
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 8080,
    storage: StorageOption = None,
) -> None:
    """Serve the Optuna dashboard on this machine's loopback address."""
    from hpo.dashboard import serve

    _, opened = _open(storage)
    serve(opened.storage, port, typer.echo)


def _open(flag: str | None) -> tuple[str, Database]:
    """The database that must be there already, and its URL."""
    from hpo.home import Home
    from hpo.storage import open_database, storage_url

    url = storage_url(flag, Home.from_environment())
    return url, open_database(url, create=False)


def _last(name: str | None) -> str:
    from hpo.errors import StudyError

    if name is None:
        raise StudyError("the database holds no study yet; `hpo run` makes the first")
    return name
