"""Folders that something has damaged: where a run goes on, what it says, what it keeps."""

import gc
import json
import os
import shutil

import chex
import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

import zo_fl
from tests import tiny
from tests.test_run import Killed, killing, rows_of
from zo_fl import api, loop
from zo_fl import config as configs
from zo_fl.compiled import Compiled
from zo_fl.config import warm_starts
from zo_fl.engine.fields import ConfigError
from zo_fl.host import curves, devices, folder, ledger
from zo_fl.host.checkpoint import Checkpoints
from zo_fl.host.folder import RunFolder
from zo_fl.host.schedule import Position
from zo_fl.host.screen import Stopwatch

pytestmark = [
    pytest.mark.slow,
    # Reads of damaged arrays that orbax has given up, which end when nobody waits any more.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    # Of a failing example hypothesis shows all arguments, fixtures too, and warns of their length.
    pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisWarning"),
]

DONE = 6  # of 10 rounds, when the run was stopped
SAVED = (2, 4, 6)  # the pivot, and the latest two


def config():
    return tiny.config("zowarmup", zo__num_rounds=8, run__checkpoint_every=2)


@pytest.fixture(scope="module", autouse=True)
def frozen():
    """Garbage is looked for among what is made here, not in all that was imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(autouse=True)
def collected():
    """What orbax has given up is collected here, where the filter above holds."""
    yield
    gc.collect()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that never stopped."""
    path = tmp_path_factory.mktemp("whole")
    api.run(config(), path, quiet=True)
    return path


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was killed in round 7."""
    path = tmp_path_factory.mktemp("stopped")
    with pytest.raises(Killed):
        api.run(config(), path, quiet=True, on_round=killing(DONE + 1))
    return path


@pytest.fixture
def path(stopped, tmp_path):
    """A copy of the stopped run's folder, to be damaged."""
    return shutil.copytree(stopped, tmp_path / "run")


class Host:
    """The host's side of the run: all that looks at its folder, and nothing that computes."""

    def __init__(self, stopped):
        self.resolved = configs.resolve(config())
        compiled = Compiled(tiny.build("zowarmup", zo__num_rounds=8), self.resolved["run"])
        self.planned = compiled.planned
        self.like = {done: loop.first_state(compiled, Position(done)) for done in SAVED}
        saved = Checkpoints(stopped, read_only=True)
        self.states = {done: saved.restore(done, self.like[done])[0] for done in SAVED}
        self.made_by = devices.provenance(zo_fl.__version__)

    def go_on(self, path):
        """As ``api.run`` does, up to the next round: (rounds done, state)."""
        folder.check(path, warm_starts.differences, self.resolved)
        assert folder.finished(path) is None
        run, state = RunFolder(path, Stopwatch()), None
        while state is None and (done := run.newest().done):
            state = run.restore(done, self.like[done], self.planned)
        run.open(done, self.made_by)
        run.close()
        return done, state


@pytest.fixture(scope="module")
def host(stopped):
    return Host(stopped)


def test_undamaged_it_goes_on_from_the_newest_checkpoint_in_silence(host, path, stopped, capfd):
    done, state = host.go_on(path)
    chex.assert_trees_all_equal(state, host.states[DONE])
    assert done == DONE and capfd.readouterr() == ("", "")
    assert rows_of(path) == rows_of(stopped)[:DONE]


def test_a_run_of_a_version_that_had_0_for_names_goes_on(host, path):
    saved = json.loads((path / "config.json").read_text())
    saved["config"] = configs.plain(saved["config"])
    (path / "config.json").write_text(json.dumps(saved))
    assert host.go_on(path)[0] == DONE


def lines(change):
    """Returns what changes the lines of metrics.jsonl."""

    def damage(path):
        file = path / "metrics.jsonl"
        file.write_text("".join(change(file.read_text().splitlines(keepends=True))))

    return damage


