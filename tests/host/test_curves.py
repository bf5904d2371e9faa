import math

import matplotlib
import numpy as np
import pytest
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
@pytest.mark.parametrize(
    "given",
    [
        [],
        rows(1, eval_every=0),
        rows(train_loss=math.inf, test_accuracy=math.nan, val_accuracy=None),
        [*rows(), {"round": 21, "phase": "zo", "train_loss": 1e30}],
    ],
    ids=["empty", "one", "not finite", "diverged"],
)
def test_incomplete_and_diverged_runs_are_drawn_without_a_warning(tmp_path, given):
    draw_curves(given, tmp_path / "curves.png", "a title that is long " * 5, pivot_round=10)
    assert np.ptp(np.asarray(Image.open(tmp_path / "curves.png").convert("L"))) > 100


def test_a_caller_s_style_changes_nothing(tmp_path):
    draw_curves(rows(), tmp_path / "a.png", "title")
    with matplotlib.rc_context({"figure.facecolor": "black", "text.usetex": True, "font.size": 30}):
        draw_curves(rows(), tmp_path / "b.png", "title")
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


@pytest.mark.parametrize("pivot, has_room", ((10, True), (19, False)))
def test_a_phase_is_named_in_the_picture_where_there_is_room(tmp_path, pivot, has_room):
    pictures = set()
    for name in ("zeroth", "others"):
        named = [
            row | ({"phase": name} if row["round"] > pivot else {}) for row in rows(pivot=pivot)
        ]
        draw_curves(named, tmp_path / "a.png", "title")
        pictures.add((tmp_path / "a.png").read_bytes())
    assert len(pictures) == 1 + has_room
