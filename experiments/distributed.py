"""One process of several: the flags that say which one, and joining the others."""

from typing import Any

from absl import flags

from zo_fl.engine.fields import ConfigError


def define_flags() -> None:
    """Defines the flags that say which process this is."""
    flags.DEFINE_bool(
        "distributed", False, "Join the other processes of a Slurm, TPU pod, Open MPI or GKE job."
    )
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, where --distributed finds no cluster."
    )
    flags.DEFINE_integer("num_processes", None, "Number of processes; goes with --coordinator.")
    flags.DEFINE_integer("process_id", None, "This process's number, from 0 on; likewise.")


def join() -> None:
    """Joins the other processes if the flags name any, and returns when all have joined.

    Call it before JAX looks for devices.

    Raises:
      ConfigError: flags that do not go together, or no way to the others.
    """
    names = ("coordinator", "num_processes", "process_id")
    given: dict[str, Any] = {name: flags.FLAGS[name].value for name in names}
    told = {name: value for name, value in given.items() if value is not None}
    if not told and not flags.FLAGS.distributed:
        return
    if 0 < len(told) < len(names):
        missing = " and ".join(f"--{name}" for name in names if name not in told)
        raise ConfigError(f"--{next(iter(told))} needs {missing} as well")
    if told:
        _check(**told)
    import jax  # not above: --help does without

    try:
        jax.distributed.initialize(*given.values())
    except (ValueError, RuntimeError, KeyError) as error:  # KeyError: half a launcher's variables
        raise ConfigError(
            f"cannot join the other processes: {' '.join(str(error).split())} "
            "(pass --coordinator, --num_processes and --process_id)"
        ) from None


def _check(coordinator: str, num_processes: int, process_id: int) -> None:
    host, _, port = coordinator.rpartition(":")
    if not (host and port.isdigit()):
        raise ConfigError(f"--coordinator={coordinator} is not HOST:PORT, such as 10.0.0.1:1234")
    if not 0 <= process_id < num_processes:
        raise ConfigError(
            f"--process_id={process_id} is outside what is allowed: 0 to --num_processes - 1 = "
            f"{num_processes - 1}"
        )