@pytest.mark.parametrize(
    "damage, lost",
    (
        (lines(lambda rows: rows[:4] + rows[5:]), [5]),
        (lines(lambda rows: [*rows[:3], rows[3][:20]]), [4, 5, 6]),
        (lines(lambda rows: [*rows[:4], "5\n", "{}\n"]), [5, 6]),
        (lines(lambda rows: ["x\n", *rows[1:]]), [1]),
        (lambda path: (path / "metrics.jsonl").unlink(), [1, 2, 3, 4, 5, 6]),
    ),
)
def test_lost_rows_are_named_in_a_line_and_the_others_stay(
    host, path, stopped, capfd, damage, lost
):
    damage(path)
    assert host.go_on(path)[0] == DONE
    said = capfd.readouterr().err
    first = ", ".join(map(str, lost[:5])) + ", ..." * (len(lost) > 5)
    assert said.count("\n") == 1 and said.endswith(f"has lost {len(lost)} of its rows: {first}\n")
    assert rows_of(path) == [row for row in rows_of(stopped)[:DONE] if row["round"] not in lost]


def fail_to_draw(rows, picture, *_):
    assert (picture.parent / "summary.json").exists(), "first what cannot be drawn again"
    raise OSError("no font")


def test_without_rows_or_a_picture_a_run_ends_in_the_same_model_and_its_summary_says_so(
    path, whole, monkeypatch, capfd
):
    lines(lambda rows: rows[:4] + rows[5:])(path)
    monkeypatch.setattr(curves, "draw_curves", fail_to_draw)
    summary = api.run(config(), path, quiet=True)
    lost, picture = summary["warnings"]
    assert (
        lost.endswith("has lost 1 of its rows: 5") and picture == "no curves.png: OSError: no font"
    )
    assert json.loads((path / "summary.json").read_text()) == summary
    assert capfd.readouterr().err == f"warning: {lost}\nwarning: {picture}\n"
    assert rows_of(path) == [row for row in rows_of(whole) if row["round"] != 5]
    models = (jax.tree.leaves(zo_fl.load(one).params) for one in (path, whole))
    for one, other in zip(*models, strict=True):
        np.testing.assert_array_equal(one, other)
    ledgers = [(one / ledger.FILE_NAME).read_bytes() for one in (path, whole)]
    assert ledgers[0] == ledgers[1]


def test_a_model_saved_by_a_version_with_other_fields_loads(path, whole):
    shutil.copytree(whole, path, dirs_exist_ok=True)
    saved = json.loads((path / "config.json").read_text())
    saved["config"] = configs.plain(saved["config"])
    del saved["config"]["model"]["stages"]
    saved["config"]["model"]["patch_size"] = 6
    (path / "config.json").write_text(json.dumps(saved))
    assert zo_fl.load(path).config["zo"]["batch_size"] == "all"
    models = (jax.tree.leaves(zo_fl.load(one).params) for one in (path, whole))
    for one, other in zip(*models, strict=True):
        np.testing.assert_array_equal(one, other)


