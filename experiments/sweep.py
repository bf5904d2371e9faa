"""Runs a table of experiments: every point of a sweep with every seed, a process each.

    zo-fl sweep --config=quickstart --sweep=splits --seeds=5 --workdir=R [--jobs=2]

Seed s sets ``config.seed`` and ``config.data.partition_seed``, so methods are paired: at one seed
all have the same partition, tiers and warm-up. Equal warm-ups are computed once, in R/warmups, and
so are the features of a model that does not change (in R/.shared: gigabytes, removed at the end).
A run is in R/NAME/ROW--COLUMN/SEED, its output beside it, the sweep itself in R/NAME/sweep.json.
The same command skips finished runs and resumes the others; with more seeds it extends the sweep.
``tables``, ``plots`` and ``report`` with ``--runs=R`` show the results.

Several runs at a time on one GPU need XLA_PYTHON_CLIENT_PREALLOCATE=false. With --vmap_points, runs
that differ in a number alone, such as a rate, are one program: much faster for small dense models,
but none of their rounds can be replayed.

Exit status: 0 all fine (also where a loss stopped being finite: that is a result), 1 some runs
failed, 2 bad input, 130 interrupted (and saved).
"""

import shlex
import shutil
import sys
from pathlib import Path

from absl import flags

from zo_fl.engine.fields import ConfigError

from . import cli

SHARED = ".shared"  # in the folder of all sweeps, while one runs


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_config()
    flags.DEFINE_string("sweep", None, "Name of a sweep, such as splits, or path of a file.")
    flags.DEFINE_string("workdir", None, "Folder of all sweeps and their warm-ups.")
    flags.DEFINE_integer("seeds", 5, "Number of seeds.", lower_bound=1)
    flags.DEFINE_integer("first_seed", 0, "The first of them.", lower_bound=0)
    flags.DEFINE_integer("jobs", 1, "Number of runs at a time.", lower_bound=1)
    flags.DEFINE_bool("vmap_points", False, "Run points that differ in a number as one program.")


def main(argv: list[str]) -> int:
    """Runs the sweep of the flags and returns the exit status."""
    from zo_fl.host import files

    from .jobs import launch, plan, record

    del argv
    given = flags.FLAGS
    config_file, overrides, config = cli.given_config()
    for flag, example in (("sweep", "splits"), ("workdir", "runs/splits")):
        if not given[flag].value:
            raise ConfigError(f"no --{flag} given; pass for example --{flag}={example}")
    sweep = plan.load_sweep(given.sweep, config)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    root, name = files.path_of(given.workdir), Path(given.sweep).stem
    planned = plan.jobs_of(sweep, config, overrides, seeds, root, name)
    command = shlex.join(["zo-fl", "sweep", *sys.argv[1:]])
    content = record.make(sweep, config_file, overrides, command, seeds)
    with files.owned(root):  # its warm-ups and shared features belong to all sweeps in it
        record.write(root / name / "sweep.json", content)
        try:
            alike = plan.side_by_side(planned, config)
            if not given.vmap_points:
                if (text := plan.suggestion(alike)) is not None:
                    print(text, flush=True)
                alike = {}
            return launch.run(planned, given.jobs, config_file, root / SHARED, alike)
        finally:
            shutil.rmtree(root / SHARED, ignore_errors=True)


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
