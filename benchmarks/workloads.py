"""The rounds that the benchmark times: six of fixed size, and the same ones tiny.

Pixels and labels are random: speed does not depend on their values. W1 to W3 and W5 are defined a
second time, for the peers, in ``benchmarks/peers/workloads.py``.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend
import jax.numpy as jnp
import numpy as np
from absl import flags

from zo_fl import config as configs
from zo_fl import experiment, methods, models
from zo_fl.data.federated import Federation
from zo_fl.engine.types import HIGH, Dataset, FederatedData
from zo_fl.experiment import Experiment
from zo_fl.host.devices import make_engine
from zo_fl.models.layers import NORMS

IMAGE_SHAPE = (32, 32, 3)
NUM_CLASSES = 10


class Workload(NamedTuple):
    """A federated round of fixed size.

    Attributes:
      name: as in docs/results/notes_on_performance.
      title: what it is, in a few words.
      algorithm: ``fedavg`` or ``zo``.
      model: changes of ``config.model``.
      clients: population and cohort.
      images: of each client.
      changes: of the algorithm's config block.
      rounds: a dispatch, as ``config.run.rounds_per_jit``.
      width: factor of the model's channels.
    """

    name: str
    title: str
    algorithm: str
    model: dict[str, Any]
    clients: int
    images: int
    changes: dict[str, Any]
    rounds: int = 1
    width: float = 1.0


_CNN = {"name": "cnn_large", "norm": "none"}
_RESNET = {"name": "resnet18", "norm": "batch"}
_MLP = {"name": "mlp", "norm": "none"}
_LOCAL = {"tiers": "all", "augment": False}


def _fedavg(name: str, clients: int, images: int, batch: int, model=_CNN, rounds=1) -> Workload:
    kind = "MLP" if model is _MLP else "CNN"
    title = f"FedAvg, {kind}, {clients:,} x {images:,}, batch {batch}"
    block = {**_LOCAL, "batch_size": batch, "local_epochs": 1}
    return Workload(name, title, "fedavg", model, clients, images, block, rounds)


_ALL = (
    _fedavg("W1", 10, 500, 50),
    _fedavg("W1-7", 7, 320, 20),
    _fedavg("W1-30", 30, 100, 10),
    _fedavg("W1-4", 4, 2000, 100),
    Workload("W2", "ZO, CNN, 10 x 500, S = 3", "zo", _CNN, 10, 500, {}),
    Workload(
        "W3",
        "ZO, ResNet18 GroupNorm, 10 x 50, S = 3",
        "zo",
        {"name": "resnet18", "norm": "group"},
        10,
        50,
        {},
    ),
    Workload(
        "W4",
        "ZO, ResNet18 BatchNorm synced, 50 x 900, S = 3",
        "zo",
        _RESNET,
        50,
        900,
        {"bn_policy": "batch_sync"},
    ),
    Workload(
        "W5",
        "FedAvg, ResNet18, 5 x 900, batch 64, 3 epochs",
        "fedavg",
        _RESNET,
        5,
        900,
        _LOCAL,
    ),
    Workload(
        "W5-45",
        "FedAvg, ResNet18, 45 x 900, batch 64, 3 epochs",
        "fedavg",
        _RESNET,
        45,
        900,
        _LOCAL,
    ),
    Workload("W6-zo", "ZO, MLP, 1,000 x 32, S = 3", "zo", _MLP, 1000, 32, {}, rounds=10),
    _fedavg("W6-fedavg", 1000, 32, 32, _MLP, rounds=10),
)
WORKLOADS = {workload.name: workload for workload in _ALL}
SUITES = {
    "cpu": ("W1", "W2", "W3", "W6-zo", "W6-fedavg"),
    "fedavg": ("W1", "W1-7", "W1-30", "W1-4"),
    "gpu": ("W1", "W2", "W3", "W4", "W5", "W5-45", "W6-zo", "W6-fedavg"),
}


def tiny(workload: Workload) -> Workload:
    """Returns the same work on two clients of four images: for tests."""
    return workload._replace(clients=2, images=4)


def set_up(workload: Workload, changes: Mapping[str, Any]) -> tuple[Experiment, dict[str, Any]]:
    """Returns the experiment of one phase that runs a workload's rounds, and its config.

    Args:
      workload: which.
      changes: more fields of the config, dotted, e.g. ``{"zo.precision": "bfloat16"}``.

    Raises:
      ConfigError: bad changes.
    """
    config: Any = configs.default()
    config.algorithm = workload.algorithm
    config.model.update({**workload.model, "width": workload.width})
    block = methods.METHODS[workload.algorithm].reads[-1]
    config[block].update({**workload.changes, "num_rounds": 1})
    config.run.rounds_per_jit = workload.rounds
    resolved = configs.resolve(configs.changed(configs.resolve(config), changes))
    engine = make_engine(configs.plain(resolved)["run"])
    federation = _random_federation(workload)
    return experiment.assemble(resolved, federation, engine), resolved


def _random_federation(workload: Workload) -> Federation:
    count = workload.clients * workload.images
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (count, *IMAGE_SHAPE), dtype=np.uint8)
    labels = rng.integers(0, NUM_CLASSES, count, dtype=np.int32)
    half = np.full(IMAGE_SHAPE[-1], 0.5, np.float32)
    examples = {"image": images, "label": labels}
    clients = FederatedData(
        examples,
        client_indices=np.arange(count, dtype=np.int32).reshape(workload.clients, -1),
        client_sizes=np.full(workload.clients, workload.images, np.int32),
        client_tiers=np.full(workload.clients, HIGH, np.int32),
    )
    test = {"image": images[:1], "label": labels[:1]}
    dataset = Dataset("random", examples, test, NUM_CLASSES, mean=half, std=half)
    nothing = clients._replace(
        client_indices=clients.client_indices[:, :0],
        client_sizes=np.zeros_like(clients.client_sizes),
    )
    return Federation(dataset, clients, nothing, summary={})


def define_model_flags(name: str, norm: str) -> None:
    """Defines ``--model`` and ``--norm`` with these defaults."""
    flags.DEFINE_enum("model", name, list(models.MODELS), "The model.")
    flags.DEFINE_enum("norm", norm, list(NORMS), "Its norm.")


def define_list(
    flag: str, default: Sequence[str], allowed: Sequence[str], words: str | None = None
) -> None:
    """Defines a flag of one or more of some texts, separated by commas; ``words`` name them all."""
    words = words or ", ".join(allowed)
    flags.DEFINE_list(flag, list(default), f"One or more of: {words}.")
    check = set(allowed).issuperset
    flags.register_validator(flag, lambda given: bool(given) and check(given), f"allowed: {words}")


def forward_flops(model: Mapping[str, Any]) -> int:
    """Returns floating-point operations of one image's forward pass, in convolutions and products.

    Two an entry of a kernel and output position, padded zeros included, as is usual.
    """
    module = models.create(**model, conv="xla", num_classes=NUM_CLASSES)
    image = jax.ShapeDtypeStruct((1, *IMAGE_SHAPE), jnp.float32)
    variables = jax.eval_shape(lambda x: module.init(jax.random.key(0), x, train=False), image)
    program = jax.make_jaxpr(lambda v, x: module.apply(v, x, train=False))(variables, image)
    return sum(_equation_flops(equation) for equation in _equations(program.jaxpr))


def _equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jax.extend.core.jaxprs_in_params(equation.params):
            yield from _equations(inner)


def _equation_flops(equation) -> int:
    if equation.primitive.name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape  # HWIO
        return 2 * equation.outvars[0].aval.size * int(np.prod(kernel[:-1]))
    if equation.primitive.name == "dot_general":
        ((contracted, _), _) = equation.params["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2 * equation.outvars[0].aval.size * int(np.prod([left[i] for i in contracted]))
    return 0
