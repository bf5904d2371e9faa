"""A federated zeroth-order round in PyTorch, in three styles.

mezo: as MeZO. Weights are changed in place, leaf by leaf; a direction is drawn again from its seed
  for each change, four times in all.
flat: as DeComFL. All weights lie in one vector; a direction is drawn for its two losses, and again
  to apply the pair (seed, scalar), as a client must that received nothing else.
fused: as flat, but a direction is added to the update while it is there. Only a simulation may.
"""

import functools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from . import timing, torch_models
from .workloads import EPSILON, WORKLOADS, ZO_LEARNING_RATE, seeds

Loss = Callable[[], Tensor]


def draw(out: Tensor, generator: torch.Generator) -> Tensor:
    """Fills ``out`` with -1 and 1."""
    return out.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


class Mezo:
    """Directions are added to each leaf, and taken away."""

    def __init__(self, model: nn.Module, step: float):
        self.leaves = list(model.parameters())
        self.step = step
        self.generator = torch.Generator(self.leaves[0].device)

    def begin(self) -> None:
        """Begins a round."""

    def slope(self, seed: int, loss: Loss) -> Tensor:
        """Returns the slope of ``loss()`` along a direction."""
        self._add(seed, EPSILON)
        above = loss()
        self._add(seed, -2 * EPSILON)
        below = loss()
        self._add(seed, EPSILON)
        return (above - below) / (2 * EPSILON)

    def apply(self, pairs: list[tuple[int, float]]) -> None:
        """Applies all pairs (seed, scalar) of the round to the weights."""
        for seed, scalar in pairs:
            self._add(seed, -self.step * scalar)

    def _add(self, seed: int, scale: float) -> None:
        self.generator.manual_seed(seed)
        for leaf in self.leaves:
            leaf.add_(draw(torch.empty_like(leaf), self.generator), alpha=scale)


class Flat:
    """The model's leaves are views of one vector, and a direction is another."""

    def __init__(self, model: nn.Module, step: float):
        leaves = list(model.parameters())
        # Kernels of convolutions lie in memory as [out, height, width, in], as channels_last does.
        stored = [_last(leaf) if leaf.dim() == 4 else leaf for leaf in leaves]
        self.weights = torch.cat([leaf.reshape(-1) for leaf in stored])
        parts = self.weights.split([leaf.numel() for leaf in leaves])
        for leaf, value, part in zip(leaves, stored, parts, strict=True):
            view = part.view(value.shape)
            leaf.data = view.permute(0, 3, 1, 2) if leaf.dim() == 4 else view
        self.start, self.direction = self.weights.clone(), torch.empty_like(self.weights)
        self.step = step
        self.generator = torch.Generator(self.weights.device)

    def begin(self) -> None:
        """Remembers the weights of the round."""
        self.start.copy_(self.weights)

    def slope(self, seed: int, loss: Loss) -> Tensor:
        """Returns the slope of ``loss()`` along a direction, and leaves other weights."""
        self._draw(seed)
        torch.add(self.start, self.direction, alpha=EPSILON, out=self.weights)
        above = loss()
        torch.add(self.start, self.direction, alpha=-EPSILON, out=self.weights)
        return (above - loss()) / (2 * EPSILON)

    def apply(self, pairs: list[tuple[int, float]]) -> None:
        """Applies all pairs (seed, scalar) of the round to the weights it began with."""
        self.weights.copy_(self.start)
        for seed, scalar in pairs:
            self._draw(seed)
            self.weights.add_(self.direction, alpha=-self.step * scalar)

    def _draw(self, seed: int) -> None:
        self.generator.manual_seed(seed)
        draw(self.direction, self.generator)


class Fused(Flat):
    """Adds up the update while losses are measured."""

    def begin(self) -> None:
        """Remembers the weights of the round; the update is zero."""
        super().begin()
        self.update = torch.zeros_like(self.start)

    def slope(self, seed: int, loss: Loss) -> Tensor:
        """Returns the slope of ``loss()`` along a direction; adds to the update."""
        slope = super().slope(seed, loss)
        self.update.addcmul_(self.direction, slope, value=-self.step)
        return slope

    def apply(self, pairs: list[tuple[int, float]]) -> None:
        """Adds the update to the weights that the round began with."""
        del pairs
        torch.add(self.start, self.update, out=self.weights)


STYLES = {"mezo": Mezo, "flat": Flat, "fused": Fused}


def _last(leaf: Tensor) -> Tensor:
    """Returns a kernel with its input channels last."""
    return leaf.detach().permute(0, 2, 3, 1)


def main() -> None:
    """Runs the command."""
    parser = timing.parser(__doc__, ["W2", "W3"], devices=True)
    parser.add_argument("--style", choices=list(STYLES), default="fused")
    parser.add_argument("--tf32", action="store_true", help="on a GPU; float32 without")
    arguments = parser.parse_args()
    workload, device = WORKLOADS[arguments.workload], arguments.device
    torch_models.configure(arguments.threads, arguments.tf32)
    clients = torch_models.load_clients(workload, device)
    model = torch_models.create(workload, device).requires_grad_(False)
    step = ZO_LEARNING_RATE / (workload.clients * workload.directions)
    style = STYLES[arguments.style](model, step)

    def loss(images: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(model(images), labels)

    @torch.inference_mode()
    def run_round(index: int) -> None:
        style.begin()
        own_seeds, slopes = seeds(workload, index), []
        for (images, labels), row in zip(clients, own_seeds.tolist(), strict=True):
            for seed in row:
                slopes.append(style.slope(seed, functools.partial(loss, images, labels)))
        scalars = torch.stack(slopes).tolist()  # all that clients send
        style.apply(list(zip(own_seeds.ravel().tolist(), scalars, strict=True)))
        torch_models.synchronize(device)

    @torch.inference_mode()
    def infer(_: int) -> None:
        for images, labels in clients:
            for _ in range(2 * workload.directions):
                loss(images, labels)
        torch_models.synchronize(device)

    seconds = timing.time_calls(run_round, arguments.rounds)
    forward = timing.time_calls(infer, arguments.rounds, warm_up=False)
    peer = f"torch {arguments.style}" + (", tf32" if arguments.tf32 else "")
    timing.report(arguments, peer, ["torch"], seconds, forward)


if __name__ == "__main__":
    main()
