"""Several processes that run one program, each with devices of its own (``jax.distributed``).

Every process runs the same host code and comes to the same decisions, because these follow from the
config and from metrics that are equal everywhere. Processes may see different files and signals:
here they agree on them. With one process nothing here costs anything.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Sharding

from zo_fl.engine.fields import ConfigError
from zo_fl.engine.types import PyTree

_TEXT_BYTES = 1024


def several() -> bool:
    """Returns whether there is more than one process."""
    # Asked first, because counting processes starts the back end.
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Returns whether this process prints, and writes all files but its part of checkpoints."""
    return not several() or jax.process_index() == 0


def place(tree: PyTree, sharding: Sharding) -> PyTree:
    """Returns NumPy arrays, the same on all processes, on the devices of a sharding."""
    if sharding.is_fully_addressable:
        return jax.device_put(tree, sharding)

    # device_put would send all arrays around, to check that they are the same.
    def one(array):
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return jax.tree.map(one, tree)


def any_of(flag: bool) -> bool:
    """Returns whether the flag is set on any process."""
    return bool(np.any(multihost_utils.process_allgather(np.array(flag)))) if several() else flag


def of_first(content: Any) -> Any:
    """Returns the first process's ``content``, which is less than a kilobyte as JSON."""
    return json.loads(_texts(json.dumps(content))[0]) if several() else content


@contextmanager
def agreed() -> Iterator[None]:
    """Raises a ConfigError of the block on every process if it was raised on any.

    A process that failed alone would leave the others waiting. All leave the block together; within
    it none may wait for another.
    """
    failure = None
    try:
        yield
    except ConfigError as error:
        failure = error
    messages = _texts("" if failure is None else str(failure)) if several() else []
    if failure is not None:
        raise failure
    for index, message in enumerate(messages):
        if message:
            raise ConfigError(f"process {index}: {message}")


def check_same(content: Any, what: str) -> None:
    """Checks that all processes have the same JSON ``content``, named ``what`` in the message.

    Raises:
      ConfigError: they differ; raised on all processes.
    """
    if not several():
        return
    digests = _texts(hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest())
    for index, digest in enumerate(digests):
        if digest != digests[0]:
            raise ConfigError(
                f"processes 0 and {index} were given different {what}; start all with the same "
                "command"
            )


def _texts(text: str) -> list[str]:
    """Returns the texts of all processes, each cut to a kilobyte."""
    padded = text.encode()[:_TEXT_BYTES].ljust(_TEXT_BYTES, b"\0")
    gathered = multihost_utils.process_allgather(np.frombuffer(padded, np.uint8))
    return [row.tobytes().rstrip(b"\0").decode(errors="ignore") for row in gathered]
