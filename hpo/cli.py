"""The command line: mounts the commands, shows what they log, and turns errors into exit codes.

hpo run --study lambda_phi --trials 40
hpo report --format markdown
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any

import typer

from hpo.commands import (
    architecture,
    compare,
    dashboard,
    evaluate,
    export,
    generate,
    import_log,
    report,
    run,
    storage,
    study,
    train,
    watch,
)
from hpo.errors import HpoError
from hpo_model.errors import ModelError
from hpo_reports.errors import ReportError

LOGGERS = ("hpo", "hpo_model")
# Commands whose result is the whole of standard output; what else they have to say goes to standard error.
RESULT_ON_STDOUT = ("compare", "evaluate", "generate", "report", "watch")


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
        print(f"hpo: {error}", file=sys.stderr)
        sys.exit(1)


def _app() -> typer.Typer:
    commands = _group("Honest hyperparameter search for small language models with an integrated-information term.")
    commands.callback()(_show_log)
    for command in (
        *(run.run, run.worker, run.replicate, study.stop, study.status, study.studies),
        *(report.report, dashboard.dashboard, watch.watch, train.train, generate.generate, evaluate.evaluate),
        *(export.export, compare.compare, import_log.import_log, architecture.validate_architecture),
    ):
        _mount(commands, command)
    stores = _group("Move studies between databases, and bring old ones up to date.")
    _mount(stores, storage.copy)
    _mount(stores, storage.upgrade)
    commands.add_typer(stores, name="storage")
    return commands


def _group(help: str) -> typer.Typer:
    return typer.Typer(
        help=help,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,  # help without rich takes half the time
        context_settings={"help_option_names": ["-h", "--help"]},
    )


def _mount(group: typer.Typer, command: Callable[..., Any]) -> None:
    """Make a function a command; the first line of its docstring, in full, describes it in the list of commands."""
    group.command(short_help=(command.__doc__ or "").partition("\n")[0])(command)


def _show_log(context: typer.Context) -> None:
    context.with_resource(_lines(to_stderr=context.invoked_subcommand in RESULT_ON_STDOUT))


@contextlib.contextmanager
def _lines(*, to_stderr: bool) -> Iterator[None]:
    """Show what our packages log, as plain lines."""
    handler, loggers = _LineHandler(to_stderr), [logging.getLogger(name) for name in LOGGERS]
    before = [(logger.level, logger.propagate) for logger in loggers]
    for logger in loggers:
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        logger.propagate = False
    try:
        yield
    finally:
        for logger, (level, propagate) in zip(loggers, before, strict=True):
            logger.removeHandler(handler)
            logger.setLevel(level)
            logger.propagate = propagate


class _LineHandler(logging.Handler):
    """Prints records on the stream of the moment: a live table puts its own there, to show lines above it."""

    def __init__(self, to_stderr: bool) -> None:
        super().__init__()
        self.to_stderr = to_stderr

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record's message."""
        print(self.format(record), file=sys.stderr if self.to_stderr else sys.stdout, flush=True)


app = _app()
