"""Any config within the declared ranges runs, or is refused in one line with nothing written."""

import json
import math
import tempfile
from pathlib import Path

import hypothesis
import pytest
from hypothesis import strategies as st

from tests import tiny
from zo_fl import api as train
from zo_fl import config
from zo_fl import methods as algorithms
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.fields import Field
from zo_fl.host.metrics import read_metrics

# Not drawn: what there is only one of here, or what makes a run long.
FIXED = {
    "algorithm",
    "data.name",
    "data.data_dir",
    "data.num_clients",
    "model.name",
    "run.device",
    "run.num_devices",
}
INTEGERS = (0, 1, 2, 3, 5, 8)
NUMBERS = (0.0, 1e-6, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.9, 1.0, 3.0)


def declared(block, prefix=""):
    """Yields ``(dotted name, field)`` of all fields of a block."""
    for name, entry in block.items():
        if isinstance(entry, Field):
            yield prefix + name, entry
        else:
            yield from declared(entry, f"{prefix}{name}.")


def values_of(field):
    """Returns some allowed values of a field."""
    if field.choices is not None:
        return [*(field.choices() if callable(field.choices) else field.choices)]
    if isinstance(field.default, bool):
        return [False, True]
    if isinstance(field.default, str):
        return [field.default]
    if isinstance(field.default, tuple):
        return [field.default, field.default[:1], ()]
    numbers = INTEGERS if isinstance(field.default, int) else NUMBERS
    allowed = [field.default, *numbers, field.at_least, field.at_most]
    kind = type(field.default)
    return [kind(value) for value in allowed if value is not None and is_allowed(field, value)]


def is_allowed(field, value):
    try:
        field.resolve("x", type(field.default)(value))
    except ConfigError:
        return False
    return abs(value) < 100


@st.composite
def configs(draw):
    """Returns a tiny config with a few fields changed that its algorithm reads."""
    algorithm = draw(st.sampled_from(sorted({*algorithms.names()} - {"patches", "zowarmup"})))
    base = tiny.config(algorithm, data__val_fraction=0.1)
    blocks = {"run"} | config.blocks_read(algorithms.parts(algorithm))
    fields = {
        name: field
        for name, field in declared(config.blocks())
        if name.split(".")[0] in blocks and name not in FIXED
    }
    changed = draw(st.lists(st.sampled_from(sorted(fields)), min_size=1, max_size=4, unique=True))
    return base, {name: draw(st.sampled_from(values_of(fields[name]))) for name in changed}


def check(base, changes):
    """Runs a config and asserts how it ended."""
    with tempfile.TemporaryDirectory() as root:
        path = Path(root) / "run"
        try:
            summary = train.run(config.changed(base, changes), path, quiet=True)
        except ConfigError as error:
            assert "\n" not in str(error)
            assert not path.exists() or not any(path.glob("metrics*")), list(path.iterdir())
            return
        rows = read_metrics(path / "metrics.jsonl")
        assert [row["round"] for row in rows] == list(range(1, summary["rounds"] + 1))
        assert json.loads((path / "summary.json").read_text()) == summary
        accuracy = summary["final_accuracy"]
        assert summary["divergence"] or (math.isfinite(accuracy) and 0 <= accuracy <= 1)


@pytest.mark.slow
@hypothesis.settings(
    max_examples=6,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(configs())
def test_random_configs_run_or_are_refused_in_one_line(drawn):
    check(*drawn)
