"""What reports say, in each language: messages with named placeholders, one TOML file per language.

A message with `one` and `other` has a count `n`, which picks the form. Numbers look alike in all languages, with a
point before decimals and commas between thousands, as the Spanish log has them: figures can be searched for and pasted.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal, get_args

from hpo_reports.document import formats
from hpo_reports.document.markdown import Markdown, plain
from hpo_reports.document.tables import Value

Language = Literal["en", "es"]
LANGUAGES: tuple[Language, ...] = get_args(Language)
Message = str | Mapping[str, str]

SIGNS: Mapping[str, str] = {  # the verdicts of the logs, and of what they did not have
    "baseline": "⭐",
    "winner": "🏆",
    "better": "✅",  # by replicates
    "worse": "❌",
    "one_run": "❔",  # a difference that one run cannot establish
    "not_distinguishable": "🤷",
    "warning": "⚠️",
    "done": "✅",
    "partly": "⏳",
    "open": "❌",
}


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The messages of one language."""

    language: Language
    messages: Mapping[str, Message]  # by dotted key
    emoji: bool = True

    def __call__(self, key: str, /, **values: Value) -> Markdown:
        """The text of a message.

        Args:
            key: of the message.
            values: of its placeholders; text is escaped unless it is Markdown already. `n` picks singular or plural.
        """
        message = self.messages[key]
        if not isinstance(message, str):
            message = message["one" if values["n"] == 1 else "other"]
        return Markdown(message.format(**{name: _shown(name, value) for name, value in values.items()}))

    def listed(self, items: Iterable[Value], last: Literal["and", "or", "comma"] = "comma") -> Markdown:
        """Things in a row, the last two joined by a word."""
        shown = [plain(item) for item in items]
        if last == "comma" or len(shown) < 2:
            return Markdown(", ".join(shown))
        word = self(f"list.{last}")
        return Markdown(f"{', '.join(shown[:-1])} {word} {shown[-1]}")

    def sign(self, name: str) -> str:
        """An emoji and a blank; nothing where emoji are off."""
        return f"{SIGNS[name]} " if self.emoji else ""


@functools.cache
def catalogue(language: Language, *, emoji: bool = True) -> Catalogue:
    """The messages of a language."""
    return Catalogue(language=language, messages=load_messages(language), emoji=emoji)


def load_messages(language: Language) -> Mapping[str, Message]:
    """Read the file of a language, its tables flattened to dotted keys."""
    content = tomllib.loads(
        (files("hpo_reports.document") / "messages" / f"{language}.toml").read_text(encoding="utf-8")
    )
    return {f"{section}.{name}": message for section, messages in content.items() for name, message in messages.items()}


def _shown(name: str, value: Value) -> str:
    is_count = name == "n" and isinstance(value, int | float)
    return formats.count(value) if is_count else plain(value)  # type: ignore[arg-type]
