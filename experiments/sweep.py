"""Runs a table of experiments: every point of a sweep with every seed, a process each.

    python -m experiments.sweep --config=configs/quickstart.py --sweep=configs/sweeps/splits.py \
        --seeds=5 --workdir=R [--jobs=1] [--config.zo.lr=0.02]

Seed s sets ``config.seed`` and ``config.data.partition_seed``, so methods are paired: at one seed
all have the same partition, tiers and warm-up. Equal warm-ups are computed once, in R/warmups, and
so are the features of a model that stays as it is (in R/.shared: gigabytes, removed at the end).
Runs are in R/NAME/ROW--COLUMN/SEED, what they print beside them, what the sweep is in
R/NAME/sweep.json.
The same command skips what is finished and resumes what is not; with more seeds it extends the
sweep. ``python -m experiments.tables --runs=R`` shows the results.

Several runs at a time on one GPU need XLA_PYTHON_CLIENT_PREALLOCATE=false. With --vmap_points those
that differ in a rate or the like alone are one program (``experiments.main --also``): much faster
for small dense models, but no round of them can be replayed.

Exit status: 0 all fine (also where a loss stopped being finite: that is a result), 1 some runs
failed, 2 bad input, 130 interrupted (and saved).
"""

import shlex
import shutil
import sys
from pathlib import Path

from absl import flags

from zo_fl.engine.errors import ConfigError

from . import cli

SHARED = ".shared"  # in the folder of all sweeps, while one runs


def main(argv: list[str]) -> int:
    """Runs the sweep of the flags and returns the exit status."""
    from zo_fl.host import lock

    from .sweeping import jobs, record, running

    del argv
    given = flags.FLAGS
    config_file, overrides, config = cli.given_config()
    for flag, example in (("sweep", "splits"), ("workdir", "runs/splits")):
        if not given[flag].value:
            raise ConfigError(f"no --{flag} given; pass for example --{flag}={example}")
    jobs.check_given(overrides)
    sweep = jobs.load_sweep(given.sweep, config)
    seeds = range(given.first_seed, given.first_seed + given.seeds)
    root, name = Path(given.workdir), Path(given.sweep).stem
    planned = jobs.plan(sweep, config, overrides, seeds, root, name)
    if given.list:
        print("\n".join(running.describe(job, root) for job in planned))
        return 0
    command = shlex.join(["python", "-m", f"{__package__}.sweep", *sys.argv[1:]])
    content = record.make(sweep, config_file, overrides, command, seeds)
    with lock.owned(root):  # its warm-ups, and what its runs share, are those of all sweeps in it
        record.write(root / name / "sweep.json", content)
        try:
            alike = jobs.side_by_side(planned, config)
            if not given.vmap_points:
                if (text := jobs.suggestion(alike)) is not None:
                    print(text, flush=True)
                alike = {}
            return running.run(planned, given.jobs, config_file, root / SHARED, alike)
        finally:
            shutil.rmtree(root / SHARED, ignore_errors=True)


def _define_flags() -> None:
    cli.define_config()
    flags.DEFINE_string(
        "sweep", None, "A name in configs/sweeps, such as splits, or a file's path."
    )
    flags.DEFINE_string("workdir", None, "Folder of all sweeps and their warm-ups.")
    flags.DEFINE_integer("seeds", 5, "How many seeds.", lower_bound=1)
    flags.DEFINE_integer("first_seed", 0, "The first of them.", lower_bound=0)
    flags.DEFINE_integer("jobs", 1, "Runs at a time.", lower_bound=1)
    flags.DEFINE_bool(
        "vmap_points", False, "Run points that differ in a number alone as one program."
    )
    flags.DEFINE_bool("list", False, "Print the runs instead of running them.")


if __name__ == "__main__":
    _define_flags()  # here, so that other commands and tests can import this module
    cli.run(main)
