"""The models in PyTorch, and what its scripts share."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from .workloads import GROUPS, STAGES, Workload, client_data


def _norm(kind: str, channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels) if kind == "batch" else nn.GroupNorm(GROUPS, channels)


class Block(nn.Module):
    """A basic block of ResNet."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: str):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = _norm(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = _norm(norm, outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.shortcut = nn.Sequential(projection, _norm(norm, outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Returns the block's output."""
        y = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


def resnet18(norm: str) -> nn.Module:
    """Returns the ResNet18 for images of 32x32 pixels."""
    layers: list[nn.Module] = [nn.Conv2d(3, STAGES[0], 3, 1, 1, bias=False)]
    layers += [_norm(norm, STAGES[0]), nn.ReLU()]
    inputs = STAGES[0]
    for stage, outputs in enumerate(STAGES):
        layers += [Block(inputs, outputs, 2 if stage else 1, norm)]
        layers += [Block(outputs, outputs, 1, norm)]
        inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, 10))


def cnn() -> nn.Module:
    """Returns the CNN of the FedAvg benchmarks."""
    convolutions = [nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU()]
    dense = [nn.Linear(64 * 14 * 14, 128), nn.ReLU(), nn.Linear(128, 10)]
    return nn.Sequential(*convolutions, nn.MaxPool2d(2), nn.Flatten(), *dense)


def create(workload: Workload, device: str) -> nn.Module:
    """Returns the workload's model, its convolutions in ``channels_last``."""
    torch.manual_seed(0)
    model = cnn() if workload.model == "cnn" else resnet18(workload.norm)
    return model.to(device, memory_format=torch.channels_last)


def load_clients(workload: Workload, device: str) -> list[tuple[Tensor, Tensor]]:
    """Returns each client's images ``f32[n, 3, 32, 32]`` in ``channels_last``, and labels."""

    images, labels = map(torch.from_numpy, client_data(workload))
    # In memory a client's images are [n, height, width, channels]: that is channels_last.
    images = images.to(device).permute(0, 1, 4, 2, 3)
    return list(zip(images, labels.to(device), strict=True))


def configure(threads: int, tf32: bool = False) -> None:
    """Sets threads, whether float32 products may use TF32, and that cuDNN seeks its best."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cuda.matmul.allow_tf32 = tf32


def synchronize(device: str) -> None:
    """Waits until the device has done its work."""
    if device != "cpu":
        torch.cuda.synchronize()
