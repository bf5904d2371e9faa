"""A data set shared out among clients, and the gathering of a cohort's examples inside ``jit``."""

from typing import Any, NamedTuple

import numpy as np

from zo_fl.core.errors import ConfigError
from zo_fl.core.types import Dataset, FederatedData
from zo_fl.data import datasets, summary
from zo_fl.data import partition as partitions

PARTITIONS = ("dirichlet", "iid", "shards")


class Federation(NamedTuple):
    """A data set and who holds what of it.

    Attributes:
      dataset: the whole set, with the official test split.
      clients: the training side, NumPy arrays; put them on the device once.
      val_indices: ``i32[V]`` rows of ``dataset.train``: all clients' validation examples.
      summary: label skew per tier, from ``summary.summarize``; JSON-able.
    """

    dataset: Dataset
    clients: FederatedData
    val_indices: np.ndarray
    summary: dict[str, Any]


def load(
    name: str,
    data_dir: str | None,
    num_clients: int,
    partition: str,
    alpha: float,
    shards_per_client: int,
    high_fraction: float,
    val_fraction: float,
    partition_seed: int,
) -> Federation:
    """Returns a data set partitioned over clients. The config block ``config.data``.

    Partition, validation split and tiers have generators of their own, so that another
    ``high_fraction`` leaves the partition as it is: resource splits are compared on equal clients.

    Args:
      name: data set, see ``datasets.load``.
      data_dir: where TFDS sets lie; empty or None = ``$TFDS_DATA_DIR``, else
        ``~/tensorflow_datasets``.
      num_clients: population, K.
      partition: ``"dirichlet"``, ``"iid"`` or ``"shards"``.
      alpha: concentration of ``dirichlet``; ignored by the others.
      shards_per_client: of ``shards``; ignored by the others.
      high_fraction: share of high-resource clients, in (0, 1].
      val_fraction: share of each client's examples kept for validation, in [0, 1).
      partition_seed: seed of partition, validation split and tiers; at least 0.

    Raises:
      ConfigError: a field is out of range, or the data set is not there.
    """
    _check_numbers(num_clients, alpha, shards_per_client, partition_seed)
    _check_kind(partition)
    streams = np.random.SeedSequence(partition_seed).spawn(3)
    for_partition, for_split, for_tiers = (np.random.default_rng(stream) for stream in streams)
    # Before the data set is read: a wrong fraction should not cost a decoding.
    tiers = partitions.draw_tiers(num_clients, high_fraction, for_tiers)
    dataset = datasets.load(name, data_dir)
    labels = dataset.train["label"]
    per_client = shards_per_client if partition == "shards" else 1
    _check_enough(len(labels), num_clients, per_client)
    if partition == "dirichlet":
        rows = partitions.dirichlet(labels, num_clients, alpha, for_partition)
    elif partition == "iid":
        rows = partitions.iid(labels, num_clients, for_partition)
    else:
        rows = partitions.shards(labels, num_clients, shards_per_client, for_partition)
    train, val = partitions.split_validation(rows, val_fraction, for_split)
    sizes = np.full(num_clients, train.shape[1], np.int32)
    clients = FederatedData(dataset.train, train, sizes, tiers)
    described = summary.summarize(labels, train, tiers, dataset.num_classes)
    return Federation(dataset, clients, np.sort(val, axis=None), described)


def _check_kind(kind: str) -> None:
    if kind not in PARTITIONS:
        raise ConfigError(
            f"config.data.partition={kind!r} is unknown; allowed: {', '.join(PARTITIONS)}"
        )


def _check_numbers(
    num_clients: int, alpha: float, shards_per_client: int, partition_seed: int
) -> None:
    lower_bounds = {
        "num_clients": (num_clients, 1),
        "shards_per_client": (shards_per_client, 1),
        "partition_seed": (partition_seed, 0),
    }
    for field, (value, least) in lower_bounds.items():
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
            raise ConfigError(f"config.data.{field}={value!r} must be an integer, at least {least}")
    if not (alpha > 0 and np.isfinite(alpha)):
        raise ConfigError(f"config.data.alpha={alpha!r} must be a number above 0")


def _check_enough(num_examples: int, num_clients: int, per_client: int) -> None:
    if num_clients * per_client <= num_examples:
        return
    shards = f" times config.data.shards_per_client={per_client}" if per_client > 1 else ""
    raise ConfigError(
        f"config.data.num_clients={num_clients}{shards} is more than the {num_examples} training "
        f"examples; allowed: at most {num_examples // per_client} clients"
    )
