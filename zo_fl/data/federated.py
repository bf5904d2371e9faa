"""A data set shared out among clients, and the gathering of a cohort's examples inside ``jit``."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from zo_fl.data import datasets, summary
from zo_fl.data import partition as partitions
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.types import Dataset, FederatedData

PARTITIONS = ("dirichlet", "iid", "shards")


BLOCK: Block = {
    "name": Field("cifar10", "cifar10_sample, synthetic, or a set that TFDS has prepared"),
    "data_dir": Field("", "where TFDS sets lie; '' = $TFDS_DATA_DIR or ~/tensorflow_datasets"),
    "num_examples": Field(0, "training examples, drawn by the partition seed; 0 = all", at_least=0),
    "num_clients": Field(50, "population, K", at_least=1),
    "partition": Field("dirichlet", "of examples over clients", PARTITIONS),
    "alpha": Field(0.1, "label skew of dirichlet; smaller is more skewed", above=0),
    "shards_per_client": Field(2, "of shards", at_least=1),
    "high_fraction": Field(0.1, "share of high-resource clients, drawn", above=0, at_most=1),
    "val_fraction": Field(0.1, "of each client's examples", at_least=0, below=1),
    "partition_seed": Field(0, "of partition, validation split and tiers", at_least=0, below=2**32),
}


class Federation(NamedTuple):
    """A data set and who holds what of it.

    Attributes:
      dataset: the whole set, with the official test split.
      clients: the training side, NumPy arrays; put them on the device once.
      validation: the same clients with their validation examples instead.
      summary: label skew per tier, from ``summary.summarize``; JSON-able.
    """

    dataset: Dataset
    clients: FederatedData
    validation: FederatedData
    summary: dict[str, Any]

    @property
    def val_indices(self) -> np.ndarray:
        """``i32[V]`` rows of ``dataset.train``: all clients' validation examples, sorted."""
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
    shards_per_client: int,
    high_fraction: float,
    val_fraction: float,
    partition_seed: int,
    dataset: Dataset | None = None,
) -> Federation:
    """Returns a data set partitioned over clients. The config block ``config.data``.

    Partition, validation split, tiers and the choice of examples have generators of their own, so
    that another ``high_fraction`` leaves the partition as it is: resource splits are compared on
    equal clients.

    Args:
      name: data set, see ``datasets.load``.
      data_dir: where TFDS sets lie; empty or None = ``$TFDS_DATA_DIR``, else
        ``~/tensorflow_datasets``.
      num_examples: how many training examples are dealt out; 0 = all.
      num_clients: population, K.
      partition: ``"dirichlet"``, ``"iid"`` or ``"shards"``.
      alpha: concentration of ``dirichlet``; ignored by the others.
      shards_per_client: of ``shards``; ignored by the others.
      high_fraction: share of high-resource clients, in (0, 1].
      val_fraction: share of each client's examples kept for validation, in [0, 1).
      partition_seed: seed of partition, validation split and tiers; at least 0.
      dataset: instead of the one that is named. If it says who holds what, nothing is partitioned.

    Raises:
      ConfigError: a field is out of range, or the data set is not there.
    """
    streams = np.random.SeedSequence(partition_seed).spawn(4)
    for_partition, for_split, for_tiers, for_choice = map(np.random.default_rng, streams)
    given = dataset.client_indices if dataset is not None else None
    if given is not None:
        num_clients = len(given)
    # Before the data set is read: a wrong fraction should not cost a decoding.
    tiers = partitions.draw_tiers(num_clients, high_fraction, for_tiers)
    dataset = dataset or datasets.load(name, data_dir)
    labels = dataset.train["label"]
    if given is not None:
        rows = given
    else:
        chosen = _choose(len(labels), num_examples, for_choice)
        per_client = shards_per_client if partition == "shards" else 1
        _check_enough(len(chosen), num_clients, per_client)
        if partition == "dirichlet":
            dealt = partitions.dirichlet(labels[chosen], num_clients, alpha, for_partition)
        elif partition == "iid":
            dealt = partitions.iid(labels[chosen], num_clients, for_partition)
        else:
            dealt = partitions.shards(labels[chosen], num_clients, shards_per_client, for_partition)
        rows = chosen[dealt]
    (train, sizes), validation = _split(rows, val_fraction, for_split)
    clients = FederatedData(dataset.train, train, sizes, tiers)
    described = summary.summarize(labels, train, sizes, tiers, dataset.num_classes)
    return Federation(dataset, clients, FederatedData(dataset.train, *validation, tiers), described)


def _choose(available: int, num_examples: int, rng: np.random.Generator) -> np.ndarray:
    """Returns the sorted rows ``i32[num_examples]`` of some examples; of all for 0."""
    if num_examples > available:
        raise ConfigError(
            f"config.data.num_examples={num_examples} is more than the {available} training "
            "examples; allowed: at most as many, or 0 for all"
        )
    if not num_examples:
        return np.arange(available, dtype=np.int32)
    return np.sort(rng.choice(available, num_examples, replace=False)).astype(np.int32)


Table = tuple[np.ndarray, np.ndarray]


def _split(
    rows: Sequence[np.ndarray] | np.ndarray, val_fraction: float, rng: np.random.Generator
) -> tuple[Table, Table]:
    """Returns ``(indices i32[K, n], sizes i32[K])`` of each client's training and validation."""
    if isinstance(rows, np.ndarray):
        train, val = partitions.split_validation(rows, val_fraction, rng)
        return _table(list(train)), _table(list(val))
    # Clients of any sizes, one by one.
    parts = [partitions.split_validation(each[None], val_fraction, rng) for each in rows]
    return _table([train[0] for train, _ in parts]), _table([val[0] for _, val in parts])


def _table(rows: Sequence[np.ndarray]) -> Table:
    """Returns rows of any lengths as a table, padded with 0, and their lengths."""
    sizes = np.array([len(each) for each in rows], np.int32)
    table = np.zeros((len(rows), sizes.max()), np.int32)
    for client, each in enumerate(rows):
        table[client, : len(each)] = each
    return table, sizes


def _check_enough(num_examples: int, num_clients: int, per_client: int) -> None:
    if num_clients * per_client <= num_examples:
        return
    shards = f" times config.data.shards_per_client={per_client}" if per_client > 1 else ""
    raise ConfigError(
        f"config.data.num_clients={num_clients}{shards} is more than the {num_examples} training "
        f"examples; allowed: at most {num_examples // per_client} clients"
    )
