"""Folders that something has damaged: where a run goes on, what is said, what is kept."""

import gc
import json
import re
import shutil

import chex
import hypothesis
import jax
import numpy as np
import pytest
from hypothesis import strategies as st

import zo_fl
from tests import tiny
from zo_fl import api as train
from zo_fl import config as configs
from zo_fl import experiment
from zo_fl.engine.errors import ConfigError
from zo_fl.host import workdir
from zo_fl.host.metrics import read_metrics
from zo_fl.host.run_folder import RunFolder, resume
from zo_fl.host.schedule import make_schedule
from zo_fl.host.stopwatch import Stopwatch

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


def rows_of(folder):
    rows = read_metrics(folder / "metrics.jsonl")
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


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
    folder = tmp_path_factory.mktemp("whole")
    train.run(config(), folder, quiet=True)
    return folder


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    """A run that was stopped in round 7, unsaved."""
    folder = tmp_path_factory.mktemp("stopped")

    def stop(row):
        if row["round"] == DONE + 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.run(config(), folder, quiet=True, on_round=stop)
    return folder


@pytest.fixture
def folder(stopped, tmp_path):
    """A copy of the stopped run's folder, to be damaged."""
    return shutil.copytree(stopped, tmp_path / "run")


class Host:
    """The host's side of the run: all that looks at its folder, and nothing that computes."""

    def __init__(self):
        self.resolved = configs.resolve(config())
        built = experiment.build(self.resolved)
        params, model_state = built.task.init(built.run_key)
        self.schedule = make_schedule(
            built.phases, params, model_state, lambda phase: built.federation.clients
        )
        self.states = [phase.init(params, model_state) for phase in built.phases]

    def go_on(self, folder):
        """As ``train.run`` does, up to the next round: (rounds done, state, the run's folder)."""
        workdir.check(folder, configs.identity, self.resolved)
        assert workdir.finished(folder) is None
        run = RunFolder(folder, self.schedule, Stopwatch())
        done, states = resume(
            [run], lambda done, ended: [self.states[self.schedule.stretch_of(done).place]]
        )
        run.open(done)
        run.close()
        return done, states[0] if done else None, run


@pytest.fixture(scope="module")
def host():
    return Host()


@pytest.fixture(scope="module")
def references(stopped, host):
    """The saved states by their rounds."""
    run = RunFolder(stopped, host.schedule, Stopwatch())
    states = {
        done: run.checkpoints.restore(done, host.states[host.schedule.stretch_of(done).place])[0]
        for done in SAVED
    }
    return states.get  # not the dict: what fails is shown with all that it was given


def lines(change):
    """Returns what changes the lines of metrics.jsonl."""

    def damage(folder):
        path = folder / "metrics.jsonl"
        path.write_text("".join(change(path.read_text().splitlines(keepends=True))))

    return damage


def another_digit(line):
    """The loss of a row becomes another one."""
    return re.sub(
        r'("train_loss": \d\.\d)(\d)', lambda found: found[1] + str(9 - int(found[2])), line
    )


