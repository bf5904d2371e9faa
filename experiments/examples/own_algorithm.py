"""A new algorithm: FedProx, whose clients are pulled back to the model that they were sent.

    client:  w_i <- E epochs of SGD on F_i(w) + mu/2 |w - w_t|^2,   then as in FedAvg

With its block of config fields it is one file; a line in ``zo_fl/algorithms`` (or the last but two
below) makes it known. ``fedprox+zo`` then warms up by it, with all that there is: checkpoints,
sweeps, warm starts, costs.

    python -m experiments.examples.own_algorithm

Source: Li et al., "Federated Optimization in Heterogeneous Networks" (arXiv 1812.06127).
"""

import jax
import optax

import zo_fl
from zo_fl.engine import server_optimizers
from zo_fl.engine.fields import Field, take
from zo_fl.engine.phase import Participation, Phase, Problem, make_group
from zo_fl.methods import ALGORITHMS
from zo_fl.sgd import fedavg
from zo_fl.sgd.client import LocalSGD, local_sgd, local_training, sgd

BLOCKS = {
    "fedprox": {
        **fedavg.BLOCKS["warmup"],
        "mu": Field(0.01, "strength of the pull to the server's model", at_least=0),
    }
}


def phases(problem: Problem, *, fedprox) -> tuple[Phase, ...]:
    """Returns the one phase of FedProx; ``fedprox`` is its config block."""
    fields = take(LocalSGD, fedprox)

    def training(state):
        plain = sgd(fields.lr, fields.momentum, fields.weight_decay)
        optimizer = optax.chain(pull(state.params, fedprox["mu"]), plain)
        return local_training(problem, fields, optimizer)

    group = make_group(
        problem,
        local_sgd(problem.task.with_precision(fields.precision), training),
        lambda clients, examples: clients * examples * fields.local_epochs,
        take(Participation, fedprox),
        trains=True,
    )
    server = server_optimizers.create(lr=fedprox["server_lr"], **fedprox["server"])
    return (Phase("fedprox", fedprox["num_rounds"], (group,), fedavg.AGGREGATION, server),)


def pull(start, mu: float) -> optax.GradientTransformation:
    """Returns the addition of the gradient of ``mu/2 |w - start|^2``."""

    def update(updates, state, params=None):
        moved = lambda u, w, w0: u + mu * (w - w0)  # noqa: E731
        return jax.tree.map(moved, updates, params, start), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


ALGORITHMS["fedprox"] = phases

if __name__ == "__main__":
    zo_fl.run("quickstart", "runs/fedprox", changes={"algorithm": "fedprox+zo"})
