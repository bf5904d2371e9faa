"""Phase two in which high-resource clients stay first-order (Table 7): each tier does what it can.

    high tier   local SGD, sends delta = before - after           as in the warm-up
    low tier    S loss differences, which stand for lr * gradient  as in zeroth-order rounds
    server      w <- w - server_lr * mean of both, weighted by examples

The paper finds it worse than zeroth-order rounds for all, which is why ZOWarmUp does not do it. As
deltas travel, rounds cannot be replayed from scalars: everyone receives the model every round.

Source: ZOWarmUp, Table 7; how the two kinds of update are weighed is not in the paper.
"""

from collections.abc import Mapping
from typing import Any

import optax

from zo_fl.engine.algorithm import Client, Phase, Problem
from zo_fl.engine.cohorts import eligible_clients, largest_remainder
from zo_fl.engine.fields import ConfigError, FieldError
from zo_fl.sgd import fedavg
from zo_fl.zo import methods as zeroth_order


def phases(
    problem: Problem, *, warmup: Mapping[str, Any], zo: Mapping[str, Any]
) -> tuple[Phase, ...]:
    """Returns the phase: high-resource clients by ``warmup``, low-resource ones by ``zo``.

    Number of rounds, cohort and policy for statistics are those of ``zo``; the server's step is the
    warm-up's. The share of each tier in a smaller cohort is its share of the population.

    Raises:
      ConfigError: a tier is empty, or what the two tiers send cannot be averaged.
    """
    sizes = [len(eligible_clients(problem, tier)) for tier in ("high", "low")]
    _check(problem, zo, sizes)
    high, low = largest_remainder(zo["cohort_size"], sizes) if zo["cohort_size"] else sizes
    if not (high and low):
        raise FieldError(
            "cohort_size",
            f"={zo['cohort_size']} leaves a tier without clients; allowed: enough for both, or all",
        )
    uniform = {"participation": "uniform"}
    of_high = {**warmup, **uniform, "tiers": "high", "cohort_size": high}
    of_low = {**zo, **uniform, "tiers": "low", "cohort_size": low}
    scalars, _ = zeroth_order.clients(problem, of_low)
    groups = (
        fedavg.clients(problem, of_high)._replace(name="high tier"),
        scalars._replace(client=_as_delta(scalars.client, zo["lr"]), name="low tier"),
    )
    return (Phase("mixed", zo["num_rounds"], groups, fedavg.averaging(warmup)),)


def _as_delta(client: Client, step: float) -> Client:
    """Returns the client with its gradient estimates times a step size: before - after."""

    def decode(*arguments):
        return optax.tree.scale(step, client.decode(*arguments))

    return client._replace(decode=decode)


def _check(problem: Problem, zo: Mapping[str, Any], sizes: list[int]) -> None:
    if not all(sizes):
        raise ConfigError(
            f"mixed_tiers needs clients of both tiers, there are {sizes[0]} high and {sizes[1]} "
            "low; change config.data.high_fraction"
        )
    if zo["bn_policy"] == "recalibrate" and problem.task.has_statistics:
        raise ConfigError(
            "mixed_tiers averages running statistics of both tiers, and bn_policy='recalibrate' "
            "sends moments; allowed: frozen, batch, batch_sync; change config.zo.bn_policy"
        )
    if zo["seed_policy"] != "per_client":
        raise ConfigError(
            f"mixed_tiers averages updates, seed_policy={zo['seed_policy']!r} averages scalars; "
            "allowed: per_client; change config.zo.seed_policy"
        )
