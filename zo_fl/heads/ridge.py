"""Ridge regression from everyone's sums: exact whatever the label skew, the order, the drop-outs.

    client j:  G_j = sum h h^T (upper triangle),  B_j = sum h y^T,  n_j (examples of each class)
    server:    W = (G + penalty I)^-1 B of all that were added, on standardized features

h is the input of the model's last layer, y the one-hot label. One forward pass over its examples,
one message, no learning rate: the head is that of all data in one place. Messages add up, so a late
joiner adds its own, and those of a client that asks to be forgotten are subtracted (``add``,
``subtract``); who is drawn again is not counted again. The penalty is the one by which clients get
most of their validation examples right; then a temperature is fitted, see ``clients.candidates``.

``sketch = k`` sends k numbers a feature vector (``clients.sketches``), ``encoding`` fewer bytes a
number: below float32, correlations within [-1, 1] and one deviation a feature. Columns of classes
that a client does not hold are not sent.

What leaks: a client's class counts and sums. Sums are what secure aggregation hides; it needs all
columns, see ``README.md``. ``bound`` and ``noise`` hide single examples (``clients.privacy``).

Sources: AFL (arXiv 2405.16240), Fed3R (2406.01116).
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from zo_fl.engine import keys, trees
from zo_fl.engine.errors import FieldError
from zo_fl.engine.fields import Block, Field, take
from zo_fl.engine.phase import PARTICIPATION, Participation, Phase, Problem, cohort_size, make_group
from zo_fl.engine.strategy import Aggregation, ClientStrategy
from zo_fl.engine.types import Array, ClientBatch, ClientResult, ServerState
from zo_fl.heads import candidates, closed_form, encodings, features, sketches
from zo_fl.heads.closed_form import Basis, Heads, Moments
from zo_fl.heads.encodings import ENCODINGS
from zo_fl.heads.features import LOOKING, Looking
from zo_fl.heads.sketches import SKETCH, Sketch
from zo_fl.wrap import privacy
from zo_fl.wrap.privacy import Privacy

PENALTIES = (1e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

ENDS_BY_CHOOSING = True  # more rounds would come too late

BLOCKS: dict[str, Block] = {
    "ridge": {
        "num_rounds": Field(1, "of sums; more where a cohort is not everyone", at_least=0),
        **PARTICIPATION,
        "penalties": Field(
            PENALTIES, "to choose from, of variance 1", at_least=0, rule=candidates.SOME
        ),
        "calibrate": Field(True, "fit a temperature for cross-entropy"),
        "encoding": Field("float32", "of what is sent", ENCODINGS),
        **SKETCH,
        **LOOKING,
        **privacy.FIELDS,
    }
}


class RidgeState(NamedTuple):
    """What the server remembers between rounds.

    Attributes:
      sums: of everyone so far, on the basis if there is one.
      joined: ``f32[K]``, 1 for whoever is in the sums.
      basis: of the sketch, or ``()``.
      heads: a candidate for each penalty.
    """

    sums: Moments
    joined: Array
    basis: Basis | tuple[()]
    heads: Heads


class Message(NamedTuple):
    """What a client sends; see ``closed_form.Moments``.

    Attributes:
      gram: ``f32``, or correlations in the encoding.
      deviations: ``f32[d]``, the client's own, or ``()`` of float32.
      class_sums: ``f32[d, C]``.
      class_counts: ``i32[C]``.
    """

    gram: Array
    deviations: Array | tuple[()]
    class_sums: Array
    class_counts: Array


def phases(problem: Problem, *, ridge: Mapping[str, Any]) -> tuple[Phase, ...]:
    """Returns sums and what is before and after them; ``ridge`` is the config block.

    Raises:
      ConfigError: a sketch that is too large, or nothing to choose a penalty by.
    """
    task = problem.task
    looking, sketch, private = take(Looking, ridge), take(Sketch, ridge), take(Privacy, ridge)
    who = take(Participation, ridge)
    encoding, penalties = ridge["encoding"], np.array(ridge["penalties"], np.float32)
    dim, classes = features.shapes(task)
    sketches.check(sketch, dim)
    _check_private(ridge)
    size, population = sketch.sketch or dim, len(problem.clients.client_sizes)
    rounds = min(ridge["num_rounds"], 1)
    keeping = features.keeping(task, looking)

    def init(params) -> RidgeState:
        del params
        heads = Heads(
            jnp.zeros((len(penalties), dim, classes)), jnp.zeros((len(penalties), classes))
        )
        sums = closed_form.no_moments(size, classes)
        return RidgeState(sums, jnp.zeros(population), sketches.no_basis(sketch, dim), heads)

    def find_basis(moments: Moments, state: ServerState, run_key):
        del run_key
        found = sketches.basis_of(sketch, moments)
        return state.params, state.strategy_state._replace(basis=found)

    def client_update(state: ServerState, batch: ClientBatch, run_key) -> ClientResult:
        basis = sketches.drawn(sketch, dim, state, run_key)
        bounded = functools.partial(privacy.bounded_features, private)
        sums = features.moments(task, looking, state, batch, basis, bounded)
        is_new = state.strategy_state.joined[batch.client_id] == 0
        weight = features.weight(batch, sums) * is_new
        own = keys.client_key(keys.round_key(run_key, state.round_idx), batch.client_id)
        noise_key, views = keys.stream(own, "privacy"), 1 + looking.mirror
        cohort = cohort_size(problem, who)
        sums = privacy.noisy_moments(private, sums, cohort, views, noise_key)
        return ClientResult(to_message(encoding, sums), weight, {}, {})

    def decode(message: Message, client_id, state: ServerState, run_key):
        del state, run_key
        joined = jnp.zeros(population).at[client_id].set(1.0)
        return from_message(encoding, message), joined

    def sent_bytes(batch: ClientBatch):
        return message_bytes(encoding, size, task.labels(batch.examples), batch.mask, classes)

    def assign(reduced, state: ServerState, run_key):
        sums, joined = reduced
        before: RidgeState = state.strategy_state
        basis = sketches.drawn(sketch, dim, state, run_key)
        sums = add(before.sums, sums)
        likely = closed_form.semidefinite(sums) if private.noise else sums
        heads = closed_form.ridge(likely, jnp.asarray(penalties))
        heads = heads if basis is None else closed_form.unfold(basis, heads)
        after = before._replace(sums=sums, joined=before.joined + joined, heads=heads)
        return candidates.with_middle(task.head, state, heads, sums.class_counts), after

    def receives(state: ServerState):
        return state.params, state.model_state, sketches.received(sketch, state)

    strategy = ClientStrategy(
        client_update, decode, receives, one_model=True, sent_bytes=sent_bytes
    )
    group = make_group(problem, strategy, features.passes(looking), who)
    aggregation = Aggregation(init=init, reduce="sum", assign=assign)
    needs_basis = bool(sketch.sketch) and sketch.basis == "principal"
    start = (sketches.phase(problem, "ridge basis", rounds, looking, init, find_basis, keeping),)
    main = Phase("ridge sums", ridge["num_rounds"], (group,), aggregation, None)
    revealed = privacy.release(private, once=True)
    main = main._replace(continues=needs_basis, keeping=keeping, release=revealed)
    end = candidates.phases(
        problem,
        "ridge",
        looking,
        init=init,
        rounds=rounds,
        heads_of=(lambda state: state.heads) if len(penalties) > 1 else None,
        calibrate=ridge["calibrate"],
        keeping=keeping,
    )
    return candidates.in_order("ridge", (*(start if needs_basis else ()), main, *end))


def _check_private(ridge: Mapping[str, Any]) -> None:
    """Checks that with noise nothing else is asked of clients, which none would hide.

    Raises:
      FieldError: something is.
    """
    if not ridge["noise"]:
        return
    if len(ridge["penalties"]) > 1:
        raise FieldError(
            "penalties",
            f"={ridge['penalties']!r}: clients choose; allowed with noise: one of them",
        )
    if ridge["calibrate"]:
        raise FieldError("calibrate", "=True asks clients again; allowed with noise: False")
    if ridge["sketch"] and ridge["basis"] == "principal":
        raise FieldError("basis", "='principal' is made of sums too; allowed with noise: random")


def add(sums: Moments, more: Moments) -> Moments:
    """Returns the sums over the examples of both."""
    return Moments(*(a + b for a, b in zip(sums, more, strict=True)))


def subtract(sums: Moments, part: Moments) -> Moments:
    """Returns the sums without some of what was added: a client is forgotten."""
    return Moments(*(a - b for a, b in zip(sums, part, strict=True)))


def to_message(encoding: str, sums: Moments) -> Message:
    """Returns what a client sends of its sums."""
    counts = sums.class_counts.astype(jnp.int32)
    if encoding == "float32":
        return Message(sums.gram, (), sums.class_sums, counts)
    count = jnp.maximum(sums.class_counts.sum(), 1)
    mean = sums.class_sums.sum(1, keepdims=True).T / count
    scatter = sums.gram / count - closed_form.packed_product(mean)
    dim = mean.shape[1]
    deviations = jnp.sqrt(jnp.maximum(closed_form.packed_diagonal(scatter, dim), 0))
    inverse = jnp.where(deviations > 0, 1 / jnp.maximum(deviations, 1e-20), 0)
    shares = scatter * closed_form.packed_product(inverse[None])
    encoded = encodings.encode_shares(encoding, shares)
    return Message(encoded, deviations, sums.class_sums, counts)


def from_message(encoding: str, message: Message) -> Moments:
    """Returns the sums that a message stands for."""
    counts = message.class_counts.astype(jnp.float32)
    if encoding == "float32":
        return Moments(message.gram, message.class_sums, counts)
    count = jnp.maximum(counts.sum(), 1)
    dim = message.class_sums.shape[0]
    mean = message.class_sums.sum(1, keepdims=True).T / count
    shares = encodings.decode_shares(encoding, message.gram, dim * (dim + 1) // 2)
    deviations = jnp.asarray(message.deviations)[None]
    scatter = shares * closed_form.packed_product(deviations) + closed_form.packed_product(mean)
    return Moments(scatter * count, message.class_sums, counts)


def message_bytes(encoding: str, dim: int, labels: Array, mask: Array, classes: int) -> Array:
    """Returns the bytes ``i32[]`` of a client's message: of the classes that it holds.

    A bit a class says which these are.
    """
    held = jnp.zeros(classes, bool).at[labels].max(mask)
    shapes = _message_shapes(encoding, dim, classes)
    fixed = trees.num_bytes((shapes.gram, shapes.deviations))
    return fixed + -(-classes // 8) + jnp.sum(held) * (4 * dim + 4)


def _message_shapes(encoding: str, dim: int, classes: int) -> Message:
    """Returns the shapes of a message of ``dim`` features."""
    return jax.eval_shape(lambda: to_message(encoding, closed_form.no_moments(dim, classes)))
