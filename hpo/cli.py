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

from hpo.commands import architecture, compare, evaluate, export, generate, import_log, train, watch
from hpo.commands.options import (
    DataOption,
    StorageOption,
    StudyArgument,
    named_or_last,
    open_studies,
)
from hpo.errors import HpoError
from hpo_model.errors import ModelError
from hpo_reports.errors import ReportError

if TYPE_CHECKING:
    from hpo.executors.placement import Wish
    from hpo.search.launch import Executor, Request
    from hpo.search.session import Session

STOP_PATIENCE_S = 60.0  # with a database that is away, before `hpo stop` has not been heard

app = typer.Typer(
    name="hpo",
    help="Honest hyperparameter search for small language models with an integrated-information term.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)

storage_commands = typer.Typer(
    help="Move studies between databases, and bring old ones up to date.", no_args_is_help=True
)
app.add_typer(storage_commands, name="storage")

WorkersOption = Annotated[
    str,
    typer.Option("--workers", metavar="N|auto", help="Processes; auto: one per GPU, or what is fastest on the CPU."),
]
GpusOption = Annotated[str | None, typer.Option("--gpus", metavar="0,2", help="GPUs to use; default: all it sees.")]
TrialsPerGpuOption = Annotated[
    int | None,
    typer.Option("--trials-per-gpu", metavar="K", help="Trials side by side on each GPU, as far as they fit."),
]
ExecutorOption = Annotated[
    Literal["local", "ray", "slurm"], typer.Option("--executor", help="Who starts the workers, and where.")
]
RayAddressOption = Annotated[
    str | None,
    typer.Option("--ray-address", metavar="HOST:PORT", help="Head of a Ray cluster; default: as Ray finds it."),
]
SlurmOption = Annotated[
    list[str] | None,
    typer.Option("--slurm", metavar="KEY=VALUE", help="For Slurm, again and again: partition=gpu, time=240 (minutes)."),
]
TimeoutOption = Annotated[
    float | None, typer.Option("--timeout", metavar="MIN", help="Stop after so many minutes, losing nothing.")
]
FinalistsOption = Annotated[
    bool, typer.Option("--finalists/--no-finalists", help="Run the best again when the search is over.")
]


def main() -> None:
    """Run a command; what a user can mend becomes one line and exit code 1."""
    # Processes that we start do not import the files of the current folder in the place of modules of the same name.
    os.environ["PYTHONSAFEPATH"] = "1"
    # Threads that wait do not take the cores of other workers.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
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
    workers: WorkersOption = "auto",
    gpus: GpusOption = None,
    trials_per_gpu: TrialsPerGpuOption = None,
    executor: ExecutorOption = "local",
    ray_address: RayAddressOption = None,
    slurm: SlurmOption = None,
    timeout: TimeoutOption = None,
    finalists: FinalistsOption = True,
    storage: StorageOption = None,
) -> None:
    """Run a study until it has TRIALS finished trials, and its finalists; run it again to resume."""
    from hpo.search.launch import Request, prepare
    from hpo.search.session import search

    request = Request(
        study=study,
        trials=trials,
        data=data,
        wish=_wish(workers, gpus, trials_per_gpu),
        executor=_executor(executor, ray_address, slurm),
    )
    search(_session(request, storage, timeout, finalists=finalists), prepare)


@app.command()
def worker(
    study: Annotated[str, typer.Option(metavar="NAME", help="A study that `hpo run` made, here or elsewhere.")],
    data: DataOption = None,
    workers: WorkersOption = "auto",
    gpus: GpusOption = None,
    trials_per_gpu: TrialsPerGpuOption = None,
    executor: ExecutorOption = "local",
    ray_address: RayAddressOption = None,
    slurm: SlurmOption = None,
    timeout: TimeoutOption = None,
    finalists: FinalistsOption = True,
    storage: StorageOption = None,
) -> None:
    """Work on a study that is in the database already, beside whoever else does, until it is done."""
    from hpo.search.launch import Request, join
    from hpo.search.session import search

    request = Request(
        study=study,
        data=data,
        wish=_wish(workers, gpus, trials_per_gpu),
        executor=_executor(executor, ray_address, slurm),
    )
    search(_session(request, storage, timeout, finalists=finalists, concludes=False), join)


