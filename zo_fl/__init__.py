"""Federated learning in which every device takes part, also those that cannot back-propagate.

    import zo_fl

    summary = zo_fl.run("quickstart", "runs/mine", changes={"algorithm": "zowarmup"})
    labels = zo_fl.load("runs/mine").predict(images)

With data and a model of one's own:

    data = zo_fl.dataset(x_train, y_train, x_test, y_test)
    options = {"dataset": data, "model": MyModule(num_classes=7)}
    zo_fl.run("quickstart", "runs/own", changes={"algorithm": "zowarmup"}, **options)
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.3.0"

# Imported when they are asked for: some commands need no JAX.
_HOME = {
    "ConfigError": "zo_fl.engine.fields",  # what bad input raises
    "Interrupted": "zo_fl.api",  # what a run raises that was asked to stop
    "build": "zo_fl.experiment",  # config -> task, phases, data, engine: without running them
    "dataset": "zo_fl.data.own_data",  # arrays -> data set
    "default_config": "zo_fl.config",
    "load": "zo_fl.saved_model",  # a run's folder -> trained model
    "load_config": "zo_fl.config",  # a name or path -> config
    "make_algorithm": "zo_fl.engine.round",  # phase, engine -> pure functions of a round
    "read_metrics": "zo_fl.host.metrics",  # a run's metrics.jsonl -> rows
    "run": "zo_fl.api",
    "run_seeds": "zo_fl.run_many",
    "run_values": "zo_fl.run_many",
}
_RENAMED = {"default_config": "default", "load_config": "load"}
__all__ = [
    "ConfigError",
    "Interrupted",
    "build",
    "dataset",
    "default_config",
    "load",
    "load_config",
    "make_algorithm",
    "read_metrics",
    "run",
    "run_seeds",
    "run_values",
]

if TYPE_CHECKING:
    from zo_fl.api import Interrupted, run
    from zo_fl.config import default as default_config
    from zo_fl.config import load as load_config
    from zo_fl.data.own_data import dataset
    from zo_fl.engine.fields import ConfigError
    from zo_fl.engine.round import make_algorithm
    from zo_fl.experiment import build
    from zo_fl.host.metrics import read_metrics
    from zo_fl.run_many import run_seeds, run_values
    from zo_fl.saved_model import load


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), _RENAMED.get(name, name))


def __dir__() -> list[str]:
    return sorted(__all__)
