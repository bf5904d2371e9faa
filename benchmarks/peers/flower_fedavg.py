"""FedAvg by Flower's simulation: Ray actors, two by default, share the cores.

Each actor keeps the data and a model; a client's local training is that of ``torch_fedavg.py``.
"""

import os
import time

os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["PYTHONPATH"] = os.pathsep.join([os.getcwd(), os.environ.get("PYTHONPATH", "")])

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation

from . import timing, torch_models
from .workloads import FEDAVG_CNN, WORKLOADS


class TimedFedAvg(FedAvg):
    """Flower's FedAvg; notes the seconds from choosing clients to the new weights."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seconds: list[float] = []

    def configure_train(self, *args, **kwargs):
        """Begins a round."""
        self._start = time.perf_counter()
        return super().configure_train(*args, **kwargs)

    def aggregate_train(self, *args, **kwargs):
        """Ends a round."""
        result = super().aggregate_train(*args, **kwargs)
        self.seconds.append(time.perf_counter() - self._start)
        return result


def client_app(name: str, threads: int, device: str) -> ClientApp:
    """Returns the app that trains a client of the workload ``name``."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        # Imported in the actor, which then keeps data and model for its next client.
        from . import flower_actor

        weights, examples = flower_actor.train(
            message.content["arrays"].to_torch_state_dict(),
            int(context.node_config["partition-id"]),
            name,
            threads,
            device,
        )
        metrics = MetricRecord({"num-examples": examples})
        content = RecordDict({"arrays": ArrayRecord(weights), "metrics": metrics})
        return Message(content=content, reply_to=message)

    return app


def main() -> None:
    """Runs the command."""
    parser = timing.parser(__doc__, FEDAVG_CNN, devices=True)
    parser.add_argument("--actors", type=int, default=2)
    arguments = parser.parse_args()
    workload = WORKLOADS[arguments.workload]
    threads = max(1, arguments.threads // arguments.actors)
    strategy = TimedFedAvg(
        fraction_train=1.0,
        fraction_evaluate=0.0,
        min_train_nodes=workload.clients,
        min_available_nodes=workload.clients,
    )
    server = ServerApp()

    @server.main()
    def serve(grid: Grid, context: Context) -> None:
        weights = ArrayRecord(torch_models.create(workload, "cpu").state_dict())
        strategy.start(grid=grid, initial_arrays=weights, num_rounds=1 + arguments.rounds)

    gpus = 0.0 if arguments.device == "cpu" else 1 / arguments.actors
    ray = {"num_cpus": arguments.threads, "include_dashboard": False, "logging_level": "error"}
    with timing.TreeMemory() as memory:
        run_simulation(
            server_app=server,
            client_app=client_app(arguments.workload, threads, arguments.device),
            num_supernodes=workload.clients,
            backend_config={
                "client_resources": {"num_cpus": threads, "num_gpus": gpus},
                "init_args": ray,
            },
        )
    peer = f"flower, {arguments.actors} actors"
    packages, seconds = ["flwr", "ray", "torch"], strategy.seconds[1:]
    timing.report(arguments, peer, packages, seconds, peak_rss_bytes=memory.peak)


if __name__ == "__main__":
    main()
