"""One of Flower's actors: its state between clients, and its work for each."""

import functools

from torch import Tensor

from . import torch_fedavg, torch_models
from .workloads import WORKLOADS


@functools.cache
def _setup(name: str, threads: int, device: str):
    torch_models.configure(threads)
    workload = WORKLOADS[name]
    clients = torch_models.load_clients(workload, device)
    return torch_models.create(workload, device), clients


def train(
    weights: dict[str, Tensor], client: int, name: str, threads: int, device: str
) -> tuple[dict[str, Tensor], int]:
    """Returns a client's weights after local training from ``weights``, and its examples."""
    model, clients = _setup(name, threads, device)
    model.load_state_dict(weights)
    images, labels = clients[client]
    torch_fedavg.train_locally(model, images, labels, WORKLOADS[name])
    return model.state_dict(), len(labels)
