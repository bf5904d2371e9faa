"""Measures what a zeroth-order phase did and could have done, on the states of a finished run."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zo_fl import config as configs
from zo_fl import experiment
from zo_fl.data import progress
from zo_fl.engine import cohorts, keys, statistics, trees
from zo_fl.engine.algorithm import Phase, ServerState, start
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.round import make_algorithm
from zo_fl.engine.types import ModelState, Params
from zo_fl.experiment import Experiment
from zo_fl.host import evaluate
from zo_fl.host.schedule import ScheduledPhase
from zo_fl.zo.client import scale
from zo_fl.zo.estimators import ESTIMATORS

from .states import Replay

# What ``make_count`` returns.
Count = Callable[[Params, ModelState], np.ndarray]


class OneRound(NamedTuple):
    """One round against the exact gradient at its start.

    Attributes:
      round: number in the run.
      cosine: between the round's update and the descent direction of all its clients' loss.
      expected: cosine that m directions in d coordinates give on average: sqrt(m / (m + d - 1)).
      directions: m.
      coordinates: d, the number that moved.
      update_norm: norm of the update.
      signal: standard deviation of the exact directional derivatives of the round's clients.
      noise: root mean square error of what clients sent, as derivatives; NaN where the method does
        not say how it estimates.
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
    """The accuracy that some passes bought, from the model that the phase began with."""

    name: str  # of the method
    accuracy: float  # on the test set
    passes: float  # over single examples, of all clients; a backward one counts as two


class Diagnosis(NamedTuple):
    """All measurements."""

    title: str  # the run, in words
    phase: str  # its name
    rounds: list[OneRound]  # some of the phase
    start: float  # accuracy at its start
    before: np.ndarray  # accuracies by class there, f64[classes]
    after: np.ndarray  # the same at its end
    bought: list[Bought]  # what the phase itself bought, then what others would have


def of(replay: Replay, rounds: Sequence[str] | None = None) -> Diagnosis:
    """Returns the diagnosis of a run's last zeroth-order phase.

    Args:
      replay: the run's states.
      rounds: some of the phase's, as text; None for the first, the middle and the last.

    Raises:
      ConfigError: there is no such phase or round, or the states they start from are damaged.
    """
    phase = scalar_phase(replay)
    chosen = _rounds(rounds, phase)
    wanted = sorted({phase.start, *(one - 1 for one in chosen), phase.end})
    rebuilt = replay.states(wanted)
    states = dict(_shown("rebuilding states from the ledger", rebuilt, len(wanted)))
    first_state, end = states[phase.start], states[phase.end]
    progress.say("counting accuracy by class before and after ...")
    count = make_count(replay.built)
    before, after = (count(one.params, one.model_state) for one in (first_state, end))
    passes = phase.phase.pass_equivalents * (phase.end - phase.start)
    own = Bought(f"this phase: {phase.phase.name}", _accuracy(after), passes)
    config = replay.config
    return Diagnosis(
        f"{config['algorithm']}, {config['data']['name']}, {config['model']['name']}",
        phase.phase.name,
        compare(replay, phase, [states[one - 1] for one in chosen]),
        _accuracy(before),
        _by_class(before),
        _by_class(after),
        [own, *bought_otherwise(replay, phase, first_state, count)],
    )


def scalar_phase(replay: Replay) -> ScheduledPhase:
    """Returns the run's last phase in which clients send scalars.

    Raises:
      ConfigError: it has none.
    """
    for phase in reversed(replay.schedule.phases):
        block = replay.config.get(phase.phase.name, {})
        if phase.phase.replays and "num_directions" in block:
            return phase
    raise ConfigError(
        "the run has no phase in which clients send scalars; only such phases can be diagnosed"
    )


