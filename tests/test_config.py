"""A config cannot be wrong: every field, wrong in every way, by flag, by file, from Python."""

import ast
import inspect
import json
import math
import sys

import pytest
from absl import flags
from ml_collections import ConfigDict

from experiments import cli
from tests import tiny
from zo_fl import api as train
from zo_fl import config, models, programs, trainer
from zo_fl import methods as algorithms
from zo_fl.data import federated
from zo_fl.engine import fields, robust, server_optimizers
from zo_fl.engine.errors import ConfigError
from zo_fl.engine.phase import PARTICIPATION, Participation
from zo_fl.engine.robust import Robust
from zo_fl.host import schedule
from zo_fl.host.devices import make_engine
from zo_fl.sgd.client import LOCAL_SGD, LocalSGD
from zo_fl.wrap import faults
from zo_fl.wrap.faults import Faults
from zo_fl.zo.probing import PROBING, Probing

FIELDS = fields.flat(config.blocks())


def wrong_values(field):
    """Yields values that a field must refuse."""
    default = field.default
    if isinstance(default, bool):
        yield from ("yes", 1, None)
    elif isinstance(default, tuple):
        wrong = ((math.nan,), (True,), ()) if isinstance(default[0], float) else ((1.5,), (3, 2))
        yield from ("many", (-1,), *wrong)
    elif isinstance(default, str):
        yield 3
        if field.choices is not None or field.rule is not None:
            yield from ("no such thing", "")
    else:
        yield from ("many", None, True, math.nan, math.inf, -1 if field.below != 1 else -0.5)
        if isinstance(default, int):
            yield from (2.5, 10**20)
        if field.above is not None:
            yield field.above
        if field.below is not None:
            yield field.below
        if field.at_most is not None:
            yield field.at_most + 1


WRONG = [(name, value) for name, field in FIELDS.items() for value in wrong_values(field)]
# These have no largest value: it is the machine that ends them.
UNBOUNDED = {name for name, field in FIELDS.items() if (field.at_most, field.below) == (None,) * 2}
WRONG = [(name, value) for name, value in WRONG if not (value == 10**20 and name in UNBOUNDED)]
# All ways in have one check: all values go through it from Python, a third of them by each other.
BY_FLAG, BY_FILE = WRONG[::3], WRONG[1::3]


def nested(name, value):
    tree = value
    for part in reversed(name.split(".")):
        tree = {part: tree}
    return tree


def is_one_line(error, name):
    text = str(error.value)
    return "\n" not in text and f"config.{name}" in text and "allowed" in text


def test_there_are_enough_of_them():
    assert len(WRONG) > 500 and len({name for name, _ in WRONG}) > 120


@pytest.mark.parametrize("block", sorted({name.split(".")[0] for name in FIELDS}))
def test_a_wrong_value_from_python_is_one_line_that_names_the_field(block, tmp_path):
    for name, value in WRONG:
        if name.split(".")[0] == block:
            with pytest.raises(ConfigError) as error:
                train.run(nested(name, value), tmp_path / "run", quiet=True)
            assert is_one_line(error, name), (name, value, str(error.value))
    assert not list(tmp_path.iterdir())


@pytest.fixture
def parsed():
    """Returns a function that parses a command line as the commands do; it may exit."""

    def parse(*arguments):
        values = flags.FlagValues()
        flags.DEFINE_string("config", "quickstart", "", flag_values=values)
        flags.DEFINE_multi_string("set", [], "", flag_values=values)
        values([sys.argv[0], *map(cli._as_set, arguments)])
        return values

    return parse


@pytest.mark.parametrize("block", sorted({name.split(".")[0] for name in FIELDS}))
def test_a_wrong_value_by_flag_is_one_line_that_names_the_field(block, parsed, monkeypatch):
    for name, value in BY_FLAG:
        is_text = isinstance(FIELDS[name].default, str) and not isinstance(value, str)
        is_true = isinstance(FIELDS[name].default, bool) and value == 1
        # On a command line all is text: what is text anyway is no mistake there.
        if name.split(".")[0] != block or is_text or is_true:
            continue
        monkeypatch.setattr(flags, "FLAGS", parsed(f"--config.{name}={value}"))
        with pytest.raises(ConfigError) as error:
            cli.resolved_config()
        assert is_one_line(error, name), (name, value, str(error.value))


