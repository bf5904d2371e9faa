"""Config fields, declared beside the functions that take them, and the errors of bad values.

The type of a field is that of its default: an int field takes integers only, a float field any
finite number, a tuple field tuples or lists of what its default has (integers if it is empty), each
within the bounds. ``config.check`` checks values. Pure Python: a declaration needs no JAX.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

_LONGEST_NAME, _LONGEST_PATH = 255, 3900  # bytes, of common file systems; 4,096 with what is in it
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # two letters at least: C:/ is a path


class ConfigError(ValueError):
    """Bad input found before any work is done; commands print it and exit with status 2.

    The message is one line: what was given, what is allowed, and which config field or flag to
    change.
    """


class FieldError(ConfigError):
    """A bad value of a field of a block whose name is not known where it is found.

    Args:
      field: its name in the block.
      problem: what follows its full name in the message: ``=-1 is not allowed: ...``.
    """

    def __init__(self, field: str, problem: str):
        super().__init__(f"config.{field}{problem}")
        self.field, self.problem = field, problem


@contextmanager
def in_block(blocks: Mapping[str, Any]) -> Iterator[None]:
    """Names the block in a ``FieldError`` that is raised within: the last that has the field."""
    try:
        yield
    except FieldError as error:
        name = next((n for n in reversed(list(blocks)) if error.field in blocks[n]), "")
        raise ConfigError(f"config.{name}.{error.field}{error.problem}") from None


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
      default: also says the type; 0 where ``zero`` is meant.
      meaning: a few words.
      choices: allowed texts, or what gives them; None allows any.
      at_least: smallest allowed number.
      above: the number must be larger.
      at_most: largest allowed number.
      below: the number must be smaller.
      rule: for what is none of these.
      varies: whether it is an argument of one program for runs that differ in it: nothing is
        decided by it in Python.
      zero: the name of 0 where that is no quantity, such as ``all``: users give the name, and
        methods get 0 for it.
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
    zero: str = ""

    @property
    def usual(self) -> Any:
        """The default as users see it."""
        return self.named(self.default)

    def named(self, value: Any) -> Any:
        """Returns a value with the name instead of 0."""
        return self.zero if self.zero and value == 0 else value

    def plain(self, value: Any) -> Any:
        """Returns a value with 0 instead of the name."""
        return type(self.default)(0) if self.zero and value == self.zero else value


Block = Mapping[str, "Field | Block"]
Taken = TypeVar("Taken", bound=NamedTuple)


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


def path_of(given: str | Path) -> Path:
    """Returns a path on this machine that a user gave; ``~`` is the home folder.

    Raises:
      ConfigError: it is an address, a name is too long, or there is no home folder.
    """
    if _ADDRESS.match(str(given)):
        raise ConfigError(
            f"{given} is an address, not a folder of this machine; allowed: a local path, where "
            "a bucket can be mounted"
        )
    try:
        path = Path(given).expanduser()
    except RuntimeError:
        raise ConfigError(f"{given}: there is no home folder here; give a whole path") from None
    if "\0" in str(given):
        raise ConfigError(f"{str(given)!r} has a null byte; give a path without")
    longest = max((len(os.fsencode(part)) for part in path.parts), default=0)
    whole = len(os.fsencode(path.absolute()))
    if longest > _LONGEST_NAME or whole > _LONGEST_PATH:
        raise ConfigError(
            f"{str(given)[:40]}... has {whole} bytes, its longest name {longest}; allowed: "
            f"{_LONGEST_PATH} and {_LONGEST_NAME}"
        )
    return path
