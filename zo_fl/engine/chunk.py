"""Several rounds, or a check, as one jitted program: what the trainer dispatches."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Sharding

from zo_fl.engine.layout import Engine
from zo_fl.engine.phase import Check
from zo_fl.engine.round import make_algorithm
from zo_fl.engine.strategy import FederatedAlgorithm
from zo_fl.engine.types import Array, PyTree, ServerState


class Lanes(NamedTuple):
    """How many runs one program computes side by side: of seeds and values of their own.

    With several, every state, key and measurement has a leading axis of runs; with one it has not,
    and nothing is mapped: ``vmap`` would make grouped convolutions of all.

    Attributes:
      size: at least 1.
    """

    size: int = 1

    def lift(self, function: Callable[..., Any], in_axes: Any = 0) -> Callable[..., Any]:
        """Returns a function of one run as one of all runs; see ``jax.vmap``."""
        return jax.vmap(function, in_axes=in_axes) if self.size > 1 else function

    def take(self, tree: PyTree, index: int) -> PyTree:
        """Returns one run's part of something that has them all."""
        return jax.tree.map(lambda leaf: leaf[index], tree) if self.size > 1 else tree

    def stack(self, trees: Sequence[PyTree]) -> PyTree:
        """Returns the runs' parts as one."""
        return (
            jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees) if self.size > 1 else trees[0]
        )


def make_chunk(
    algorithm: FederatedAlgorithm | Callable[[Any], FederatedAlgorithm],
    capacity: int,
    lanes: Lanes = Lanes(),  # noqa: B008  # immutable
    compiler_options: dict[str, Any] | None = None,
    recorded: Sharding | None = None,
) -> Any:
    """Returns jitted ``(state, data, run_key, num_rounds i32[]) -> (state, metrics)``.

    Args:
      algorithm: what a round does; or that as a function of numbers, each run's own, which are then
        a fifth argument.
      capacity: the largest ``num_rounds``; metrics are ``f32[capacity]``, filled up to num_rounds.
      lanes: runs side by side, which share the data.
      compiler_options: see ``jax.jit``; an engine has those of its devices.
      recorded: where to put a third output, of each round what clients sent and the statistics
        after it, as in ``recorded_shapes`` with a leading ``capacity``; None for none.

    The state is donated. The number of rounds is an argument: one program serves every chunk.
    """

    fixed = algorithm if isinstance(algorithm, FederatedAlgorithm) else None

    def run_chunk(state: ServerState, data, run_key, num_rounds, *numbers):
        made = fixed or algorithm(*numbers)  # pyright: ignore[reportCallIssue]

        # Under jit the round is traced once, for its shapes and for the loop; inlined, nothing of
        # that is left in the program.
        @functools.partial(jax.jit, inline=True)
        def one(state, data, run_key):
            state, metrics, sent = made.round(state, data, run_key)
            return state, (metrics, () if recorded is None else (sent, state.model_state))

        shapes = jax.eval_shape(one, state, data, run_key)[1]
        buffers = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), shapes)

        def body(i, carry):
            state, buffers = carry
            state, measured = one(state, data, run_key)
            return state, jax.tree.map(lambda b, m: b.at[i].set(m), buffers, measured)

        state, (metrics, kept) = jax.lax.fori_loop(0, num_rounds, body, (state, buffers))
        return (state, metrics) if recorded is None else (state, metrics, kept)

    mapped = lanes.lift(run_chunk, (0, None, 0, None, 0)[: 4 if fixed else 5])
    return jax.jit(
        mapped,
        donate_argnums=0,
        out_shardings=None if recorded is None else (None, None, recorded),
        compiler_options=compiler_options,
    )


def recorded_shapes(
    algorithm: FederatedAlgorithm, state: ServerState, data: PyTree, run_key: Array
) -> PyTree:
    """Returns the shapes of what a recorded round leaves: ``(records, model_state)``."""
    after, _, sent = jax.eval_shape(algorithm.round, state, data, run_key)
    return sent, after.model_state


def make_check(check: Check, engine: Engine) -> Any:
    """Returns jitted ``(state, data, run_key) -> (state, metrics, is_over bool[])``.

    Args:
      check: of a phase, whose state it is given.
      engine: how clients are laid out.

    The state is donated; its round and its optimizer's state stay.
    """
    algorithm = make_algorithm(check.phase, engine)

    def ask(state: ServerState, data, run_key):
        after, metrics, _ = algorithm.round(state._replace(opt_state=()), data, run_key)
        after = after._replace(opt_state=state.opt_state, round_idx=state.round_idx)
        del metrics["update_norm"]
        return after, metrics, check.is_over(after.strategy_state)

    return jax.jit(ask, donate_argnums=0, compiler_options=engine.compiler_options)
