"""Ridge regression from everyone's sums: label skew, order and drop-outs do not change it.

    client j:  G_j = sum h h^T (upper triangle),  B_j = sum h y^T,  n_j (examples of each class)
    server:    W = (G + penalty I)^-1 B of all that were added, on standardized features

h is the input of the model's last layer, y the one-hot label. A client makes one forward pass over
its examples and sends one message, and there is no learning rate: the head is that of the pooled
data (``sums``). Clients choose the penalty that gets most of their validation examples right, and
then a temperature (``steps``).

With ``sketch = k`` clients send sums of k numbers an example instead of d. With ``encoding`` they
send fewer bytes a number: correlations within [-1, 1] and one deviation a feature. A client does
not send the columns of its absent classes.

What leaks: a client's class counts and sums. Secure aggregation hides sums; it needs all columns
(docs/guides/robustness). ``bound`` and ``noise`` hide single examples (``wrap.privacy``): a feature
vector has a length of bound at most, so an example moves each part of (G / bound^2, B / bound, n)
by 1 at most, and all of them by sqrt(3). Each client adds its share of the noise, noise /
sqrt(cohort), as under secure aggregation, where the server sees only the sum; a client that drops
out takes its share along.

Sources: AFL (arXiv 2405.16240), Fed3R (2406.01116).
"""

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import cohorts, keys
from zo_fl.engine.algorithm import Phase, Problem
from zo_fl.engine.fields import Block, Field, FieldError, Rule, take
from zo_fl.engine.keys import Keys
from zo_fl.engine.types import Array
from zo_fl.heads import closed_form, features, messages, steps, sums
from zo_fl.heads.closed_form import Heads, Moments
from zo_fl.heads.features import Extractor
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


def phases(problem: Problem, *, ridge: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns the phase of sums and its neighbours; ``ridge`` is the config block.

    Raises:
      FieldError: a sketch that is too large, noise that hides nothing, or a choice without
        validation examples.
    """
    extractor = features.make_extractor(problem, ridge["microbatch"], ridge["sketch"])
    penalties = np.array(ridge["penalties"], np.float32)
    encoding, private = ridge["encoding"], take(Privacy, ridge)
    _check_private(problem, ridge)
    if ridge["num_rounds"] and len(penalties) > 1:
        require_validation(problem, "penalties", f"={ridge['penalties']!r}")
    solver = Solver(
        extractor,
        has_gram=True,
        candidates=len(penalties),
        sums=partial(_sums, extractor, private, cohorts.cohort_size(problem, ridge)),
        encode=partial(messages.encode_moments, encoding),
        decode=partial(messages.decode_moments, encoding),
        solve=partial(_solve, penalties, bool(private.noise)),
        moved=not private.bound,
    )
    disclosed = privacy.release(private, once=True, shared=True)
    return sums.phases("ridge", problem, solver, ridge, disclosed)


def _check_private(problem: Problem, ridge: Mapping[str, Any]) -> None:
    """Checks that clients who add noise send nothing without noise, and that all of it is there.

    Raises:
      FieldError: a field makes them send more than sums, or loses shares of the noise.
    """
    if not ridge["noise"]:
        return
    everyone = len(cohorts.eligible_clients(problem, ridge["tiers"]))
    # A later round adds the shares of its newcomers alone.
    few = ridge["num_rounds"] > 1 and cohorts.cohort_size(problem, ridge) < everyone
    more = "has clients send more than noisy sums"
    scaled = "rounds each message by scales of its own, which must be read one by one"
    for field, is_wrong, why, allowed in (
        ("penalties", len(ridge["penalties"]) > 1, more, "one of them"),
        ("calibrate", ridge["calibrate"], more, "False"),
        ("sketch", ridge["sketch"], more, "all"),
        ("encoding", ridge["encoding"] != "float32", scaled, "float32"),
        ("num_rounds", few, "leaves out the noise of clients drawn again", "1, or all clients"),
    ):
        if is_wrong:
            raise FieldError(field, f"={ridge[field]!r} {why}; allowed with noise: {allowed}")


def _sums(
    extractor: Extractor, private: Privacy, cohort: int, state, basis, batch, own: Keys
) -> Moments:
    bounded = partial(bounded_features, private)
    exact = features.moments(extractor, state, batch, basis, bounded)
    return noisy_sums(private, exact, cohort, keys.stream(own.client, "privacy"))


def bounded_features(private: Privacy, seen: Array) -> Array:
    """Returns features ``f32[m, d]``, the longer ones cut to the bound; zeros for infinite ones."""
    if not private.bound:
        return seen
    lengths = jnp.linalg.norm(seen, axis=1, keepdims=True)
    cut = seen * jnp.minimum(1.0, private.bound / jnp.maximum(lengths, 1e-30))
    return jnp.where(jnp.isfinite(lengths), cut, 0.0)


def noisy_sums(private: Privacy, exact: Moments, cohort: int, key: Array) -> Moments:
    """Returns a client's sums of bounded features, with its share of the noise.

    ``cohort`` is the number of clients whose sums are added.
    """
    if not private.noise:
        return exact
    share = private.noise * math.sqrt(3) / math.sqrt(cohort)
    scales = (private.bound**2, private.bound, 1.0)
    each = zip(exact, scales, jax.random.split(key, 3), strict=True)
    return Moments(*(x + share * s * jax.random.normal(own, x.shape) for x, s, own in each))


def _solve(penalties: np.ndarray, is_noisy: bool, total: Moments, covariance: Any) -> Heads:
    likely = closed_form.semidefinite(total) if is_noisy else total
    return closed_form.ridge(likely, jnp.asarray(penalties))
