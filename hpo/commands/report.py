"""`hpo report`: the documents made from a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from hpo.commands.options import StorageOption, StudyArgument, named_or_last, open_studies


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
