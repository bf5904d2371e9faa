"""Declarations of config fields: default, type, allowed values, meaning; and their check.

A field is declared once, beside the function that takes it. Its type is that of its default: an
int field takes integers only, a float field any finite number, a tuple field tuples or lists of
what its default has (integers if it is empty), each within the bounds. Pure Python: what reads
declarations need not import JAX.
"""

import ast
import difflib
import math
import numbers
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

from zo_fl.engine.errors import ConfigError


class Rule(NamedTuple):
    """A condition on a value that neither choices nor bounds can express.

    Attributes:
      allowed: in words.
      fits: whether a value is so.
    """

    allowed: Callable[[], str]
    fits: Callable[[Any], bool]


class Field(NamedTuple):
    """One field of a config block.

    Attributes:
      default: also says the type: bool, int, float, str, or tuple of ints or of floats.
      meaning: a few words.
      choices: allowed texts, or what gives them; None allows any.
      at_least: smallest allowed number.
      above: the number must be larger.
      at_most: largest allowed number.
      below: the number must be smaller.
      rule: for what is none of these.
      varies: whether runs that differ in it can be one program, to which it is an argument: a
        number by which nothing is decided in Python.
    """

    default: Any
    meaning: str
    choices: Sequence[str] | Callable[[], Iterable[str]] | None = None
    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    rule: Rule | None = None
    varies: bool = False

    def allowed(self) -> str:
        """Returns in words what the field may be."""
        if self.rule is not None:
            return self.rule.allowed()
        if self.choices is not None:
            return ", ".join(self._choices())
        if isinstance(self.default, bool):
            return "true or false"
        if isinstance(self.default, str):
            return "a text"
        bounds = [
            f"{word} {bound:g}" if abs(bound) < 1e6 else f"{word} {bound:.0f}"
            for word, bound in (
                ("at least", self.at_least),
                ("above", self.above),
                ("at most", self.at_most),
                ("below", self.below),
            )
            if bound is not None
        ]
        kind = "an integer" if isinstance(self.default, int) else "a number"
        if isinstance(self.default, tuple):
            kind = "numbers" if _is_of_floats(self.default) else "integers"
            kind += ", each" if bounds else ""
        return f"{kind} {' and '.join(bounds)}".strip()

    def resolve(self, name: str, value: Any) -> Any:
        """Returns a value as plain Python.

        Args:
          name: of the field, with its block: ``zo.eps``.
          value: what was given.

        Raises:
          ConfigError: it is not allowed.
        """
        plain, fits = _as(self.default, value)
        if fits and self.choices is not None:
            fits = plain in self._choices()
        if fits and not isinstance(plain, bool | str):
            fits = all(map(self._within, plain if isinstance(plain, tuple) else (plain,)))
        if not fits or (self.rule is not None and not self.rule.fits(plain)):
            raise ConfigError(
                f"config.{name}={value!r} is not allowed; allowed: {self.allowed()} "
                f"({self.meaning})"
            )
        return plain

    def parse(self, text: str) -> Any:
        """Returns the value that a text on a command line stands for; the text if for none."""
        try:
            if isinstance(self.default, bool):
                return {"true": True, "false": False, "1": True, "0": False}[text.lower()]
            if isinstance(self.default, int | float):
                return type(self.default)(text)
            if isinstance(self.default, tuple):
                value = ast.literal_eval(text)
                return value if isinstance(value, list | tuple) else (value,)
        except (ValueError, KeyError, SyntaxError):
            pass
        return text

    def _within(self, value: float) -> bool:
        return (
            (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )

    def _choices(self) -> list[str]:
        return list(self.choices() if callable(self.choices) else self.choices or ())


Taken = TypeVar("Taken", bound=NamedTuple)
Block = Mapping[str, "Field | Block"]


def defaults(block: Block) -> dict[str, Any]:
    """Returns a block's default values, nested as it is."""
    return {
        name: entry.default if isinstance(entry, Field) else defaults(entry)
        for name, entry in block.items()
    }


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
        field: entry.resolve(full + field, given.get(field, entry.default))
        if isinstance(entry, Field)
        else resolve(entry, given.get(field, {}), full + field)
        for field, entry in block.items()
    }


def flat(block: Block, prefix: str = "") -> dict[str, Field]:
    """Returns all fields of a block by dotted name."""
    found: dict[str, Field] = {}
    for name, entry in block.items():
        if isinstance(entry, Field):
            found[prefix + name] = entry
        else:
            found |= flat(entry, f"{prefix}{name}.")
    return found


def near(name: str, known: Iterable[str]) -> list[str]:
    """Returns up to three names that are like one."""
    return difflib.get_close_matches(name, list(known), n=3, cutoff=0.5)


def unknown(name: str, known: Iterable[str]) -> str:
    """Returns the message for a field that there is not, with up to three that are like it."""
    known = list(known)
    block = name.rpartition(".")[0]
    shown = near(name, known) or [other for other in known if other.rpartition(".")[0] == block][:6]
    hint = f"did you mean {' or '.join(f'config.{other}' for other in shown)}?" if shown else ""
    return f"unknown field config.{name}; {hint or 'zo-fl configs --all lists them all'}"


def without(block: Block, *names: str) -> dict[str, Any]:
    """Returns a block without some of its fields."""
    return {name: entry for name, entry in block.items() if name not in names}


def changed(block: Block, **values: Any) -> dict[str, Any]:
    """Returns a block with other defaults; a nested block's are given as a dict."""
    return {
        name: entry
        if name not in values
        else entry._replace(default=values[name])
        if isinstance(entry, Field)
        else changed(entry, **values[name])
        for name, entry in block.items()
    }


def take(kind: type[Taken], block: Mapping[str, Any]) -> Taken:
    """Returns the fields of a config block that a NamedTuple has."""
    return kind(**{name: block[name] for name in kind._fields})  # pyright: ignore


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
