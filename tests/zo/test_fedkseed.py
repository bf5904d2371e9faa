"""FedKSeed's bill; that the model is K numbers ``test_references`` holds."""

import jax
import pytest

from tests import tiny
from zo_fl.host.costs import phase_cost


@pytest.mark.parametrize(("candidates", "broadcast"), ((1000, 8 * 3 * 4), (8, 8 * 4)))
def test_it_bills_whichever_is_smaller_all_scalars_or_the_pool(candidates, broadcast):
    built = tiny.build("fedkseed", fedkseed__candidate_seeds=candidates)
    (phase,) = built.phases
    cost = phase_cost(phase, *jax.eval_shape(built.task.init, built.run_key), built.data)
    assert cost.uplink == 8 * 3 * 4 and cost.downlink == 8 * broadcast