def in_ledger(folder):
    path = folder / "ledger.msgpack"
    data = bytearray(path.read_bytes())
    data[len(data) * 2 // 3] ^= 1
    path.write_bytes(data)


GOES_BACK = (
    (lines(lambda rows: rows[:4] + rows[5:]), 4, "line 5 .* is round 6, not 5"),
    (lines(lambda rows: [*rows[:5], *rows[4:]]), 4, "line 6 .* is round 5, not 6"),
    (lines(lambda rows: [*rows[:3], rows[3][:20]]), 2, "line 4 .* is not a row"),
    (lines(lambda rows: [*rows[:4], "5\n", "{}\n"]), 4, "line 5 .* is not a row"),
    (lines(lambda rows: rows[:5]), 4, "metrics.jsonl ends after round 5"),
    (lines(lambda rows: [*rows[:4], another_digit(rows[4]), rows[5]]), 4, "line 5 .* is not a row"),
    (in_ledger, 4, "ledger.msgpack: "),
)


@pytest.mark.parametrize("damage, round_idx, words", GOES_BACK)
def test_where_metrics_or_ledger_do_not_match_it_goes_back_and_says_so(
    host, references, stopped, folder, capfd, damage, round_idx, words
):
    damage(folder)
    done, state, _ = host.go_on(folder)
    assert done == round_idx
    chex.assert_trees_all_equal(state, references(done))
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and re.search(f"^warning: .*{words}.*goes back to the", said)
    assert rows_of(folder) == rows_of(stopped)[:done]


def test_a_run_that_went_back_ends_as_one_that_never_stopped(folder, whole):
    GOES_BACK[0][0](folder)
    summary = train.run(config(), folder, quiet=True)
    assert "goes back to the checkpoint of round 4" in summary["warnings"][0]
    assert rows_of(folder) == rows_of(whole)
    assert_same_model(folder, whole)
    ledgers = [(path / "ledger.msgpack").read_bytes() for path in (folder, whole)]
    assert ledgers[0] == ledgers[1]


@pytest.mark.parametrize("damage", (lines(lambda rows: []), lines(lambda rows: ["x\n", *rows[1:]])))
def test_where_no_checkpoint_is_before_the_damage_it_goes_on_with_a_gap_that_it_names(
    host, references, folder, capfd, damage
):
    damage(folder)
    before = (folder / "metrics.jsonl").read_bytes()
    there = [row["round"] for row in map(json.loads, before.splitlines()[1:])]
    missing = [round_idx for round_idx in range(1, DONE + 1) if round_idx not in there]
    done, state, run = host.go_on(folder)
    assert done == DONE
    chex.assert_trees_all_equal(state, references(DONE))
    some = "the row of round 1" if missing == [1] else f"the rows of {len(missing)} rounds"
    assert f"without {some}; what was there" in capfd.readouterr().err.replace(
        " (1, 2, 3, 4, 5, ...)", ""
    )
    (kept,) = folder.glob("metrics.jsonl.damaged-*")
    assert kept.read_bytes() == before


def test_a_gap_is_known_from_then_on_and_the_run_ends_as_it_would_have(folder, whole, capfd):
    (folder / "metrics.jsonl").unlink()

    def stop(row):
        if row["round"] == 9:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train.run(config(), folder, quiet=True, on_round=stop)
    assert "goes on from round 6 without the rows of 6 rounds" in capfd.readouterr().err
    summary = train.run(config(), folder, quiet=True)
    assert capfd.readouterr().err == "" and "without the rows" in summary["warnings"][0]
    assert rows_of(folder) == rows_of(whole)[DONE:]
    assert_same_model(folder, whole)


def assert_same_model(one, other):
    models = (jax.tree.leaves(zo_fl.load(path).params) for path in (one, other))
    for a, b in zip(*models, strict=True):
        np.testing.assert_array_equal(a, b)


def arrays_of(folder, done):
    """The files of the largest arrays of a checkpoint."""
    return max(
        (folder / "checkpoints" / "rounds" / str(done)).rglob("d/*"), key=lambda p: p.stat().st_size
    )


@pytest.mark.parametrize(
    "damage",
    (
        lambda path: path.write_bytes(path.read_bytes()[:100]),
        lambda path: path.write_bytes(bytes(path.stat().st_size)),
        lambda path: path.unlink(),
        lambda path: path.write_bytes(flipped(path.read_bytes())),
    ),
    ids=("truncated", "zeroed", "missing", "one byte"),
)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_used(
    host, references, folder, capfd, damage
):
    damage(arrays_of(folder, 6))
    done, state, _ = host.go_on(folder)
    assert done == 4
    chex.assert_trees_all_equal(state, references(4))
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "rounds/6" in said and "set aside as" in said
    (aside,) = (folder / "checkpoints" / "damaged").iterdir()
    assert aside.name.startswith("rounds-6-") and (aside / "state").exists()


def flipped(data, place=None):
    data = bytearray(data)
    data[len(data) // 2 if place is None else place] ^= 1
    return bytes(data)


def test_where_no_checkpoint_is_left_it_says_so_every_time(host, folder):
    for path in (folder / "checkpoints").rglob("progress/metadata"):
        path.write_bytes(flipped(path.read_bytes()))
    for _ in range(2):
        with pytest.raises(ConfigError, match="all checkpoints of .* are damaged, and set aside"):
            host.go_on(folder)
    assert len(list((folder / "checkpoints" / "damaged").iterdir())) == 3


@pytest.mark.parametrize(
    "name, content, words",
    (
        ("config.json", '{"config": {', "config.json is damaged: not JSON"),
        ("config.json", "", "config.json is damaged: not JSON"),
        ("config.json", "[]", "config.json is damaged: no config"),
        ("config.json", None, "has a run's metrics.jsonl and no config.json"),
        ("summary.json", "", "summary.json is damaged: not JSON"),
        ("summary.json", '{"rounds": 3}', "summary.json is damaged: no diverged_round"),
    ),
)
def test_json_files_that_are_torn_are_one_line_and_nothing_is_overwritten(
    folder, name, content, words
):
    path = folder / name
    path.unlink(missing_ok=True)
    if content is not None:
        path.write_text(content)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=words) as caught:
        train.run(config(), folder, quiet=True)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


@hypothesis.settings(
    max_examples=200,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=list(hypothesis.HealthCheck),
)
@hypothesis.given(
    st.lists(
        st.tuples(
            st.integers(0, 10**6),
            st.floats(0, 1),
            st.sampled_from(("flip", "cut", "zero", "remove", "repeat")),
        ),
        min_size=1,
        max_size=2,
    )
)
def test_random_damage_ends_in_the_same_state_or_in_one_line(
    host, references, stopped, tmp_path_factory, damages
):
    folder = tmp_path_factory.mktemp("damaged") / "run"
    shutil.copytree(stopped, folder)
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and path.parent.name != "tb" and not path.name.startswith(".")
    )
    for number, share, how in damages:
        path = files[number % len(files)]
        if how == "remove":
            path.unlink(missing_ok=True)
        elif path.exists() and path.stat().st_size:
            content = path.read_bytes()
            place = int(share * (len(content) - 1))
            path.write_bytes(
                {
                    "flip": flipped(content, place),
                    "cut": content[:place],
                    "zero": content[:place] + bytes(len(content) - place),
                    "repeat": content + content[place:],
                }[how]
            )
    damaged = {path.name: path.read_bytes() for path in files if path.exists()}
    try:
        done, state, run = host.go_on(folder)
    except ConfigError as error:
        assert "\n" not in str(error)
    else:
        rows = [row for row in rows_of(stopped) if row["round"] <= done]
        missing = run.standing.saved["missing"] if done else []
        expected = [row for row in rows if row["round"] not in missing]
        assert rows_of(folder) == expected
        if done:
            chex.assert_trees_all_equal(state, references(done))
    finally:
        # What was there is there, or kept beside.
        kept = [path.read_bytes() for path in folder.glob("metrics.jsonl*")]
        rows = damaged.get("metrics.jsonl")
        if rows is not None and not any(rows.startswith(one) for one in kept):
            assert rows in kept, [files[n % len(files)] for n, *_ in damages]
        checkpoints = len(list(folder.glob("checkpoints/*/*")))
        assert checkpoints == len(list(stopped.glob("checkpoints/*/*")))
        shutil.rmtree(folder)
