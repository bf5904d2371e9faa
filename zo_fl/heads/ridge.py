"""Ridge regression from everyone's sums: exact whatever the label skew, the order, the drop-outs.

    client j:  G_j = sum h h^T (upper triangle),  B_j = sum h y^T,  n_j (examples of each class)
    server:    W = (G + penalty I)^-1 B of all that were added, on standardized features

h is the input of the model's last layer, y the one-hot label. A client makes one forward pass over
its examples and sends one message, and there is no learning rate: the head is that of the pooled
data (``sums``). Clients choose the penalty that gets most of their validation examples right, and
then a temperature (``steps``).

With ``sketch = k`` clients send k numbers for a feature vector (``steps``), with ``encoding`` fewer
bytes a number: below float32, correlations within [-1, 1] and one deviation a feature. Columns of
classes that a client does not hold are not sent.

What leaks: a client's class counts and sums. Secure aggregation hides sums; it needs all columns,
see ``README.md``. ``bound`` and ``noise`` hide single examples (``wrap.privacy``).

Sources: AFL (arXiv 2405.16240), Fed3R (2406.01116).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from zo_fl.engine import cohorts, keys
from zo_fl.engine.algorithm import Phase, Problem, ServerState
from zo_fl.engine.fields import Block, Field, FieldError, Rule, take
from zo_fl.engine.keys import Keys
from zo_fl.engine.types import Array
from zo_fl.heads import closed_form, features, messages, steps, sums
from zo_fl.heads.closed_form import Heads, MaybeBasis, Moments
from zo_fl.heads.features import Extractor
from zo_fl.heads.steps import Setup
from zo_fl.heads.sums import Solver
from zo_fl.wrap import privacy
from zo_fl.wrap.privacy import Privacy
from zo_fl.wrap.stop import require_validation

PENALTIES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

BLOCKS: dict[str, Block] = {
    "ridge": {
        "num_rounds": Field(1, "rounds of sums; more where a cohort is not everyone", at_least=0),
        **cohorts.FIELDS,
        "penalties": Field(
            PENALTIES,
            "penalties to choose from, for features of variance 1",
            at_least=0,
            rule=Rule(lambda: "one number or more, none below 0", bool),
        ),
        "calibrate": steps.CALIBRATE,
        "encoding": messages.ENCODING,
        "sketch": steps.SKETCH,
        "microbatch": features.MICROBATCH,
        **privacy.FIELDS,
    }
}


class RidgeState(NamedTuple):
    """The server's memory between rounds.

    Attributes:
      sums: of everyone so far, of projected features if there is a basis.
      joined: ``f32[K]``, 1 for whoever is in the sums.
      basis: of the sketch, or ``()``.
      heads: a candidate for each penalty.
    """

    sums: Moments
    joined: Array
    basis: MaybeBasis
    heads: Heads


def phases(problem: Problem, *, ridge: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns sums and the phases before and after them; ``ridge`` is the config block.

    Raises:
      FieldError: a sketch that is too large, noise that hides nothing, or a choice without
        validation examples.
    """
    look = features.extractor(problem, ridge["microbatch"])
    size, population = ridge["sketch"], len(problem.clients.client_sizes)
    penalties = np.array(ridge["penalties"], np.float32)
    steps.check_sketch(size, look.dim)
    _check_private(ridge)
    once, encoding, private = min(ridge["num_rounds"], 1), ridge["encoding"], take(Privacy, ridge)
    if once and len(penalties) > 1:
        require_validation(problem, "penalties", f"={ridge['penalties']!r}")
    start = partial(_start, look, size, population, len(penalties))
    setup = Setup("ridge", problem, look, features.keeping(look), once, start)
    solver = Solver(
        look,
        partial(_sums, look, private, cohorts.cohort_size(problem, ridge)),
        partial(messages.encode_moments, encoding),
        partial(messages.decode_moments, encoding),
        partial(messages.moments_bytes, encoding, size or look.dim),
        partial(_solve, penalties, bool(private.noise)),
    )
    learn, release = _find_basis if size else None, privacy.release(private, once=True)
    return sums.phases(setup, solver, "sums", ridge, learn, len(penalties) > 1, release)


def _check_private(ridge: Mapping[str, Any]) -> None:
    """Checks that with noise clients send nothing else, which no noise would hide.

    Raises:
      FieldError: they are asked for more.
    """
    allowed = {"penalties": "one of them", "calibrate": "False", "sketch": "0"}
    more = {**ridge, "penalties": len(ridge["penalties"]) > 1}
    for field, words in allowed.items():
        if ridge["noise"] and more[field]:
            problem = f"={ridge[field]!r} has clients send more than noisy sums"
            raise FieldError(field, f"{problem}; allowed with noise: {words}")


def _start(look: Extractor, size: int, population: int, candidates: int) -> RidgeState:
    return RidgeState(
        closed_form.no_moments(size or look.dim, look.num_classes),
        jnp.zeros(population),
        steps.no_basis(size, look.dim),
        closed_form.no_heads(candidates, look.dim, look.num_classes),
    )


def _find_basis(moments: Moments, state: ServerState, of_round: Keys):
    size = state.strategy_state.basis.directions.shape[1]
    basis = closed_form.principal_basis(moments, size)
    return state.params, state.strategy_state._replace(basis=basis)


def _sums(look: Extractor, private: Privacy, cohort: int, state, batch, own: Keys) -> Moments:
    """Returns a client's sums of bounded features, with its share of the noise."""
    bounded = partial(privacy.bounded_features, private)
    exact = features.moments(look, state, batch, state.strategy_state.basis, bounded)
    key = keys.stream(own.client, "privacy")
    return Moments(*privacy.noisy_sums(private, exact, cohort, key))


def _solve(penalties: np.ndarray, is_noisy: bool, total: Moments, known: RidgeState) -> Heads:
    likely = closed_form.semidefinite(total) if is_noisy else total
    return closed_form.ridge(likely, jnp.asarray(penalties))
