"""Three rounds of every method against its formulas in NumPy (``references.py``).

The references share no arithmetic with the project. What they are given is what the seed protocol
fixes: cohorts, the order of mini-batches, directions and drawn candidates, read off with the
project's own keys.
"""

import functools
import itertools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec

from tests.methods import references as ref
from zo_fl import config as configs
from zo_fl import methods
from zo_fl.engine import algorithm as definitions
from zo_fl.engine import cohorts as orders
from zo_fl.engine import image_task, keys
from zo_fl.engine.algorithm import Problem
from zo_fl.engine.layout import Engine
from zo_fl.engine.round import make_algorithm
from zo_fl.engine.types import HIGH, LOW, FederatedData
from zo_fl.host import devices
from zo_fl.models.small import MLP
from zo_fl.sgd import heterofl
from zo_fl.zo import baffle, directions, fedkseed, fedzo
from zo_fl.zo import methods as zo

slow = pytest.mark.slow
slowly = functools.partial(pytest.param, marks=slow)

# Of the largest parameter. The project computes in float32: a mean loss of order 1 is off by about
# 1e-7, and its difference over 2 eps = 0.02 by 1e-5; times a step of 0.1 or less, averaged over
# directions and clients and summed over three rounds, that leaves 2e-6 at most (where Adam divides
# by a small gradient, eps is larger). Three rounds move the parameters by at least 0.05, so an
# update that is wrong by a factor of 1.001 would be seen.
TOLERANCE = 1e-5
MOVED = 0.05

ROUNDS = 3
CLASSES = 3
UNITS = 5  # of the hidden layer, where there is one
MEAN, STD = np.float32([0.5]), np.float32([0.25])
RUN_KEY = keys.run_key(7)
# Compiling takes most of the time here, and the programs are tiny: XLA need not try hard.
QUICK = {
    "xla_backend_optimization_level": 0,
    "xla_llvm_disable_expensive_passes": True,
}

# Each client's labels and tier. High-resource clients lack class 2.
LABELS = ((0, 1), (2,), (0, 1, 2), (1,), (0,), (0, 2))
TIERS = (HIGH, LOW, LOW, HIGH, LOW, LOW)
UNEVEN = (6, 5, 3, 6, 4, 2)  # examples of each client
CLOSE = (6, 5, 6, 6, 5, 5)  # likewise, but nobody runs out of mini-batches of 2
EVEN = (6,) * 6
LARGE = (20, 2, 3, 2, 2, 3)  # one has more than twice as many as a usual client


class Linear(nn.Module):
    """Softmax regression."""

    @nn.compact
    def __call__(self, x, *, train, mask=None):
        del train, mask
        return nn.Dense(CLASSES, name="head")(x.reshape(x.shape[0], -1))


class Case(NamedTuple):
    """One method on one federation, and what NumPy needs of both.

    ``block`` has all fields that the method goes by: of several blocks the last that has it.
    """

    blocks: dict[str, Any]
    block: dict[str, Any]
    phases: tuple
    data: FederatedData
    mesh: jax.sharding.Mesh
    start: dict[str, np.ndarray]

    def client(self, j, rows=slice(None)):
        """The client's examples as ``(x, y)``: pixels normalized, padding left out."""
        held = self.data.client_indices[j][: self.data.client_sizes[j]][rows]
        examples = jax.tree.map(lambda leaf: leaf[held], self.data.examples)
        images = examples["image"].reshape(len(held), -1).astype(np.float64)
        return (images / 255 - MEAN[0]) / STD[0], examples["label"]


def make_case(name, sizes=UNEVEN, hidden=False, **changes):
    config = configs.default()
    for block, fields in changes.items():
        config[block].update(fields)
    blocks = configs.plain(config.to_dict())
    rng = np.random.default_rng(3)
    indices, labels = np.zeros((len(sizes), max(sizes)), np.int32), []
    for j, (size, of_client) in enumerate(zip(sizes, LABELS, strict=True)):
        indices[j, :size] = len(labels) + np.arange(size)
        labels += itertools.islice(itertools.cycle(of_client), size)
    images = rng.integers(0, 256, (len(labels), 2, 2, 1), np.uint8)
    examples = {"image": images, "label": np.int32(labels)}
    data = FederatedData(examples, indices, np.int32(sizes), np.array(TIERS, np.int32))
    mesh = devices.make_mesh(1)

    def make_task(width):
        module = MLP(CLASSES, hidden_size=UNITS, width=width, share=width) if hidden else Linear()
        return image_task.classification(module, (2, 2, 1), CLASSES, MEAN, STD)

    problem = Problem(make_task(1.0), make_task, data)
    shapes = {"head/kernel": (UNITS if hidden else 4, CLASSES), "head/bias": (CLASSES,)}
    if hidden:
        shapes |= {"hidden/kernel": (4, UNITS), "hidden/bias": (UNITS,)}
    start = {path: np.float32(rng.normal(0, 0.5, shape)) for path, shape in shapes.items()}
    start = {path: leaf.astype(np.float64) for path, leaf in start.items()}
    phases = methods.create(name, problem, blocks)
    reads = [blocks[read] for part in methods.parts(name) for read in methods.METHODS[part].reads]
    block = {field: value for fields in reads for field, value in fields.items()}
    return Case(blocks, block, phases, data, mesh, start)


