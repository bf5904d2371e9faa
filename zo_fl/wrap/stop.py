"""An early end of a phase: when clients get no more of their validation examples right.

    fixed        no early end
    plateau      the tiers that train are asked
    population   everyone is asked: one forward pass and one integer a client, every few rounds

The tier that trains knows the labels that it holds, and goes on gaining on these while the others
lose: the population's answer is the better one where labels are skewed. Questions come early and
patience is short, as rounds too many cost more than rounds too few (figures: docs/results).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from zo_fl.engine.algorithm import Phase, Problem, Stop
from zo_fl.engine.fields import Block, Field, FieldError

EVERY, PATIENCE = 2, 2  # rounds between questions; questions without a better answer

# name -> tiers that train in the phase -> when it ends
STOPS: dict[str, Callable[[str], Stop] | None] = {
    "fixed": None,
    "plateau": lambda tiers: Stop(EVERY, PATIENCE, tiers),
    "population": lambda tiers: Stop(EVERY, PATIENCE, "all"),
}

FIELDS: Block = {
    "stop": Field("fixed", "rule that ends the phase", lambda: STOPS),
    "hand_over": Field(False, "the run's last phase takes the rounds that are saved"),
}


def early(problem: Problem, phase: Phase, block: Mapping[str, Any]) -> Phase:
    """Returns a phase that ends as its config block says, which has ``FIELDS`` and ``tiers``.

    Raises:
      FieldError: nobody who is asked has validation examples.
    """
    rule = STOPS[block["stop"]]
    if rule is None:
        return phase
    require_validation(problem, "stop", f"={block['stop']!r}")
    return phase._replace(stop=rule(block["tiers"])._replace(hands_over=block["hand_over"]))


def require_validation(problem: Problem, field: str, given: str) -> None:
    """Checks that clients have validation examples.

    Raises:
      FieldError: they have none; ``field`` with its value ``given`` asks for them.
    """
    if problem.validation is None or not np.any(problem.validation.client_sizes):
        raise FieldError(
            field,
            f"{given} asks about validation examples, and config.data.val_fraction leaves none; "
            "raise it",
        )
