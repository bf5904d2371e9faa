"""The folders that the commands which show results read from and write to."""

from pathlib import Path

from absl import flags

from zo_fl.engine.errors import ConfigError


def define_flags(out: str) -> None:
    """Defines --runs and --out of the commands that show results.

    Args:
      out: default of --out, in the folder --runs.
    """
    flags.DEFINE_string(
        "runs", None, "Folder of sweeps (--workdir of experiments.sweep), or of runs."
    )
    flags.DEFINE_string("out", None, f"Where to write to. Default: RUNS/{out}.")


def given_folders(default_out: str) -> tuple[Path, Path]:
    """Returns --runs and --out.

    Raises:
      ConfigError: there is no --runs.
    """
    if not flags.FLAGS["runs"].value:
        raise ConfigError(
            "no --runs given; pass the --workdir of experiments.sweep, or the folder of the runs "
            "of experiments.main"
        )
    root = Path(flags.FLAGS["runs"].value)
    return root, Path(flags.FLAGS["out"].value or root / default_out)
