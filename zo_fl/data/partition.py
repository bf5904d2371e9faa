"""Who holds which examples, and who is a high-resource client. NumPy, on the host, once a run.

    labels i32[N] --dirichlet | iid | shards--> i32[K, m] --split_validation--> i32[K, n], i32[K, v]

Every partition gives all clients the same number of examples, drops the remainder, and takes a
``np.random.Generator``: nothing here knows of JAX.
"""

import math

import numpy as np

from zo_fl.engine.errors import ConfigError
from zo_fl.engine.types import HIGH, LOW


def dirichlet(
    labels: np.ndarray, num_clients: int, alpha: float, rng: np.random.Generator
) -> np.ndarray:
    """Returns equal-sized clients whose label shares are drawn from a symmetric Dirichlet.

    Each client has shares p_k ~ Dir(alpha 1). In turn clients take ``floor(N / K)`` examples, each
    a draw of a label from p_k and the next unused example of that label. A label that runs out is
    struck from all shares, which are renormalised. Late clients therefore are more skewed than
    early ones: never let a client's index decide anything else.

    Args:
      labels: ``i32[N]``, at least 0.
      num_clients: K, at most N.
      alpha: concentration, above 0; smaller is more skewed. 0.1 on CIFAR-10 with 50 clients gives
        4.8 labels a client.
      rng: source of randomness.

    Returns:
      ``i32[K, m]`` with ``m = floor(N / K)``: rows of ``labels``, none twice, in random order.

    Source: the scheme of ZOWarmUp's author (public code of ``FederatedLearningBaselines``), after
      Hsu et al. 2019, arXiv 1909.06335. Differs in that a client whose every label has run out
      takes its remaining examples uniformly from what is left, instead of dividing by zero or
      stopping short.
    """
    labels = np.asarray(labels)
    stock = np.bincount(labels)
    shares = rng.dirichlet(np.full(len(stock), float(alpha)), size=num_clients)
    counts = np.zeros((num_clients, len(stock)), np.int64)
    for client in range(num_clients):
        counts[client] = _take(shares[client], stock, len(labels) // num_clients, rng)
        stock -= counts[client]
    return _assign(labels, counts, rng)


def _take(shares: np.ndarray, stock: np.ndarray, size: int, rng: np.random.Generator) -> np.ndarray:
    """Returns how many examples of each label one client takes, ``i64[classes]``.

    The same distribution as ``size`` draws one at a time. Draw independent labels from the shares
    and skip each whose label has run out by then: what is left is distributed as draws from the
    renormalised shares, because a draw that is conditioned on being in stock is just that. Of a
    block of draws the accepted ones of a label are the first ``stock`` of them, so the counts
    suffice: ``min(multinomial counts, stock)``. Blocks are as long as what is still wanted, hence
    nothing is drawn too much; each block fills the client or empties a label.

    Args:
      shares: ``f64[classes]``.
      stock: ``i64[classes]`` unused examples.
      size: how many to take, at most ``stock.sum()``.
      rng: source of randomness.
    """
    taken = np.zeros_like(stock)
    while wanted := size - taken.sum():
        left = stock - taken
        # Only labels in stock go into the draw: NumPy gives what rounding leaves over (all of it,
        # where shares are denormal) to the last one, which must not be empty.
        (live,) = np.nonzero((left > 0) & (shares > 0))
        if not len(live):
            return taken + rng.multivariate_hypergeometric(left, wanted, method="marginals")
        drawn = rng.multinomial(wanted, shares[live] / shares[live].sum())
        taken[live] += np.minimum(drawn, left[live])
    return taken


def _assign(labels: np.ndarray, counts: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns ``i32[K, m]``: for each client ``counts[k, c]`` random examples of label ``c``."""
    num_clients, num_classes = counts.shape
    order = rng.permutation(len(labels))
    order = order[np.argsort(labels[order], kind="stable")]  # by label, random within
    stock = np.bincount(labels, minlength=num_classes)
    # Each label's examples go to the clients in turn, the rest to nobody (K, dropped below).
    portions = np.concatenate([counts, [stock - counts.sum(axis=0)]]).T
    owners = np.repeat(np.tile(np.arange(num_clients + 1), num_classes), portions.ravel())
    by_owner = order[np.argsort(owners, kind="stable")]
    size = counts[0].sum()
    rows = by_owner[: num_clients * size].reshape(num_clients, size)
    return rng.permuted(rows, axis=1).astype(np.int32)


def iid(labels: np.ndarray, num_clients: int, rng: np.random.Generator) -> np.ndarray:
    """Returns equal-sized clients drawn uniformly from all examples.

    Args:
      labels: ``i32[N]``; only its length is used.
      num_clients: K, at most N.
      rng: source of randomness.

    Returns:
      ``i32[K, m]`` with ``m = floor(N / K)``: rows of ``labels``, none twice.
    """
    size = len(labels) // num_clients
    rows = rng.permutation(len(labels))[: num_clients * size]
    return rows.reshape(num_clients, size).astype(np.int32)


def shards(
    labels: np.ndarray, num_clients: int, shards_per_client: int, rng: np.random.Generator
) -> np.ndarray:
    """Returns clients that hold a few shards each of the examples sorted by label.

    Args:
      labels: ``i32[N]``.
      num_clients: K.
      shards_per_client: about the number of labels a client has; K times this is at most N.
      rng: source of randomness.

    Returns:
      ``i32[K, m]``: rows of ``labels``, none twice; ``m`` is ``shards_per_client`` times the shard
      size ``floor(N / (K shards_per_client))``.

    Source: McMahan et al. 2017, arXiv 1602.05629, section 3. A remainder is dropped at random, not
      from the last label.
    """
    num_shards = num_clients * shards_per_client
    size = len(labels) // num_shards
    rows = rng.permutation(len(labels))[: num_shards * size]
    rows = rows[np.argsort(np.asarray(labels)[rows], kind="stable")].reshape(num_shards, size)
    dealt = rows[rng.permutation(num_shards)].reshape(num_clients, shards_per_client * size)
    return rng.permuted(dealt, axis=1).astype(np.int32)


def split_validation(
    client_indices: np.ndarray, val_fraction: float, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns each client's training and validation rows, after a shuffle of each client's rows.

    Args:
      client_indices: ``i32[K, m]``.
      val_fraction: share of validation rows, in [0, 1).
      rng: source of randomness.

    Returns:
      ``(train, val)``: ``i32[K, n]`` and ``i32[K, v]`` with ``n = floor((1 - val_fraction) m)`` and
      ``v = m - n``: 900 and 100 of 1000, 112 and 13 of 125, 23060 and 2563 of 25623.

    Raises:
      ConfigError: no training row is left.
    """
    size = client_indices.shape[1]
    # 1e-9: (1 - 0.9) * 10 is 0.99999... in binary and means 1.
    num_train = math.floor((1 - val_fraction) * size + 1e-9)
    if num_train == 0:
        raise ConfigError(
            f"config.data.val_fraction={val_fraction} leaves no training example of a client's "
            f"{size}; lower it, or lower config.data.num_clients"
        )
    shuffled = rng.permuted(client_indices, axis=1)
    return shuffled[:, :num_train], shuffled[:, num_train:]


def draw_tiers(num_clients: int, high_fraction: float, rng: np.random.Generator) -> np.ndarray:
    """Returns each client's tier; which clients are ``HIGH`` is drawn uniformly, never by index.

    The draw is nested: with equal generators, the high-resource clients of a smaller fraction are
    among those of a larger one, so that resource splits are compared on paired populations.

    Args:
      num_clients: K.
      high_fraction: share of high-resource clients, in (0, 1]; rounded to the nearest count.
      rng: source of randomness.

    Returns:
      ``i32[K]``, ``HIGH`` or ``LOW``.

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
