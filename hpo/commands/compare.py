"""`hpo compare`: studies against each other."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from hpo.commands.options import StorageOption, open_studies


def compare(
    studies: Annotated[list[str], typer.Argument(metavar="STUDY...", help="Two or more; the first is the reference.")],
    format: Annotated[Literal["markdown", "json"], typer.Option(help="Form of the comparison.")] = "markdown",
    lang: Annotated[Literal["en", "es"], typer.Option(help="Language: English or Spanish.")] = "en",
    storage: StorageOption = None,
) -> None:
    """Hold the winners of studies of equal budget and text against each other."""
    from hpo.database.connection import storage_errors
    from hpo.sweep.sweep import load_study
    from hpo_reports.analysis.across import compare_studies
    from hpo_reports.records.finalists import read_finalists
    from hpo_reports.records.study import read_study
    from hpo_reports.sections.across import across_json, across_markdown

    url, opened = open_studies(storage)
    with storage_errors(url):
        loaded = [load_study(opened, name) for name in studies]
        read = [(read_study(study), read_finalists(study, opened.storage)) for study in loaded]
    found = compare_studies(read)
    typer.echo(across_json(found) if format == "json" else across_markdown(found, lang), nl=False)
