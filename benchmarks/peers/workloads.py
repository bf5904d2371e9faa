"""Defines the work that every peer does: models' sizes, clients, images, steps. Needs only numpy.

Speed does not depend on the values of pixels, so the images are random; nothing is downloaded.
"""

from typing import NamedTuple

import numpy as np

LEARNING_RATE = 0.05
ZO_LEARNING_RATE = 2e-4
EPSILON = 1e-3
GROUPS = 2
"""Groups of GroupNorm."""

STAGES = (64, 128, 256, 512)
"""Channels of ResNet18's stages, each of two basic blocks."""

PARAMETERS = {"cnn": 1_626_442, "resnet18": 11_173_962}
FORWARD_FLOPS = {
    "cnn": 2 * (30 * 30 * 32 * 27 + 28 * 28 * 64 * 288 + 12544 * 128 + 128 * 10),
    "resnet18": 2 * 555_422_720,
}
"""Operations of one image's forward pass: two for each weight's multiplication and addition."""

PASSES_PER_TRAINING_STEP = 3
"""A training step counts three forward passes."""

MEAN = np.array([0.4914, 0.4822, 0.4465], np.float32)
STD = np.array([0.2470, 0.2435, 0.2616], np.float32)


class Workload(NamedTuple):
    """A round of fixed size.

    Attributes:
      model: ``cnn`` or ``resnet18``.
      norm: ``none``, ``batch`` or ``group``.
      clients: in a round, all of them.
      examples: images of a client.
      batch_size: of local SGD.
      epochs: of local SGD; 0 for a zeroth-order round, one step on all images of each client.
      directions: of a client in a zeroth-order round, each with two losses; 0 for FedAvg.
    """

    model: str
    norm: str
    clients: int
    examples: int
    batch_size: int = 0
    epochs: int = 0
    directions: int = 0

    @property
    def images(self) -> int:
        """Passes of one image in a round, each of a forward pass or of a training step."""
        return self.clients * self.examples * (self.epochs or 2 * self.directions)

    @property
    def flops(self) -> int:
        """Floating point operations of the models in a round."""
        passes = PASSES_PER_TRAINING_STEP if self.epochs else 1
        return self.images * passes * FORWARD_FLOPS[self.model]


WORKLOADS = {
    "W1": Workload("cnn", "none", clients=10, examples=500, batch_size=50, epochs=1),
    "W1-7": Workload("cnn", "none", clients=7, examples=320, batch_size=20, epochs=1),
    "W1-30": Workload("cnn", "none", clients=30, examples=100, batch_size=10, epochs=1),
    "W1-4": Workload("cnn", "none", clients=4, examples=2000, batch_size=100, epochs=1),
    "W2": Workload("cnn", "none", clients=10, examples=500, directions=3),
    "W3": Workload("resnet18", "group", clients=10, examples=50, directions=3),
    "W5": Workload("resnet18", "batch", clients=5, examples=900, batch_size=64, epochs=3),
    "W5-45": Workload("resnet18", "batch", clients=45, examples=900, batch_size=64, epochs=3),
}
FEDAVG_CNN = [name for name, work in WORKLOADS.items() if work.model == "cnn" and work.epochs]


def client_data(workload: Workload) -> tuple[np.ndarray, np.ndarray]:
    """Returns images ``f32[clients, examples, 32, 32, 3]``, normalized, and labels ``i64``."""
    rng = np.random.default_rng(1)
    shape = (workload.clients, workload.examples)
    images = rng.integers(0, 256, (*shape, 32, 32, 3), dtype=np.uint8).astype(np.float32)
    images /= 255
    images -= MEAN
    images /= STD
    return images, rng.integers(0, 10, shape)


def seeds(workload: Workload, round_number: int) -> np.ndarray:
    """Returns a seed for each direction of a round, ``i64[clients, directions]``."""
    shape = (workload.clients, workload.directions)
    return np.random.default_rng([2, round_number]).integers(0, 2**31, shape)
