"""The common part of all commands: flags, configs, one-line errors, exit statuses, the XLA cache.

A command is a module with ``define_flags()`` and ``main(argv) -> exit status``; its docstring is
its help. ``--config`` takes the name of a config that comes along or the path of any file;
``--config.FIELD=VALUE``, or ``--set=FIELD=VALUE``, changes a field.
"""

import contextlib
import errno
import functools
import io
import logging
import os
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from absl import app, flags
from absl import logging as absl_logging

from zo_fl.engine.fields import ConfigError
from zo_fl.host.files import StorageError, path_of
from zo_fl.host.signals import INTERRUPTED, ignore_signals, interrupting_signals

if TYPE_CHECKING:  # importing JAX takes seconds, which --help does without
    from ml_collections import ConfigDict

UNWRITABLE, BAD_INPUT, UNREAD = 1, 2, 141  # 141: the status after SIGPIPE
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EIO)  # no room, or a device that fails
# A command as it is written in texts and records, which may be another installation's.
_COMMAND = re.compile(r"\b(?:zo-fl(?: (\w+)|(?= --))|python -m (?:zo_fl\.)?experiments\.(\w+))")
_HELP = ("-h", "-help", "--help", "-helpshort", "--helpshort", "-helpfull", "--helpfull")


class Given(NamedTuple):
    """The config that the command line gives, with its changes made, not yet checked."""

    name: str  # or path of its file, as given
    overrides: dict[str, Any]  # dotted name -> value
    config: "ConfigDict"


def define_config() -> None:
    """Defines ``--config`` and ``--set``."""
    flags.DEFINE_string("config", None, "Name of a config, such as quickstart, or path of a file.")
    flags.DEFINE_multi_string(
        "set", [], "FIELD=VALUE: a changed field; the same as --config.FIELD=VALUE."
    )


def define_folders(out: str) -> None:
    """Defines ``--runs`` and ``--out``, by default ``RUNS/out``, of commands that show results."""
    flags.DEFINE_string("runs", None, "Folder of sweeps (their --workdir), or of single runs.")
    flags.DEFINE_string("out", None, f"Where to write. Default: RUNS/{out}.")


def run(
    main: Callable[[list[str]], int], define_flags: Callable[[], None], described: str | None
) -> None:
    """Runs a command and exits with its status.

    Bad input is one line and status 2; a file that cannot be written, one line and status 1; a
    signal to stop, one line and status 130. If nobody reads the output any more, as after
    ``| head``, the status is 141 and there is no line.

    Args:
      main: takes the arguments that absl left over.
      define_flags: defines the command's own flags.
      described: the command's help, the docstring of its module.
    """
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115 (closed, as by >&-)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # an encoding may lack what tables are made of
            stream.reconfigure(errors="replace")
    before = set(flags.FLAGS)
    define_flags()
    own = [name for name in flags.FLAGS if name not in before]

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
        except OSError as error:
            if error.errno not in _FULL:
                raise
            _write_no_more()
            _fail(f"cannot write the output: {error.strerror}", UNWRITABLE)
        except ValueError as error:
            variables = {"for JAX flag": "of this name in capitals", "Key backend:": "MPLBACKEND"}
            named = next((name for part, name in variables.items() if part in str(error)), None)
            if named is None:  # none that JAX or matplotlib cannot read when it is imported
                raise
            _fail(f"{error}; change the environment variable {named}")
        except KeyboardInterrupt as stop:
            ignore_signals()
            print(str(stop) or "interrupted", file=sys.stderr)
            leave_at_once(INTERRUPTED)

    parser = functools.partial(parse_flags, described=str(described).strip(), own=own)
    app.run(wrapped, flags_parser=parser)


