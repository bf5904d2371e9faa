"""Options of first-order clients that references do not know of."""

import chex
import jax
import numpy as np
import pytest

from tests import tiny
from zo_fl.engine.fields import ConfigError


def result_of(client, **changes):
    """Returns what a client sends in the first round."""
    built = tiny.build("fedavg", **changes)
    (phase,) = built.phases
    update, state = jax.jit(tiny.only_client(phase).update), tiny.start(built, phase)
    return update(state, tiny.batch_of(built, client), tiny.own_keys(built, client))


def test_the_loss_is_the_mean_over_a_client_s_examples():
    built = tiny.build("fedavg", warmup__lr=0.0, warmup__local_epochs=2)
    result = result_of(3, warmup__lr=0.0, warmup__local_epochs=2)
    state, batch = tiny.start(built, built.phases[0]), tiny.batch_of(built, 3)
    losses, _ = built.task.losses(*state[:2], batch.examples, batch.mask, True)
    np.testing.assert_allclose(result.metrics["loss"], np.mean(losses), rtol=1e-5)
    assert result.weight == len(losses) == 90


@pytest.mark.slow
def test_gradients_added_up_over_microbatches_make_the_same_step():
    one, other = (
        result_of(3, warmup__microbatch=size, warmup__momentum=0.9) for size in ("all", 8)
    )
    chex.assert_trees_all_close(one.message, other.message, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(one.metrics["loss"], other.metrics["loss"], rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "words"),
    (
        ({"warmup__microbatch": 30}, "config.warmup.microbatch=30 does not divide"),
        (
            {"warmup__microbatch": 10, "model__name": "cnn", "model__norm": "batch"},
            "config.warmup.microbatch=10 would change batch statistics",
        ),
    ),
)
def test_microbatches_that_would_change_the_step_are_refused(changes, words):
    with pytest.raises(ConfigError, match=words):
        tiny.build("fedavg", **changes)
