"""The model card of an exported network: Markdown, every sentence from a number of its run."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from hpo_model.config import RunConfig
from hpo_model.data.corpus import WIKITEXT
from hpo_model.generation.exporting import Program
from hpo_model.generation.trained import Trained
from hpo_model.training.history import Evaluation
from hpo_reports.document.markdown import aligned_table

MISSING = "–"
LICENCES: Mapping[str, str] = {
    **dict.fromkeys(WIKITEXT, "CC BY-SA 3.0 and GFDL: articles of Wikipedia, by their authors"),
    "python-docs": "PSF License Agreement: documentation of Python",
    "markov": "none: this program made it",
}


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What a card is about."""

    named: str  # what the user called it
    checkpoint: str  # the name of its file, and of the folder
    checkpoint_digest: str  # SHA-256
    trained: Trained
    program: Program
    files: Mapping[str, tuple[int, str]]  # bytes and SHA-256 of each, the card itself excepted
    versions: Mapping[str, str]


def model_card(subject: Subject) -> str:
    """The whole card."""
    parts = (
        _head(subject),
        _loading(subject),
        _data(subject.trained),
        _training(subject.trained.config, subject.trained.history),
        _results(subject.trained.history),
        _limits(subject),
        _files(subject),
    )
    return "\n\n".join("\n".join(part) for part in parts) + "\n"


def _head(subject: Subject) -> list[str]:
    shape, trained = subject.trained.config.architecture, subject.trained
    parameters = sum(each.numel() for each in trained.network.parameters())
    kind = "code of the user's own" if shape.network else "a causal transformer"
    arm = "with the Φ term" if shape.iit else "without the Φ term (control arm)"
    return [
        f"# {_plain(subject.named)}",
        "",
        f"A language model of {parameters:,} parameters, {kind}, trained {arm}: it predicts the next of "
        f"{trained.tokenizer.vocabulary:,} tokens ({trained.tokenizer.kind}) from up to "
        f"{shape.sequence_length} tokens. Made for experiments, not for use.",
    ]


def _loading(subject: Subject) -> list[str]:
    return [
        "## How to load",
        "",
        "In this folder, with `torch` and `tokenizers` and nothing else:",
        "",
        "```python",
        *_example(subject),
        "```",
        "",
        f"The program `model.pt2` takes int64 tokens ({subject.program.freedom}) and gives next-token logits. It is in "
        "evaluation mode and its memory is frozen. Read back, its logits differed from the network's by "
        f"{subject.program.difference:.2g}. With this program's package, the weights alone:",
        "",
        "```python",
        "import json",
        "from pathlib import Path",
        "from hpo_model.config import build_run",
        "from hpo_model.generation.exporting import load_weights",
        "from hpo_model.network.custom import build_network",
        "",
        'config = json.loads(Path("config.json").read_text())',
        'network = build_network(build_run(config["run"]).architecture, config["vocabulary"]).eval()',
        'load_weights(network, Path("model.safetensors"))',
        "```",
    ]


def _example(subject: Subject) -> list[str]:
    tokenizer, length = subject.trained.tokenizer, subject.trained.config.architecture.sequence_length
    prompt = '"The history of"'
    window = "seen = ids[-LENGTH:]"
    padded = "seen" if subject.program.freedom == "any batch, any length" else "seen + [0] * (LENGTH - len(seen))"
    lines = '.replace("\\n", " <eos> ")' if tokenizer.kind == "word" else ""
    back = '.replace("<eos>", "\\n")' if tokenizer.kind == "word" else ""
    return [
        "import torch",
        "from tokenizers import Tokenizer",
        "",
        f"LENGTH, START = {length}, {tokenizer.start_id}  # tokens that it sees at once; the one before the first",
        'tokenizer = Tokenizer.from_file("tokenizer.json")',
        'network = torch.export.load("model.pt2").module()',
        f"ids = [START, *tokenizer.encode({prompt}{lines}, add_special_tokens=False).ids]",
        "with torch.no_grad():",
        "    for _ in range(40):",
        f"        {window}",
        f"        logits = network(torch.tensor([{padded}]))[0, len(seen) - 1]",
        "        ids.append(int(torch.multinomial((logits / 0.8).softmax(0), 1)))",
        f"print(tokenizer.decode(ids[1:], skip_special_tokens=False){back})",
    ]


