"""`hpo validate-architecture`: run the conformance checks on a custom network."""

from __future__ import annotations

import os
from typing import Annotated

import typer

from hpo.commands.options import DataOption


def validate_architecture(
    network: Annotated[
        str, typer.Argument(metavar="MODULE:CLASS", help="A class, importable from here. Its code is run.")
    ],
    data: DataOption = None,
) -> None:
    """Check a network of your own: causality, determinism, gradients, resume, memory, speed, learning.

    Exit codes: 0 it passes all checks, 1 it does not.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # else torch's profiler prints when it begins and ends
    from hpo.home import Home
    from hpo_model.config import TokenizerChoice
    from hpo_model.data.corpus import load_corpus
    from hpo_model.data.tokens import tokenize_corpus
    from hpo_model.training.conformance import validate

    home = Home.from_environment()
    text = load_corpus(str(data or "python-docs"), home.corpora)
    corpus = tokenize_corpus(text, TokenizerChoice(kind="bpe", vocabulary=512), home.tokens)
    failed = []
    for finding in validate(network, corpus):
        typer.echo(f"{finding.check:<17} {finding.state:<10} {finding.evidence}")
        failed += [finding.check] if finding.state == "failed" else []
    typer.echo(f"{network} fails: {', '.join(failed)}" if failed else f"{network} passes all checks; it may be studied")
    raise typer.Exit(1 if failed else 0)
