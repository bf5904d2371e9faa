"""Runs one experiment.

    python -m experiments.main --config=configs/quickstart.py [--config.zo.lr=0.02] [--workdir=W]

With ``--distributed`` all processes of a Slurm, TPU pod, Open MPI or GKE job run it together;
elsewhere ``--coordinator=HOST:PORT --num_processes=2 --process_id=0`` says who they are.

``--vmap_seeds=5`` runs five seeds of a small model, from ``config.seed`` on, as one program.

Run it again with the same ``--workdir`` to resume. Exit status: 0 done, 1 the loss stopped being
finite, 2 bad input, 130 interrupted (and saved).
"""

import datetime
import sys
from pathlib import Path

from absl import app, flags
from ml_collections import config_flags

from zo_fl import train
from zo_fl.core.errors import ConfigError
from zo_fl.host import processes
from zo_fl.host.progress import print_closing_table, print_seeds_table

from . import cli, distributed

_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "Config file, e.g. configs/quickstart.py."
)
_WORKDIR = flags.DEFINE_string(
    "workdir", None, "Folder of the run; made if missing, resumed if not. Default: runs/NAME/TIME."
)
_WARM_START = flags.DEFINE_string(
    "warm_start", None, "Folder of a finished warm-up (algorithm=fedavg) to start after."
)
_VMAP_SEEDS = flags.DEFINE_integer(
    "vmap_seeds", 0, "Run that many seeds, from config.seed on, as one program; small models."
)


def main(argv: list[str]) -> int:
    """Runs the experiment of the flags and returns the exit status."""
    cli.reject_positional(argv)
    config = cli.resolved_config(_CONFIG.value)
    distributed.join()
    path = Path(_WORKDIR.value or processes.of_first(_default_workdir()))
    cli.enable_compilation_cache()
    try:
        if _VMAP_SEEDS.value:
            return _run_seeds(config, path)
        summary = train.run(config, path, warm_start=_WARM_START.value)
    except train.Interrupted as stop:
        if processes.is_first():
            resume = f"to resume, run the same command with --workdir={path}"
            print(f"{stop}; {resume}", file=sys.stderr)
        return 130
    if processes.is_first():
        print_closing_table(summary | {"workdir": str(path)})
    if summary["diverged_round"] is not None:
        if processes.is_first():
            print(
                f"round {summary['diverged_round']}: the loss is not finite; "
                "lower config.warmup.lr or config.zo.lr",
                file=sys.stderr,
            )
        return 1
    return 0


def _run_seeds(config, path: Path) -> int:
    """Runs several seeds as one program, prints their mean and spread, returns the exit status."""
    if _WARM_START.value:
        raise ConfigError("--vmap_seeds computes its own warm-ups; leave out --warm_start")
    summaries = train.run_seeds(config, path, _VMAP_SEEDS.value)
    if processes.is_first():
        print_seeds_table(summaries, path)
    return 1 if any(summary["diverged_round"] is not None for summary in summaries) else 0


def _default_workdir() -> str:
    name = Path(config_flags.get_config_filename(flags.FLAGS["config"])).stem
    now = datetime.datetime.now(datetime.UTC)
    return str(Path("runs") / name / now.strftime("%Y%m%d-%H%M%S"))


if __name__ == "__main__":
    app.run(cli.one_line_errors(main), flags_parser=cli.parse_flags)
