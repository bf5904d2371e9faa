"""Not in the paper: seconds a round against the number of clients computed at once.

The results are the same for all, only speed and memory differ. Ten rounds of each phase: enough to
time, too few to learn. Run it alone on the machine.

    python -m experiments.sweep --config=configs/cifar10_10_90.py \
        --sweep=configs/sweeps/clients_per_vmap.py --seeds=1 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl.config.sweeps import Point, Sweep

ROUNDS = 10


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a row a phase, a column a number of clients, up to the config's population."""
    short = {
        "warmup.num_rounds": min(ROUNDS, config.warmup.num_rounds),
        "zo.num_rounds": min(ROUNDS, config.zo.num_rounds),
    }
    # What is timed is a run's last phase.
    points = [
        Point(row, f"{n} at once", {"algorithm": name, "run.clients_per_vmap": n, **short})
        for row, name in {"Warm-up": "fedavg", "Zeroth order": "zowarmup"}.items()
        for n in (1, 2, 5, 10, 25, 50)
        if n <= config.data.num_clients
    ]
    return Sweep("Clients computed at once", "", points, quantity="seconds")
