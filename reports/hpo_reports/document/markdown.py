"""Values and tables as GitHub Markdown. Text that people gave is escaped; a missing value is a dash."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Mapping, Sequence

from hpo_reports.document.formats import (
    MISSING,
    bits_per_byte,
    count,
    duration,
    epochs,
    number,
    perplexity,
    phi,
    sparkline,
)
from hpo_reports.document.tables import PARAMETER, Table, Value

MAX_CELL = 300  # characters of a text in a table; a log's path still fits

_ENTITIES = str.maketrans({"&": "&amp;", "<": "&lt;", ">": "&gt;"})
_SPECIAL = re.compile(r"[\\`*\[|~$#]|(?<![^\W_])_|_(?![^\W_])")  # an underscore inside a word is a letter
_LEADING = re.compile(r"^([+\-=]|\d{1,9}[.)](?=\s|$))")


class Markdown(str):
    """Text that is Markdown already, and is not escaped again."""

    __slots__ = ()


def escape(text: str) -> str:
    """Text as one line of Markdown that shows it and does nothing else.

    Args:
        text: anything; white space, line ends included, becomes single blanks.
    """
    printable = "".join(character if character.isprintable() else " " for character in text)
    line = _SPECIAL.sub(r"\\\g<0>", " ".join(printable.split()))
    line = _LEADING.sub(lambda found: f"{found[0][:-1]}\\{found[0][-1]}", line)
    return line.translate(_ENTITIES) or MISSING


def plain(value: Value) -> str:
    """A value in a sentence: text escaped, numbers to four significant digits, a dash for none."""
    if isinstance(value, Markdown):
        return value
    if value is None or isinstance(value, tuple):
        return MISSING
    if isinstance(value, str):
        return escape(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value) if isinstance(value, int) else number(value)


def markdown_table(
    table: Table,
    labels: Mapping[str, str],
    bold: int | None = None,
    scale: tuple[float, float] = (0.0, 0.0),
    formats: Mapping[str, Callable[..., str]] | None = None,
) -> Markdown:
    """A GitHub table, its columns aligned for those who read the source.

    Args:
        table: what to show.
        labels: heading by column name; a parameter without one is headed by its own name.
        bold: number of the trial whose number is set in bold.
        scale: lowest and highest value of the curves; one scale, so that rows compare.
        formats: how the values of a column look, where it is not as usual.
    """
    formats = {**_FORMATS, "curve": lambda curve: sparkline(curve, *scale), **(formats or {})}
    columns = [
        [_text(formats.get(name, plain), value) for value in values]
        for name, values in zip(table.columns, _transposed(table), strict=True)
    ]
    if bold is not None and "number" in table.columns:
        place = table.columns.index("number")
        columns[place] = [f"**{cell}**" if cell == str(bold) else cell for cell in columns[place]]
    headings = [labels.get(name) or escape(name.removeprefix(PARAMETER)) for name in table.columns]
    right = [_is_numeric(values) for values in _transposed(table)]
    return aligned_table(headings, list(zip(*columns, strict=True)), right)


def aligned_table(
    headings: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], *, pad_last: bool = False
) -> Markdown:
    """A GitHub table of cells that are Markdown already, its columns padded to one width.

    Args:
        headings: of the columns.
        rows: cells, as many as there are headings.
        right: whether a column is set to the right.
        pad_last: whether the last column is padded as well, for a terminal; in a file nothing follows it.
    """
    widths = [max(3, *map(_width, column)) for column in zip(headings, *rows, strict=True)]
    if not pad_last:
        widths[-1] = 3
    rules = [
        f"{'-' * (width - 1)}:" if is_right else "-" * width for width, is_right in zip(widths, right, strict=True)
    ]
    lines = (" | ".join(map(_padded, row, widths, right)) for row in (headings, rules, *rows))
    return Markdown("\n".join(f"| {line} |" for line in lines))


def _padded(cell: str, width: int, is_right: bool) -> str:
    blanks = " " * (width - _width(cell))
    return blanks + cell if is_right else cell + blanks


def _width(text: str) -> int:
    """Columns that a text takes in a terminal: two for a wide sign."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def _transposed(table: Table) -> list[tuple[Value, ...]]:
    return list(zip(*table.rows, strict=True)) if table.rows else [() for _ in table.columns]


def _is_numeric(values: Sequence[Value]) -> bool:
    present = [value for value in values if value is not None]
    return bool(present) and all(isinstance(value, int | float) for value in present)


def _text(format_value: Callable[..., str], value: Value) -> str:
    if isinstance(value, str) and len(value) > MAX_CELL:
        value = value[: MAX_CELL - 1] + "…"
    return format_value(value)


_FORMATS: Mapping[str, Callable[..., str]] = {
    "val_ppl": perplexity,
    "last_val_ppl": perplexity,
    "val_word_ppl": perplexity,
    "train_ppl": perplexity,
    "val_bits_per_byte": bits_per_byte,
    "phi": phi,
    "train_phi": phi,
    "delta_phi_loss": phi,
    "seconds": duration,
    "tokens": count,
    "epoch": epochs,
}