def nested(w):
    """The project's tree of a dict of paths."""
    leaves = {path: jnp.array(leaf, jnp.float32) for path, leaf in w.items()}
    return traverse_util.unflatten_dict(leaves, sep="/")


def flat(tree):
    leaves = traverse_util.flatten_dict(tree, sep="/")
    return {path: np.asarray(leaf, np.float64) for path, leaf in leaves.items()}


def run(case):
    """The project's states after three rounds of each phase, one after the other."""
    params, done, states = nested(case.start), 0, []
    everywhere = NamedSharding(case.mesh, PartitionSpec())
    data = jax.device_put(case.data, everywhere)
    for phase in case.phases:
        state = jax.device_put(definitions.start(phase, params, {}, done), everywhere)
        algorithm = make_algorithm(phase, Engine(case.mesh, clients_per_vmap=2))
        step = jax.jit(algorithm.round, compiler_options=QUICK)
        for _ in range(ROUNDS):
            state, _, _ = step(state, data, RUN_KEY)
        params, done = state.params, done + ROUNDS
        states.append(state)
    return states


def check(case, params, expected):
    """The project's parameters are the reference's, which are not those of the start."""
    scale = max(np.max(np.abs(leaf)) for leaf in expected.values())
    got = flat(params)
    assert got.keys() == expected.keys()
    off = max(np.max(np.abs(got[path] - expected[path])) for path in expected)
    moved = max(np.max(np.abs(case.start[path] - expected[path])) for path in expected)
    assert moved > MOVED * scale
    assert off < TOLERANCE * scale


# The seed protocol


def cohort(phase, t, group=0):
    """The ids of a round's clients."""
    drawn = phase.groups[group].sample_cohort(keys.round_key(RUN_KEY, t))
    return [int(j) for j in np.asarray(drawn.client_ids)[np.asarray(drawn.valid)]]


epoch_order = jax.jit(orders.epoch_order, static_argnums=2)


def client_key(t, j):
    return keys.client_key(keys.round_key(RUN_KEY, t), j)


def batches(case, t, j, size, epochs):
    """The client's mini-batches of a round, without padding."""
    mask = jnp.arange(case.data.client_indices.shape[1]) < case.data.client_sizes[j]
    found = []
    for key in jax.random.split(keys.stream(client_key(t, j), "batches"), epochs):
        for rows, real in zip(*map(np.asarray, epoch_order(key, mask, size)), strict=True):
            if real.any():
                found.append(case.client(j, rows[real]))
    return found


def steps(case, block, t, j):
    """The batches of a client's zeroth-order steps."""
    count, size = block["local_steps"], block["batch_size"]
    if count == 1 and not size:
        return [case.client(j)]
    longest = case.data.client_indices.shape[1]
    size = size or math.ceil(longest / count)
    epochs = math.ceil(count / math.ceil(longest / size))
    return batches(case, t, j, size, epochs)[:count]


@functools.cache
def drawer(distribution, tau):
    add = directions.create(distribution, tau)
    return jax.jit(jax.vmap(lambda zeros, key: add(zeros, key, 1.0), in_axes=(None, 0)))


def draw(case, block, root, indices):
    """The directions of some indices below a key."""
    below = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(root, jnp.array(indices))
    zeros = nested(ref.zeros_like(case.start))
    drawn = flat(drawer(block["distribution"], block["tau"])(zeros, below))
    return [{path: leaf[i] for path, leaf in drawn.items()} for i in range(len(indices))]


def probes(case, block, t, j=None):
    """A client's directions of a round, by step and number; all clients' own if ``j`` is None."""
    count, many = block["local_steps"], block["num_directions"]
    root = keys.round_key(RUN_KEY, t) if j is None else client_key(t, j)
    found = draw(case, block, keys.stream(root, "directions"), range(count * many))
    return [found[step * many : (step + 1) * many] for step in range(count)]


# First order


