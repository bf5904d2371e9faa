"""Measures how preparing and rounds grow with the population: five images of 4x4 a client.

    python -m benchmarks.population [--clients=10000,100000,1000000]

Cohorts of 100 clients train a small MLP; ``ridge`` takes the sums of everyone. A row is a process
of its own, and prints seconds, and its peak memory. A round's time is that of the last chunk, which
compiles nothing.
"""

import multiprocessing
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

import zo_fl
from experiments import cli
from zo_fl.engine.fields import ConfigError

COLUMNS = ("clients", "data set", "preparing", "FedAvg round", "ZO round", "ridge of all", "GB")
_IMAGES, _LEAST = 5, 1000  # a tenth of them train: a cohort of 100
_CHANGES = {
    "model.name": "mlp",
    "model.norm": "none",
    "data.high_fraction": 0.1,
    "warmup.cohort_size": 100,
    "warmup.num_rounds": 20,
    "zo.cohort_size": 100,
    "zo.num_rounds": 20,
    "ridge.calibrate": False,
    "ridge.penalties": (0.01,),
    "run.eval_every": 100,
    "run.checkpoint_every": 100,
}


def measure(clients: int) -> dict[str, float]:
    """Returns a row: seconds, and gigabytes at the peak."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (clients * _IMAGES, 4, 4, 3), np.uint8)
    labels = rng.integers(0, 10, len(images))
    rows = np.arange(len(images)).reshape(clients, _IMAGES)
    start = time.perf_counter()
    data = zo_fl.dataset(images, labels, images[:1000], labels[:1000], client_indices=rows)
    made = time.perf_counter() - start
    seconds, preparing = {}, 0.0
    for algorithm in ("zowarmup", "ridge"):
        with tempfile.TemporaryDirectory() as folder:
            options: dict[str, Any] = {"dataset": data, "quiet": True}
            changes = _CHANGES | {"algorithm": algorithm}
            summary = zo_fl.run(
                "quickstart",
                Path(folder) / "run",
                changes=changes,
                on_round=lambda row: seconds.update({row["phase"]: row["seconds"]}),
                **options,
            )
            preparing = preparing or summary["seconds"]["preparing"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    of_rounds = (seconds[phase] for phase in ("warmup", "zo", "ridge"))
    return dict(zip(COLUMNS, (clients, made, preparing, *of_rounds, peak), strict=True))


def main(argv: list[str]) -> int:
    """Measures and prints a row for each population; returns the exit status."""
    del argv
    for text in flags.FLAGS.clients:
        if not text.isdigit() or int(text) < _LEAST:
            raise ConfigError(f"--clients={text!r}; allowed: whole numbers from {_LEAST} on")
    print("  ".join(f"{name:>12}" for name in COLUMNS))
    for clients in flags.FLAGS.clients:
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(1, context) as pool:
            found = pool.submit(measure, int(clients)).result()
        numbers = "  ".join(f"{value:12.3g}" for value in list(found.values())[1:])
        print(f"{int(clients):12,}  {numbers}", flush=True)
    return 0


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_list("clients", ["10000", "100000", "1000000"], "Clients of the populations.")


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
