"""The linear discriminant from class means: the smallest message of all closed-form heads.

    client j:  the mean feature and the number of examples of each class that it holds
    server:    W = S^-1 M,  b = log prior - diag(M^T W) / 2

S, the covariance within classes, is the high tier's (``covariance = "high"``, for which
low-resource clients send nothing), everyone's (``all``: a message like that of ``ridge``), or the
identity (``none``: the nearest class mean). How far S is shrunk is chosen by the clients'
validation examples. With ``sketch = k`` (``clients.sketches``) and ``encoding = "int4"`` a class
takes k / 2 + 8 bytes.

What leaks: class counts and class means of a client, which scalars along random directions do not
show. Secure sums hide them, if everyone sends zeros for the classes that it does not hold.

Sources: FedNCM (arXiv 2306.03937), FedCGS (2503.06962), CCVR (2106.05001).
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from zo_fl.engine.fields import Block, Field, take
from zo_fl.engine.phase import PARTICIPATION, Participation, Phase, Problem, make_group
from zo_fl.engine.strategy import Aggregation, ClientStrategy
from zo_fl.engine.types import Array, ClientBatch, ClientResult, ServerState
from zo_fl.heads import candidates, class_means, closed_form, features, ridge, sketches
from zo_fl.heads.closed_form import Basis, Heads, Moments
from zo_fl.heads.encodings import ENCODINGS
from zo_fl.heads.features import LOOKING, Looking
from zo_fl.heads.sketches import SKETCH, Sketch

COVARIANCES = ("high", "all", "none")
SHRINKAGES = (1e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1.0)

ENDS_BY_CHOOSING = True  # more rounds would come too late

BLOCKS: dict[str, Block] = {
    "gaussian_head": {
        "num_rounds": Field(1, "of means; more where a cohort is not everyone", at_least=0),
        **PARTICIPATION,
        "covariance": Field("high", "of the high tier, of all, or none: nearest mean", COVARIANCES),
        "shrinkages": Field(
            SHRINKAGES, "of the covariance, to choose from", at_least=0, rule=candidates.SOME
        ),
        "calibrate": Field(True, "fit a temperature for cross-entropy"),
        "encoding": Field("float32", "of what is sent", ENCODINGS),
        **SKETCH,
        **LOOKING,
    }
}


class GaussianState(NamedTuple):
    """What the server remembers between rounds.

    Attributes:
      sums: of everyone so far, on the basis if there is one; its ``gram`` is ``()`` but with
        ``covariance = "all"``.
      joined: ``f32[K]``, 1 for whoever is in the sums.
      basis: of the sketch, or ``()``.
      covariance: ``f32[k, k]`` within classes, of the high tier, or ``()``.
      heads: a candidate for each shrinkage.
    """

    sums: Moments
    joined: Array
    basis: Basis | tuple[()]
    covariance: Array | tuple[()]
    heads: Heads


def phases(problem: Problem, *, gaussian_head: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns class means and what is before and after; ``gaussian_head`` is the config block.

    Raises:
      ConfigError: a sketch that is too large, or nothing to choose a shrinkage by.
    """
    block, task = gaussian_head, problem.task
    looking, sketch = take(Looking, block), take(Sketch, block)
    encoding, of_whom = block["encoding"], block["covariance"]
    shrinkages = np.array(block["shrinkages"] if of_whom != "none" else (1.0,), np.float32)
    dim, classes = features.shapes(task)
    sketches.check(sketch, dim)
    size, population = sketch.sketch or dim, len(problem.clients.client_sizes)
    sketches.check_pairs(encoding, size)
    rounds = min(block["num_rounds"], 1)
    keeping = features.keeping(task, looking)

    def init(params) -> GaussianState:
        del params
        sums = closed_form.no_moments(size, classes)
        return GaussianState(
            sums if of_whom == "all" else sums._replace(gram=()),
            jnp.zeros(population),
            sketches.no_basis(sketch, dim),
            jnp.zeros((size, size)) if of_whom == "high" else (),
            Heads(
                jnp.zeros((len(shrinkages), dim, classes)), jnp.zeros((len(shrinkages), classes))
            ),
        )

    def learn_from_high(moments: Moments, state: ServerState, run_key):
        found: GaussianState = state.strategy_state
        if sketch.sketch and sketch.basis == "principal":
            found = found._replace(basis=sketches.basis_of(sketch, moments))
        if of_whom == "high":
            covariance = closed_form.within_covariance(moments)
            basis = sketches.drawn(sketch, dim, state._replace(strategy_state=found), run_key)
            if basis is not None:
                covariance = closed_form.on_basis(basis, covariance)
            found = found._replace(covariance=covariance)
        return state.params, found

    def client_update(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        basis = sketches.drawn(sketch, dim, state, run_key)
        if of_whom == "all":
            sums = features.moments(task, looking, state, batch, basis)
            message = ridge.to_message(encoding, sums)
        else:
            sums = features.class_sums(task, looking, state, batch, basis)
            message = class_means.to_message(encoding, *sums)
        is_new = state.strategy_state.joined[batch.client_id] == 0
        return ClientResult(message, features.weight(batch, sums) * is_new, {}, {})

    def decode(message, client_id, state: ServerState, run_key):
        del state, run_key
        joined = jnp.zeros(population).at[client_id].set(1.0)
        if of_whom == "all":
            return ridge.from_message(encoding, message), joined
        return Moments((), *class_means.from_message(encoding, message)), joined

    def sent_bytes(batch: ClientBatch):
        labels = task.labels(batch.examples)
        if of_whom == "all":
            return ridge.message_bytes(encoding, size, labels, batch.mask, classes)
        return class_means.message_bytes(encoding, size, labels, batch.mask, classes)

    def assign(reduced, state: ServerState, run_key):
        sums, joined = reduced
        before: GaussianState = state.strategy_state
        sums, joined = ridge.add(before.sums, sums), before.joined + joined
        if of_whom == "none":
            heads = closed_form.nearest_mean(sums.class_sums, sums.class_counts)
        else:
            covariance = before.covariance if of_whom == "high" else None
            if covariance is None:
                covariance = closed_form.within_covariance(sums)
            heads = closed_form.discriminant(
                sums.class_sums,
                sums.class_counts,
                jnp.asarray(covariance),
                jnp.asarray(shrinkages),
            )
        basis = sketches.drawn(sketch, dim, state, run_key)
        heads = heads if basis is None else closed_form.unfold(basis, heads)
        after = before._replace(sums=sums, joined=joined, heads=heads)
        return candidates.with_middle(task.head, state, heads, sums.class_counts), after

    def receives(state: ServerState):
        return state.params, state.model_state, sketches.received(sketch, state)

    strategy = ClientStrategy(
        client_update, decode, receives, one_model=True, sent_bytes=sent_bytes
    )
    group = make_group(problem, strategy, features.passes(looking), take(Participation, block))
    needs_high = of_whom == "high" or bool(sketch.sketch and sketch.basis == "principal")
    start = sketches.phase(
        problem, "gaussian_head basis", rounds, looking, init, learn_from_high, keeping
    )
    main = Phase(
        "gaussian_head means",
        block["num_rounds"],
        (group,),
        Aggregation(init=init, reduce="sum", assign=assign),
        None,
        continues=needs_high,
        keeping=keeping,
    )
    end = candidates.phases(
        problem,
        "gaussian_head",
        looking,
        init=init,
        rounds=rounds,
        heads_of=(lambda state: state.heads) if len(shrinkages) > 1 else None,
        calibrate=block["calibrate"],
        keeping=keeping,
    )
    phases = (*((start,) if needs_high else ()), main, *end)
    return candidates.in_order("gaussian_head", phases)
