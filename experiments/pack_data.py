"""Carries a data set to a machine that has neither TFDS nor a network, in parts of limited size.

    python -m experiments.pack_data --dataset=cifar10 --data_dir=D --out=P [--part_mb=55]
    python -m experiments.pack_data --join=P --data_dir=E        # there

What is joined loads like a prepared set: --config.data.data_dir=E. Every part's checksum is
compared, and those of the arrays. Exit status: 0 done, 2 bad input or a damaged part.
"""

from pathlib import Path

from absl import flags

from zo_fl.engine.errors import ConfigError

from . import cli


def main(argv: list[str]) -> int:
    """Packs or joins what the flags say and returns the exit status."""
    from . import packing

    del argv
    given = flags.FLAGS
    if given.join is not None:
        if given.data_dir is None:
            raise ConfigError("no --data_dir given; name a folder for the data set")
        print(packing.join(Path(given.join), Path(given.data_dir).expanduser()))
    elif given.dataset is None or given.out is None:
        raise ConfigError("give --dataset and --out to pack, or --join and --data_dir to join")
    else:
        size = int(given.part_mb * 1e6)
        print(packing.pack(given.dataset, given.data_dir, Path(given.out), size))
    return 0


if __name__ == "__main__":
    flags.DEFINE_string("dataset", None, "cifar10, or another prepared set.")
    flags.DEFINE_string(
        "data_dir",
        None,
        "Where data sets lie. Default: $TFDS_DATA_DIR, or ~/tensorflow_datasets.",
    )
    flags.DEFINE_string("out", None, "Folder for the parts.")
    flags.DEFINE_float("part_mb", 55.0, "Megabytes of a part at most.", 1e-6)
    flags.DEFINE_string("join", None, "Instead: folder of the parts to put together.")
    cli.run(main)