def compare(replay: Replay, phase: ScheduledPhase, states: Sequence[ServerState]) -> list[OneRound]:
    """Compares the round that follows each of some states with the exact gradient there."""
    built, block = replay.built, replay.config[phase.phase.name]
    data, step = built.data_of(phase.phase), _jit_round(built, phase.phase)
    gradient_of, derivatives = mean_gradient(built, phase.phase, block), _derivatives(replay, phase)
    found = []
    shown = "comparing rounds with the exact gradient"
    for before in _shown(shown, states, len(states)):
        after, _, records = step(before, data, built.run_key)
        update, gradient = optax.tree.sub(after.params, before.params), gradient_of(before)
        inner = -float(jnp.asarray(optax.tree.vdot(update, gradient)))
        norms = optax.tree.norm(update) * optax.tree.norm(gradient)
        moved = sum(int(jnp.sum(leaf != 0)) for leaf in jax.tree.leaves(update))
        sent = _valid(records)
        count = len(sent)
        if block.get("seed_policy") == "shared":
            count = sum(math.prod(jax.tree.leaves(r.messages)[0].shape[1:]) for r in records)
        signal, noise = derivatives(before, sent)
        found.append(
            OneRound(
                int(before.round_idx) + 1,
                cosine=float(inner / norms),
                expected=math.sqrt(count / max(count + moved - 1, 1)),
                directions=count,
                coordinates=moved,
                update_norm=float(optax.tree.norm(update)),
                signal=signal,
                noise=noise,
            )
        )
    return found


def _derivatives(replay: Replay, phase: ScheduledPhase):
    """Returns ``(state, sent f64[n]) -> spread of the exact derivatives, error of sent``."""
    name, block = phase.phase.name, configs.plain(replay.config)[phase.phase.name]
    if "estimator" not in block:
        return lambda state, sent: (math.nan, math.nan)
    built = _same_data(configs.changed(replay.config, {f"{name}.estimator": "jvp"}), replay)
    (by_jvp,) = [one for one in built.phases if one.name == name]
    data, step = replay.built.data_of(phase.phase), _jit_round(built, by_jvp)
    size = scalar_of_slope_one(block["estimator"], scale(block))

    def measure(state: ServerState, sent: np.ndarray) -> tuple[float, float]:
        exact = _valid(step(state, data, built.run_key)[2])
        return float(exact.std()), float(np.sqrt(np.mean((sent / size - exact) ** 2)))

    return measure


def scalar_of_slope_one(estimator: str, eps: float) -> float:
    """Returns an estimator's scalar where the derivative along the direction is 1."""
    add_nothing = lambda tree, key, scale: tree  # noqa: E731
    made = ESTIMATORS[estimator](add_nothing, eps=eps, num_directions=1)
    return 1 / float(made.coefficients(jnp.ones(1))[0])


def mean_gradient(
    built: Experiment, phase: Phase, block: Mapping[str, Any]
) -> Callable[[ServerState], Params]:
    """Returns ``state -> gradient of the mean loss over all examples of a phase's clients``."""
    data, task = built.data_of(phase), built.task
    ids = np.unique(np.concatenate([group.eligible for group in phase.groups]))
    of_batch = task.has_statistics and block.get("bn_policy") in statistics.OF_THE_BATCH

    @jax.jit
    def of_client(params, model_state, data, client):
        batch = trees.squeeze(cohorts.gather(data, client[None]))

        def total(params):
            key = keys.run_key(0)  # for modules that draw
            each, _ = task.losses(params, model_state, batch.examples, batch.mask, of_batch, key)
            return jnp.sum(jnp.where(batch.mask, each, 0.0))

        return jax.grad(total)(params), jnp.sum(batch.mask)

    def of_all(state: ServerState) -> Params:
        sum_, count = optax.tree.zeros_like(state.params), 0.0
        for client in ids:
            gradient, examples = of_client(state.params, state.model_state, data, jnp.int32(client))
            sum_, count = optax.tree.add(sum_, gradient), count + examples
        return optax.tree.scale(1 / count, sum_)

    return of_all


def make_count(built: Experiment) -> Count:
    """Returns ``(params, model_state) -> f64[2, classes]``, right and all of the test set."""
    task, test = built.task, evaluate.make_set(built.federation.dataset.test, 500, built.engine)

    @jax.jit
    def counts(params, model_state, test):
        def body(found, batch):
            examples, mask = batch
            logits, _ = task.logits(params, model_state, examples, mask, False)
            labels = task.labels(examples)
            one_hot = (labels[:, None] == jnp.arange(task.num_classes)[None]) & mask[:, None]
            right = one_hot & (jnp.argmax(logits, -1) == labels)[:, None]
            return found + jnp.stack([right.sum(0), one_hot.sum(0)]), None

        zeros = jnp.zeros((2, task.num_classes), jnp.int32)
        return jax.lax.scan(body, zeros, (test.examples, test.mask))[0]

    return lambda params, model_state: np.asarray(counts(params, model_state, test), np.float64)


