"""FedAvg by FedJAX (google/fedjax), each client's training jitted."""

import fedjax
import jax
import numpy as np

from . import jax_models, timing
from .workloads import FEDAVG_CNN, LEARNING_RATE, WORKLOADS, client_data


def main() -> None:
    """Runs the command."""
    arguments = timing.parser(__doc__, FEDAVG_CNN).parse_args()
    timing.limit_cores(arguments.threads)
    workload = WORKLOADS[arguments.workload]
    weights, loss = jax_models.create(workload)
    data = fedjax.InMemoryFederatedData(
        {
            str(client).encode(): {"x": images, "y": labels.astype(np.int32)}
            for client, (images, labels) in enumerate(zip(*client_data(workload), strict=True))
        }
    )
    algorithm = fedjax.algorithms.fed_avg.federated_averaging(
        jax.jit(jax.grad(lambda weights, batch, rng: loss(weights, batch["x"], batch["y"]))),
        client_optimizer=fedjax.optimizers.sgd(LEARNING_RATE),
        server_optimizer=fedjax.optimizers.sgd(1.0),
        client_batch_hparams=fedjax.ShuffleRepeatBatchHParams(
            workload.batch_size, num_epochs=workload.epochs, skip_shuffle=True
        ),
    )
    state = {"server": algorithm.init(weights)}

    def run_round(index: int) -> None:
        keys = jax.random.split(jax.random.PRNGKey(index), workload.clients)
        clients = [
            (name, dataset, key) for (name, dataset), key in zip(data.clients(), keys, strict=True)
        ]
        state["server"], _ = algorithm.apply(state["server"], clients)
        jax.block_until_ready(state["server"].params)

    seconds = timing.time_calls(run_round, arguments.rounds)
    timing.report(arguments, "fedjax", ["fedjax", "jax"], seconds)


if __name__ == "__main__":
    main()
