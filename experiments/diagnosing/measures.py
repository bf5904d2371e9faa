"""What a zeroth-order phase did and could have done, measured on the states of a finished run."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zo_fl import config as configs
from zo_fl import experiment
from zo_fl.engine import cohorts, precision, trees
from zo_fl.engine import losses as client_losses
from zo_fl.engine import statistics as batch_statistics
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.phase import Phase
from zo_fl.engine.round import make_algorithm
from zo_fl.engine.types import Array, ModelState, Params, ServerState
from zo_fl.experiment import Experiment
from zo_fl.host import evaluate
from zo_fl.host.schedule import Stretch

from ..replaying import Replay

_STEP = {"two_point": lambda eps: 2 * eps, "forward": lambda eps: eps, "jvp": lambda eps: 1.0}


class OneRound(NamedTuple):
    """One round against the exact gradient at its start.

    Attributes:
      round: of the run.
      cosine: between the round's update and the descent direction of all its clients' loss.
      expected: what m directions in d coordinates give on average: sqrt(m / (m + d - 1)).
      directions: m.
      coordinates: d, those that moved.
      update_norm: of the round.
      signal: standard deviation of the exact directional derivatives of the round's clients.
      noise: root mean square of what was sent, as derivatives, minus the exact ones; NaN where the
        method does not say how it estimates.
    """

    round: int
    cosine: float
    expected: float
    directions: int
    coordinates: int
    update_norm: float
    signal: float
    noise: float


class Bought(NamedTuple):
    """What some passes bought, from the model that the phase began with.

    Attributes:
      name: of the method.
      accuracy: of the test set.
      passes: single-example ones of all clients, a backward pass counted as two.
    """

    name: str
    accuracy: float
    passes: float


def scalar_stretch(replay: Replay) -> Stretch:
    """Returns the run's last phase of scalars.

    Raises:
      ConfigError: it has none.
    """
    for stretch in reversed(replay.schedule.stretches):
        block = replay.config.get(stretch.phase.name, {})
        if stretch.phase.replays and "num_directions" in block:
            return stretch
    raise ConfigError(
        "the run has no phase in which clients send scalars; diagnosed are zeroth-order phases"
    )


def one_round(replay: Replay, stretch: Stretch, before: ServerState) -> OneRound:
    """Returns how the round that follows a state stands to the exact gradient there."""
    built, block = replay.built, replay.config[stretch.phase.name]
    data = built.data_of(stretch.phase)
    after, records = _round(built, stretch.phase, before, data)
    update = optax.tree.sub(after.params, before.params)
    gradient = mean_gradient(built, stretch.phase, block, before)
    inner = -float(jnp.asarray(optax.tree.vdot(update, gradient)))
    norms = optax.tree.norm(update) * optax.tree.norm(gradient)
    moved = sum(int(jnp.sum(leaf != 0)) for leaf in jax.tree.leaves(update))
    sent = [_valid(record.messages, record.weights) for record in records]
    count = sum(len(scalars) for scalars in sent)
    if block.get("seed_policy") == "shared":
        count = sum(math.prod(jax.tree.leaves(r.messages)[0].shape[1:]) for r in records)
    signal = noise = math.nan
    if block.get("estimator") in _STEP:
        exact_config = configs.changed(replay.config, {f"{stretch.phase.name}.estimator": "jvp"})
        exact_built = _same_data(exact_config, replay)
        (exact_phase,) = [p for p in exact_built.phases if p.name == stretch.phase.name]
        _, exact_records = _round(exact_built, exact_phase, before, data)
        exact = np.concatenate([_valid(r.messages, r.weights) for r in exact_records])
        eps = block["eps"] or precision.best_eps(block["precision"])
        found = np.concatenate(sent) / _STEP[block["estimator"]](eps)
        signal, noise = float(exact.std()), float(np.sqrt(np.mean((found - exact) ** 2)))
    return OneRound(
        int(before.round_idx) + 1,
        float(inner / norms),
        math.sqrt(count / max(count + moved - 1, 1)),
        count,
        moved,
        float(optax.tree.norm(update)),
        signal,
        noise,
    )


def mean_gradient(
    built: Experiment, phase: Phase, block: Mapping[str, Any], state: ServerState
) -> Params:
    """Returns the gradient of the mean loss over all examples of a phase's clients."""
    data, task = built.data_of(phase), built.task
    ids = np.unique(np.concatenate([group.eligible for group in phase.groups]))
    of_batch = task.has_statistics and block.get("bn_policy") in batch_statistics.OF_THE_BATCH

    @jax.jit
    def of_client(params, model_state, data, client):
        batch = trees.squeeze(cohorts.gather(data, client[None]))
        losses_of = client_losses.of_client(task, block.get("loss", "ce"), batch)

        def total(params):
            losses, _ = losses_of(params, model_state, batch.examples, batch.mask, of_batch)
            return jnp.sum(jnp.where(batch.mask, losses, 0.0))

        return jax.grad(total)(params), jnp.sum(batch.mask)

    sum_, count = optax.tree.zeros_like(state.params), 0.0
    for client in ids:
        gradient, examples = of_client(state.params, state.model_state, data, jnp.int32(client))
        sum_, count = optax.tree.add(sum_, gradient), count + examples
    return optax.tree.scale(1 / count, sum_)


