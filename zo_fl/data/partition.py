"""Partition of examples over clients, and of clients into tiers: NumPy, on the host.

    labels i32[N] --dirichlet | iid | shards--> i32[K, m] --split_validation--> i32[K, n], i32[K, v]

Every partition gives all clients the same number of examples and drops the remainder.
"""

import math
from typing import Any

import numpy as np

from zo_fl.engine.fields import ConfigError
from zo_fl.engine.types import HIGH, LOW

_SMALL = 0.02  # alpha from which on shares of labels do not underflow
SHARDS_PER_CLIENT = 2  # McMahan et al. 2017


def dirichlet(
    labels: np.ndarray, num_clients: int, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns equal-sized clients whose label shares are drawn from a symmetric Dirichlet.

    Client k has the shares p_k ~ Dir(alpha 1). One client after the other takes ``floor(N / K)``
    examples: each time it draws a label from p_k and takes an unused example of that label. A label
    that has run out leaves all shares. Late clients are therefore more skewed than early ones:
    never let the index of a client decide anything else.

    Args:
      labels: ``i32[N]``, at least 0.
      num_clients: K, at most N.
      alpha: concentration, above 0; smaller is more skewed. 0.1 on CIFAR-10 with 50 clients gives
        4.8 labels a client.
      rng: draws.

    Returns:
      ``i32[K, floor(N / K)]`` rows of ``labels``, none twice, in random order.

    Source: public code of ZOWarmUp's author (``FederatedLearningBaselines``), after Hsu et al. 2019
      (arXiv 1909.06335). Here, a client whose labels have all run out takes its remaining examples
      uniformly from the rest; there, it divides by zero or stops short.
    """
    labels = np.asarray(labels)
    stock = np.bincount(labels)
    shape, is_small = (num_clients, len(stock)), alpha < _SMALL
    if is_small:
        # log Gamma(alpha), as log Gamma(alpha + 1) + log U / alpha: shares would underflow to 0,
        # and a label that runs out could not leave its place to the next.
        shares = np.log(rng.standard_gamma(alpha + 1, shape))
        shares += np.log1p(-rng.random(shape)) / alpha
    else:
        shares = rng.dirichlet(np.full(len(stock), float(alpha)), size=num_clients)
    counts = np.zeros((num_clients, len(stock)), np.int64)
    for client in range(num_clients):
        size = len(labels) // num_clients
        counts[client] = _take(shares[client], stock, size, rng, is_log=is_small)
        stock -= counts[client]
    return _assign(labels, counts, rng)


def _take(
    shares: np.ndarray, stock: np.ndarray, size: int, rng: np.random.Generator, is_log: bool = False
) -> np.ndarray:
    """Returns the examples of each label that one client takes, ``i64[classes]``, ``size`` in all.

    They have the distribution of draws one at a time: if draws of a label that has run out are
    skipped, the others are draws from the renormalized shares. So a block can be drawn at once: of
    each label ``min(multinomial count, stock)`` draws count. Each block is as long as the missing
    examples, and completes the client or uses up a label.

    ``shares`` are ``f64[classes]``, if ``is_log`` their logarithms up to a constant; ``stock`` is
    ``i64[classes]``, the unused examples.
    """
    taken = np.zeros_like(stock)
    while wanted := size - taken.sum():
        left = stock - taken
        # Only labels in stock: NumPy gives the rest that rounding leaves (all of it, if shares are
        # denormal) to the last label, which must not be empty.
        (live,) = np.nonzero((left > 0) & (is_log | (shares > 0)))
        if not len(live):
            return taken + rng.multivariate_hypergeometric(left, wanted, method="marginals")
        weights = np.exp(shares[live] - shares[live].max()) if is_log else shares[live]
        drawn = rng.multinomial(wanted, weights / weights.sum())
        taken[live] += np.minimum(drawn, left[live])
    return taken


def _assign(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns ``i32[K, m]``: for each client ``counts[k, c]`` random examples of label ``c``."""
    num_clients, num_classes = counts.shape
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by label, random within a label
    stock = np.bincount(labels, minlength=num_classes)
    # The examples of each label go to the clients in turn; the rest goes to nobody, number K.
    portions = np.concatenate([counts, [stock - counts.sum(axis=0)]]).T
    owners = np.repeat(np.tile(np.arange(num_clients + 1), num_classes), portions.ravel())
    by_owner = order[np.argsort(owners, kind="stable")]
    size = counts[0].sum()
    rows = by_owner[: num_clients * size].reshape(num_clients, size)
    return rng.permuted(rows, axis=1).astype(np.int32)


def iid(labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
    """Returns ``i32[K, floor(N / K)]``, rows of ``labels`` drawn uniformly, none twice."""
    size = len(labels) // num_clients
    rows = rng.permutation(len(labels))[: num_clients * size]
    return rows.reshape(num_clients, size).astype(np.int32)


def shards(labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
    """Returns ``i32[K, 2 floor(N / 2K)]``: each client's two shards of the rows sorted by label.

    Source: McMahan et al. 2017 (arXiv 1602.05629), section 3. The remainder is dropped at random
      here, not from the last label.
    """
    num_shards = num_clients * SHARDS_PER_CLIENT
    size = len(labels) // num_shards
    rows = rng.permutation(len(labels))[: num_shards * size]
    rows = rows[np.argsort(np.asarray(labels)[rows], kind="stable")].reshape(num_shards, size)
    dealt = rows[rng.permutation(num_shards)].reshape(num_clients, SHARDS_PER_CLIENT * size)
    return rng.permuted(dealt, axis=1).astype(np.int32)


def split_validation(
    client_indices: np.ndarray, val_fraction: float, rng: np.random.Generator, first: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Returns training and validation rows of each client, after a shuffle of its rows.

    Of ``i32[K, m]`` the first are ``floor((1 - val_fraction) m)``: 112 of 125. ``first`` is the
    number of the first of these clients.

    Raises:
      ConfigError: no training row is left.
    """
    size = client_indices.shape[1]
    # 1e-9: (1 - 0.9) * 10 is 0.99999... in binary and means 1.
    num_train = math.floor((1 - val_fraction) * size + 1e-9)
    if num_train == 0:
        raise ConfigError(
            f"config.data.val_fraction={val_fraction} leaves client {first} no training example "
            f"of its {size}; lower it, 0 is allowed, or have fewer clients with more examples"
        )
    shuffled = rng.permuted(client_indices, axis=1)
    return shuffled[:, :num_train], shuffled[:, num_train:]


def draw_tiers(num_clients: int, high_fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Returns the tier of each client, ``i32[K]``; ``high_fraction * K``, rounded, are ``HIGH``.

    With equal generators, the clients of a smaller fraction are among those of a larger one.

    Raises:
      ConfigError: the fraction rounds to no client.
    """
    num_high = math.floor(high_fraction * num_clients + 0.5)
    if num_high == 0:
        raise ConfigError(
            f"config.data.high_fraction={high_fraction} of config.data.num_clients={num_clients} "
            f"makes no high-resource client; allowed: at least {0.5 / num_clients:g}"
        )
    tiers = np.full(num_clients, LOW, np.int32)
    tiers[rng.permutation(num_clients)[:num_high]] = HIGH
    return tiers


def summarize(
    labels: np.ndarray,
    client_indices: np.ndarray,
    client_sizes: np.ndarray,
    tiers: np.ndarray,
    num_classes: int,
) -> dict[str, Any]:
    """Returns the label skew of a partition, JSON-able.

    Args:
      labels: ``i32[N]`` in ``[0, num_classes)``.
      client_indices: ``i32[K, n]`` training rows of each client, padded.
      client_sizes: ``i32[K]``, the number of real rows.
      tiers: ``i32[K]``.
      num_classes: number of labels.

    Returns:
      ``num_classes``, and for each of ``high``, ``low`` and ``all`` clients the counts ``clients``
      and ``examples``; ``classes_covered``, labels that they hold together; ``labels_per_client``,
      the mean; ``dominant_share``, the mean share in [0, 1] of a client's most frequent label; and
      ``tv_from_uniform``, the total variation distance in [0, 1] of all their labels from the
      uniform distribution. The last three are None without clients.
    """
    num_clients = len(client_indices)
    offsets = np.arange(num_clients)[:, None] * num_classes
    real = np.arange(client_indices.shape[1]) < client_sizes[:, None]
    held = (np.asarray(labels)[client_indices] + offsets)[real]
    counts = np.bincount(held, minlength=num_clients * num_classes)
    counts = counts.reshape(num_clients, num_classes)
    return {
        "num_classes": int(num_classes),
        "high": _summarize_tier(counts[tiers == HIGH]),
        "low": _summarize_tier(counts[tiers == LOW]),
        "all": _summarize_tier(counts),
    }


def _summarize_tier(counts: np.ndarray) -> dict[str, Any]:
    """Returns the figures of clients with the label counts ``i64[clients, classes]``."""
    pooled = counts.sum(axis=0)
    found: dict[str, Any] = {
        "clients": len(counts),
        "examples": int(counts.sum()),
        "classes_covered": int((pooled > 0).sum()),
    }
    if not found["examples"]:
        return found | dict.fromkeys(("labels_per_client", "dominant_share", "tv_from_uniform"))
    shares = counts / counts.sum(axis=1, keepdims=True)
    distance = 0.5 * np.abs(pooled / pooled.sum() - 1 / len(pooled)).sum()
    return found | {
        "labels_per_client": round(float((counts > 0).sum(axis=1).mean()), 4),
        "dominant_share": round(float(shares.max(axis=1).mean()), 4),
        "tv_from_uniform": round(float(distance), 4),
    }


def format_summary(summary: dict[str, Any]) -> str:
    """Returns a summary as a plain table of at most 80 columns."""
    rows = ["tier  clients   examples       classes  labels/client  dominant    TV"]
    for tier in ("high", "low", "all"):
        of = summary[tier]
        covered = f"{of['classes_covered']} of {summary['num_classes']}"
        figures = f"{'-':>13}  {'-':>8}  {'-':>4}"
        if of["examples"]:
            figures = f"{of['labels_per_client']:13.1f}  {of['dominant_share']:8.0%}  "
            figures += f"{of['tv_from_uniform']:4.2f}"
        rows.append(f"{tier:4}  {of['clients']:7}  {of['examples']:9,}  {covered:>12}  {figures}")
    return "\n".join(rows)
