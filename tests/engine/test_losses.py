"""What clients train on where they lack labels, against its definition."""

import jax
import jax.numpy as jnp
import numpy as np

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


def test_each_is_its_definition_and_spares_absent_classes():
    built = tiny.build("fedavg", data__alpha=0.1)
    batch = tiny.batch_of(built, 2)
    params, _ = built.task.init(built.run_key)
    counts = np.bincount(batch.examples["label"][np.asarray(batch.mask)], minlength=10)
    assert (counts == 0).any() and counts.max() < counts.sum()

    def found(params, loss):
        of_client = losses.of_client(built.task, loss, batch)

        def mean(head):
            model = params | {"head": head}
            values, _ = of_client(model, {}, batch.examples, batch.mask, True)
            return jnp.mean(values, where=batch.mask), values

        pushed, values = jax.grad(mean, has_aux=True)(params["head"])
        return values, pushed["bias"]

    of_losses = jax.jit(lambda params: {loss: found(params, loss) for loss in losses.LOSSES})
    logits, _ = built.task.logits(params, {}, batch.examples, batch.mask, True)
    rows = np.asarray(batch.mask)
    for loss, (values, pushed) in jax.device_get(of_losses(params)).items():
        expected = by_hand(loss, logits, np.asarray(batch.examples["label"]), counts)
        np.testing.assert_allclose(values[rows], expected[rows], rtol=1e-5)
        assert (pushed[counts == 0] == 0).all() == (loss != "ce")
