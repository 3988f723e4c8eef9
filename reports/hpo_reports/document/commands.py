"""What a report offers to copy: shell commands and a configuration."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Mapping

from hpo_reports.projection.horizon import LONG_RUN_EPOCHS
from hpo_reports.records.attributes import Scalar

QUICK_RUN_EPOCHS = 1  # the shortest that `hpo train` knows
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def run_command(study_name: str) -> str:
    """The command that adds trials to a study."""
    return f"hpo run --study {shell_quoted(study_name)}"


def train_command(study_name: str, trial_number: int, epochs: int = LONG_RUN_EPOCHS) -> str:
    """The command for the long run with a trial's configuration."""
    return f"hpo train --from {shell_quoted(study_name)} --trial {trial_number} --epochs {epochs}"


def text_commands(study_name: str, trial_number: int) -> str:
    """The commands that measure a trial's text, and write some."""
    checkpoint = shell_quoted(f"{study_name}:{trial_number}")
    return f'hpo evaluate {checkpoint}\nhpo generate {checkpoint} --prompt " The"'


def replicate_command(study_name: str) -> str:
    """The command that runs the best configurations and the baseline under fresh seeds."""
    return f"hpo replicate {shell_quoted(study_name)}"


def shell_quoted(text: str) -> str:
    """Text as one word of a shell command on one line."""
    if text.isprintable():
        return shlex.quote(text)
    escaped = "".join(_shell_escaped(character) for character in text)
    return f"$'{escaped}'"  # bash and zsh; POSIX since 2024


def toml_lines(parameters: Mapping[str, Scalar]) -> list[str]:
    """Parameters as TOML, a line each; what has no value has no line."""
    return [f"{_key(name)} = {_toml(value)}" for name, value in parameters.items() if value is not None]


def configuration_toml(parameters: Mapping[str, Scalar]) -> str:
    """A run as a study file takes it: values for `[run]`, and `[model]` where the network is code of the user's own."""
    own = {name: value for name, value in parameters.items() if name == "network" and value}
    lines = toml_lines({name: value for name, value in parameters.items() if name != "network"})
    return "\n".join([*lines, "", "[model]", *toml_lines(own)] if own else lines)


def _shell_escaped(character: str) -> str:
    if character in "\\'":
        return "\\" + character
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in character.encode())


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _toml(name)


def _toml(value: Scalar) -> str:
    if not isinstance(value, str):
        return json.dumps(value)
    quoted = json.dumps(value, ensure_ascii=False)  # JSON's escapes are TOML's
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
