"""Runs one experiment.

    zo-fl --config=quickstart [--config.zo.lr=0.02] [--workdir=W]

With ``--distributed`` all processes of a Slurm, TPU pod, Open MPI or GKE job run it together;
elsewhere ``--coordinator=HOST:PORT --num_processes=2 --process_id=0`` says who they are.

``--vmap_seeds=5`` runs five seeds of a small model, from ``config.seed`` on, as one program;
``--vmap_values=zo.lr=0.001,0.004,0.016`` runs three values of a number as one program.

Run it again with the same ``--workdir`` to resume. Exit status: 0 done; 1 the loss, an update or an
evaluation stopped being finite, or the folder cannot be written; 2 bad input; 130 interrupted (and
saved).
"""

import contextlib
import datetime
import importlib
import itertools
import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import flags

import zo_fl
from zo_fl.engine.fields import ConfigError
from zo_fl.host import signals

from . import cli, distributed

# JAX, and what imports it, is imported inside functions: --help and a misspelt flag do without.

# The subcommands of ``zo-fl``, each a module here.
COMMANDS = {
    "run": "runs one experiment; may be left out",
    "sweep": "runs a table of experiments",
    "campaign": "works through a plan of sweeps for as long as there is time",
    "tables": "writes the tables of runs and sweeps",
    "plots": "draws them",
    "pareto": "draws accuracy against a low-resource client's bytes, memory and passes",
    "report": "writes one HTML page about them",
    "costs": "prints what a client sends, receives and holds in memory",
    "configs": "lists the fields of a config",
    "prepare_data": "prepares a data set",
    "replay": "rebuilds a run's model from its scalars",
    "diagnose": "says what a run's zeroth-order phase did, and why",
    "completion": "prints what makes a shell complete all of this",
}


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_config()
    flags.DEFINE_string(
        "workdir", None, "Folder of the run; resumed if it holds one. Default: runs/NAME/TIME."
    )
    flags.DEFINE_string(
        "warm_start", None, "Folder of a finished run; its phases are the first of this run."
    )
    flags.DEFINE_string(
        "shared", None, "Folder where runs share the features of models that do not change."
    )
    flags.DEFINE_integer(
        "vmap_seeds", 0, "Number of seeds, from config.seed on, that run as one program."
    )
    flags.DEFINE_string("vmap_values", None, "FIELD=V1,V2,...: values that run as one program.")
    flags.DEFINE_multi_string(
        "also", [], "FOLDER FIELD=VALUE ...: another run of the same program, and its numbers."
    )
    distributed.define_flags()


def main(argv: list[str]) -> int:
    """Runs the experiment of the flags and returns the exit status."""
    from zo_fl import api, config
    from zo_fl.host import files, processes, summary_table

    del argv
    given = cli.given_config()
    resolved = config.resolve(given.config)
    # Of the config as it is; read now, as its file may be gone at the end of the run.
    last_words = "" if given.overrides else config.closing(given.name)
    distributed.join()
    workdir = flags.FLAGS.workdir
    made = "" if workdir or not processes.is_first() else _new_workdir(given.name)
    path = files.path_of(workdir or processes.of_first(made))
    try:
        if flags.FLAGS.vmap_seeds or flags.FLAGS.vmap_values or flags.FLAGS.also:
            return _run_together(resolved, path)
        summary = api.run(
            resolved, path, warm_start=flags.FLAGS.warm_start, shared=flags.FLAGS.shared
        )
    except ConfigError:
        if not workdir:
            with contextlib.suppress(OSError):  # of several processes one is the first
                path.rmdir()
        raise
    except (api.Interrupted, KeyboardInterrupt) as stop:
        signals.ignore_signals()
        if processes.is_first():
            resume = f"to resume, run the same command with --workdir={path}"
            print(f"{str(stop) or 'stopped at once'}; {resume}", file=sys.stderr)
        if isinstance(stop, KeyboardInterrupt):
            cli.leave_at_once(signals.INTERRUPTED)
        return signals.INTERRUPTED
    if processes.is_first():
        print(summary_table.of_run(summary | {"workdir": str(path)}))
        if summary["diverged_round"] is not None:
            hint = "; lower " + " or ".join(rates) if (rates := _rates(resolved)) else ""
            print(f"stopped: {summary['divergence']}{hint}", file=sys.stderr)
        elif last_words:
            print(cli.as_called(last_words))
    return int(summary["diverged_round"] is not None)


