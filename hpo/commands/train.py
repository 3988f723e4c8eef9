"""`hpo train`: the long run, of a study's trial or of a preset."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import typer

from hpo.commands.options import INTERRUPTED, DataOption, StorageOption
from hpo_model.config import LearningRateSchedule, TokenizerChoice, TokenizerKind
from hpo_reports.projection.horizon import LONG_RUN_EPOCHS

FAILED = 3  # exit code of a run that diverged or found no memory, as `hpo watch` has it for studies


def train(
    study: Annotated[str | None, typer.Option("--from", metavar="STUDY", help="A study that `hpo run` made.")] = None,
    trial: Annotated[
        str,
        typer.Option(metavar="N|best", help="Whose configuration; best: the finalists' winner, else the lowest loss."),
    ] = "best",
    preset: Annotated[str | None, typer.Option(metavar="NAME", help="A preset instead of a study.")] = None,
    corpus: Annotated[
        str | None, typer.Option(metavar="NAME|PATH", help="Text for a preset; default: auto, as studies have it.")
    ] = None,
    tokenizer: Annotated[TokenizerKind | None, typer.Option(help="For a preset; default: bpe.")] = None,
    vocabulary: Annotated[
        int | None, typer.Option(help="Tokens at most, for a preset; default: 8,192 of bpe, every one of word.")
    ] = None,
    epochs: Annotated[int, typer.Option(help="Passes over the training text.")] = LONG_RUN_EPOCHS,
    batch_size: Annotated[int | None, typer.Option(help="Sequences per update.")] = None,
    lr: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    schedule: Annotated[LearningRateSchedule | None, typer.Option(help="Of the learning rate.")] = None,
    dropout: Annotated[float | None, typer.Option(help="Share of activations that training drops.")] = None,
    lambda_phi: Annotated[float | None, typer.Option(help="Weight of the Φ term.")] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, order of the text, dropout, noise.")] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="Any other value of a run, again and again.")
    ] = None,
    patience: Annotated[
        int | None, typer.Option(metavar="N", help="Stop after N evaluations without a new lowest validation loss.")
    ] = None,
    micro_batch: Annotated[
        int | None, typer.Option(metavar="N", help="Sequences at once; gradients of a batch add up. For little memory.")
    ] = None,
    tensorboard: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write event files there; needs the extra `tensorboard`.")
    ] = None,
    data: DataOption = None,
    storage: StorageOption = None,
) -> None:
    """Train a trial's or a preset's configuration for long; run it again to go on after an interruption.

    Exit codes: 0 complete or stopped, 1 a wrong argument, 3 it diverged or found no memory, 130 interrupted.
    """
    from hpo.dashboard.publishing import publish_quietly
    from hpo.database.url import storage_url
    from hpo.errors import UsageError
    from hpo.home import Home
    from hpo.long_run.request import PresetRequest, TrialRequest, prepare_preset_run, prepare_trial_run, read_values
    from hpo.long_run.run import RuntimeOptions, describe, run_long

    if (study is None) == (preset is None):
        raise UsageError("one of --from STUDY and --preset NAME says what to train")
    options = RuntimeOptions(patience=patience, micro_batch=micro_batch, event_files=tensorboard)
    named = dict(learning_rate=lr, learning_rate_schedule=schedule, batch_size=batch_size)
    named |= dict(dropout=dropout, lambda_phi=lambda_phi, seed=seed)
    values = read_values(settings or []) | {name: value for name, value in named.items() if value is not None}
    home = Home.from_environment()
    url = storage_url(storage, home)
    if study is not None:
        _belong("--preset", {"--corpus": corpus, "--tokenizer": tokenizer, "--vocabulary": vocabulary})
        wanted = TrialRequest(study=study, trial=_trial(trial), epochs=epochs, values=values, data=data)
        run = prepare_trial_run(url, home, wanted)
    else:
        _belong("--from STUDY", {"--trial": None if trial == "best" else trial, "--storage": storage})
        if corpus is not None and data is not None:
            raise UsageError("--corpus and --data both say what text to read; give one of them")
        text, choice = str(corpus or data or "auto"), _choice(tokenizer, vocabulary)
        made = PresetRequest(preset=str(preset), corpus=text, tokenizer=choice, epochs=epochs, values=values)
        run = prepare_preset_run(home, made)
    times = "1 epoch" if epochs == 1 else f"{epochs} epochs"
    typer.echo(f"{run.title} for {times}, {run.config.training.budget_tokens:,} tokens")
    try:
        result = run_long(run, options)
    except KeyboardInterrupt:
        typer.echo("interrupted; the same command goes on from the last evaluation", err=True)
        raise typer.Exit(INTERRUPTED) from None
    for line in describe(run, result):
        typer.echo(line)
    if study is not None:
        publish_quietly(url, study, typer.echo)
    if result.outcome in ("diverged", "out_of_memory"):
        raise typer.Exit(FAILED)


def _belong(other: str, options: Mapping[str, object]) -> None:
    """Refuse options that go with the other way to say what is trained."""
    from hpo.errors import UsageError

    for option, given in options.items():
        if given is not None:
            raise UsageError(f"{option} belongs to {other}, which says what is trained instead")


def _trial(text: str) -> int | None:
    from hpo.errors import UsageError

    if text == "best":
        return None
    if not text.isdecimal():
        raise UsageError(f"--trial takes a number or best, got {text!r}")
    return int(text)


def _choice(kind: TokenizerKind | None, vocabulary: int | None) -> TokenizerChoice:
    return TokenizerChoice(kind=kind or "bpe", vocabulary=vocabulary or 0)