def trained_by_sgd(case, block, w, t, ids):
    fields = {name: block[name] for name in ("lr", "momentum", "weight_decay")}
    return [
        ref.local_sgd(w, batches(case, t, j, block["batch_size"], block["local_epochs"]), **fields)
        for j in ids
    ]


def fedavg_rounds(case, phase, w):
    block = case.blocks["warmup"]
    server = ref.Server(block["server_lr"], block["server"])
    for t in range(ROUNDS):
        ids = cohort(phase, t)
        trained = trained_by_sgd(case, block, w, t, ids)
        w = server.step(w, ref.mean_delta(w, trained, case.data.client_sizes[ids]))
    return w


WARMUP = dict(local_epochs=2, batch_size=2, lr=0.1, momentum=0.9, weight_decay=0.01, augment=False)


@slow
@pytest.mark.parametrize(
    ("name", "changes", "clients"),
    (
        ("fedavg_all", dict(server_lr=0.7), range(6)),
        ("fedavg", dict(server_lr=0.1, server="adam"), (0, 3)),
    ),
)
def test_fedavg_is_its_formula(name, changes, clients):
    case = make_case(name, warmup=WARMUP | changes, zo=dict(cohort_size=5))
    assert {j for t in range(ROUNDS) for j in cohort(case.phases[0], t)} == set(clients)
    (state,) = run(case)
    check(case, state.params, fedavg_rounds(case, case.phases[0], case.start))


# Zeroth order


def probe_all(case, block, w, t, ids, local_lr, shared=False):
    """Slopes, directions and last weights of some clients."""
    found = []
    for j in ids:
        z = probes(case, block, t, None if shared else j)
        slopes, after = ref.local_zo(
            w,
            steps(case, block, t, j),
            z,
            eps=block["eps"],
            local_lr=local_lr,
            estimator=block["estimator"],
        )
        found.append((slopes, z, after))
    return tuple(zip(*found, strict=True))


def zo_rounds(case, phase, block, w, *, first=0, uniform=False, server=None, shift=lambda g: g):
    """The parameters after three rounds; ``shift`` is what a server does to a gradient first."""
    server = server or ref.Server(block["lr"], block["server"])
    shared = block["seed_policy"] == "shared"
    for t in range(first, first + ROUNDS):
        ids = cohort(phase, t)
        local_lr = block["local_lr"] or block["lr"]
        slopes, z, _ = probe_all(case, block, w, t, ids, local_lr, shared)
        weights = np.ones(len(ids)) if uniform else case.data.client_sizes[ids]
        if shared:
            g = ref.shared_gradient(slopes, z[0], weights)
        else:
            g = ref.zo_gradient(slopes, z, weights)
        w = server.step(w, shift(g))
    return w


ZO = dict(eps=0.01, num_directions=3, lr=0.1)
SHARED = dict(seed_policy="shared")
STRATIFIED = dict(cohort_size=4, participation="stratified")


@pytest.mark.parametrize(
    ("sizes", "changes"),
    (
        slowly(UNEVEN, dict(server="adam", eps=0.1, microbatch=4, **STRATIFIED)),
        pytest.param(CLOSE, dict(local_steps=3), marks=pytest.mark.nightly),
        slowly(LARGE, dict(SHARED, estimator="forward", distribution="gaussian", tau=1.0)),
        (CLOSE, dict(SHARED, local_steps=3, local_lr=0.2, batch_size=4)),
    ),
    ids=("adam", "3_steps", "shared", "shared_3_steps"),
)
def test_the_zeroth_order_round_is_its_formula(sizes, changes):
    case = make_case("zo", sizes, zo=ZO | changes)
    (state,) = run(case)
    check(case, state.params, zo_rounds(case, case.phases[0], case.block, case.start))


def test_zowarmup_is_fedavg_of_the_high_tier_and_then_zeroth_order_rounds_of_all():
    case = make_case("zowarmup", warmup=WARMUP, zo=ZO)
    warm, done = run(case)
    first, second = case.phases
    assert cohort(first, 0) == [0, 3] and cohort(second, ROUNDS) == list(range(6))
    pivot = fedavg_rounds(case, first, case.start)
    check(case, warm.params, pivot)
    check(case, done.params, zo_rounds(case, second, case.blocks["zo"], pivot, first=ROUNDS))


@slow
def test_mezo_is_its_formula():
    mezo = dict(eps=0.01, lr=0.05, batch_size=4)
    case = make_case("mezo", CLOSE, zo=dict(server="momentum", cohort_size=3), mezo=mezo)
    (state,) = run(case)
    check(case, state.params, zo_rounds(case, case.phases[0], case.block | zo.MEZO, case.start))


