"""The linear discriminant from class means: the smallest message of all closed-form heads.

    high tier: the covariance S of its features within classes, once
    client j:  the mean feature and the number of examples of each class that it holds
    server:    W = S^-1 M,  b = log prior - diag(M^T W) / 2

Low-resource clients send nothing for S. How far S is shrunk is chosen by the clients' validation
examples. With ``sketch = k`` (``steps``) and ``encoding = "int4"`` a class takes k / 2 + 8 bytes.

What leaks: class counts and class means of a client, which scalars along random directions do not
show. Secure sums hide them, if everyone sends zeros for the classes that it does not hold.

Sources: FedNCM (arXiv 2306.03937), FedCGS (2503.06962), CCVR (2106.05001).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from zo_fl.engine import cohorts
from zo_fl.engine.algorithm import ClientBatch, Phase, Problem, ServerState
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.keys import Keys
from zo_fl.engine.types import Array
from zo_fl.heads import closed_form, features, messages, steps, sums
from zo_fl.heads.closed_form import Heads, MaybeBasis, Moments
from zo_fl.heads.features import Extractor
from zo_fl.heads.steps import Setup
from zo_fl.heads.sums import Solver
from zo_fl.wrap.stop import require_validation

SHRINKAGES = np.array((1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0), np.float32)

BLOCKS: dict[str, Block] = {
    "gaussian_head": {
        "num_rounds": Field(1, "rounds of means; more where a cohort is not everyone", at_least=0),
        **cohorts.FIELDS,
        "calibrate": steps.CALIBRATE,
        "encoding": messages.ENCODING,
        "sketch": steps.SKETCH,
        "microbatch": features.MICROBATCH,
    }
}


class GaussianState(NamedTuple):
    """The server's memory between rounds.

    Attributes:
      sums: of everyone so far, of projected features if there is a basis; no Gram matrix.
      joined: ``f32[K]``, 1 for whoever is in the sums.
      basis: of the sketch, or ``()``.
      covariance: ``f32[k, k]`` within classes, the high tier's.
      heads: a candidate for each shrinkage.
    """

    sums: Moments
    joined: Array
    basis: MaybeBasis
    covariance: Array
    heads: Heads


def phases(problem: Problem, *, gaussian_head: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns class means and the phases before and after; ``gaussian_head`` is the config block.

    Raises:
      FieldError: a sketch that is too large, or clients without validation examples.
    """
    block = gaussian_head
    rounds, encoding = block["num_rounds"], block["encoding"]
    look = features.extractor(problem, block["microbatch"])
    steps.check_sketch(block["sketch"], look.dim)
    size = block["sketch"] or look.dim
    if rounds:
        require_validation(problem, "num_rounds", f"={rounds}")
    start = partial(_start, look, block["sketch"], len(problem.clients.client_sizes))
    setup = Setup("gaussian_head", problem, look, features.keeping(look), min(rounds, 1), start)
    solver = Solver(
        look,
        partial(_sums, look),
        partial(messages.encode_means, encoding),
        partial(messages.decode_means, encoding, size),
        partial(messages.means_bytes, encoding, size),
        _solve,
    )
    return sums.phases(setup, solver, "means", block, _learn_from_high, chooses=True)


def _start(look: Extractor, sketch: int, population: int) -> GaussianState:
    size = sketch or look.dim
    return GaussianState(
        closed_form.no_moments(size, look.num_classes)._replace(gram=()),
        jnp.zeros(population),
        steps.no_basis(sketch, look.dim),
        jnp.zeros((size, size)),
        closed_form.no_heads(len(SHRINKAGES), look.dim, look.num_classes),
    )


def _learn_from_high(moments: Moments, state: ServerState, of_round: Keys):
    """Returns a state that has the basis, if there is one, and the covariance within classes."""
    found: GaussianState = state.strategy_state
    covariance = closed_form.within_covariance(moments)
    if found.basis:
        basis = closed_form.principal_basis(moments, len(found.covariance))
        right = closed_form.product(covariance, basis.directions)
        covariance = closed_form.product(basis.directions.T, right)
        found = found._replace(basis=basis)
    return state.params, found._replace(covariance=covariance)


def _sums(look: Extractor, state: ServerState, batch: ClientBatch, own: Keys) -> Moments:
    return features.sums(look, state, batch, basis=state.strategy_state.basis)


def _solve(total: Moments, known: GaussianState) -> Heads:
    return closed_form.discriminant(
        total.class_sums, total.class_counts, known.covariance, jnp.asarray(SHRINKAGES)
    )
