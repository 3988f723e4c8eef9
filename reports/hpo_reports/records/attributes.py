"""Read facts out of JSON that may be missing, partial, or written by another program.

A fact of another type than expected is a missing one, and so is a number that is not finite.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

Scalar = bool | int | float | str | None


def section(content: Mapping[str, object], key: str) -> Mapping[str, object]:
    """The object under a key; an empty one where there is none."""
    value = content.get(key)
    return value if isinstance(value, Mapping) else {}


def entries(content: Mapping[str, object], key: str) -> list[Mapping[str, object]]:
    """The objects in the list under a key."""
    value = content.get(key)
    return [entry for entry in value if isinstance(entry, Mapping)] if isinstance(value, list | tuple) else []


def text(content: Mapping[str, object], key: str) -> str | None:
    """The text under a key, with what UTF-8 cannot write replaced."""
    value = content.get(key)
    return writable(value) if isinstance(value, str) else None


def truth(content: Mapping[str, object], key: str) -> bool | None:
    """The truth value under a key."""
    value = content.get(key)
    return value if isinstance(value, bool) else None


def number(content: Mapping[str, object], key: str) -> float | None:
    """The finite number under a key; whole numbers stay whole."""
    return finite(content.get(key))


def whole(content: Mapping[str, object], key: str) -> int | None:
    """The whole number under a key."""
    value = number(content, key)
    return int(value) if value is not None and value == int(value) else None


def finite(value: object) -> float | None:
    """The value if it is a finite number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return value if math.isfinite(value) else None
    except OverflowError:  # a whole number beyond the largest float
        return None


def scalar(value: object) -> Scalar:
    """A parameter's value as plain data; Optuna allows any object among the choices of a category."""
    if isinstance(value, bool) or value is None:
        return value
    if isinstance(value, int | float):
        return finite(value)
    return writable(value if isinstance(value, str) else str(value))


def scalars(content: Mapping[str, object]) -> dict[str, Scalar]:
    """A flat set of named values."""
    return {writable(str(name)): scalar(value) for name, value in content.items()}


def writable(value: str) -> str:
    """The text with lone surrogates replaced: undecodable file names contain them, UTF-8 cannot."""
    return value.encode("utf-8", "replace").decode("utf-8")
