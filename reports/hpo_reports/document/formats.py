"""How numbers, times and curves look in text."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

MISSING = "–"
BARS = "▁▂▃▄▅▆▇█"


def number(value: float | None) -> str:
    """A number to four significant digits, without an exponent where people would write none."""
    if value is None:
        return MISSING
    return f"{value:,.0f}" if 1e4 <= abs(value) < 1e12 else f"{value:.4g}"


def count(value: float | None) -> str:
    """A whole number with its thousands apart."""
    return MISSING if value is None else f"{value:,.0f}"


def perplexity(value: float | None) -> str:
    """A perplexity to two decimals."""
    return fixed(value, 2)


def bits_per_byte(value: float | None) -> str:
    """Bits per byte to three decimals."""
    return fixed(value, 3)


def phi(value: float | None) -> str:
    """Φ or its loss to four decimals."""
    return fixed(value, 4)


def fixed(value: float | None, decimals: int) -> str:
    """A number to so many decimals, unless it is too large for them to mean anything."""
    if value is None:
        return MISSING
    return f"{value:,.{decimals}f}" if abs(value) < 1e6 else number(value)


def duration(seconds: float | None) -> str:
    """A time span in the unit that suits it."""
    if seconds is None:
        return MISSING
    if seconds < 59.5:
        return f"{seconds:.0f} s" if seconds >= 9.95 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"


def hours(seconds: float | None) -> str:
    """A time span in hours, for sums."""
    return MISSING if seconds is None else f"{fixed(seconds / 3600, 2)} h"


def epochs(value: float | None) -> str:
    """Passes over the training text, to three digits."""
    return MISSING if value is None else f"{value:.3g}"


def percent(value: float | None) -> str:
    """Per cent to one decimal, without the sign."""
    return fixed(value, 1)


def moment(epoch_s: float | None) -> str:
    """A point in time, in UTC."""
    try:
        return MISSING if epoch_s is None else f"{datetime.fromtimestamp(epoch_s, UTC):%Y-%m-%d %H:%M} UTC"
    except (OverflowError, OSError, ValueError):  # beyond the calendar
        return MISSING


def sparkline(values: Sequence[float | None], low: float, high: float) -> str:
    """A bar per value, its height between `low` and `high`; a dot where a value is missing."""
    span = (high / 2 - low / 2) or 1.0  # of halves, so that no difference overflows
    heights = (None if value is None else (min(max(value, low), high) / 2 - low / 2) / span for value in values)
    return "".join("·" if height is None else BARS[round(height * (len(BARS) - 1))] for height in heights) or MISSING