@app.command()
def replicate(
    study: StudyArgument = None,
    replicates: Annotated[
        int | None, typer.Option(help="Fresh seeds that each candidate is to have; default: the study file's.")
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(help="Candidates that there are to be, beside the baseline; default: the study file's."),
    ] = None,
    test_again: Annotated[
        bool, typer.Option("--test-again", help="Look at the test split once more, for the winner of now.")
    ] = False,
    data: DataOption = None,
    workers: WorkersOption = "auto",
    gpus: GpusOption = None,
    trials_per_gpu: TrialsPerGpuOption = None,
    executor: ExecutorOption = "local",
    ray_address: RayAddressOption = None,
    slurm: SlurmOption = None,
    timeout: TimeoutOption = None,
    storage: StorageOption = None,
) -> None:
    """Run the best trials of a study and its baseline again, under the same fresh seeds; both options are totals."""
    from hpo.search.launch import Request
    from hpo.search.session import replicate as run_again

    if study is None:
        study = named_or_last(None, open_studies(storage)[1])
    request = Request(
        study=study,
        data=data,
        wish=_wish(workers, gpus, trials_per_gpu),
        executor=_executor(executor, ray_address, slurm),
    )
    run_again(_session(request, storage, timeout, test_again=test_again), candidates, replicates)


@app.command()
def stop(
    study: StudyArgument = None,
    wait: Annotated[bool, typer.Option(help="Return when all workers have left.")] = True,
    storage: StorageOption = None,
) -> None:
    """Let all workers of a study leave at their next evaluation, on every machine; `hpo run` goes on later."""
    from hpo.database.connection import storage_errors
    from hpo.database.retry import RetryPolicy
    from hpo.monitor.console import drained
    from hpo.sweep.finalists import find_finalists
    from hpo.sweep.sweep import open_sweep

    url, opened = open_studies(storage, RetryPolicy(max_elapsed_s=STOP_PATIENCE_S, announce=typer.echo))
    with storage_errors(url):
        sweep = open_sweep(opened, named_or_last(study, opened))
        companion = None if sweep.spec.replication is not None else find_finalists(sweep)
        sweeps = [sweep] if companion is None else [sweep, companion]
        for each in sweeps:
            each.row.request_stop()
        typer.echo(f"study {sweep.spec.name}: workers leave at their next evaluation; nothing is lost")
        if wait:
            for each in sweeps:
                drained(each.slots, typer.echo)


@app.command()
def status(study: StudyArgument = None, storage: StorageOption = None) -> None:
    """Show what a study has done and who works on it."""
    from hpo.database.connection import storage_errors
    from hpo.monitor.console import describe_progress
    from hpo.sweep.finalists import find_finalists
    from hpo.sweep.sweep import open_sweep

    url, opened = open_studies(storage)
    with storage_errors(url):
        sweep = open_sweep(opened, named_or_last(study, opened))
        companion = None if sweep.spec.replication is not None else find_finalists(sweep)
        for each in [sweep] if companion is None else [sweep, companion]:
            for line in describe_progress(each):
                typer.echo(line)


@app.command()
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