@pytest.mark.parametrize("block", sorted({name.split(".")[0] for name in FIELDS}))
def test_a_wrong_value_in_a_file_is_one_line_that_names_the_field(block, tmp_path):
    for name, value in BY_FILE:
        # A ConfigDict makes 1.0 of it before anyone sees it.
        is_number = value is True and isinstance(FIELDS[name].default, float)
        if name.split(".")[0] == block and not is_number:
            made = node = config.default()
            *above, last = name.split(".")
            for part in above:
                node = node[part]
            with node.ignore_type():
                node[last] = value
            with pytest.raises(ConfigError) as error:
                config.resolve(made)
            assert is_one_line(error, name), (name, value, str(error.value))


@pytest.mark.parametrize("name", FIELDS)
def test_a_misspelt_field_is_one_line_that_names_the_nearest(name):
    wrong = name + "s"
    with pytest.raises(ConfigError) as error:
        config.resolve(nested(wrong, 1))
    assert "\n" not in str(error.value) and f"unknown field config.{wrong}" in str(error.value)
    assert f"config.{name}" in str(error.value)


@pytest.mark.parametrize(
    ("code", "expected"),
    (
        ("def get_config(:\n", "line 1: SyntaxError"),
        ("import no_such_module\n", "line 1: ModuleNotFoundError"),
        ("def get_config():\n    raise RuntimeError('so')\n", "line 2: RuntimeError: so"),
        ("x = 1\n", "AttributeError"),
        (
            "from zo_fl.config import default\ndef get_config():\n    c = default()\n"
            "    c.zo.epz = 1\n    return c\n",
            "line 4: AttributeError",
        ),
    ),
)
def test_a_config_file_that_fails_is_one_line_with_its_name_and_line(tmp_path, code, expected):
    path = tmp_path / "mine.py"
    path.write_text(code)
    with pytest.raises(ConfigError) as error:
        config.load(path)
    text = str(error.value)
    assert "\n" not in text and str(path) in text and expected in text


def test_an_unknown_config_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean quickstart"):
        config.load("quikstart")


def test_a_config_is_found_by_name_and_by_path_from_anywhere(tmp_path, monkeypatch):
    by_name = config.load("quickstart")
    path = config.find("quickstart").absolute()
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "quickstart.py", "configs/quickstart.py", path):
        assert config.load(name) == by_name


def test_a_config_dict_from_python_becomes_plain_json(tmp_path):
    resolved = config.resolve(ConfigDict(config.load("quickstart")))
    assert json.loads(json.dumps(resolved)) == json.loads(json.dumps(config.resolve(resolved)))
    assert config.resolve({"seed": 3})["seed"] == 3, "absent fields are the defaults"


def test_what_is_declared_is_what_the_functions_take():
    def names(function, *given):
        return set(inspect.signature(function).parameters) - set(given)

    assert set(federated.BLOCK) == names(federated.load, "dataset")
    assert set(models.BLOCK) == names(models.create, "num_classes", "width")
    assert set(server_optimizers.BLOCK) == names(server_optimizers.create, "lr")
    assert set(LOCAL_SGD) == set(LocalSGD._fields)
    assert set(PROBING) == set(Probing._fields)
    assert set(PARTICIPATION) == set(Participation._fields)
    read = config.blocks_read(algorithms.ALGORITHMS)
    assert set(config.blocks()) == read | {"algorithm", "seed", "run"}
    assert set(faults.BLOCK) == set(Faults._fields)
    assert fields.defaults(robust.BLOCK) == Robust()._asdict()


def test_every_field_of_the_run_block_is_read():
    source = inspect.getsource(make_engine)
    source += "".join(map(inspect.getsource, (programs, trainer, schedule)))
    texts = {node.value for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Constant)}
    assert set(config.RUN) <= texts


def test_blocks_that_a_method_does_not_read_may_be_of_another_version():
    saved = config.resolve(tiny.config("zowarmup"))
    saved["fedzo"]["eps"] = 1e-4  # a field that there was
    saved["no_more"] = {"lr": 1.0}
    assert config.identity(saved) == config.identity(config.resolve(tiny.config("zowarmup")))
    with pytest.raises(ConfigError, match="unknown field config.fedzo.eps"):
        config.identity(saved | {"algorithm": "fedzo"})


def test_only_what_the_algorithm_reads_makes_a_run_what_it_is():
    one = config.resolve(tiny.config("zowarmup"))
    same = config.resolve(tiny.config("fedavg+zo", decomfl__lr=0.5, heterofl__levels="abc"))
    other = config.resolve(tiny.config("zowarmup", zo__lr=0.5))
    assert config.identity(one) == config.identity(same) != config.identity(other)