def flipped(data, place=None):
    data = bytearray(data)
    data[len(data) // 2 if place is None else place] ^= 1
    return bytes(data)


@pytest.mark.parametrize(
    "damage", (lambda data: flipped(data), lambda data: data[: len(data) // 2])
)
def test_a_damaged_ledger_is_cut_off_and_a_line_says_so(host, path, capfd, damage):
    file = path / ledger.FILE_NAME
    file.write_bytes(damage(file.read_bytes()))
    assert host.go_on(path)[0] == DONE
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and said.endswith("goes on without replays\n")
    assert ledger.read(path)[-1].round < DONE


@pytest.mark.parametrize(
    "damage",
    (
        lambda file: file.write_bytes(file.read_bytes()[:100]),
        lambda file: file.write_bytes(bytes(file.stat().st_size)),
        lambda file: file.unlink(),
        lambda file: file.write_bytes(flipped(file.read_bytes())),
    ),
    ids=("truncated", "zeroed", "missing", "one bit"),
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_used(host, path, capfd, damage):
    arrays = (path / "checkpoints" / "rounds" / "6").rglob("d/*")
    damage(max(arrays, key=lambda file: file.stat().st_size))
    done, state = host.go_on(path)
    assert done == 4
    chex.assert_trees_all_equal(state, host.states[4])
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "rounds/6" in said and "set aside as" in said
    (aside,) = (path / "checkpoints" / "damaged").iterdir()
    assert aside.name.startswith("rounds-6-") and (aside / "state").exists()


def test_if_no_checkpoint_is_left_it_says_so_every_time(host, path):
    for file in (path / "checkpoints").rglob("progress/metadata"):
        file.write_bytes(flipped(file.read_bytes()))
    for _ in range(2):
        with pytest.raises(ConfigError, match="all checkpoints of .* are damaged, and set aside"):
            host.go_on(path)
    assert len(list((path / "checkpoints" / "damaged").iterdir())) == 3


@pytest.mark.parametrize(
    "name, content, words",
    (
        ("config.json", '{"config": {', "config.json is damaged: not a JSON object"),
        ("config.json", '{"model": null}', "config.json is damaged: no config"),
        ("config.json", None, "has a run's metrics.jsonl and no config.json"),
        ("summary.json", "[]", "summary.json is damaged: not a JSON object"),
        ("summary.json", '{"rounds": 3}', "summary.json is damaged: no diverged_round"),
    ),
)
def test_torn_json_files_are_one_line_and_nothing_is_overwritten(path, name, content, words):
    file = path / name
    file.unlink(missing_ok=True)
    if content is not None:
        file.write_text(content)
    before = {one: one.read_bytes() for one in path.rglob("*") if one.is_file()}
    with pytest.raises(ConfigError, match=words) as caught:
        api.run(config(), path, quiet=True)
    assert "\n" not in str(caught.value)
    assert {one: one.read_bytes() for one in path.rglob("*") if one.is_file()} == before


def damage_file(file, share, how):
    content = file.read_bytes()
    place = int(share * (len(content) - 1))
    if how == "remove":
        file.unlink()
    elif content:
        changed = {
            "flip": flipped(content, place),
            "cut": content[:place],
            "zero": content[:place] + bytes(len(content) - place),
            "repeat": content + content[place:],
        }
        file.write_bytes(changed[how])


DAMAGE = st.tuples(
    st.integers(0, 10**6),
    st.floats(0, 1),
    st.sampled_from(("flip", "cut", "zero", "remove", "repeat")),
)


@hypothesis.settings(
    max_examples=80 if os.environ.get("ZO_FL_TESTS_FULL", "0") not in ("", "0") else 25,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(st.lists(DAMAGE, min_size=1, max_size=2))
def test_random_damage_ends_in_a_state_that_was_saved_or_in_one_line(
    host, stopped, tmp_path_factory, damages
):
    path = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(stopped, path)
    files = [one for one in sorted(path.rglob("*")) if one.is_file() and one.name[0] != "."]
    for number, share, how in damages:
        if (file := files[number % len(files)]).exists():
            damage_file(file, share, how)
    try:
        done, state = host.go_on(path)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        if done:
            chex.assert_trees_all_equal(state, host.states[done])
        assert {row["round"] for row in rows_of(path)} <= set(range(1, done + 1))
        good = {one.round: one.content for one in ledger.read(stopped)}
        left = ledger.read(path) if (path / ledger.FILE_NAME).exists() else []
        for one in left[:-1]:  # a change in the last one shows in the next
            assert one.content == good[one.round]
    # No checkpoint is gone: it is where it was, or set aside.
    saved = len(list(path.glob("checkpoints/*/*")))
    assert saved == len(list(stopped.glob("checkpoints/*/*")))
    shutil.rmtree(path)
