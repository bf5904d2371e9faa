"""Layout of clients on the hardware: it changes speed and memory, never the result."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, Sharding, SingleDeviceSharding
from jax.sharding import PartitionSpec as P

from zo_fl.engine.algorithm import Client, Cohort, Group

AXIS = "clients"
EXAMPLES_AT_ONCE = 1024  # of all clients together, where they share the weights

_COMPILER_OPTIONS = {
    # By default XLA:CPU orders operations such that more of them could run at the same time, and
    # holds more in memory for it: 2.8 GB against 1.0 GB for the zeroth-order step of ResNet18 on
    # 900 images, and nothing is faster.
    #
    # It also gives lone convolutions to YNNPACK, where Eigen computes them twice as fast (jaxlib
    # 0.10.2, AVX-512: 190 against 100 GFLOP/s); those that YNNPACK can fuse with what follows are
    # quick, and stay, and so do sums over pixels, of which norms are made.
    #
    # And it drops optimization barriers before it fuses, so that they bar nothing: it would compute
    # a residual sum anew for each of its uses, and a norm's perturbed scales for each activation.
    "cpu": {
        "xla_cpu_scheduler_type": "CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
        "xla_cpu_experimental_ynn_fusion_type": (
            "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_REDUCE"
        ),
        "xla_disable_hlo_passes": "cse_barrier_expander",
    },
}
# Where products are of bfloat16: YNNPACK alone uses AMX, and is three times as fast as Eigen. Lone
# products of float32 would take it a fifth longer.
_COMPILER_OPTIONS_NARROW = {
    "cpu": {
        **_COMPILER_OPTIONS["cpu"],
        "xla_cpu_experimental_ynn_fusion_type": (
            "LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
        ),
    }
}
# To draw the first weights takes a second at most; to make that quick took the compiler 3 to 15 s,
# as long as a phase's rounds do. The weights are the same, a ViT's but for some last digits.
_COMPILER_OPTIONS_ONCE: dict[str, dict[str, Any]] = {"cpu": {"xla_backend_optimization_level": 0}}


class Loop(NamedTuple):
    """The loop of each device over its part of a cohort.

    Attributes:
      chunk_size: clients evaluated at once.
      skips_padding: whether a turn without a client is skipped: it leaves shared cores to others.
    """

    chunk_size: int
    skips_padding: bool


class Engine(NamedTuple):
    """The layout of one run.

    Attributes:
      mesh: devices along the one axis ``"clients"``.
      clients_per_vmap: clients evaluated at once on a device; 0 = what was best on CPUs: one,
        or, where all clients evaluate the same weights, as many as have ``EXAMPLES_AT_ONCE``:
        ``vmap`` then makes one batch of theirs, where weights of their own would make grouped
        convolutions, and a direction is drawn once for all.
      streamed: whether each device is given the data of its own clients alone, chunk by chunk (see
        ``streaming``); otherwise all data lie on every device.
      cores: a CPU's cores as devices, the first of which is all of ``mesh``; see ``of``.
      narrow: whether passes multiply in bfloat16.
    """

    mesh: Mesh
    clients_per_vmap: int = 0
    streamed: bool = False
    cores: tuple[Any, ...] = ()
    narrow: bool = False

    def of(self, groups: Sequence[Group]) -> "Engine":
        """Returns the layout of a phase; its state and data lie as ``replicated``.

        Where clients train, a core a client: operations on arrays this small share their work among
        cores badly. Forward passes alone are few operations on large arrays, and faster on one
        device whose operations have all cores.
        """
        trains = all(group.backward_passes for group in groups)
        count = min(len(self.cores), *(group.cohort_size for group in groups))
        if not trains or count < 2:
            return self
        return self._replace(mesh=make_mesh(self.cores[:count]), cores=())

    @property
    def wide(self) -> "Engine":
        """The layout of work on examples one by one, a few at a time: on each core a part."""
        if len(self.cores) < 2:
            return self
        return self._replace(mesh=make_mesh(self.cores), cores=())

    def sharding(self, spec: P) -> Sharding:
        """Returns the sharding of arrays on the mesh."""
        if self.mesh.size == 1:
            # As arrays lie that nobody placed: what was traced for these is not traced anew.
            return SingleDeviceSharding(self.mesh.devices.flat[0])
        return NamedSharding(self.mesh, spec)

    @property
    def replicated(self) -> Sharding:
        """The sharding of arrays of which every device has a copy."""
        return self.sharding(P())

    @property
    def data_spec(self) -> P:
        """The partition of the data over the mesh."""
        return P(AXIS) if self.streamed else P()

    @property
    def compiler_options(self) -> dict[str, Any]:
        """Compiler options of rounds, as ``jax.jit`` takes them."""
        return self._known(_COMPILER_OPTIONS_NARROW if self.narrow else _COMPILER_OPTIONS)

    @property
    def compiler_options_once(self) -> dict[str, Any]:
        """Compiler options for programs that run once."""
        return self._known(_COMPILER_OPTIONS_ONCE)

    def _known(self, of_platforms: dict[str, dict[str, Any]]) -> dict[str, Any]:
        options = of_platforms.get(self.mesh.devices.flat[0].platform, {})
        return {name: value for name, value in options.items() if _is_known(name, value)}

    def chunk_size(self, client: Client, cohort_size: int, examples: int) -> int:
        """Returns the number of clients, of ``examples`` each, that a device evaluates at once."""
        share = -(-cohort_size // self.mesh.size)
        if self.clients_per_vmap:
            return min(self.clients_per_vmap, share)
        if not client.one_model:
            return 1
        chunks = -(-share // max(1, EXAMPLES_AT_ONCE // examples))
        return -(-share // chunks)  # of equal size: the fewest padding clients

    def lay_out(self, group: Group, cohort: Cohort, examples: int) -> tuple[Cohort, Loop]:
        """Returns a cohort, padded such that every device has whole chunks, and the loop over it.

        Each of its clients has ``examples``, with padding.
        """
        count = cohort.client_ids.shape[0]
        size = self.chunk_size(group.client, count, examples)
        padding = -count % (self.mesh.size * size)
        ids, valid = (jnp.pad(leaf, (0, padding)) for leaf in cohort)
        skips = padding > 0 and size == 1 and group.backward_passes > 0
        return Cohort(ids, valid), Loop(size, skips)


def make_mesh(devices: Sequence[Any]) -> Mesh:
    """Returns a mesh of one axis, ``"clients"``."""
    return Mesh(np.array(devices), (AXIS,), axis_types=(AxisType.Auto,))


@functools.cache
def _is_known(option: str, value: Any) -> bool:
    """Returns whether this version of the compiler has an option; they come and go."""
    try:
        jax.jit(lambda: 0, compiler_options={option: value}).lower().compile()
    except jax.errors.JaxRuntimeError:
        return False
    return True