def leave_at_once(status: int) -> NoReturn:
    """Ends the process: XLA's threads, interrupted in a compilation, crash Python's own end."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)


def parse_flags(argv: list[str], described: str, own: list[str]) -> list[str]:
    """Parses absl flags; bad ones are one line and exit status 2.

    ``described`` is what the command does, for ``--help``, and ``own`` names its flags.
    """
    # absl would show JAX's notes on back ends that are not installed.
    logging.getLogger("jax._src.xla_bridge").setLevel(logging.WARNING)
    absl_logging.set_verbosity(absl_logging.WARNING)
    if any(argument in _HELP for argument in argv[1:]):
        try:
            print(_help(described, own), flush=True)
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


def given_config(default: str | None = None) -> Given:
    """Returns the config that the flags give; without ``--config`` the one of a name.

    Raises:
      ConfigError: no config, one that fails, or an unknown field.
    """
    from zo_fl import config

    name = flags.FLAGS["config"].value or default
    if name is None:
        raise ConfigError("no config given; pass --config=quickstart or another name or file")
    made, overrides = config.load(name), {}
    for change in flags.FLAGS["set"].value or []:
        field, is_change, text = change.partition("=")
        if not is_change:
            raise ConfigError(f"--config.{field} without a value; pass --config.{field}=VALUE")
        overrides[field] = config.parse(field, text)
    made.update_from_flattened_dict(overrides)
    return Given(name, overrides, made)


def resolved_config() -> dict[str, Any]:
    """Returns the config of the flags as nested dicts, every field checked.

    Raises:
      ConfigError: as ``given_config``, or a value that is not allowed.
    """
    from zo_fl import config

    return config.resolve(given_config().config)


def given_values(text: str) -> tuple[str, list[Any]]:
    """Returns the field and the checked values of ``FIELD=V1,V2,...``.

    Raises:
      ConfigError: an unknown field, or a value that is not allowed.
    """
    from zo_fl import config

    field, _, listed = text.removeprefix("config.").partition("=")
    return field, [config.parse(field, one) for one in listed.split(",")]


def given_run(resolved: Mapping[str, Any], text: str) -> tuple[Path, dict[str, Any]]:
    """Returns the folder and the changed config of ``FOLDER FIELD=VALUE ...``, as of ``--also``.

    Raises:
      ConfigError: an unknown field, or a value that is not allowed.
    """
    from zo_fl import config

    folder, *changes = shlex.split(text)
    pairs = {}
    for field, values in map(given_values, changes):
        if len(values) > 1:
            raise ConfigError(f"config.{field} has {len(values)} values in {text!r}; give one")
        pairs[field] = values[0]
    return path_of(folder), config.changed(resolved, pairs)


def as_text(value: Any) -> str:
    """Returns a value as a flag takes it; JSON has made lists of tuples."""
    if isinstance(value, bool):
        return str(value).lower()
    return str(tuple(value)) if isinstance(value, list | tuple) else str(value)


def given_folders(default_out: str) -> tuple[Path, Path]:
    """Returns ``--runs`` and ``--out``.

    Raises:
      ConfigError: there is no ``--runs``.
    """
    if not flags.FLAGS["runs"].value:
        raise ConfigError("no --runs given; pass the --workdir of a sweep, or a folder of runs")
    root = path_of(flags.FLAGS["runs"].value)
    return root, path_of(flags.FLAGS["out"].value or root / default_out)


def as_called(text: str) -> str:
    """Returns a text with its commands as they are called here: by ``zo-fl``, or ``python -m``."""
    if Path(sys.argv[0]).stem == "zo-fl":
        main, other = "zo-fl", "zo-fl {}"
    else:
        main, other = f"python -m {__package__}.main", f"python -m {__package__}.{{}}"

    def call(found: re.Match) -> str:
        name = found[1] or found[2] or "main"
        return main if name in ("main", "run") else other.format(name)

    return _COMMAND.sub(call, text)


def _as_set(argument: str) -> str:
    """Returns ``--config.FIELD=VALUE`` as ``--set=FIELD=VALUE``, anything else as it is."""
    name = argument.lstrip("-")
    is_field = argument.startswith("-") and name.startswith("config.")
    return f"--set={name.removeprefix('config.')}" if is_field else argument


def _help(described: str, own: list[str]) -> str:
    """Returns the help of a command: its description, and its flags with their defaults."""
    lines = [described, "", "Flags:"]
    for flag in map(flags.FLAGS.__getitem__, own):
        shown = flag.default not in (None, [], False)
        default = f" (default: {flag.default_as_str})" if shown else ""
        lines.append(f"  --{flag.name}: {flag.help}{default}")
    if "config" in own:
        lines.append("  --config.FIELD=VALUE: a changed field; `zo-fl configs` lists all fields.")
    return as_called("\n".join(lines))


def _write_no_more() -> None:
    """Sends all further output nowhere, with what is still buffered."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str, status: int = BAD_INPUT) -> NoReturn:
    print(f"error: {as_called(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(status)
