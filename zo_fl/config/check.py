"""The check of config values against their declarations (``engine.fields``)."""

import ast
import difflib
import math
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

from flax import traverse_util

from zo_fl.engine.fields import Block, ConfigError, Field

_SMALL, _LARGE, _WHOLE = 1.2e-38, 3.4e38, 2**31  # of float32 and int32, in which methods compute

# Names of other projects for what is called otherwise here.
_USUAL = {
    "learning_rate": "lr",
    "epsilon": "eps",
    "epochs": "local_epochs",
    "rounds": "num_rounds",
    "num_samples": "num_directions",
    "clients_per_round": "cohort_size",
    "optimizer": "server",
}


def defaults(block: Block) -> dict[str, Any]:
    """Returns a block's default values, nested as it is."""
    return {
        name: entry.usual if isinstance(entry, Field) else defaults(entry)
        for name, entry in block.items()
    }


def flat(block: Block) -> dict[str, Field]:
    """Returns all fields of a block by dotted name."""
    found: Any = traverse_util.flatten_dict(dict(block), sep=".")
    return found


def resolve(block: Block, given: Any, name: str = "") -> dict[str, Any]:
    """Returns the values of a block as plain Python, checked; absent ones are the defaults.

    Args:
      block: the declaration.
      given: what was given, nested as the block.
      name: the block's own, ``""`` for a whole config.

    Raises:
      ConfigError: an unknown field, or a value that is not allowed.
    """
    full = f"{name}." if name else ""
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"config.{name}={given!r} is not allowed; allowed: a block of {', '.join(block)}"
        )
    for field in given:
        if field not in block:
            known = [full + other for other in flat(block)]
            raise ConfigError(unknown(f"{full}{field}", known))
    return {
        field: checked(entry, full + field, given.get(field, entry.usual))
        if isinstance(entry, Field)
        else resolve(entry, given.get(field, {}), full + field)
        for field, entry in block.items()
    }


def checked(field: Field, name: str, value: Any) -> Any:
    """Returns the value given to a field, whose dotted name is ``name``, as plain Python.

    Raises:
      ConfigError: it is not allowed.
    """
    if field.zero and isinstance(value, str) and value == field.zero:
        return value
    plain, fits = _as(field.default, value)
    if fits and field.choices is not None:
        fits = plain in _choices(field)
    if fits and not isinstance(plain, bool | str):
        parts = plain if isinstance(plain, tuple) else (plain,)
        fits = all(_is_within(field, part) for part in parts)
    if not fits or (field.rule is not None and not field.rule.fits(plain)):
        before = ", which 0 meant before" if field.zero and plain == 0 else ""
        if isinstance(plain, int | float) and not _has_size(field, plain):
            before = f", of a size from {_SMALL:g} to {_LARGE:g}"
            before = f", below {_WHOLE}" if isinstance(plain, int) else before
        raise ConfigError(
            f"config.{name}={value!r} is not allowed; allowed: {allowed(field)}{before} "
            f"({field.meaning})"
        )
    return plain


def parse(field: Field, text: str) -> Any:
    """Returns the value that a text on a command line stands for; the text itself if for none."""
    try:
        if isinstance(field.default, bool):
            return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
        if isinstance(field.default, int | float):
            return type(field.default)(text)
        if isinstance(field.default, tuple):
            value = ast.literal_eval(text)
            return value if isinstance(value, list | tuple) else (value,)
    except (ValueError, KeyError, SyntaxError):
        pass
    return text


def allowed(field: Field) -> str:
    """Returns in words what a field may be."""
    if field.rule is not None:
        return field.rule.allowed()
    if field.choices is not None:
        return ", ".join(_choices(field))
    if isinstance(field.default, bool):
        return "true or false"
    if isinstance(field.default, str):
        return "a text"
    bounds = [
        f"{word} {bound:g}" if abs(bound) < 1e6 else f"{word} {bound:.0f}"
        for word, bound in (
            ("at least", field.at_least),
            ("above", field.above),
            ("at most", field.at_most),
            ("below", field.below),
        )
        if bound is not None
    ]
    kind = "an integer" if isinstance(field.default, int) else "a number"
    if isinstance(field.default, tuple):
        kind = "numbers" if _is_of_floats(field.default) else "integers"
        kind += ", each" if bounds else ""
    return f"{kind} {' and '.join(bounds)}".strip() + (f", or {field.zero}" if field.zero else "")


def near(name: str, known: Iterable[str]) -> list[str]:
    """Returns up to three names that are like one."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)


def unknown(name: str, known: Iterable[str]) -> str:
    """Returns the message for a field that does not exist, with some that are like it."""
    known = list(known)
    block, _, field = name.rpartition(".")
    usual = field.lower().replace("-", "_")
    usual = _USUAL.get(usual, usual)
    own = f"{block}.{usual}" if block else usual
    has_block = any(other.startswith(block.split(".")[0] + ".") for other in known)
    alike = [other for other in known if other.endswith(f".{usual}") and not has_block]
    siblings = [other for other in known if other.rpartition(".")[0] == block]
    shown = [own] if own in known else alike[:6] or near(name, known) or siblings[:6]
    hint = f"did you mean {' or '.join(f'config.{other}' for other in shown)}?" if shown else ""
    return f"unknown field config.{name}; {hint or 'zo-fl configs --all lists them all'}"


def _is_within(field: Field, value: float) -> bool:
    return (
        (field.at_least is None or value >= field.at_least)
        and (field.above is None or value > field.above)
        and (field.at_most is None or value <= field.at_most)
        and (field.below is None or value < field.below)
        and _has_size(field, value)
    )


def _has_size(field: Field, value: float) -> bool:
    if isinstance(value, int):
        return abs(value) < (field.below or _WHOLE)
    return value == 0 or _SMALL <= abs(value) <= _LARGE


def _choices(field: Field) -> list[str]:
    return list(field.choices() if callable(field.choices) else field.choices or ())


def _as(default: Any, value: Any) -> tuple[Any, bool]:
    """Returns a value as the plain type of the default, and whether it is of that kind."""
    if isinstance(default, bool):
        return bool(value), isinstance(value, bool) or type(value).__name__ in ("bool_", "bool")
    if isinstance(default, tuple):
        if not isinstance(value, list | tuple):
            return value, False
        parts = [_as(0.0 if _is_of_floats(default) else 0, part) for part in value]
        return tuple(part for part, _ in parts), all(fits for _, fits in parts)
    if isinstance(value, bool):
        return value, False
    if isinstance(default, int):
        fits = isinstance(value, numbers.Integral)
        return (int(value), True) if fits else (value, False)
    if isinstance(default, float):
        fits = isinstance(value, numbers.Real) and math.isfinite(value)
        return (float(value), True) if fits else (value, False)
    return value, isinstance(value, str)


def _is_of_floats(default: tuple) -> bool:
    return bool(default) and isinstance(default[0], float)