def _data(trained: Trained) -> list[str]:
    licence = LICENCES.get(trained.corpus_source, "not known to this program: it is text of the user's own")
    return [
        "## Data",
        "",
        f"- Text: {_plain(trained.corpus_name)}, digest `{trained.corpus_digest}`",
        f"- Licence of the text: {licence}",
        f"- Tokenizer: {trained.tokenizer.kind}, {trained.tokenizer.vocabulary:,} tokens, trained on the "
        f"training split, digest `{trained.tokenizer.digest}`",
    ]


def _training(config: RunConfig, history: tuple[Evaluation, ...]) -> list[str]:
    last = history[-1] if history else None
    read = f"{last.tokens:,} tokens ({last.epoch:.2f} passes)" if last else "nothing"
    rows = [(f"`{name}`", f"`{value}`") for name, value in config.parameters().items()]
    return [
        "## Training",
        "",
        f"It read {read} of a budget of {config.training.budget_tokens:,}, in batches of "
        f"{config.training.batch_size} × {config.architecture.sequence_length}. Seed {config.training.seed} decides "
        f"initial weights, order of the data, dropout and noise. Digest of the run: `{config.digest()}`.",
        "",
        aligned_table(("value", ""), rows, (False, False)),
    ]


def _results(history: tuple[Evaluation, ...]) -> list[str]:
    if not history:
        return ["## Results", "", "It was never evaluated."]
    last = history[-1]
    rows = [
        ("validation loss (nats per token)", _number(last.val_loss, 4)),
        ("perplexity per token (not comparable across tokenizers)", _number(last.val_ppl, 2)),
        ("perplexity per word", _number(last.val_word_ppl, 2)),
        ("bits per byte", _number(last.val_bits_per_byte, 3)),
        ("perplexity per token on training text", _number(last.train_ppl, 2)),
        ("Φ", _number(last.phi, 4)),
        ("temporal coherence", _number(last.temporal_coherence, 4)),
        ("integration", _number(last.integration, 4)),
        ("complexity", _number(last.complexity, 4)),
        ("attention diversity", _number(last.attention_diversity, 4)),
    ]
    on = "the full validation split" if last.whole_split else "a fixed sample of the validation split"
    return [
        "## Results",
        "",
        f"On {on}, one run:",
        "",
        aligned_table(("measure", "value"), rows, (False, True)),
    ]


def _limits(subject: Subject) -> list[str]:
    trained = subject.trained
    limits = [
        f"- It sees {trained.config.architecture.sequence_length} tokens; what came before is forgotten.",
        f"- It knows the text named above and nothing else: {trained.history[-1].tokens:,} tokens of it."
        if trained.history
        else "- It has learned nothing.",
        "- Nothing was done against false, harmful or private content of that text, which it may repeat.",
        "- Its figures are those of one seed: they say nothing about what another seed would give.",
    ]
    if trained.tokenizer.kind == "word":
        limits.append("- Words that it does not know are `<unk>`, and it writes `<unk>` itself.")
    if trained.config.architecture.iit:
        limits.append("- Φ is a regulariser over hidden states and attention, not a measure of consciousness.")
    return ["## Limits", "", *limits]


def _files(subject: Subject) -> list[str]:
    rows = [(f"`{name}`", f"{size:,}", f"`{digest}`") for name, (size, digest) in subject.files.items()]
    versions = ", ".join(f"{name} {number}" for name, number in subject.versions.items())
    code = subject.trained.source
    return [
        "## Files",
        "",
        aligned_table(("file", "bytes", "SHA-256"), rows, (False, True, False)),
        "",
        f"From the checkpoint {_plain(subject.checkpoint)} of SHA-256 `{subject.checkpoint_digest}`, by {versions}."
        + (f" Code of the network `{subject.trained.config.architecture.network}`: digest `{code}`." if code else ""),
    ]


def _number(value: float | None, digits: int) -> str:
    return MISSING if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def _plain(text: str) -> str:
    """A user's words as text: Markdown and HTML in them mean nothing."""
    return re.sub(r"([\\`*_{}\[\]()<>#+!|~&-])", r"\\\1", " ".join(text.split()))
