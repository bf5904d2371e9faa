"""From a config to the objects of an experiment; nothing is computed or written yet."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax

from zo_fl import config as configs
from zo_fl import methods, models, own_model
from zo_fl.data import federated
from zo_fl.engine import image_task, keys
from zo_fl.engine.algorithm import Phase, Problem, start
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.layout import Engine
from zo_fl.engine.types import Array, Dataset, FederatedData, Task
from zo_fl.host import processes
from zo_fl.host.devices import make_engine
from zo_fl.wrap import faults, robust
from zo_fl.wrap.faults import Faults


class Experiment(NamedTuple):
    """All objects of one run.

    Attributes:
      federation: data set, clients and validation examples, on the host.
      task: model and loss.
      phases: in order.
      data: the federation's arrays: on the devices, replicated, or still on the host if streamed.
      validation: likewise, each client with its validation examples.
      engine: the layout of clients on the devices.
      seed: root of all randomness but the partition's.
      phases_with: ``{dotted field: value} -> phases`` with other values of fields that may vary
        (``Field.varies``), which may be traced.
    """

    federation: federated.Federation
    task: Task
    phases: tuple[Phase, ...]
    data: FederatedData
    validation: FederatedData
    engine: Engine
    seed: int
    phases_with: Callable[[Mapping[str, Any]], tuple[Phase, ...]]

    @property
    def run_key(self) -> Array:
        """``key[]``, made of the seed."""
        return keys.run_key(self.seed)

    def data_of(self, phase: Phase) -> FederatedData:
        """Returns the data of a phase's clients: for training, or for validation."""
        return self.validation if phase.on_validation else self.data


def build(
    config: Mapping[str, Any], dataset: Dataset | None = None, model: nn.Module | None = None
) -> Experiment:
    """Returns the experiment of a resolved config, as nested dicts.

    Args:
      config: resolved.
      dataset: instead of the one that the config names.
      model: any Linen module, instead of the one that the config names; see ``own_model``.

    Raises:
      ConfigError: the config is wrong; raised before a round is traced.
    """
    if config["faults"]["nan"] and getattr(jax.config, "jax_debug_nans"):  # noqa: B009
        raise ConfigError(
            f"config.faults.nan={config['faults']['nan']} makes NaN on purpose, JAX_DEBUG_NANS "
            "stops at them; allowed: one of the two"
        )
    plain = configs.plain(config)
    engine = make_engine(plain["run"])  # first: no data set is decoded for a device that is absent
    return assemble(config, federated.load(**plain["data"], dataset=dataset), engine, model=model)


def assemble(
    config: Mapping[str, Any],
    federation: federated.Federation,
    engine: Engine,
    model: nn.Module | None = None,
) -> Experiment:
    """Returns the experiment of a resolved config on any federation, see ``build``."""
    config = configs.plain(config)
    dataset, of_model = federation.dataset, dict(config["model"])
    precision = of_model.pop("precision")
    engine = engine._replace(narrow=precision == "bfloat16")

    def make_task(share: float) -> Task:
        if model is None:
            classes = dataset.num_classes
            module = models.create(**of_model, num_classes=classes, share=share)
            shape = dataset.train["image"].shape[1:]
            try:
                made = image_task.classification(module, shape, classes, dataset.mean, dataset.std)
                return made.with_precision(precision)
            except Exception as error:  # of a layer that is left nothing
                raise ConfigError(
                    f"the model {config['model']['name']!r} cannot take images {shape} "
                    f"({type(error).__name__}: {error}); change config.model.name or the data"
                ) from None
        if share != 1.0:
            raise ConfigError(
                f"{type(model).__name__} has no narrow form, which HeteroFL needs; "
                "change config.algorithm"
            )
        return own_model.own_task(model, dataset).with_precision(precision)

    learning = make_task(1.0)
    data, validation = federation.clients, federation.validation
    problem = Problem(learning, make_task, federation.clients, federation.validation)
    wrong, population = Faults(**config["faults"]), len(federation.clients.client_sizes)

    def phases_with(changes: Mapping[str, Any]) -> tuple[Phase, ...]:
        blocks = {name: dict(block) for name, block in config.items() if isinstance(block, Mapping)}
        for field, value in changes.items():
            block, name = field.split(".")
            blocks[block][name] = value
        return tuple(
            faults.inject(robust.aggregate(phase, config["robust"]), learning, wrong, population)
            for phase in methods.create(config["algorithm"], problem, blocks)
        )

    phases = phases_with({})
    if not sum(phase.num_rounds for phase in phases):
        raise ConfigError(
            "no rounds to run; change config.warmup.num_rounds or config.zo.num_rounds"
        )
    if engine.streamed:
        _check_streamed(phases, learning)
    else:
        data = processes.place(data, engine.replicated)
        tables = processes.place(validation._replace(examples=()), engine.replicated)
        validation = tables._replace(examples=data.examples)
    return Experiment(
        federation=federation,
        task=learning,
        phases=phases,
        data=data,
        validation=validation,
        engine=engine,
        seed=config["seed"],
        phases_with=phases_with,
    )


def _check_streamed(phases: Sequence[Phase], learning: Task) -> None:
    """Checks that no phase needs data for the model that it evaluates: they stay on the host."""
    model = jax.eval_shape(learning.init, keys.run_key(0))
    for phase in phases:
        if phase.num_rounds:
            jax.eval_shape(
                lambda model, phase=phase: phase.model(start(phase, *model), None), model
            )
