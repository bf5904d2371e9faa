"""Not in the paper: how many clients take part in a zeroth-order round, and how they are drawn.

The paper uses all. Expect less with fewer, as S * cohort directions make an update; a stratified
draw keeps the share of high-resource clients the same in each round.

    python -m experiments.sweep --config=configs/cifar10_10_90.py \
        --sweep=configs/sweeps/participation.py --seeds=5 --workdir=R
"""

from ml_collections import ConfigDict

from zo_fl.config.sweeps import Point, Sweep

SHARES = (0.1, 0.2, 0.5, 1.0)


def get_sweep(config: ConfigDict) -> Sweep:
    """Returns a row a way to draw, a column a cohort size."""
    population = config.data.num_clients
    points = [
        Point(
            name.capitalize(),
            f"{max(round(share * population), 1)} of {population}",
            {
                "algorithm": "zowarmup",
                "zo.cohort_size": max(round(share * population), 1),
                "zo.participation": name,
            },
        )
        for name in ("uniform", "stratified")
        for share in SHARES
    ]
    return Sweep("Clients in a zeroth-order round", "", points, reference="Uniform")
