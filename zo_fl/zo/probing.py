"""How losses are probed in all zeroth-order methods: fields, and the functions made of them."""

from typing import NamedTuple

import jax

from zo_fl.engine import losses as client_losses
from zo_fl.engine import precision
from zo_fl.engine import statistics as batch_statistics
from zo_fl.engine.fields import Block, Field
from zo_fl.engine.task import Task
from zo_fl.wrap import privacy
from zo_fl.wrap.privacy import Privacy
from zo_fl.zo import directions, estimators, subspaces


class Probing(NamedTuple):
    """Fields of a config block; ``PROBING`` says what they mean.

    Microbatches are exact without batch statistics; with them each is normalised by itself.
    Augmentation is drawn once a round: all passes see the same pixels.
    """

    estimator: str
    distribution: str
    eps: float
    tau: float
    params: str
    density: float
    by_layer: bool
    num_directions: int
    local_steps: int
    batch_size: int
    bn_policy: str
    microbatch: int
    augment: bool
    precision: str
    loss: str
    bound: float
    noise: float

    @property
    def privacy(self) -> Privacy:
        """Of an example."""
        return Privacy(self.bound, self.noise)


PROBING: Block = {
    "estimator": Field(
        "two_point",
        "two_point: 2 S passes; forward: S + 1; jvp: exact, worth 2 S",
        lambda: estimators.ESTIMATORS,
    ),
    "distribution": Field("rademacher", "of the directions", lambda: directions.DISTRIBUTIONS),
    "eps": Field(1e-4, "perturbation scale; 0 = the precision's best", at_least=0, varies=True),
    "tau": Field(0.75, "standard deviation of a direction's coordinates", above=0, varies=True),
    **subspaces.FIELDS,
    "num_directions": Field(3, "S, of a local step", at_least=1, at_most=10**6),
    "local_steps": Field(1, "a client's own steps a round", at_least=1),
    "batch_size": Field(
        0, "examples a local step; 0 = the client's, split evenly over its steps", at_least=0
    ),
    "bn_policy": Field("batch_sync", "zo_fl/engine/statistics.py", batch_statistics.POLICIES),
    "microbatch": Field(0, "examples a forward pass; 0 = all of a step at once", at_least=0),
    "augment": Field(False, "random crop and flip"),
    "precision": Field("float32", "of products: zo_fl/engine/precision.py", precision.available),
    "loss": client_losses.FIELD,
    **privacy.FIELDS,
}


class Prober(NamedTuple):
    """How losses are probed, its functions made.

    Attributes:
      task: the learning problem, at the precision of the probes.
      add_direction: from ``directions``.
      estimator: from ``estimators``.
      fields: the config's; ``bn_policy`` as it applies to the model.
      local_lr: step size between two messages of a client.
    """

    task: Task
    add_direction: directions.AddDirection
    estimator: estimators.Estimator
    fields: Probing
    local_lr: float

    def forward_passes(self, clients: float, examples: float) -> float:
        """Returns single-example passes of a round of ``clients`` of ``examples`` each."""
        seen = self.fields.batch_size * self.fields.local_steps or examples
        unperturbed = examples if self.fields.bn_policy in batch_statistics.UPLOADED else 0
        return clients * (seen * self.estimator.passes + unperturbed)


def make_prober(task: Task, fields: Probing, local_lr: float) -> Prober:
    """Returns the prober of a config block.

    Args:
      task: the learning problem.
      fields: of the block.
      local_lr: step size between two messages of a client.

    Raises:
      FieldError: no parameter is left that directions move.
    """
    if not isinstance(fields.eps, jax.Array) and not fields.eps:
        fields = fields._replace(eps=precision.best_eps(fields.precision))
    if not task.has_statistics:
        fields = fields._replace(bn_policy="frozen")
    like, _ = jax.eval_shape(task.init, jax.random.key(0))
    whole = directions.create(fields.distribution, fields.tau)
    add_direction = subspaces.restrict(whole, fields.params, fields.density, fields.by_layer, like)
    estimator = estimators.create(
        fields.estimator,
        add_direction,
        eps=fields.eps,
        num_directions=fields.num_directions,
        bound=fields.bound,
    )
    task = task.with_precision(fields.precision)
    return Prober(task, add_direction, estimator, fields, local_lr)