@slow
def test_decomfl_is_its_formula():
    decomfl = dict(eps=0.01, lr=0.1, num_directions=2, local_steps=4, batch_size=2)
    case = make_case("decomfl", CLOSE, zo=dict(cohort_size=4), decomfl=decomfl)
    (state,), (phase,), block = run(case), case.phases, case.block | zo.DECOMFL
    check(case, state.params, zo_rounds(case, phase, block, case.start, uniform=True))


@slow
def test_fedzo_is_its_formula():
    changes = dict(radius=0.2, local_lr=0.05, num_directions=2, local_steps=4, batch_size=2)
    case = make_case("fedzo", CLOSE, zo=dict(cohort_size=4), fedzo=changes)
    (state,), (phase,), block, w = run(case), case.phases, case.block | fedzo.FIXED, case.start
    server = ref.Server(1.0, "sgd")
    for t in range(ROUNDS):
        trained = []
        for j in cohort(phase, t):
            spheres = [
                [ref.add(ref.zeros_like(z), 1 / ref.norm(z), z) for z in of_step]
                for of_step in probes(case, block, t, j)
            ]
            of_client, mu = steps(case, block, t, j), block["radius"]
            trained.append(ref.fedzo_local(w, of_client, spheres, mu=mu, lr=block["local_lr"]))
        w = server.step(w, ref.mean_delta(w, trained, [1] * len(trained)))
    check(case, state.params, w)


@slow
def test_baffle_is_its_formula_and_evaluates_the_moving_average():
    case = make_case("baffle", zo=dict(eps=0.1), baffle=dict(num_directions=8, lr=0.1))
    (state,), (phase,), block = run(case), case.phases, case.block | baffle.FIXED
    make_server = functools.partial(ref.Server, block["lr"], "adam", b2=0.99, weight_decay=5e-4)
    found, clipped = [], []

    def clip(g):
        found.append(g)
        clipped.append(ref.clip_by_largest(g, 0.3))
        return clipped[-1]

    w = zo_rounds(case, phase, block, case.start, server=make_server(), shift=clip)
    check(case, state.params, w)
    assert any(
        ref.norm(g) > 1.01 * ref.norm(shorter) for g, shorter in zip(found, clipped, strict=True)
    )
    server, trajectory, average = make_server(), case.start, case.start
    for t, g in enumerate(clipped, start=1):
        trajectory = server.step(trajectory, g)
        rate = (1 + t) / (10 + t)
        average = ref.weighted_mean([average, trajectory], [rate, 1 - rate])
    check(case, phase.evaluated(state, case.data)[0], average)


@slow
def test_mixed_tiers_averages_deltas_of_one_tier_and_scaled_estimates_of_the_other():
    case = make_case("mixed_tiers", warmup=WARMUP | dict(server_lr=0.8), zo=ZO)
    (state,), (phase,), w = run(case), case.phases, case.start
    warmup, block = case.blocks["warmup"], case.blocks["zo"]
    server = ref.Server(warmup["server_lr"], warmup["server"])
    for t in range(ROUNDS):
        high, low = cohort(phase, t, 0), cohort(phase, t, 1)
        assert (high, low) == ([0, 3], [1, 2, 4, 5])
        trained = trained_by_sgd(case, warmup, w, t, high)
        slopes, z, _ = probe_all(case, block, w, t, low, block["lr"])
        trained += [
            ref.add(w, -block["lr"], ref.rebuilt(*pair)) for pair in zip(slopes, z, strict=True)
        ]
        w = server.step(w, ref.mean_delta(w, trained, case.data.client_sizes[high + low]))
    check(case, state.params, w)


# FedKSeed


def candidates(block, t, j, probabilities=None):
    """The candidates that a client draws at each step."""
    found = []
    for step in range(block["local_steps"]):
        key = jax.random.fold_in(keys.stream(client_key(t, j), "candidates"), step)
        shape = (block["num_directions"],)
        if probabilities is None:
            found.append(jax.random.randint(key, shape, 0, block["candidate_seeds"]))
        else:
            logits = jnp.log(jnp.array(probabilities, jnp.float32))
            found.append(jax.random.categorical(key, logits, shape=shape))
    return np.array(found)


