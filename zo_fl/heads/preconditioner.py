"""The preconditioner of ``ridge_cg``, ``M = W + B + c I``: a matrix, or rows where d is large.

W is the covariance of the high tier's features within classes, B that of everyone's class means.

    matrix: high client j sends the second moments of its features;
            server: M's Cholesky factor, d x d
    rows:   high client j sends R_j of Phi_j = Q_j R_j, its features less its own class means,
            and class means and counts;
            server: U^T U = W + B, of all R_j and of class means;
            M^-1 r = (r - U^T (U U^T + c I)^-1 U r) / c

R_j has as many rows as the client has examples and the Gram matrix of Phi_j: it tells what second
moments tell, and no row is an example's. U has n rows for n examples of the high tier, so the rows
are fewer numbers for the client below n_j = d / 2, and for the server below n = d.

Source of the identity: Woodbury 1950.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from zo_fl.engine import cohorts
from zo_fl.engine.algorithm import (
    Client,
    ClientBatch,
    ClientResult,
    Phase,
    Problem,
    Reducer,
    ServerState,
)
from zo_fl.engine.keys import Keys
from zo_fl.engine.server import assign
from zo_fl.engine.types import Array, Params
from zo_fl.heads import closed_form, features, messages, steps
from zo_fl.heads.closed_form import Moments
from zo_fl.heads.features import Extractor
from zo_fl.heads.messages import Encoded, Message
from zo_fl.heads.steps import Setup


class Preconditioner(NamedTuple):
    """M; until everyone's class means are known what gives W.

    Attributes:
      rows: U, ``f32[R, d]``, those of B at the end; ``()`` for a matrix.
      factor: the lower Cholesky factor of ``U U^T + c I`` or of M, ``f32[R, R]`` or ``f32[d, d]``;
        of a matrix W before.
    """

    rows: Any
    factor: Array

    def solve(self, diagonal: float, right: Array) -> Array:
        """Returns ``M^-1 right``, ``f32[d, C]``; ``diagonal`` is c."""
        if isinstance(self.rows, tuple):
            return jax.scipy.linalg.cho_solve((self.factor, True), right)
        inner = closed_form.product(self.rows, right)
        inner = jax.scipy.linalg.cho_solve((self.factor, True), inner)
        return (right - closed_form.product(self.rows.T, inner)) / diagonal


class Sent(NamedTuple):
    """The message of rows.

    Attributes:
      rows: ``[k, d]``, R of the client's features less its class means, encoded.
      means: class means and counts.
    """

    rows: Encoded
    means: Message


class HighTier(NamedTuple):
    """The high tier's part.

    Attributes:
      clients: in it.
      rows_each: of a client, ``min(n_j, d)``.
    """

    extractor: Extractor
    encoding: str
    clients: int
    rows_each: int

    @property
    def num_rows(self) -> int:
        """Rows of U: those of clients, their class means', and those of everyone's class means."""
        classes = self.extractor.task.num_classes
        return self.clients * (self.rows_each + classes) + classes

    @property
    def has_rows(self) -> bool:
        """Whether the rows are fewer than the columns."""
        return self.num_rows < self.extractor.dim

    def start(self) -> Preconditioner:
        """Returns what is known before any message."""
        dim, size = self.extractor.dim, self.num_rows
        if not self.has_rows:
            return Preconditioner((), jnp.zeros((dim, dim)))
        return Preconditioner(jnp.zeros((size, dim)), jnp.zeros((size, size)))


def of_high_tier(problem: Problem, extractor: Extractor, encoding: str) -> HighTier:
    """Returns the high tier's part in a problem."""
    clients = len(cohorts.eligible_clients(problem, "high"))
    rows = min(problem.clients.client_indices.shape[1], extractor.dim)
    return HighTier(extractor, encoding, clients, rows)


