"""What clients train on where they lack labels, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from zo_fl.engine import losses


def by_hand(loss, logits, labels, counts):
    """float64: a loss an example."""
    logits = np.float64(logits)
    if loss == "masked":
        logits = np.where(counts > 0, logits, 0.0)
    if loss == "wsm":
        with np.errstate(divide="ignore"):
            logits = logits + np.log(counts / counts.sum())
    e = np.exp(logits - logits.max(1, keepdims=True))
    return -np.log(e[np.arange(len(labels)), labels] / e.sum(1))


@pytest.mark.parametrize("loss", losses.LOSSES)
def test_each_is_its_definition_and_spares_absent_classes(loss):
    built = tiny.build("fedavg", data__alpha=0.1)
    batch = tiny.batch_of(built, 2)
    params, _ = built.task.init(built.run_key)
    counts = np.bincount(batch.examples["label"][np.asarray(batch.mask)], minlength=10)
    assert (counts == 0).any() and counts.max() < counts.sum()
    of_client = losses.of_client(built.task, loss, batch)

    def found(params):
        arguments = (params, {}, batch.examples, batch.mask, True)

        def mean(head):
            values, _ = of_client(params | {"head": head}, *arguments[1:])
            return jnp.mean(values, where=batch.mask)

        pushed = jax.grad(mean)(params["head"])["bias"]
        return of_client(*arguments)[0], built.task.logits(*arguments)[0], pushed

    values, logits, pushed = map(np.asarray, jax.jit(found)(params))
    expected = by_hand(loss, logits, np.asarray(batch.examples["label"]), counts)
    rows = np.asarray(batch.mask)
    np.testing.assert_allclose(values[rows], expected[rows], rtol=1e-5)
    assert (pushed[counts == 0] == 0).all() == (loss != "ce")