def fedkseed_rounds(case, phase, block, adaptive):
    """The parameters, the accumulators and the history after three rounds."""
    many = block["candidate_seeds"]
    pool = draw(case, block, keys.stream(RUN_KEY, "candidate_seeds"), range(many))
    w, accumulators, history = case.start, np.zeros(many), [[0.0]] * many
    for t in range(ROUNDS):
        ids = cohort(phase, t)
        odds = ref.pro_probabilities(history) if adaptive else None
        drawn, slopes, local = [candidates(block, t, j, odds) for j in ids], [], []
        for j, of_client in zip(ids, drawn, strict=True):
            z = [[pool[k] for k in of_step] for of_step in of_client]
            batch = steps(case, block, t, j)
            found, after = ref.local_zo(w, batch, z, eps=block["eps"], local_lr=block["lr"])
            slopes.append(found)
            local.append(after)
        weights = case.data.client_sizes[ids]
        accumulators = ref.accumulate(accumulators, slopes, drawn, weights)
        history = ref.remember(history, slopes, drawn)
        w = ref.from_candidates(case.start, accumulators, pool, block["lr"])
        averaged = ref.weighted_mean(local, weights)  # the same: each path is linear in its slopes
        assert all(np.allclose(w[path], averaged[path], rtol=0, atol=1e-12) for path in w)
    return w, accumulators, history


FEDKSEED = dict(eps=0.01, lr=0.03, candidate_seeds=16, local_steps=4, batch_size=2)


def test_fedkseed_is_its_accumulators_times_the_candidates():
    case = make_case("fedkseed", CLOSE, fedkseed=FEDKSEED)
    (state,), (phase,), block = run(case), case.phases, case.block | fedkseed.FIXED
    w, accumulators, _ = fedkseed_rounds(case, phase, block, adaptive=False)
    check(case, state.params, w)
    np.testing.assert_allclose(state.strategy_state.accumulators, accumulators, atol=1e-4)


@slow
def test_fedkseed_pro_draws_by_the_slopes_that_it_remembers():
    fields = dict(zo=dict(cohort_size=4), fedkseed=FEDKSEED | dict(num_directions=2))
    case = make_case("fedkseed_pro", EVEN, **fields)
    (state,), (phase,), block = run(case), case.phases, case.block | fedkseed.FIXED
    w, accumulators, history = fedkseed_rounds(case, phase, block, adaptive=True)
    check(case, state.params, w)
    pool = state.strategy_state
    np.testing.assert_allclose(pool.accumulators, accumulators, atol=1e-4)
    np.testing.assert_allclose(pool.counts, [len(seen) for seen in history], rtol=1e-6)
    magnitudes = [np.sum(np.abs(seen)) for seen in history]
    np.testing.assert_allclose(pool.magnitudes, magnitudes, rtol=1e-4, atol=1e-4)


# HeteroFL


def heterofl_rounds(case, phase, block):
    """``levels``' widths are 1, 1/2, 1/4; a narrow layer has as many units, rounded up."""
    w = case.start
    for t in range(ROUNDS):
        trained, present = [], []
        lr = block["lr"] * 0.1 ** sum(t >= milestone for milestone in block["milestones"])
        for level, width in enumerate((1, 1 / 2, 1 / 4)[: len(block["levels"])]):
            for j in cohort(phase, t, level):
                classes = np.isin(np.arange(CLASSES), case.client(j)[1])
                fields = dict(momentum=block["momentum"], weight_decay=block["weight_decay"])
                trained.append(
                    ref.local_sgd(
                        ref.leading(w, math.ceil(width * UNITS)),
                        batches(case, t, j, block["batch_size"], block["local_epochs"]),
                        **fields,
                        lr=lr,
                        clip=heterofl.CLIP_NORM,
                        width=width,
                        present=classes,
                    )
                )
                present.append(classes)
        w = ref.mean_over_holders(w, trained, present)
    return w


HETEROFL = dict(local_epochs=2, batch_size=2, lr=0.1, weight_decay=0.01, augment=False)


@pytest.mark.parametrize(
    "changes",
    (
        dict(levels="ab"),
        slowly(dict(levels="abc", milestones=(1, 2), cohort_size=5, assignment="dynamic")),
    ),
    ids=("fixed", "dynamic"),
)
def test_heterofl_is_the_mean_over_those_who_hold_an_entry(changes, monkeypatch):
    monkeypatch.setattr(heterofl, "CLIP_NORM", 0.3)  # of so small a model few gradients reach 1
    case = make_case("heterofl", hidden=True, heterofl=HETEROFL | changes)
    (state,), (phase,) = run(case), case.phases
    check(case, state.params, heterofl_rounds(case, phase, case.blocks["heterofl"]))
    if "assignment" not in changes:  # high-resource clients alone hold the last units, not class 2
        last = np.s_[math.ceil(UNITS / 2) :, 2]
        kept = np.asarray(state.params["head"]["kernel"])[last]
        np.testing.assert_array_equal(kept, case.start["head/kernel"][last])
