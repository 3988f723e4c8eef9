"""`hpo generate`: text from a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpo.commands.options import NetworkOption, StorageOption

if TYPE_CHECKING:
    from hpo.inference.generate import GeneratedText
    from hpo_model.generation.trained import Trained


def generate(
    checkpoint: Annotated[
        str, typer.Argument(metavar="CHECKPOINT", help="A file, STUDY (its best trial) or STUDY:TRIAL.")
    ],
    prompt: Annotated[str | None, typer.Option(metavar="TEXT", help="What the text begins with.")] = None,
    prompts: Annotated[Path | None, typer.Option(metavar="FILE", help="Prompts, one per line.")] = None,
    max_tokens: Annotated[int, typer.Option(metavar="N", help="Tokens after the prompt.")] = 100,
    temperature: Annotated[float | None, typer.Option(metavar="X", help="0: the likeliest token; default 0.8.")] = None,
    top_p: Annotated[float | None, typer.Option(metavar="X", help="Nucleus; 1: all tokens; default 0.95.")] = None,
    top_k: Annotated[int | None, typer.Option(metavar="N", help="The N likeliest tokens; default 0: all.")] = None,
    min_p: Annotated[
        float | None, typer.Option(metavar="X", help="Tokens X times as likely as the likeliest; default 0.")
    ] = None,
    repetition_penalty: Annotated[
        float | None, typer.Option(metavar="X", help="Divides logits of tokens of prompt and text; default 1.")
    ] = None,
    frequency_penalty: Annotated[
        float | None, typer.Option(metavar="X", help="Off a logit for each time that the text has it; default 0.")
    ] = None,
    presence_penalty: Annotated[
        float | None, typer.Option(metavar="X", help="Off a logit once if the text has it; default 0.")
    ] = None,
    beams: Annotated[int, typer.Option(metavar="N", help="Beam search instead of sampling.")] = 0,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Of the draws; default 1.")] = None,
    samples: Annotated[int, typer.Option(metavar="N", help="Texts per prompt.")] = 1,
    one_line: Annotated[bool, typer.Option("--one-line", help="A text ends with its line.")] = False,
    stream: Annotated[
        bool | None, typer.Option("--stream/--no-stream", help="Show a single text while it is made; default: show.")
    ] = None,
    phi: Annotated[bool, typer.Option("--phi", help="Φ of what the network saw, for each token.")] = False,
    json: Annotated[bool, typer.Option("--json", help="One JSON object per text, a line each.")] = False,
    network: NetworkOption = None,
    storage: StorageOption = None,
) -> None:
    """Write on from a prompt with a trained network."""
    from hpo.errors import UsageError
    from hpo.home import Home
    from hpo.inference.find import find_checkpoint, open_checkpoints
    from hpo.inference.generate import GenerateRequest, generate_texts, read_prompts, sampling_of, stream_text

    values = {
        "temperature": temperature,
        "top_p": top_p,
        "top_k": top_k,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "frequency_penalty": frequency_penalty,
        "presence_penalty": presence_penalty,
        "seed": seed,
    }
    request = GenerateRequest(
        sampling=sampling_of(values, beams),
        max_tokens=max_tokens,
        samples=samples,
        beams=beams,
        one_line=one_line,
        phi=phi,
    )
    texts = read_prompts(prompt, prompts)
    streamable = len(texts) == samples == 1 and not (beams or phi or json)
    if stream and not streamable:
        raise UsageError("--stream shows one sampled text; leave out --prompts, --samples, --beams, --phi and --json")
    [trained] = open_checkpoints([find_checkpoint(checkpoint, storage, Home.from_environment())], network or [])
    if streamable and stream is not False:
        made = stream_text(trained, texts[0], request, lambda piece: typer.echo(piece, nl=False))
        typer.echo()
        _warn(made, trained)
        return
    for made in generate_texts(trained, texts, request):
        typer.echo(_json(made) if json else _shown(made, alone=len(texts) == samples == 1))
        _warn(made, trained)


def _json(made: GeneratedText) -> str:
    import dataclasses
    import json

    return json.dumps(dataclasses.asdict(made), ensure_ascii=False)


def _shown(made: GeneratedText, *, alone: bool) -> str:
    parts = [] if alone else [f"--- {made.prompt[:40]!r}, {made.sample + 1}"]
    if made.mean_nats is not None:
        parts.append(f"--- {made.mean_nats:.3f} nats per token")
    parts.append(made.prompt + made.text)
    for step in made.steps or ():
        parts.append(f"{'     —' if step.phi is None else f'{step.phi:.4f}'}  {step.text!r}")
    return "\n".join(parts)


def _warn(made: GeneratedText, trained: Trained) -> None:
    if made.unknown_words:
        typer.echo(f"{made.unknown_words} words of the prompt are unknown to the network; it read <unk>", err=True)
    if made.context_truncations:
        length = trained.config.architecture.sequence_length
        typer.echo(
            f"the text outgrew the {length} tokens that the network sees at once: {made.context_truncations} times it "
            f"went on from the last {length // 2} alone",
            err=True,
        )
