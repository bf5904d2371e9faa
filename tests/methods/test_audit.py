"""An auditor of privacy: neighbouring data sets are told apart no better than a phase claims."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import beta, norm

from tests import tiny
from zo_fl.engine import keys
from zo_fl.host import privacy

nightly = functools.partial(pytest.param, marks=pytest.mark.nightly)

DRAWS, NOISE = 400, 1.0
ONE_STEP = {"local_steps": 1, "batch_size": "all", "num_directions": 1}
# Bounds that nearly all differences and features reach: an example moves a message by the most.
PRIVATE = {
    "zo": {},
    "decomfl": {"decomfl": ONE_STEP},
    "fedkseed": {"fedkseed": ONE_STEP},
    "fedzo": {"fedzo": ONE_STEP},
    "baffle": {"baffle": {"num_directions": 2}},
    "ridge": {"ridge": {"bound": 0.1, "penalties": (0.1,), "calibrate": False}},
}


def build(method, noise):
    private = "ridge" if method == "ridge" else "zo"
    blocks = {"zo": {"bound": 1e-6}} | PRIVATE[method]
    blocks[private] = blocks[private] | {"noise": noise}
    fields = {f"{b}__{name}": value for b, one in blocks.items() for name, value in one.items()}
    few = {} if method == "ridge" else {"data__num_clients": 40}  # 18 images a client
    return tiny.build(method, **few, **fields)


def neighbours(built):
    """Returns the batches of two data sets, leaves ``[2, clients, ...]``.

    In the second one another example takes the place of the first client's first one.
    """
    (group,) = built.phases[0].groups
    ids = group.eligible if releases_sums(built) else group.eligible[:1]
    batches = jax.device_get(tiny.gather(built, ids))
    other = tiny.batch_of(built, 3).examples

    def replaced(leaf, by):
        changed = np.array(leaf)
        changed[0, 0] = by
        return changed

    images, labels = batches.examples["image"], batches.examples["label"]
    second = {
        "image": replaced(images, other["image"][5]),
        "label": replaced(labels, (labels[0, 0] + 1) % 10),
    }
    pair = batches, batches._replace(examples=second)
    return jax.tree.map(lambda *leaves: np.stack(leaves), *pair)


def releases_sums(built):
    """Returns whether the server sees the sum of messages, not each of them."""
    return "ridge" in built.phases[0].name


def released(built):
    """Returns ``(batches, run key) -> f32[n]``, all numbers that the server sees of one round."""
    (phase,) = built.phases
    (group,) = phase.groups
    state, sums = tiny.start(built, phase), releases_sums(built)

    def one(batch, run_key):
        own = keys.of_round(run_key, 0).of(batch.client_id)
        message = group.client.update(state, batch, own).message
        return group.client.decode(message, state, own) if sums else message

    def of_run(batches, run_key):
        found = jax.lax.map(lambda batch: one(batch, run_key), batches)
        total = jax.tree.map(lambda leaf: leaf.sum(0), found)
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(total)])

    return of_run


@functools.cache
def told_apart(method):
    """Returns how far ``f32[2, DRAWS]`` each draw of both data sets is on the way between them."""
    noisy = build(method, NOISE)
    pair, drawn, clean = neighbours(noisy), released(noisy), released(build(method, 0.0))

    def one(run_key):
        first, second = jax.lax.map(lambda batches: clean(batches, run_key), pair)
        way = second - first
        length = jnp.maximum(jnp.sum(way**2), 1e-30)
        found = jax.lax.map(lambda batches: drawn(batches, run_key), pair)
        return (found - first[None]) @ way / length

    run_keys = jax.vmap(jax.random.key)(jnp.arange(DRAWS))
    return jax.device_get(jax.jit(lambda: jax.lax.map(one, run_keys, batch_size=100))()).T


def least_mu(without, having):
    """Returns a lower bound at 95 % of mu, from thresholds chosen on half of the draws."""
    half = len(without) // 2
    grid = np.quantile(np.concatenate([without[:half], having[:half]]), np.linspace(0.05, 0.95, 19))

    def apart(threshold):
        shares = [np.mean(one[:half] > threshold) for one in (having, without)]
        return np.subtract(*norm.ppf(np.clip(shares, 0.01, 0.99)))

    best = max(grid, key=apart)
    hits, alarms = (np.sum(one[half:] > best) for one in (having, without))
    count = len(without) - half
    power = beta.ppf(0.025, hits, count - hits + 1) if hits else 0.0
    alarm = beta.ppf(0.975, alarms + 1, count - alarms) if alarms < count else 1.0
    return norm.ppf(power) - norm.ppf(alarm)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method",
    # The others' scalars are made by the client of zo.
    [name if name in ("zo", "ridge") else nightly(name) for name in PRIVATE],
)
def test_the_measured_epsilon_is_below_the_claim_and_above_nothing(method):
    (phase,) = build(method, NOISE).phases
    release = phase.groups[0].release
    # One example in the place of another is twice as far as one that counts as nothing.
    claimed = 2 * math.sqrt(release.times) / release.noise
    found = least_mu(*told_apart(method))
    assert privacy.epsilon(max(found, 1e-6)) < privacy.epsilon(claimed)
    assert found > claimed / 6, "else the auditor would find nothing"
