"""A data set divided among clients."""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from zo_fl.data import datasets
from zo_fl.data import partition as partitions
from zo_fl.engine.fields import Block, ConfigError, Field
from zo_fl.engine.types import Dataset, FederatedData

PARTITIONS = ("dirichlet", "iid", "shards")

BLOCK: Block = {
    "name": Field(
        "cifar10", f"data set: {', '.join(datasets.LOADERS)}, or one that TFDS has prepared"
    ),
    "data_dir": Field(
        "", "folder of the TFDS sets; empty means $TFDS_DATA_DIR or ~/tensorflow_datasets"
    ),
    "num_examples": Field(
        0, "number of training examples, drawn by the partition seed", at_least=1, zero="all"
    ),
    "num_clients": Field(50, "number of clients in the population", at_least=1),
    "partition": Field("dirichlet", "way to divide the examples among clients", PARTITIONS),
    "alpha": Field(0.1, "concentration of dirichlet; smaller gives more label skew", above=0),
    "high_fraction": Field(
        0.1, "share of high-resource clients, drawn at random", above=0, at_most=1
    ),
    "val_fraction": Field(
        0.1, "share of the examples of each client for validation", at_least=0, below=1
    ),
    "partition_seed": Field(
        0, "seed of the partition, validation split and tiers", at_least=0, below=2**32
    ),
}


class Federation(NamedTuple):
    """A data set and its division among clients.

    Attributes:
      dataset: the whole data set, with the official test split.
      clients: training examples of the clients, NumPy arrays.
      validation: validation examples of the same clients.
      summary: label skew of each tier, from ``partition.summarize``; JSON-able.
    """

    dataset: Dataset
    clients: FederatedData
    validation: FederatedData
    summary: dict[str, Any]

    @property
    def val_indices(self) -> np.ndarray:
        """``i32[V]`` rows of ``dataset.train``: validation examples of all clients, sorted."""
        table, sizes = self.validation.client_indices, self.validation.client_sizes
        held = np.arange(table.shape[1]) < np.asarray(sizes)[:, None]
        return np.sort(np.asarray(table)[held])


def load(
    name: str,
    data_dir: str | None,
    num_examples: int,
    num_clients: int,
    partition: str,
    alpha: float,
    high_fraction: float,
    val_fraction: float,
    partition_seed: int,
    dataset: Dataset | None = None,
) -> Federation:
    """Returns a data set divided among clients, as ``BLOCK`` says.

    Partition, validation split, tiers and the choice of examples have generators of their own:
    resource splits are compared on equal clients. ``dataset`` takes the place of the named one; its
    ``client_indices``, if any, are the partition.

    Raises:
      ConfigError: a field is out of range, or the data set is not there.
    """
    streams = np.random.SeedSequence(partition_seed).spawn(4)
    for_partition, for_split, for_tiers, for_choice = map(np.random.default_rng, streams)
    rows = dataset.client_indices if dataset is not None else None
    if rows is not None:
        num_clients = len(rows)
    # Before the data set is read: a wrong fraction should not cost a decoding.
    tiers = partitions.draw_tiers(num_clients, high_fraction, for_tiers)
    dataset = dataset or datasets.load(name, data_dir)
    labels = dataset.train["label"]
    if rows is None:
        chosen = _choose(len(labels), num_examples, for_choice)
        rows = chosen[_divide(labels[chosen], num_clients, partition, alpha, for_partition)]
    (train, sizes), validation = _split(rows, val_fraction, for_split)
    clients = FederatedData(dataset.train, train, sizes, tiers)
    summary = partitions.summarize(labels, train, sizes, tiers, dataset.num_classes)
    return Federation(dataset, clients, FederatedData(dataset.train, *validation, tiers), summary)


def _choose(available: int, num_examples: int, rng: np.random.Generator) -> np.ndarray:
    """Returns sorted rows ``i32[num_examples]`` of random examples; all rows for 0."""
    if num_examples > available:
        raise ConfigError(
            f"config.data.num_examples={num_examples} is more than the {available} training "
            "examples; allowed: at most as many, or all"
        )
    if not num_examples:
        return np.arange(available, dtype=np.int32)
    return np.sort(rng.choice(available, num_examples, replace=False)).astype(np.int32)


def _divide(
    labels: np.ndarray, num_clients: int, partition: str, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns for each client its rows of ``labels``, ``i32[K, m]``."""
    most = len(labels) // (partitions.SHARDS_PER_CLIENT if partition == "shards" else 1)
    if num_clients > most:
        raise ConfigError(
            f"config.data.num_clients={num_clients} is too many for {len(labels)} training "
            f"examples and config.data.partition={partition!r}; allowed: at most {most}"
        )
    if partition == "dirichlet":
        return partitions.dirichlet(labels, num_clients, alpha, rng)
    draw = partitions.iid if partition == "iid" else partitions.shards
    return draw(labels, num_clients, rng)


Table = tuple[np.ndarray, np.ndarray]


def _split(
    rows: Sequence[np.ndarray] | np.ndarray, val_fraction: float, rng: np.random.Generator
) -> tuple[Table, Table]:
    """Returns ``(indices i32[K, n], sizes i32[K])`` for training and for validation."""
    # Neighbours of equal size together: as one by one, and in a hundredth of the time.
    if isinstance(rows, np.ndarray):
        groups = [rows]
    else:
        groups = [np.stack([*group]) for _, group in itertools.groupby(rows, len)]
    firsts = np.cumsum([0, *map(len, groups)])
    parts = [
        partitions.split_validation(group, val_fraction, rng, first)
        for group, first in zip(groups, firsts, strict=False)
    ]
    train, validation = map(_joined, zip(*parts, strict=True))
    return train, validation


def _joined(tables: Sequence[np.ndarray]) -> Table:
    """Returns tables ``i32[k, m]`` below each other, padded with 0, and the length of each row."""
    sizes = np.repeat([table.shape[1] for table in tables], [*map(len, tables)]).astype(np.int32)
    joined = np.zeros((len(sizes), sizes.max()), np.int32)
    ends = np.cumsum([*map(len, tables)])
    for table, end in zip(tables, ends, strict=True):
        joined[end - len(table) : end, : table.shape[1]] = table
    return joined, sizes
