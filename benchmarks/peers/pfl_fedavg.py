"""FedAvg by pfl-research (apple/pfl-research), in its own loop and simulated backend."""

import time

import numpy as np
import torch
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch.nn import functional

from . import timing, torch_models
from .workloads import FEDAVG_CNN, LEARNING_RATE, WORKLOADS


class Clock(TrainingProcessCallback):
    """Notes when training begins and when each round has ended."""

    def __init__(self, device: str):
        self.times: list[float] = []
        self._device = device

    def on_train_begin(self, *, model) -> Metrics:
        """Notes the time."""
        self._note()
        return Metrics()

    def after_central_iteration(self, aggregate_metrics, model, *, central_iteration):
        """Notes the time; does not ask to stop."""
        self._note()
        return False, Metrics()

    def _note(self) -> None:
        torch_models.synchronize(self._device)
        self.times.append(time.perf_counter())


def with_loss(model: torch.nn.Module) -> torch.nn.Module:
    """Adds the methods ``loss`` and ``metrics``, which pfl calls."""

    def loss(images, labels):
        return functional.cross_entropy(model(images), labels)

    def metrics(images, labels):
        return {"loss": Weighted(loss(images, labels).item() * len(labels), len(labels))}

    model.loss, model.metrics = loss, metrics
    return model


def main() -> None:
    """Runs the command."""
    arguments = timing.parser(__doc__, FEDAVG_CNN, devices=True).parse_args()
    workload, device = WORKLOADS[arguments.workload], arguments.device
    torch_models.configure(arguments.threads)
    clients = torch_models.load_clients(workload, device)
    users = {str(index): client for index, client in enumerate(clients)}
    model = with_loss(torch_models.create(workload, device))
    clock = Clock(device)
    FederatedAveraging().run(
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=1 + arguments.rounds,
            evaluation_frequency=10**6,
            train_cohort_size=workload.clients,
            val_cohort_size=0,
        ),
        backend=SimulatedBackend(
            training_data=FederatedDataset(
                lambda user: PyTorchTensorDataset(users[user], user_id=user),
                get_user_sampler("minimize_reuse", list(users)),
            ),
            val_data=None,
            postprocessors=[WeightByUser()],
        ),
        model=PyTorchModel(
            model,
            local_optimizer_create=torch.optim.SGD,
            central_optimizer=torch.optim.SGD(model.parameters(), 1.0),
        ),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=workload.epochs,
            local_learning_rate=LEARNING_RATE,
            local_batch_size=workload.batch_size,
        ),
        model_eval_params=NNEvalHyperParams(local_batch_size=workload.examples),
        callbacks=[clock],
    )
    seconds = np.diff(clock.times)[1:].tolist()
    timing.report(arguments, "pfl-research", ["pfl", "torch"], seconds)


if __name__ == "__main__":
    main()
