import math

import numpy as np
import pytest
from PIL import Image

from tests import tiny
from zo_fl import api as train
from zo_fl.host import curves
from zo_fl.host.curves import draw_curves  # the real one, see conftest


def rows(num_rounds=20, pivot=10, eval_every=5, **override):
    made = []
    for t in range(1, num_rounds + 1):
        row = {"round": t, "phase": "warmup" if t <= pivot else "zo", "train_loss": 2 / t}
        if eval_every and t % eval_every == 0:
            row |= {"test_loss": 2 / t, "test_accuracy": t / 40, "val_accuracy": t / 30}
        made.append(row | override)
    return made


def draw(tmp_path, *args, **kwargs):
    path = tmp_path / "curves.png"
    draw_curves(*args, path=path, **kwargs)
    return np.asarray(Image.open(path).convert("RGB"))


def is_drawn(picture, hex_colour):
    colour = [int(hex_colour[i : i + 2], 16) for i in (1, 3, 5)]
    # More than what the smoothing of letters makes by chance.
    return (np.abs(picture.astype(int) - colour).sum(-1) < 6).mean() > 1e-3


TEST, VAL, SHADE = "#0072B2", "#E69F00", "#EEF2F6"


def test_a_run_of_two_phases_shows_both_accuracies_and_shades_the_second(tmp_path):
    picture = draw(tmp_path, rows(), title="a run", pivot_round=10)
    assert picture.shape[1] >= 600
    assert is_drawn(picture, TEST) and is_drawn(picture, VAL) and is_drawn(picture, SHADE)


def test_a_run_of_one_phase_has_no_shade(tmp_path):
    assert not is_drawn(draw(tmp_path, rows(pivot=20), title="a run", pivot_round=None), SHADE)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "given",
    [
        [],
        rows(1, eval_every=0),
        rows(1, eval_every=1),
        rows(eval_every=0),
        rows(train_loss=None),
        rows(train_loss=math.nan, test_accuracy=math.nan, val_accuracy=None),
        [*rows(), {"round": 21, "phase": "zo", "train_loss": 1e30}],
        [*rows(), {"round": 21, "phase": "zo", "train_loss": math.inf}],
    ],
    ids=["empty", "one", "one evaluated", "no eval", "no loss", "all nan", "diverged", "inf"],
)
def test_incomplete_and_diverged_runs_are_drawn_without_a_warning(tmp_path, given):
    draw(tmp_path, given, title="a run", pivot_round=10)


@pytest.mark.slow
def test_a_diverging_loss_does_not_hide_the_rest(tmp_path):
    """The test loss still spans much of its panel, instead of lying on the axis."""
    diverged = [*rows(), {"round": 21, "phase": "zo", "train_loss": 1e9}]
    heights = []
    for given in (rows(), diverged):
        picture = draw(tmp_path, given, title="a run", pivot_round=10).astype(int)
        panel = picture[picture.shape[0] // 2 : -90]
        drawn = (np.abs(panel - [0x00, 0x72, 0xB2]).sum(-1) < 12).any(1).nonzero()[0]
        heights.append(np.ptp(drawn))
    assert heights[1] > 0.2 * heights[0]


def test_drawing_leaves_pyplot_alone(tmp_path):
    import matplotlib.pyplot as plt

    before = plt.get_fignums(), plt.get_backend()
    draw(tmp_path, rows(), title="a title that is very long " * 5, pivot_round=10)
    assert (plt.get_fignums(), plt.get_backend()) == before


@pytest.mark.slow
def test_a_run_ends_with_its_picture(tmp_path, monkeypatch):
    monkeypatch.setattr(curves, "draw_curves", draw_curves)
    train.run(tiny.config(run__eval_every=1), tmp_path / "run", quiet=True)
    picture = np.asarray(Image.open(tmp_path / "run" / "curves.png").convert("RGB"))
    assert is_drawn(picture, TEST) and is_drawn(picture, SHADE)
