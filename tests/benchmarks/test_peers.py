from pathlib import Path

import jax
import numpy as np
import pytest

from benchmarks.peers import jax_models, workloads

FOLDER = Path(workloads.__file__).parent


@pytest.mark.parametrize(
    ("name", "images", "gigaflops"),
    [("W1", 5_000, 505.056), ("W2", 30_000, 1010.112), ("W3", 3_000, 3332.536)],
)
def test_a_round_is_the_work_that_the_readme_says(name, images, gigaflops):
    workload = workloads.WORKLOADS[name]
    assert workload.images == images
    assert workload.flops / 1e9 == pytest.approx(gigaflops, abs=1e-3)
    assert f"{workloads.FORWARD_FLOPS[workload.model]:,}" in (FOLDER / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["W1", "W3"])
def test_the_models_have_their_parameters(name):
    weights, loss = jax_models.create(workloads.WORKLOADS[name])
    assert (
        sum(w.size for w in weights.values())
        == workloads.PARAMETERS[workloads.WORKLOADS[name].model]
    )
    images = np.zeros((2, 32, 32, 3), np.float32)
    with jax.numpy_rank_promotion("allow"):
        assert jax.eval_shape(loss, weights, images, np.zeros(2, np.int32)).shape == ()


def test_images_are_normalized():
    images, labels = workloads.client_data(workloads.WORKLOADS["W3"])
    assert images.shape == (10, 50, 32, 32, 3) and labels.shape == (10, 50)
    assert images.dtype == np.float32
    # Uniform pixels, by CIFAR-10's mean and deviation.
    assert np.allclose(images.mean((0, 1, 2, 3)), (0.5 - workloads.MEAN) / workloads.STD, atol=0.02)
