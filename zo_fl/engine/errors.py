"""The exceptions that a user can cause and mend."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class ConfigError(ValueError):
    """Bad input found before any work is done.

    The message is one line: what was given, what is allowed, and which config field (or flag) to
    change. ``experiments`` commands print it and exit with status 2.
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
    """Names the block in every ``FieldError`` that is raised within: the last that has the field.

    Args:
      blocks: name -> fields, in the order in which later ones take the place of earlier ones.
    """
    try:
        yield
    except FieldError as error:
        name = next((n for n in reversed(list(blocks)) if error.field in blocks[n]), "")
        raise ConfigError(f"config.{name}.{error.field}{error.problem}") from None