@app.command()
def report(
    study: StudyArgument = None,
    format: Annotated[
        Literal["markdown", "html", "json", "csv"], typer.Option(help="Form of the report.")
    ] = "markdown",
    template: Annotated[
        Literal["experiments", "session"], typer.Option(help="The experiment log, or a summary of the session.")
    ] = "experiments",
    lang: Annotated[Literal["en", "es"], typer.Option(help="Language: English or Spanish.")] = "en",
    plain: Annotated[bool, typer.Option("--plain", help="Without emoji.")] = False,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write there instead of the terminal.")] = None,
    storage: StorageOption = None,
) -> None:
    """Print the experiment log of a study: table, verdicts, winner, the command to run next."""
    from hpo.database.connection import storage_errors
    from hpo.files import write_text
    from hpo.sweep.sweep import load_study
    from hpo_reports.records.finalists import read_finalists
    from hpo_reports.records.long_runs import read_long_runs
    from hpo_reports.records.study import read_study
    from hpo_reports.render import render

    url, opened = open_studies(storage)
    with storage_errors(url):
        opened_study = load_study(opened, named_or_last(study, opened))
        record, finalists = read_study(opened_study), read_finalists(opened_study, opened.storage)
        long_runs = read_long_runs(opened_study)
    text = render(
        record, format, template=template, finalists=finalists, long_runs=long_runs, language=lang, plain=plain
    )
    if out is None:
        typer.echo(text, nl=False)
    else:
        write_text(out, text)


@storage_commands.command("copy")
def copy_storage(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="URL of the database that has the study.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="URL of the one that is to have it too.")],
    study: Annotated[str | None, typer.Option(metavar="NAME", help="The study; default: all of them.")] = None,
) -> None:
    """Copy studies to another database, with their slots: the copy goes on where the original stands."""
    from hpo.home import Home
    from hpo.transfer.copying import copy_studies

    for line in copy_studies(source, target, study, Home.from_environment()):
        typer.echo(line)


@storage_commands.command("upgrade")
def upgrade_storage(storage: StorageOption = None) -> None:
    """Bring a database that an older version made to this one's tables."""
    from hpo.database.connection import upgrade
    from hpo.database.url import storage_url
    from hpo.home import Home

    for line in upgrade(storage_url(storage, Home.from_environment())) or [
        "nothing to do: its tables are of this version"
    ]:
        typer.echo(line)


@app.command()
def dashboard(
    host: Annotated[str, typer.Option(help="Address to listen on; others than this machine's own need a password.")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen on.")] = 8080,
    password_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Ask for the password in its first line, under any user name.")
    ] = None,
    storage: StorageOption = None,
) -> None:
    """Serve the Optuna dashboard, with reports and figures, to this machine, or to those who know a password."""
    from hpo.dashboard.publishing import publishing_all
    from hpo.dashboard.server import AccessPolicy, read_password, serve
    from hpo.home import Home

    password = None if password_file is None else read_password(password_file)
    policy = AccessPolicy(host=host, port=port, password=password)
    url, opened = open_studies(storage)
    with publishing_all(url, typer.echo):
        serve(opened.storage, Home.from_environment(), policy, typer.echo)


def _session(request: Request, storage: str | None, timeout: float | None, **options: bool) -> Session:
    from hpo.database.url import storage_url
    from hpo.home import Home
    from hpo.search.session import Session

    home = Home.from_environment()
    return Session(request=request, url=storage_url(storage, home), home=home, timeout_min=timeout, **options)


app.command()(watch.watch)
app.command()(train.train)
app.command()(generate.generate)
app.command()(evaluate.evaluate)
app.command()(export.export)
app.command()(compare.compare)
app.command()(import_log.import_log)
app.command()(architecture.validate_architecture)


def _wish(workers: str, gpus: str | None, trials_per_gpu: int | None) -> Wish:
    from hpo.executors.placement import Wish, parse_gpus, parse_workers

    return Wish(workers=parse_workers(workers), gpus=parse_gpus(gpus), trials_per_gpu=trials_per_gpu)


def _executor(kind: Literal["local", "ray", "slurm"], ray_address: str | None, slurm: list[str] | None) -> Executor:
    from hpo.errors import UsageError
    from hpo.search.launch import Executor

    options = {}
    for option in slurm or ():
        key, sign, value = option.partition("=")
        if not sign or not key:
            raise UsageError(f"--slurm takes KEY=VALUE, got {option!r}")
        options[key] = value
    return Executor(kind=kind, ray_address=ray_address, slurm_options=options)
