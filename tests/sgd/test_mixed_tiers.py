"""A round in which each tier does what it can."""

import pytest

from tests import tiny
from zo_fl.engine.fields import ConfigError


@pytest.mark.parametrize(
    ("overrides", "message"),
    (
        ({"data__high_fraction": 1.0}, "8 high and 0 low.*config.data.high_fraction"),
        ({"zo__cohort_size": 1}, "config.zo.cohort_size=1 leaves a tier without"),
        ({"zo__seed_policy": "shared"}, "config.zo.seed_policy"),
        (
            {"zo__bn_policy": "recalibrate", "model__name": "cnn", "model__norm": "batch"},
            "config.zo.bn_policy",
        ),
    ),
)
def test_what_cannot_be_averaged_is_refused_in_one_line(overrides, message):
    with pytest.raises(ConfigError, match=message):
        tiny.build("mixed_tiers", **overrides)
