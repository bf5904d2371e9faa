import math

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from PIL import Image

from zo_fl.host.curves import draw_curves  # the real one, see conftest


def rows(num_rounds=20, pivot=10, eval_every=5, **override):
    made = []
    for t in range(1, num_rounds + 1):
        row = {"round": t, "phase": "warmup" if t <= pivot else "zo", "train_loss": 2 / t}
        if eval_every and t % eval_every == 0:
            row |= {"test_loss": 2 / t, "test_accuracy": t / 40, "val_accuracy": t / 30}
        made.append(row | override)
    return made


@pytest.mark.slow
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(
    "given",
    [
        rows(),
        [],
        rows(1, eval_every=0),
        rows(1, eval_every=1),
        rows(train_loss=math.nan, test_accuracy=math.nan, val_accuracy=None),
        [*rows(), {"round": 21, "phase": "zo", "train_loss": 1e30}],
        [*rows(), {"round": 21, "phase": "zo", "train_loss": math.inf}],
    ],
    ids=["whole", "empty", "one", "one evaluated", "all nan", "diverged", "inf"],
)
def test_whole_incomplete_and_diverged_runs_are_drawn_without_a_warning(tmp_path, given):
    draw_curves(given, tmp_path / "curves.png", "a title that is long " * 5, pivot_round=10)
    assert np.ptp(np.asarray(Image.open(tmp_path / "curves.png").convert("L"))) > 100


def test_a_caller_s_style_changes_nothing(tmp_path):
    draw_curves(rows(), tmp_path / "a.png", "title")
    with matplotlib.rc_context({"figure.facecolor": "black", "text.usetex": True, "font.size": 30}):
        draw_curves(rows(), tmp_path / "b.png", "title")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_phases_are_named_where_there_is_room(tmp_path, monkeypatch):
    texts = []
    monkeypatch.setattr(Axes, "text", lambda self, x, y, name, **_: texts.append(name))
    draw_curves(rows(), tmp_path / "a.png", "title", 10)
    draw_curves(rows(40, pivot=39), tmp_path / "b.png", "title", 39)
    assert texts == ["warmup", "zo", "warmup"]


def test_names_of_phases_are_in_the_picture(tmp_path):
    for name in ("warmup", "w"):
        named = [row | {"phase": name} for row in rows()]
        draw_curves(named, tmp_path / f"{name}.png", "title")
    assert (tmp_path / "warmup.png").read_bytes() != (tmp_path / "w.png").read_bytes()
