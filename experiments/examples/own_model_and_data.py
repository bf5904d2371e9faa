"""Trains your own model on your own data, and predicts with it.

python -m experiments.examples.own_model_and_data
"""

import flax.linen as nn
import numpy as np

import zo_fl


class MyModule(nn.Module):
    """Any Linen module ``(x, train) -> logits``; its last layer is called ``head``."""

    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        """Returns ``f32[n, num_classes]`` from ``x: f32[n, H, W, c]``."""
        del train
        x = nn.relu(nn.Conv(8, (3, 3))(x)).mean((1, 2))
        return nn.Dense(self.num_classes, name="head")(x)


def make_data(count: int = 700, seed: int = 0):
    """Returns images ``f32[count, 12, 10]`` of seven classes, brighter from class to class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 7
    images = rng.normal(size=(count, 12, 10)) + labels[:, None, None]
    return images.astype(np.float32), labels


def main(workdir: str = "runs/own_model", rounds: int = 20) -> float:
    """Returns the share of test images that the trained model recognises."""
    (x_train, y_train), (x_test, y_test) = make_data(), make_data(210, seed=1)
    data = zo_fl.dataset(x_train, y_train, x_test, y_test)
    zo_fl.run(
        "quickstart",
        workdir,
        dataset=data,
        model=MyModule(num_classes=7),
        changes={
            "algorithm": "zowarmup",
            "warmup.num_rounds": rounds,
            "zo.num_rounds": rounds,
            "zo.num_directions": 9,
        },
        on_round=lambda row: None,  # wandb.log, say
    )
    model = zo_fl.load(workdir)
    return float(np.mean(model.predict(x_test) == y_test))


if __name__ == "__main__":
    print(f"{main():.1%} of the test images recognised")
