"""One process of several: the flags that say which one, and joining the others."""

from absl import flags

from zo_fl.engine.errors import ConfigError


def define_flags() -> None:
    """Defines the flags that say which process this is."""
    flags.DEFINE_bool(
        "distributed", False, "Join the other processes of a Slurm, TPU pod, Open MPI or GKE job."
    )
    flags.DEFINE_string(
        "coordinator", None, "HOST:PORT of process 0, where --distributed finds no cluster."
    )
    flags.DEFINE_integer("num_processes", None, "How many; goes with --coordinator.")
    flags.DEFINE_integer("process_id", None, "This one's, from 0 on; goes with --coordinator.")


def join() -> None:
    """Joins the other processes if the flags say that there are some.

    To be called before JAX looks for devices. Returns when all have joined.

    Raises:
      ConfigError: flags that do not go together, or no way to the others.
    """
    given = flags.FLAGS
    coordinator, num_processes = given.coordinator, given.num_processes
    process_id = given.process_id
    told = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    missing = [f"--{name}" for name, value in told.items() if value is None]
    if len(missing) == len(told) and not given.distributed:
        return
    if 0 < len(missing) < len(told):
        given = next(name for name, value in told.items() if value is not None)
        raise ConfigError(f"--{given} needs {' and '.join(missing)} as well")
    if coordinator is not None and num_processes is not None and process_id is not None:
        _check(coordinator, num_processes, process_id)
    import jax  # not above: --help does without

    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (ValueError, RuntimeError) as error:
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
