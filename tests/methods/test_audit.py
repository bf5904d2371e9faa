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

DRAWS, NOISE = 400, 1.0
ONE_STEP = {"local_steps": 1, "batch_size": 0}
# Bounds that nearly all differences and features reach: an example moves a message by the most.
PRIVATE = {
    "zo": {},
    "mezo": {"mezo": {"batch_size": 0}},
    "decomfl": {"decomfl": ONE_STEP},
    "fedkseed": {"fedkseed": ONE_STEP},
    "fedzo": {"fedzo": ONE_STEP},
    "baffle": {},
    "ridge": {"ridge": {"bound": 0.1, "penalties": (0.1,), "calibrate": False}},
}


def build(method, noise):
    private = "ridge" if method == "ridge" else "zo"
    blocks = {"zo": {"bound": 1e-6}} | PRIVATE[method]
    blocks[private] = blocks[private] | {"noise": noise}
    fields = {f"{b}__{name}": value for b, one in blocks.items() for name, value in one.items()}
    return tiny.build(method, **fields)


def released(built, replaced):
    """Returns ``run key -> f32[n]``, all numbers that the server sees of one round.

    Args:
      built: an experiment of one phase.
      replaced: whether another example takes the place of the first client's first one.
    """
    (phase,) = built.phases
    (group,) = phase.groups
    state = tiny.start(built, phase)
    sums = group.release.shared if group.release else "ridge" in phase.name
    batches = [tiny.batch_of(built, i) for i in (group.eligible if sums else group.eligible[:1])]
    if replaced:
        first, other = batches[0].examples, tiny.batch_of(built, 3).examples
        swapped = jax.tree.map(lambda one, two: jnp.asarray(one).at[0].set(two[5]), first, other)
        swapped["label"] = jnp.asarray(first["label"]).at[0].set((first["label"][0] + 1) % 10)
        batches[0] = batches[0]._replace(examples=swapped)

    def of_run(run_key):
        of_round = keys.of_round(run_key, 0)

        def one(batch):
            own = of_round.of(batch.client_id)
            message = group.client.update(state, batch, own).message
            return group.client.decode(message, state, own) if sums else message

        found = [one(batch) for batch in batches]
        total = jax.tree.map(lambda *leaves: sum(leaves), *found)
        return jnp.concatenate([jnp.ravel(leaf) for leaf in jax.tree.leaves(total)])

    return of_run


@functools.cache
def told_apart(method):
    """Returns how far ``f32[DRAWS]`` each draw of both data sets is on the way between them."""
    clean = [released(build(method, 0.0), replaced) for replaced in (False, True)]
    noisy = [released(build(method, NOISE), replaced) for replaced in (False, True)]

    def one(run_key):
        first, second = (of(run_key) for of in clean)
        way = second - first
        length = jnp.maximum(jnp.sum(way**2), 1e-30)
        return [jnp.sum((of(run_key) - first) * way) / length for of in noisy]

    run_keys = jax.vmap(jax.random.key)(jnp.arange(DRAWS))
    return jax.device_get(jax.jit(lambda: jax.lax.map(one, run_keys, batch_size=100))())


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
@pytest.mark.parametrize("method", PRIVATE)
def test_the_measured_epsilon_is_below_the_claim_and_above_nothing(method):
    (phase,) = build(method, NOISE).phases
    release = phase.groups[0].release
    # One example in the place of another is twice as far as one that counts as nothing.
    claimed = 2 * math.sqrt(release.times) / release.noise
    found = least_mu(*told_apart(method))
    assert privacy.epsilon(max(found, 1e-6)) < privacy.epsilon(claimed)
    assert found > claimed / 6, "else the auditor would find nothing"
