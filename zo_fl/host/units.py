"""Numbers as people read them. A missing or non-finite number is an en dash."""

import math
from numbers import Real
from typing import Any, TypeGuard

NONE = "–"


def is_number(value: Any) -> TypeGuard[float]:
    """Returns whether a value is a finite number; values that are read from files may not be."""
    return isinstance(value, Real) and math.isfinite(value)


def num_bytes(count: float | None) -> str:
    """Returns bytes in decimal units and three digits: ``44.7 MB``, ``1.34 GB``, ``12 B``."""
    if not is_number(count):
        return NONE
    size, units = float(count), ["B", "kB", "MB", "GB", "TB"]
    while abs(size) >= 999.5 and len(units) > 1:  # 999.5 would be rounded to 1000
        size /= 1000
        units.pop(0)
    is_whole = units[0] == "B" and (size >= 10 or size == round(size))
    digits = 0 if is_whole or size >= 99.95 else 1 if size >= 9.995 else 2
    return f"{size:.{digits}f} {units[0]}"


def duration(seconds: float | None) -> str:
    """Returns seconds as ``h:mm:ss``, or ``m:ss`` below an hour."""
    if not is_number(seconds):
        return NONE
    minutes, rest = divmod(round(max(seconds, 0)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def percent(fraction: float | None) -> str:
    """Returns a fraction in [0, 1] as ``23.4 %``."""
    return f"{100 * fraction:.1f} %" if is_number(fraction) else NONE


def points(difference: float | None) -> str:
    """Returns a difference of two fractions in percentage points: ``+9.3 points``."""
    return f"{100 * difference:+.1f} points" if is_number(difference) else NONE


def integer(count: float | None) -> str:
    """Returns a count with thousands separated: ``1,234,567``."""
    return f"{round(count):,}" if is_number(count) else NONE


def loss(value: float | None) -> str:
    """Returns a loss in at most 9 characters: ``1.234``, ``2.3e+07``."""
    if not is_number(value):
        return NONE
    return f"{value:.3f}" if abs(value) < 1000 else f"{value:.1e}"
