"""Any config within the declared ranges can be run, or is refused in one line."""

import chex
import jax
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tiny
from zo_fl import config, experiment, methods
from zo_fl.config import check
from zo_fl.engine.fields import ConfigError

# Not drawn: what is not on this machine.
FIXED = {"data.name", "data.data_dir", "data.num_clients", "model.name", "run.num_devices"}
NUMBERS = (0, 1, 2, 3, 5, 8, 1e-6, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0, 3.0)


def values_of(field):
    """Returns some allowed values of a field."""
    default = field.default
    if field.choices is not None:
        return list(field.choices() if callable(field.choices) else field.choices)
    if isinstance(default, bool):
        return [False, True]
    if isinstance(default, str | tuple):
        return [default]
    drawn = {type(default)(number) for number in NUMBERS}
    return [default, *filter(lambda value: is_allowed(field, value), sorted(drawn))]


def is_allowed(field, value):
    try:
        check.checked(field, "field", value)
    except ConfigError:
        return False
    return True


@st.composite
def configs(draw):
    """Draws a tiny config with a few fields changed that its method reads."""
    name = draw(st.sampled_from(sorted(methods.METHODS)))
    declared = config.blocks()
    blocks = {"run"} | config.blocks_read([name])
    known = check.flat({block: declared[block] for block in blocks})
    known = {field: known[field] for field in sorted(known.keys() - FIXED)}
    changed = draw(st.lists(st.sampled_from(list(known)), min_size=1, max_size=4, unique=True))
    changes = {field: draw(st.sampled_from(values_of(known[field]))) for field in changed}
    return config.changed(tiny.config(name), changes)


@pytest.mark.nightly
@pytest.mark.slow
@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck))
@given(configs())
def test_a_config_within_the_ranges_can_be_run_or_is_refused_in_one_line(drawn):
    try:
        built = experiment.build(config.resolve(drawn))
    except ConfigError as error:
        assert "\n" not in str(error)
        return
    if built.engine.streamed:
        return
    for phase in built.phases:
        state = jax.eval_shape(lambda phase=phase: tiny.start(built, phase))
        made = tiny.algorithm(built, phase)
        after, metrics, _ = jax.eval_shape(made.round, state, built.data_of(phase), built.run_key)
        chex.assert_trees_all_equal_shapes_and_dtypes(after, state)
        assert {leaf.shape for leaf in jax.tree.leaves(metrics)} == {()}