def _by_class(counts: np.ndarray) -> np.ndarray:
    right, all_ = counts
    return right / np.maximum(all_, 1)


def _accuracy(counts: np.ndarray) -> float:
    right, all_ = counts.sum(axis=1)
    return float(right / all_)


def bought_otherwise(
    replay: Replay, phase: ScheduledPhase, first: ServerState, count: Count
) -> list[Bought]:
    """Trains the phase's first model by other methods, with at most as many passes.

    The methods are a zero rate (statistics alone), a closed-form head of everyone's sums, and
    first-order rounds of everyone with the run's own ``warmup`` fields. ``count`` is of
    ``make_count``.
    """
    name, rounds = phase.phase.name, phase.end - phase.start
    found = []
    if replay.built.task.has_statistics:
        still = _same_data(configs.changed(replay.config, {f"{name}.lr": 0.0}), replay)
        phases = [one for one in still.phases if one.name == name]
        found.append(_run("zero rate: statistics alone", still, phases, first, count))
    head = _same_data(configs.changed(replay.config, {"algorithm": "ridge"}), replay)
    found.append(_run("a closed-form head of everyone", head, head.phases, first, count))
    first_order = {"algorithm": "fedavg", "warmup.tiers": "all", "warmup.num_rounds": 1}
    first_order |= {"warmup.cohort_size": "all", "warmup.stop": "fixed"}
    built = _same_data(configs.changed(replay.config, first_order), replay)
    (training,) = built.phases
    affordable = int(rounds * phase.phase.pass_equivalents // training.pass_equivalents)
    if affordable:
        label = f"{affordable} first-order rounds of everyone"
        phases = [training._replace(num_rounds=affordable)]
        found.append(_run(label, built, phases, first, count))
    return found


def _run(
    name: str, built: Experiment, phases: Sequence[Phase], first: ServerState, count: Count
) -> Bought:
    """Returns what some phases, called by a name, buy from a state."""
    model, state, passes = (first.params, first.model_state), first, 0.0
    with progress.bar(f"trying {name}", sum(phase.num_rounds for phase in phases)) as advance:
        for phase in phases:
            if not phase.num_rounds:
                continue
            data, step = built.data_of(phase), _jit_round(built, phase)
            state = start(phase, *model, int(state.round_idx), state.strategy_state)
            for _ in range(phase.num_rounds):
                state = jax.block_until_ready(step(state, data, built.run_key)[0])
                advance(1)
            model = phase.model(state, data)
            passes += phase.num_rounds * phase.pass_equivalents
    return Bought(name, _accuracy(count(*model)), passes)


def _shown(description: str, items: Iterable[Any], total: int) -> Iterator[Any]:
    """Yields the items, and shows on the screen how many of them are done."""
    with progress.bar(description, total) as advance:
        for item in items:
            yield item
            advance(1)


def _same_data(config: Mapping[str, Any], replay: Replay) -> Experiment:
    """Returns the experiment of a changed config on the run's own federation."""
    resolved = configs.resolve(config)
    return experiment.assemble(resolved, replay.built.federation, replay.built.engine)


def _jit_round(built: Experiment, phase: Phase):
    algorithm = make_algorithm(phase, built.engine)
    return jax.jit(algorithm.round, compiler_options=built.engine.compiler_options)


def _rounds(given: Sequence[str] | None, phase: ScheduledPhase) -> list[int]:
    first, last = phase.start + 1, phase.end
    if not given:
        return sorted({first, (first + last) // 2, last})
    if bad := [text for text in given if not text.isdigit() or not first <= int(text) <= last]:
        raise ConfigError(f"--rounds={bad[0]} is not allowed; allowed: {first} to {last}")
    return sorted({int(text) for text in given})


def _valid(records: Iterable[Any]) -> np.ndarray:
    """Returns all finite scalars of the clients that took part, ``f64[n]``."""
    scalars = np.concatenate(
        [
            np.asarray(leaf, np.float64)[np.asarray(record.weights) > 0].ravel()
            for record in records
            for leaf in jax.tree.leaves(record.messages)
        ]
    )
    return scalars[np.isfinite(scalars)]
