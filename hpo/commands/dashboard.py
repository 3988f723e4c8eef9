"""`hpo dashboard`: Optuna's dashboard with our reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpo.commands.options import StorageOption, open_studies


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
