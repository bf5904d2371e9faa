"""FedKSeed: the model is K numbers and the first weights."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from zo_fl.host.schedule import phase_cost
from zo_fl.zo import fedkseed


@pytest.mark.parametrize(("candidates", "broadcast"), ((1000, 8 * 3 * 4), (8, 8 * 4)))
def test_it_bills_whichever_is_smaller_all_scalars_or_the_pool(candidates, broadcast):
    built = tiny.build("fedkseed", fedkseed__candidate_seeds=candidates)
    (phase,) = built.phases
    cost = phase_cost(phase, *jax.eval_shape(built.task.init, built.run_key), built.data)
    assert cost.uplink == 8 * 3 * 4 and cost.downlink == 8 * broadcast


def test_pro_draws_candidates_with_large_scalars_more_often():
    magnitudes = jnp.array([0.0, 1.0, 2.0, 4.0])
    pool = fedkseed.Pool(jnp.zeros(4), magnitudes, jnp.full(4, 2.0))
    p = jax.nn.softmax(fedkseed.log_probabilities(pool))
    np.testing.assert_allclose(p, jax.nn.softmax(jnp.array([0.0, 0.25, 0.5, 1.0])), rtol=1e-6)
    unseen = fedkseed.Pool(jnp.zeros(4), jnp.zeros(4), jnp.ones(4))
    np.testing.assert_allclose(jax.nn.softmax(fedkseed.log_probabilities(unseen)), 0.25)
