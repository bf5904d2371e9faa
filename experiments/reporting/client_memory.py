"""The memory of a low-resource client in a run's phases, as compiled here; nothing is run."""

import jax
import numpy as np

from zo_fl import config as configs
from zo_fl import experiment
from zo_fl.engine.types import LOW

from ..benchmarking import client_step
from . import runs, tradeoff
from .runs import Run, SweepRuns


def of(sweep: SweepRuns) -> dict[str, int]:
    """Returns the peak memory in bytes of a low-resource client, by the name of a point."""
    found_ = {}
    for row, column in sweep.points():
        run = next(iter(runs.finished(sweep.of(row, column))), None)
        if run is not None:
            found_[tradeoff.name_of(sweep, row, column)] = of_run(run)
    return found_


def of_run(run: Run) -> int:
    """Returns the bytes of the largest step of a low-resource client; 0 if it takes none."""
    built = experiment.build(configs.resolve(configs.read_by(run.config)))
    params, model_state = jax.eval_shape(built.task.init, built.run_key)
    is_low = np.asarray(built.federation.clients.client_tiers) == LOW
    largest = 0
    for phase in built.phases:
        for group in phase.groups:
            if phase.num_rounds and is_low[group.eligible].any():
                step_of = phase, group, params, model_state, built.data_of(phase), built.engine
                memory = client_step.step_memory(client_step.compile_step(*step_of), *step_of)
                largest = max(largest, sum(memory))
    return largest
