"""The linear discriminant from class means: the smallest message of all closed-form heads.

    high tier: the covariance S of its features within classes, once
    client j:  the mean feature and the number of examples of each class that it holds
    server:    W = S^-1 M,  b = log prior - diag(M^T W) / 2

Low-resource clients send nothing for S. Their validation examples choose how far S is shrunk. With
``sketch = k`` and ``encoding = "int4"`` a class takes k / 2 + 8 bytes.

What leaks: class counts and class means of a client, which scalars along random directions do not
show. Secure aggregation would hide them, if clients sent class sums, zeros where they hold none.

Sources: FedNCM (arXiv 2306.03937), FedCGS (2503.06962), CCVR (2106.05001).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

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


def phases(problem: Problem, *, gaussian_head: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the phase of means and its neighbours; ``gaussian_head`` is the config block.

    Raises:
      FieldError: a sketch that is too large, or clients without validation examples.
    """
    block, encoding = gaussian_head, gaussian_head["encoding"]
    extractor = features.make_extractor(problem, block["microbatch"], block["sketch"])
    if block["num_rounds"]:
        require_validation(problem, "num_rounds", f"={block['num_rounds']}")
    solver = Solver(
        extractor,
        has_gram=False,
        candidates=len(SHRINKAGES),
        sums=partial(_sums, extractor),
        encode=partial(messages.encode_means, encoding),
        decode=partial(messages.decode_means, encoding, extractor.size),
        solve=_solve,
        takes_covariance=True,
    )
    return sums.phases("gaussian_head", problem, solver, block)


def _sums(
    extractor: Extractor, state: ServerState, basis: MaybeBasis, batch: ClientBatch, own: Keys
) -> Moments:
    return features.sums(extractor, state, batch, basis=basis)


def _solve(total: Moments, covariance: Array) -> Heads:
    return closed_form.discriminant(
        total.class_sums, total.class_counts, covariance, jnp.asarray(SHRINKAGES)
    )