def by_class(built: Experiment, params: Params, model_state: ModelState) -> np.ndarray:
    """Returns the accuracy ``f64[classes]`` on the test set, class by class."""
    task = built.task

    @jax.jit
    def counts(params, model_state, examples):
        def body(found, batch):
            examples, mask = batch
            logits, _ = task.logits(params, model_state, examples, mask, False)
            labels = task.labels(examples)
            one_hot = (labels[:, None] == jnp.arange(task.num_classes)[None]) & mask[:, None]
            right = one_hot & (jnp.argmax(logits, -1) == labels)[:, None]
            return found + jnp.stack([right.sum(0), one_hot.sum(0)]), None

        batches = (examples.examples, examples.mask)
        return jax.lax.scan(body, jnp.zeros((2, task.num_classes), jnp.int32), batches)[0]

    test = evaluate.make_set(built.federation.dataset.test, 500, built.engine)
    right, all_ = np.asarray(counts(params, model_state, test), np.float64)
    return right / np.maximum(all_, 1)


def bought_otherwise(replay: Replay, stretch: Stretch, start: ServerState) -> list[Bought]:
    """Returns what other methods make of the phase's first model with at most as many passes.

    A zero rate (statistics alone), a closed-form head of everyone's sums, and first-order rounds of
    everyone with the run's own ``warmup`` fields.
    """
    name, rounds = stretch.phase.name, stretch.end - stretch.start
    budget = rounds * stretch.phase.pass_equivalents
    found = []
    if replay.built.task.has_statistics:
        still = _same_data(configs.changed(replay.config, {f"{name}.lr": 0.0}), replay)
        (phase,) = [phase for phase in still.phases if phase.name == name]
        found.append(Bought("zero rate: statistics alone", *_run(still, [phase], start)))
    head = _same_data(configs.changed(replay.config, {"algorithm": "ridge"}), replay)
    found.append(Bought("a closed-form head of everyone", *_run(head, head.phases, start)))
    first_order = {"algorithm": "fedavg", "warmup.tiers": "all", "warmup.num_rounds": 1}
    first_order |= {"warmup.cohort_size": 0, "warmup.stop": "fixed"}
    one = _same_data(configs.changed(replay.config, first_order), replay)
    affordable = int(budget // one.phases[0].pass_equivalents)
    if affordable:
        phases = [one.phases[0]._replace(num_rounds=affordable)]
        label = f"{affordable} first-order rounds of everyone"
        found.append(Bought(label, *_run(one, phases, start)))
    return found


def _run(built: Experiment, phases: Sequence[Phase], start: ServerState) -> tuple[float, float]:
    """Returns the accuracy that some phases arrive at from a model, and their passes."""
    params, model_state, done = start.params, start.model_state, int(start.round_idx)
    state, passes, options = start, 0.0, built.engine.compiler_options
    for phase in phases:
        if not phase.num_rounds:
            continue
        data, carried = built.data_of(phase), state.strategy_state
        state = phase.init(params, model_state, done)
        if phase.continues:
            state = state._replace(strategy_state=carried)
        step = jax.jit(make_algorithm(phase, built.engine).round, compiler_options=options)
        for _ in range(phase.num_rounds):
            state, _, _ = step(state, data, built.run_key)
        params, model_state = phase.evaluated(state, data)
        done, passes = int(state.round_idx), passes + phase.num_rounds * phase.pass_equivalents
    return float(accuracy_of(built, params, model_state)), passes


def accuracy_of(built: Experiment, params: Params, model_state: ModelState) -> float:
    """Returns the accuracy on the test set."""
    test = evaluate.make_set(built.federation.dataset.test, 500, built.engine)
    measured = evaluate.make_evaluate(built.task, built.engine.compiler_options)
    return float(measured(params, model_state, test)["accuracy"])


def _same_data(config: Mapping[str, Any], replay: Replay) -> Experiment:
    """Returns the experiment of a changed config on the run's own federation."""
    resolved = configs.resolve(config)
    return experiment.assemble(resolved, replay.built.federation, replay.built.engine)


def _round(built: Experiment, phase: Phase, state: ServerState, data):
    step = jax.jit(
        make_algorithm(phase, built.engine).round, compiler_options=built.engine.compiler_options
    )
    after, _, records = step(state, data, built.run_key)
    return after, records


def _valid(messages: Any, weights: Array) -> np.ndarray:
    """Returns all finite scalars of those who took part, as one row."""
    taken = np.asarray(weights) > 0
    leaves = [np.asarray(leaf, np.float64)[taken].ravel() for leaf in jax.tree.leaves(messages)]
    scalars = np.concatenate(leaves)
    return scalars[np.isfinite(scalars)]
