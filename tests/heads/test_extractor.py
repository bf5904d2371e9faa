"""Features: inputs of the last layer, and pooled outputs of inner ones."""

import jax
import numpy as np
import pytest

from zo_fl import models
from zo_fl.engine import activations, keys
from zo_fl.engine.image_task import classification

HALF = np.full(3, 0.5, np.float32)
EXAMPLES = {"image": np.zeros((3, 8, 8, 3), np.uint8), "label": np.arange(3, dtype=np.int32)}


def features_of(layers):
    module = models.create(name="cnn", norm="batch", conv="xla", num_classes=10)
    task = classification(module, (8, 8, 3), 10, HALF, HALF)
    return jax.eval_shape(
        lambda key: activations.features(task, *task.init(key), EXAMPLES, np.ones(3, bool), layers),
        keys.run_key(0),
    )


def test_layers_are_put_side_by_side_and_an_unknown_one_is_named():
    assert features_of(()).shape == (3, 64)
    assert features_of(("conv0", "head")).shape == (3, 16 + 64)
    with pytest.raises(ValueError, match="no submodule 'stage9'"):
        features_of(("stage9",))
