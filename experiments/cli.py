"""What the commands share: flags that fail in one line, exit status 2 for bad input, the XLA
cache."""

import difflib
import logging
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import jax
from absl import flags
from absl import logging as absl_logging
from ml_collections import ConfigDict

from zo_fl.core.errors import ConfigError

BAD_INPUT = 2


def parse_flags(argv: list[str]) -> list[str]:
    """Parses absl flags; on bad ones prints one line and exits with status 2."""
    # absl shows JAX's notes on back ends that are not installed.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    absl_logging.set_verbosity(absl_logging.WARNING)
    try:
        rest = flags.FLAGS(argv)
        if "config" in flags.FLAGS and flags.FLAGS["config"].value is not None:
            _ = flags.FLAGS["config"].value.seed  # a config that failed to load fails when touched
        return rest
    except flags.Error as error:
        _fail(str(error))
    except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
        _fail(_explain_config_failure(argv, error))


def one_line_errors(main: Callable[[list[str]], int]) -> Callable[[list[str]], int]:
    """Returns ``main`` with a ConfigError turned into one line on stderr and exit status 2."""

    def wrapped(argv):
        try:
            return main(argv)
        except ConfigError as error:
            _fail(str(error))

    return wrapped


def reject_positional(argv: list[str]) -> None:
    """Fails if there are arguments that are no flags, such as ``config.zo.lr=1`` without dashes."""
    if len(argv) > 1:
        _fail(f"unexpected argument {argv[1]!r}; fields are changed by --config.FIELD=VALUE")


def resolved_config(config: ConfigDict | None) -> dict[str, Any]:
    """Returns the config flag's value as nested dicts; fails if no ``--config`` was given."""
    if config is None:
        _fail("no config given; pass --config=configs/quickstart.py or another file in configs/")
    return config.to_dict()


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless the user configured JAX's cache already."""
    if getattr(jax.config, "jax_compilation_cache_dir") is None:  # noqa: B009
        root = os.environ.get("ZO_FL_CACHE", str(Path.home() / ".cache" / "zo_fl"))
        jax.config.update("jax_compilation_cache_dir", str(Path(root) / "xla"))


def _config_path(argv: list[str]) -> str | None:
    given = [a.split("=", 1)[1] for a in argv if a.startswith("--config=")]
    return given[-1] if given else None


def _explain_config_failure(argv: list[str], error: Exception) -> str:
    """Returns one line for a config file that fails to load or an override of an unknown field."""
    path = _config_path(argv)
    if path is not None and not Path(path.split(":")[0]).is_file():
        found = sorted(
            str(p) for p in Path("configs").glob("*.py") if p.stem not in ("__init__", "base")
        )
        hint = f"; there are: {', '.join(found)}" if found else "; run from the repository's root"
        return f"no config file {path!r}{hint}; change --config"
    if isinstance(error, ModuleNotFoundError | ImportError) and "configs" in str(error):
        return f"{error}; run from the repository's root, where the folder configs is"
    fields = _fields(path)
    for argument in argv:
        field = argument.removeprefix("--config.").split("=")[0]
        if argument.startswith("--config.") and fields and field not in fields:
            near = difflib.get_close_matches(field, fields, n=3, cutoff=0.5)
            block = field.rpartition(".")[0]
            allowed = (
                near or [name for name in fields if name.rpartition(".")[0] == block] or fields
            )
            return f"unknown field config.{field}; did you mean config.{', config.'.join(allowed)}?"
    return f"{path}: {type(error).__name__}: {error}"


def _fields(path: str | None) -> list[str]:
    """Returns every field of a config file, dotted; empty if it cannot be loaded."""
    try:
        return _dotted(runpy.run_path(str(path))["get_config"]().to_dict())
    except Exception:  # only a better message depends on it
        return []


def _dotted(tree: dict[str, Any], prefix: str = "") -> list[str]:
    names = []
    for name, value in tree.items():
        names += _dotted(value, f"{prefix}{name}.") if isinstance(value, dict) else [prefix + name]
    return names


def _fail(message: str) -> NoReturn:
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    # Of a traceback only what it is about, and how it ended.
    shown = lines if len(lines) < 4 else [lines[0], lines[-1]]
    print(f"error: {' '.join(shown)}", file=sys.stderr)
    sys.exit(BAD_INPUT)
