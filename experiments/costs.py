"""Prints Table 1 of the paper for any config: what a client sends, receives and holds in memory.

    zo-fl costs --config=configs/cifar10_10_90.py

Beside the paper's figures stand its formulas, evaluated for this model, and measurements: bytes
from the shapes of the real messages, memory from the compiled client step, with ``--time`` its time
too. Where the server reads only sums of messages, secure aggregation can hide the single ones.
Exit status 0, or 2 for bad input.
"""

from absl import flags

from . import cli


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_config()
    flags.DEFINE_bool("time", False, "Also run each client's step, four times, and time it.")


def main(argv: list[str]) -> int:
    """Prints the tables of the flags' config and returns the exit status."""
    from rich.console import Console

    from zo_fl.host import devices

    from .inspection import client_costs

    del argv
    config = cli.resolved_config()
    devices.keep_programs()
    client_costs.show(config, Console(width=100, highlight=False), flags.FLAGS.time)
    return 0


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
