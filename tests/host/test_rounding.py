"""A run whose precision ruins its clients' scalars says so, with the figure."""

import re

import pytest

from tests import tiny
from zo_fl import api as train
from zo_fl.host import rounding

ROUNDED = {"zo__precision": "bfloat16", "zo__num_rounds": 1}


def warning(name="zo", **changes):
    built = tiny.build(name, **changes)
    state = tiny.start(built, built.phases[-1])
    return rounding.warning(built.phases[-1], state, built.federation.clients, built.run_key, {})


@pytest.mark.slow
def test_scalars_that_a_coarse_precision_ruins_are_warned_of_with_their_correlation():
    text = warning(**ROUNDED, zo__eps=1e-5)
    correlation = float(re.search(r"correlation of (-?\d\.\d\d)", text)[1])
    error = float(re.search(r"error of (\d+) %", text)[1])
    assert -0.5 < correlation < 0.9 and error > 50
    assert "set precision to float32" in text and "\n" not in text


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, changes",
    (
        ("zo", {**ROUNDED, "zo__eps": 0.1}),
        ("zo", {**ROUNDED, "zo__eps": 0.0}),  # the precision's best
        ("zo", {"zo__eps": 1e-5}),
        ("fedavg", {}),
    ),
)
def test_larger_perturbations_float32_and_methods_without_scalars_pass(name, changes):
    assert warning(name, **changes) is None


@pytest.mark.slow
def test_a_run_shows_the_warning_and_keeps_it(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(rounding, "warning", lambda phase, *_: f"{phase.name}: beware")
    summary = train.run(tiny.config("zo", zo__num_rounds=1), tmp_path)
    assert summary["warnings"] == ["zo: beware"]
    assert "warning: zo: beware" in capsys.readouterr().out