def _run_together(resolved, path: Path) -> int:
    """Runs several seeds or values as one program and returns the exit status."""
    from zo_fl import run_many
    from zo_fl.host import processes, summary_table

    given = flags.FLAGS
    if bool(given.vmap_seeds) + bool(given.vmap_values) + bool(given.also) > 1:
        raise ConfigError("--vmap_seeds, --vmap_values and --also: give one of them")
    if given.warm_start and not given.also:
        raise ConfigError(
            "--vmap_seeds and --vmap_values compute their own warm-ups; leave out --warm_start"
        )
    if given.also:
        folders, runs = zip(
            (path, resolved), *(cli.given_run(resolved, text) for text in given.also), strict=True
        )
        summaries = run_many.run_together(runs, folders, warm_start=given.warm_start)
        texts = [
            summary_table.of_run(summary | {"workdir": str(folder)})
            for folder, summary in zip(folders, summaries, strict=True)
        ]
    elif given.vmap_values:
        field, values = cli.given_values(given.vmap_values)
        summaries = run_many.run_values(resolved, path, field, values)
        names = [f"{field}={value:g}" for value in values]
        texts = [summary_table.of_runs(dict(zip(names, summaries, strict=True)), path)]
    else:
        summaries = run_many.run_seeds(resolved, path, given.vmap_seeds)
        names = [f"seed {resolved['seed'] + i}" for i in range(given.vmap_seeds)]
        texts = [summary_table.of_runs(dict(zip(names, summaries, strict=True)), path, mean=True)]
    if processes.is_first():
        print(*texts, sep="\n")
    return int(any(summary["diverged_round"] is not None for summary in summaries))


def _rates(resolved: Mapping[str, Any]) -> list[str]:
    """Returns the fields with the learning rates of a run's methods."""
    from zo_fl import methods

    found = []
    for part in methods.parts(resolved["algorithm"]):
        blocks = [block for block in methods.METHODS[part].reads if "lr" in resolved[block]]
        found += [f"config.{block}.lr" for block in blocks[-1:]]
    return list(dict.fromkeys(found))


def _new_workdir(name: str) -> str:
    """Makes a folder that is called by the time; runs that begin in one second have their own."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y%m%d-%H%M%S")
    path = first = Path("runs") / Path(name).stem / now
    for number in itertools.count(2):
        try:
            path.mkdir(parents=True)
            break
        except FileExistsError:
            path = first.with_name(f"{now}-{number}")
        except OSError as error:
            raise ConfigError(f"cannot make {path}: {error.strerror}; give a --workdir") from None
    return str(path)


def _versions() -> str:
    from importlib import metadata  # slow to import

    names = ("jax", "flax", "optax", "numpy")
    return ", ".join(f"{name} {metadata.version(name)}" for name in names)


def run() -> None:
    """Runs ``zo-fl [COMMAND] ...``; without a command, an experiment."""
    program, *arguments = sys.argv
    name = "run"
    if arguments == ["--version"]:
        print(f"zo_fl {zo_fl.__version__}, Python {platform.python_version()}, {_versions()}")
        sys.exit(0)
    if arguments and not arguments[0].startswith("-"):
        name, *arguments = arguments
        if name not in COMMANDS:
            allowed = ", ".join(COMMANDS)
            print(f"error: no command {name!r}; allowed: {allowed}", file=sys.stderr)
            sys.exit(cli.BAD_INPUT)
    sys.argv = [program, *arguments]
    if name == "run":
        listed = "\n".join(f"  zo-fl {one}: {does}" for one, does in COMMANDS.items())
        cli.run(main, define_flags, f"{__doc__}\nCommands:\n{listed}")
    command = importlib.import_module(f".{name}", __package__)
    cli.run(command.main, command.define_flags, command.__doc__)


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
