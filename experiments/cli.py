"""What the commands share: flags that fail in one line, configs, exit status 2, the XLA cache.

A command with a config says ``cli.define_config()`` beside its other flags. ``--config`` takes a
name in ``configs`` or the path of any file; ``--config.FIELD=VALUE``, or ``--set=FIELD=VALUE``,
changes a field.
"""

import functools
import logging
import os
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from zo_fl.engine import fields
from zo_fl.engine.errors import ConfigError
from zo_fl.host.files import StorageError
from zo_fl.host.signals import ignore_signals, interrupting_signals

from .startup import INTERRUPTED

if TYPE_CHECKING:  # JAX, and what imports it, takes seconds, which --help does without
    from ml_collections import ConfigDict

UNWRITABLE, BAD_INPUT, UNREAD = 1, 2, 141  # the last as of who is killed by SIGPIPE
_HELP = ("-h", "-help", "--help", "-helpshort", "--helpshort", "-helpfull", "--helpfull")


class Given(NamedTuple):
    """What the command line says of the config.

    Attributes:
      name: of the config's file, as given.
      overrides: changes, dotted field -> value.
      config: with the changes made, not yet checked.
    """

    name: str
    overrides: dict[str, Any]
    config: "ConfigDict"


def define_config() -> None:
    """Defines ``--config`` and ``--set``."""
    flags.DEFINE_string("config", None, "A name in configs, such as quickstart, or a file's path.")
    flags.DEFINE_multi_string(
        "set", [], "FIELD=VALUE changes a field of the config; the same as --config.FIELD=VALUE."
    )


def run(main: Callable[[list[str]], int]) -> None:
    """Runs a command and exits with its status.

    Bad input is one line and status 2, a file that cannot be written one line and status 1, a
    signal to stop one line and status 130; where nobody reads on, as after ``| head``, it is
    status 141 and no line.

    Args:
      main: gets what absl left of the arguments; its module's docstring is the command's help.
    """
    described = str(sys.modules[main.__module__].__doc__).strip()

    def wrapped(argv):
        try:
            with interrupting_signals():
                status = main(argv)
                sys.stdout.flush()
                return status
        except BrokenPipeError:
            _write_no_more()
            sys.exit(UNREAD)
        except ConfigError as error:
            _fail(str(error))
        except StorageError as error:
            _fail(f"{error}; {error.remedy}, then run the same command again", UNWRITABLE)
        except KeyboardInterrupt as stop:
            ignore_signals()
            print(str(stop) or "interrupted", file=sys.stderr)
            sys.exit(INTERRUPTED)

    app.run(wrapped, flags_parser=functools.partial(parse_flags, described=described))


def parse_flags(argv: list[str], described: str = "") -> list[str]:
    """Parses absl flags; on bad ones prints one line and exits with status 2.

    Args:
      argv: the whole command.
      described: what the command does, for ``--help``.
    """
    # absl shows JAX's notes on back ends that are not installed.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    absl_logging.set_verbosity(absl_logging.WARNING)
    if any(argument in _HELP for argument in argv[1:]):
        try:
            print(_help(described), flush=True)
        except BrokenPipeError:
            _write_no_more()
        sys.exit(0)
    try:
        rest = flags.FLAGS([_as_set(argument) for argument in argv])
    except flags.Error as error:
        _fail(f"{error}; --help lists all flags")
    if len(rest) > 1:
        _fail(f"unexpected argument {rest[1]!r}; fields are changed by --config.FIELD=VALUE")
    return rest


def given_config() -> Given:
    """Returns what the flags say of the config.

    Raises:
      ConfigError: no config, one that fails, or an unknown field.
    """
    from zo_fl import config

    name = flags.FLAGS["config"].value
    if name is None:
        raise ConfigError("no config given; pass --config=quickstart or another name or file")
    made, known, overrides = config.load(name), fields.flat(config.blocks()), {}
    for change in flags.FLAGS["set"].value or []:
        field, is_change, text = change.partition("=")
        if field not in known:
            raise ConfigError(fields.unknown(field, known))
        if not is_change:
            raise ConfigError(f"--config.{field} without a value; pass --config.{field}=VALUE")
        overrides[field] = known[field].resolve(field, known[field].parse(text))
    made.update_from_flattened_dict(overrides)
    return Given(name, overrides, made)


def given_values(text: str) -> tuple[str, list[Any]]:
    """Returns the field and the values of ``FIELD=V1,V2,...``, each checked.

    Raises:
      ConfigError: an unknown field, or a value that is not allowed.
    """
    from zo_fl import config

    field, _, listed = text.removeprefix("config.").partition("=")
    known = fields.flat(config.blocks())
    if field not in known:
        raise ConfigError(fields.unknown(field, known))
    declared = known[field]
    return field, [declared.resolve(field, declared.parse(one)) for one in listed.split(",")]


def given_run(resolved: Mapping[str, Any], text: str) -> tuple[Path, dict[str, Any]]:
    """Returns folder and config of ``FOLDER FIELD=VALUE ...``, like another but for these fields.

    Raises:
      ConfigError: an unknown field, or a value that is not allowed.
    """
    from zo_fl import config

    folder, *changes = shlex.split(text)
    pairs = dict(given_values(change) for change in changes)
    for field, values in pairs.items():
        if len(values) > 1:
            raise ConfigError(f"config.{field} has {len(values)} values in {text!r}; give one")
    return Path(folder), config.changed(resolved, {field: one for field, (one,) in pairs.items()})


def resolved_config() -> dict[str, Any]:
    """Returns the config of the flags as nested dicts, all of it checked.

    Raises:
      ConfigError: as ``given_config``, or a value that is not allowed.
    """
    from zo_fl import config

    return config.resolve(given_config().config)


def enable_compilation_cache() -> None:
    """Keeps compiled programs between runs, unless the user configured JAX's cache already."""
    import jax

    if getattr(jax.config, "jax_compilation_cache_dir") is None:  # noqa: B009
        root = os.environ.get("ZO_FL_CACHE", str(Path.home() / ".cache" / "zo_fl"))
        jax.config.update("jax_compilation_cache_dir", str(Path(root) / "xla"))


def _as_set(argument: str) -> str:
    """Returns ``--config.FIELD=VALUE`` as ``--set=FIELD=VALUE``, anything else as it is."""
    name = argument.lstrip("-")
    is_field = argument.startswith("-") and name.startswith("config.")
    return f"--set={name.removeprefix('config.')}" if is_field else argument


def _help(described: str) -> str:
    """Returns what a command does, and all flags of this project with their defaults."""
    lines, package = [described, "", "Flags:"], str(__package__)
    for module, found in flags.FLAGS.flags_by_module_dict().items():
        # The module that is run is known by another name.
        if module.startswith((package, "__main__", sys.argv[0])):
            for flag in found:
                shown = flag.default not in (None, [], False)
                default = f" (default: {flag.default_as_str})" if shown else ""
                lines.append(f"  --{flag.name}: {flag.help}{default}")
    if "config" in flags.FLAGS:
        lines.append(f"  --config.FIELD=VALUE: `python -m {package}.configs` lists the fields.")
    return "\n".join(lines)


def _write_no_more() -> None:
    """Has what is printed from now on, or was and is not written yet, go nowhere."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int = BAD_INPUT) -> NoReturn:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(status)
