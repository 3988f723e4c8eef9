"""`hpo validate-architecture`: try the laws on a network of the user's own."""

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
    """Try the laws on a network of your own: causality, determinism, gradients, resume, memory, speed, learning.

    Exit codes: 0 it keeps all of them, 1 it does not.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")  # torch's profiler would tell when it begins and ends
    from hpo.home import Home
    from hpo_model.config import TokenizerChoice
    from hpo_model.data.corpus import load_corpus
    from hpo_model.data.tokens import tokenize_corpus
    from hpo_model.training.conformance import validate

    cache = Home.from_environment().cache
    text = load_corpus(str(data or "python-docs"), cache / "corpora")
    corpus = tokenize_corpus(text, TokenizerChoice(kind="bpe", vocabulary=512), cache / "tokens")
    broken = []
    for finding in validate(network, corpus):
        typer.echo(f"{finding.law:<17} {finding.state:<10} {finding.evidence}")
        broken += [finding.law] if finding.state == "broken" else []
    typer.echo(f"{network} breaks: {', '.join(broken)}" if broken else f"{network} keeps all laws; it may be studied")
    raise typer.Exit(1 if broken else 0)
