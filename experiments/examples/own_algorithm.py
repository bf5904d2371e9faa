"""A new algorithm: FedProx, whose clients are pulled back to the model that they were sent.

    client:  w_i <- E epochs of SGD on F_i(w) + mu/2 |w - w_t|^2,   then as in FedAvg

With its block of config fields it is one file. A line makes it known: in ``zo_fl/methods.py``, or
in your own program, as at the end of this file. ``fedprox+zo`` then warms up by it, and
checkpoints, sweeps, warm starts and costs work as for any method.

    python -m experiments.examples.own_algorithm

Source: Li et al., "Federated Optimization in Heterogeneous Networks" (arXiv 1812.06127).
"""

import jax
import optax

import zo_fl
from zo_fl.engine.algorithm import Phase, Problem
from zo_fl.engine.cohorts import make_group
from zo_fl.engine.fields import Field
from zo_fl.methods import METHODS, Method
from zo_fl.sgd import fedavg
from zo_fl.sgd.client import forward_passes, local_sgd, local_training, sgd
from zo_fl.wrap import stop

BLOCKS = {
    "fedprox": {
        **{name: field for name, field in fedavg.FIELDS.items() if name not in stop.FIELDS},
        "num_rounds": Field(200, "rounds", at_least=0),
        "mu": Field(0.01, "strength of the pull to the server's model", at_least=0),
    }
}


def phases(problem: Problem, *, fedprox) -> tuple[Phase, ...]:
    """Returns the one phase of FedProx; ``fedprox`` is its config block."""

    def training(state):
        plain = sgd(fedprox["lr"], fedprox["momentum"], fedprox["weight_decay"])
        optimizer = optax.chain(pull(state.params, fedprox["mu"]), plain)
        return local_training(problem, fedprox, optimizer)

    task = problem.task.with_precision(fedprox["precision"])
    client, passes = local_sgd(task, training), forward_passes(fedprox)
    group = make_group(problem, client, passes, fedprox, trains=True)
    return (Phase("fedprox", fedprox["num_rounds"], (group,), fedavg.averaging(fedprox)),)


def pull(start, mu: float) -> optax.GradientTransformation:
    """Returns the addition of the gradient of ``mu/2 |w - start|^2``."""

    def update(updates, state, params=None):
        moved = lambda u, w, w0: u + mu * (w - w0)  # noqa: E731
        return jax.tree.map(moved, updates, params, start), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


METHOD = Method(phases, ("fedprox",), BLOCKS)

if __name__ == "__main__":
    METHODS["fedprox"] = METHOD
    zo_fl.run("quickstart", "runs/fedprox", changes={"algorithm": "fedprox+zo"})