def phase(
    setup: Setup, tier: HighTier, learned: Callable[[ServerState, Preconditioner], Any]
) -> Phase:
    """Returns the phase in which the high tier gives what W is made of.

    ``learned`` puts it into the method's strategy state.
    """

    def keep(state: ServerState, found: Preconditioner) -> tuple[Params, Any]:
        return state.params, learned(state, found)

    if not tier.has_rows:

        def learn(moments: Moments, state: ServerState, of_round: Keys):
            return keep(state, Preconditioner((), closed_form.within_covariance(moments)))

        return steps.high_tier_moments(setup, "moments", learn)
    client = Client(partial(_send, tier), partial(_read, tier), read_alone=True, one_model=True)
    server = assign(
        lambda stacked, state, of_round: keep(state, _within(tier, *stacked)), init=setup.fresh
    )
    server = server._replace(reducer=Reducer(is_sum=True, middle=lambda *stacked: stacked))
    passes = features.passes(more=1)
    return setup.phase("rows", setup.once, client, server, passes, steps.HIGH_TIER)


def complete(
    known: Preconditioner, scale: Array, cross: Array, prior: Array, diagonal: float
) -> Preconditioner:
    """Returns M in standardized features.

    Args:
      known: what gives W, of the features themselves.
      scale: ``f32[d]``, one over their deviations.
      cross: ``f32[d, C]``, ``1/n sum (h - mean) y^T`` of everyone, standardized.
      prior: ``f32[C]``, the share of each class.
      diagonal: c.
    """
    # Column c of ``cross`` is prior_c times the mean of class c.
    shares = jnp.maximum(prior, 1e-9)[None]
    if isinstance(known.rows, tuple):
        between = closed_form.product(cross / shares, cross.T)
        matrix = known.factor * jnp.outer(scale, scale) + between
    else:
        between = (cross / jnp.sqrt(shares)).T
        rows = known.rows * scale[None]
        known = known._replace(rows=rows.at[-len(between) :].set(between))
        matrix = closed_form.product(known.rows, known.rows.T)
    added = diagonal * jnp.eye(len(matrix))
    return known._replace(factor=jnp.linalg.cholesky(matrix + added))


def _send(tier: HighTier, state: ServerState, batch: ClientBatch, own: Keys) -> ClientResult:
    extractor = tier.extractor
    basis = features.around_blank(extractor, state)
    seen, labels = features.rows(extractor, state, batch, basis)
    sums = Moments((), closed_form.product(seen.T, labels), labels.sum(0))
    means = sums.class_sums / jnp.maximum(sums.class_counts, 1)[None]
    inner = seen - closed_form.product(labels, means.T)
    rows = jnp.linalg.qr(inner, mode="r")
    message = Sent(messages.encode(tier.encoding, rows), messages.encode_means(tier.encoding, sums))
    return features.result(batch, message, (rows, sums))


def _read(tier: HighTier, message: Sent, state: ServerState, own: Keys) -> tuple[Array, Moments]:
    dim = tier.extractor.dim
    rows = messages.decode(tier.encoding, message.rows, dim)
    return rows, messages.decode_means(tier.encoding, dim, message.means)


def _within(tier: HighTier, stacked: tuple[Array, Moments], weights: Array) -> Preconditioner:
    """Returns rows of W: those of clients, and their class means around all clients' together."""

    def counted(leaf):
        """The leaf of the clients who answered; another may have sent anything."""
        answered = (weights > 0).reshape(-1, *(1,) * (leaf.ndim - 1))
        return jnp.where(answered, leaf, 0.0)[: tier.clients]

    rows, (_, class_sums, counts) = jax.tree.map(counted, stacked)
    of_class = class_sums.sum(0) / jnp.maximum(counts.sum(0), 1)[None]
    means = class_sums / jnp.maximum(counts, 1)[:, None]
    away = jnp.sqrt(counts)[:, None] * (means - of_class[None])
    dim, known = tier.extractor.dim, tier.start()
    of_clients = jnp.concatenate([rows.reshape(-1, dim), away.transpose(0, 2, 1).reshape(-1, dim)])
    found = of_clients / jnp.sqrt(jnp.maximum(counts.sum(), 1))
    return known._replace(rows=known.rows.at[: len(found)].set(found))
