"""Runs one experiment.

    python -m experiments.main --config=quickstart [--config.zo.lr=0.02] [--workdir=W]

With ``--distributed`` all processes of a Slurm, TPU pod, Open MPI or GKE job run it together;
elsewhere ``--coordinator=HOST:PORT --num_processes=2 --process_id=0`` says who they are.

``--vmap_seeds=5`` runs five seeds of a small model, from ``config.seed`` on, as one program;
``--vmap_values=zo.lr=0.001,0.004,0.016`` three values of a number.

Run it again with the same ``--workdir`` to resume. Exit status: 0 done, 1 the loss, an update or an
evaluation stopped being finite, or the folder cannot be written, 2 bad input, 130 interrupted (and
saved).
"""

import datetime
import sys
from pathlib import Path

from absl import flags

from zo_fl.engine.errors import ConfigError
from zo_fl.host import signals

from . import cli, distributed, startup

# JAX, and what imports it, is imported where it is used: --help and a misspelt flag need seconds
# less without.


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_config()
    flags.DEFINE_string(
        "workdir",
        None,
        "Folder of the run; made if missing, resumed if not. Default: runs/NAME/TIME.",
    )
    flags.DEFINE_string(
        "warm_start", None, "Folder of a finished run whose phases are the first of this one's."
    )
    flags.DEFINE_string(
        "shared",
        None,
        "Folder in which runs leave features of models that stay as they are for each other.",
    )
    flags.DEFINE_integer(
        "vmap_seeds", 0, "Run that many seeds, from config.seed on, as one program; small models."
    )
    flags.DEFINE_string(
        "vmap_values", None, "FIELD=V1,V2,...: run these values as one program; small models."
    )
    flags.DEFINE_multi_string(
        "also", [], "FOLDER FIELD=VALUE ...: another run of the same program, and its numbers."
    )
    distributed.define_flags()


def main(argv: list[str]) -> int:
    """Runs the experiment of the flags and returns the exit status."""
    from zo_fl import api as train
    from zo_fl import config, trainer
    from zo_fl.host import closing, processes

    del argv
    given = cli.given_config()
    resolved = config.resolve(given.config)
    distributed.join()
    path = Path(flags.FLAGS.workdir or processes.of_first(_default_workdir(given.name)))
    cli.enable_compilation_cache()
    try:
        if flags.FLAGS.vmap_seeds or flags.FLAGS.vmap_values or flags.FLAGS.also:
            return _run_together(resolved, path)
        summary = train.run(
            resolved, path, warm_start=flags.FLAGS.warm_start, shared=flags.FLAGS.shared
        )
    except (trainer.Interrupted, KeyboardInterrupt) as stop:
        signals.ignore_signals()
        if processes.is_first():
            resume = f"to resume, run the same command with --workdir={path}"
            print(f"{str(stop) or 'stopped at once'}; {resume}", file=sys.stderr)
        return startup.INTERRUPTED
    if processes.is_first():
        closing.print_closing_table(summary | {"workdir": str(path)})
    if summary["diverged_round"] is not None:
        if processes.is_first():
            print(
                f"stopped: {summary['divergence']}; lower config.warmup.lr or config.zo.lr",
                file=sys.stderr,
            )
        return 1
    return 0


def _run_together(resolved, path: Path) -> int:
    """Runs several seeds or values as one program, and returns the exit status."""
    from zo_fl import api as train
    from zo_fl.host import closing, processes

    given = flags.FLAGS
    if bool(given.vmap_seeds) + bool(given.vmap_values) + bool(given.also) > 1:
        raise ConfigError("--vmap_seeds, --vmap_values and --also: give one of them")
    if given.warm_start and not given.also:
        raise ConfigError(
            "--vmap_seeds and --vmap_values compute their own warm-ups; leave out --warm_start"
        )
    if given.also:
        others = [cli.given_run(resolved, text) for text in given.also]
        folders, changed = [one for one, _ in others], [one for _, one in others]
        summaries = train.run_together(
            [resolved, *changed], [path, *folders], warm_start=given.warm_start
        )
        if processes.is_first():
            for folder, summary in zip([path, *folders], summaries, strict=True):
                closing.print_closing_table(summary | {"workdir": str(folder)})
    elif not flags.FLAGS.vmap_values:
        summaries = train.run_seeds(resolved, path, flags.FLAGS.vmap_seeds)
        if processes.is_first():
            closing.print_seeds_table(summaries, path)
    else:
        field, values = cli.given_values(flags.FLAGS.vmap_values)
        summaries = train.run_values(resolved, path, field, values)
        if processes.is_first():
            closing.print_values_table(summaries, field, values, path)
    return 1 if any(summary["diverged_round"] is not None for summary in summaries) else 0


def _default_workdir(name: str) -> str:
    now = datetime.datetime.now(datetime.UTC)
    return str(Path("runs") / Path(name).stem / now.strftime("%Y%m%d-%H%M%S"))


def run() -> None:
    """The console script ``zo-fl``."""
    define_flags()
    cli.run(main)


if __name__ == "__main__":
    run()
