"""FedAvg in PyTorch, a loop over clients: what a framework is to be held against.

One model on the device; each client starts from the global weights, trains, and is added to a sum.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import timing, torch_models
from .workloads import FEDAVG_CNN, LEARNING_RATE, WORKLOADS, Workload


def train_locally(model: nn.Module, images: Tensor, labels: Tensor, workload: Workload) -> None:
    """Trains the model in place for the workload's epochs, batches in the order of the data."""
    optimizer = torch.optim.SGD(model.parameters(), LEARNING_RATE, fused=True)
    for _ in range(workload.epochs):
        for start in range(0, len(labels), workload.batch_size):
            batch = slice(start, start + workload.batch_size)
            optimizer.zero_grad()
            functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()


def averaged(model: nn.Module) -> list[Tensor]:
    """Returns the tensors that the server averages: weights, and BatchNorm's statistics."""
    return [value for value in model.state_dict().values() if value.is_floating_point()]


def main() -> None:
    """Runs the command."""
    parser = timing.parser(__doc__, [*FEDAVG_CNN, "W5", "W5-45"], devices=True)
    parser.add_argument("--tf32", action="store_true", help="on a GPU; float32 without")
    arguments = parser.parse_args()
    workload, device = WORKLOADS[arguments.workload], arguments.device
    torch_models.configure(arguments.threads, arguments.tf32)
    clients = torch_models.load_clients(workload, device)
    model = torch_models.create(workload, device)
    values = averaged(model)

    def run_round(_: int) -> None:
        start = [value.clone() for value in values]
        total = [torch.zeros_like(value) for value in values]
        for images, labels in clients:
            for value, first in zip(values, start, strict=True):
                value.copy_(first)
            train_locally(model, images, labels, workload)
            for value, sum_ in zip(values, total, strict=True):
                sum_.add_(value)
        for value, sum_ in zip(values, total, strict=True):
            value.copy_(sum_ / len(clients))
        torch_models.synchronize(device)

    seconds = timing.time_calls(run_round, arguments.rounds)
    peer = "torch loop" + (", tf32" if arguments.tf32 else "")
    timing.report(arguments, peer, ["torch"], seconds)


if __name__ == "__main__":
    main()
