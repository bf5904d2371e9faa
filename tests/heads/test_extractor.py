"""Features: inputs of the last layer, and pooled outputs of inner ones, of every model."""

import jax
import numpy as np
import pytest

from zo_fl import models
from zo_fl.engine import activations, keys
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.image_task import classification

NORMS = {"vit": "layer", "cnn_large": "none", "mlp": "none", "patches": "patch"}
HALF = np.full(3, 0.5, np.float32)


def make(name):
    module = models.create(name=name, norm=NORMS.get(name, "batch"), conv="xla", num_classes=10)
    task = classification(module, (16, 16, 3), 10, HALF, HALF)
    images = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)
    return task, {"image": images, "label": np.arange(3, dtype=np.int32)}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(models.MODELS))
def test_the_last_layer_makes_the_logits_of_the_features(name):
    task, examples = make(name)
    mask = np.ones(3, bool)

    def both(key):
        params, state = task.init(key)
        features = activations.features(task, params, state, examples, mask)
        logits, _ = task.logits(params, state, examples, mask, False)
        return features, logits, params[task.head]

    if name in ("resnet18", "preact_resnet18", "vit"):  # shapes say enough of what takes long
        features, logits, head = jax.eval_shape(both, keys.run_key(0))
        assert features.shape == (3, head["kernel"].shape[0]) and logits.shape == (3, 10)
        return
    features, logits, head = jax.jit(both)(keys.run_key(0))
    features, logits, head = jax.device_get((features, logits, head))
    np.testing.assert_allclose(features @ head["kernel"] + head["bias"], logits, atol=1e-4)


@pytest.mark.parametrize("name, size", (("resnet18", 960), ("cnn", 112)))
def test_a_head_can_see_all_stages(name, size):
    module = models.create(name=name, norm="group", num_classes=10, stages=True)
    task = classification(module, (16, 16, 3), 10, HALF, HALF)
    params, _ = jax.eval_shape(task.init, keys.run_key(0))
    assert params["head"]["kernel"].shape == (size, 10)
    with pytest.raises(ConfigError, match="stages=true is not allowed for model 'mlp'"):
        models.create(name="mlp", norm="none", num_classes=10, stages=True)


def test_an_unknown_layer_is_named():
    task, examples = make("mlp")
    with pytest.raises(ValueError, match="no submodule 'stage9'"):
        jax.eval_shape(
            lambda key: activations.features(
                task, *task.init(key), examples, np.ones(3, bool), ("stage9",)
            ),
            keys.run_key(0),
        )
