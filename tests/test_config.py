"""A config cannot be wrong: every field, wrong in every way, by flag, by file, from Python."""

import itertools
import json
import math

import pytest
from ml_collections import ConfigDict

from tests import tiny
from zo_fl import api, config, methods
from zo_fl.config import check
from zo_fl.engine.fields import ConfigError

FIELDS = check.flat(config.blocks())


def wrong_values(field):
    """Yields values that a field must refuse."""
    default = field.default
    if isinstance(default, bool):
        yield from ("yes", 2, None)
    elif isinstance(default, tuple):
        wrong = ((math.nan,), (True,), ()) if isinstance(default[0], float) else ((1.5,), (3, 2))
        yield from ("many", (-1,), *wrong)
    elif isinstance(default, str):
        yield 3
        if field.choices is not None or field.rule is not None:
            yield from ("no such thing", "") if default != "*" else ("", " ,")
    else:
        yield from ("many", None, True, math.nan, math.inf, -1 if field.below != 1 else -0.5)
        yield from (2.5, 2**32) if isinstance(default, int) else (1e-50, 1e39)
        yield from (bound for bound in (field.above, field.below) if bound is not None)
        if field.zero:
            yield from (0, "0", field.zero.upper())
        if field.at_most is not None:
            yield field.at_most + 1


WRONG = [(name, value) for name, field in FIELDS.items() for value in wrong_values(field)]
BY_BLOCK = itertools.groupby(WRONG, lambda item: item[0].partition(".")[0])
BY_BLOCK = {block: list(items) for block, items in BY_BLOCK}


def nested(name, value):
    tree = value
    for part in reversed(name.split(".")):
        tree = {part: tree}
    return tree


def changed_default(name, value):
    """Returns a ConfigDict as a user's file makes it."""
    made = node = config.default()
    *above, last = name.split(".")
    for part in above:
        node = node[part]
    node[last] = value
    return made


def refused(name, resolve, value):
    with pytest.raises(ConfigError) as error:
        resolve(value)
    text = str(error.value)
    is_one_line = "\n" not in text and f"config.{name}" in text and "allowed" in text
    assert is_one_line, (name, value, text)


@pytest.mark.parametrize("block", BY_BLOCK)
def test_a_wrong_value_is_one_line_that_names_the_field_and_what_is_allowed(block):
    for name, value in BY_BLOCK[block]:
        field = FIELDS[name]
        refused(name, lambda value, name=name: config.resolve(nested(name, value)), value)
        # On a command line all is text: what is text anyway is no mistake there.
        if isinstance(value, str) or not isinstance(field.default, str):
            refused(name, lambda text, name=name: config.parse(name, text), str(value))
        if not (value is True and isinstance(field.default, float)):  # a ConfigDict makes 1.0 of it
            refused(name, config.resolve, changed_default(name, value))


@pytest.mark.parametrize("name", [name for name, field in FIELDS.items() if field.zero])
def test_what_is_no_quantity_has_a_name_and_0_is_refused_with_it(name):
    field, number = FIELDS[name], config.parse(name, "10")
    assert (number, type(number)) == (10, type(field.default))
    assert config.parse(name, field.zero) == field.zero
    for value in (field.zero, number):
        for given in (nested(name, value), changed_default(name, value)):
            assert config.flatten(config.resolve(given))[name] == value
    with pytest.raises(ConfigError, match=f"=0.* or {field.zero}, which 0 meant before"):
        config.parse(name, "0")


def test_what_had_0_for_a_name_in_an_earlier_version_is_the_same_run():
    saved = config.resolve(tiny.config("zowarmup"))
    earlier = config.plain(saved)
    assert earlier["zo"]["batch_size"] == 0 and earlier["zo"]["bound"] == 0.0
    assert config.identity(earlier) == config.identity(saved)
    assert config.named(earlier) == saved


def test_a_run_of_a_wrong_config_writes_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"config\.zo\.lr=-1\.0 is not allowed"):
        api.run(tiny.config("zo", zo__lr=-1.0), tmp_path / "run", quiet=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    (
        ("sede", "seed"),
        ("zo.lrs", "zo.lr"),
        ("model.norms", "model.norm"),
        ("warmup.local_epoch", "warmup.local_epochs"),
        ("fedkseed.candidates", "fedkseed.candidate_seeds"),
    ),
)
def test_a_misspelt_field_is_one_line_that_names_the_nearest(wrong, nearest):
    with pytest.raises(ConfigError) as error:
        config.resolve(nested(wrong, 1))
    assert "\n" not in str(error.value) and f"unknown field config.{wrong}" in str(error.value)
    assert f"config.{nearest}" in str(error.value)


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


@pytest.mark.parametrize(
    "given, meant",
    (
        ("zo.learning_rate", "zo.lr?"),
        ("zo.Learning-Rate", "zo.lr?"),
        ("learning_rate", "warmup.lr or "),
        ("zoo.lr", "warmup.lr or "),
        ("zo.server.name", "zo.server"),
    ),
)
def test_usual_names_suggest_what_they_are_called_here(given, meant):
    with pytest.raises(ConfigError) as error:
        config.parse(given, "1")
    assert f"config.{given}; did you mean config.{meant}" in str(error.value)


def test_a_config_is_found_by_name_and_by_path_from_anywhere(tmp_path, monkeypatch):
    by_name = config.load("quickstart")
    path = config.find("quickstart").absolute()
    monkeypatch.setenv("HOME", str(path.parent))
    assert config.find("~/quickstart.py") == path
    monkeypatch.chdir(tmp_path)
    for name in ("quickstart", "quickstart.py", "configs/quickstart.py", path):
        assert config.load(name) == by_name


def test_a_config_dict_from_python_becomes_plain_json():
    resolved = config.resolve(ConfigDict(config.load("quickstart")))
    assert json.loads(json.dumps(resolved)) == json.loads(json.dumps(config.resolve(resolved)))
    assert config.resolve({"seed": 3})["seed"] == 3, "absent fields are the defaults"


def test_every_block_is_read_by_a_method_or_by_every_run():
    read = config.blocks_read(methods.METHODS)
    assert set(config.blocks()) == read | {"algorithm", "seed", "run"}


def test_blocks_that_a_method_does_not_read_may_be_of_another_version():
    saved = config.resolve(tiny.config("zowarmup"))
    saved["fedzo"]["eps"] = 1e-4  # a field that there was
    saved["no_more"] = {"lr": 1.0}
    assert config.identity(saved) == config.identity(config.resolve(tiny.config("zowarmup")))
    with pytest.raises(ConfigError, match=r"unknown field config\.fedzo\.eps"):
        config.identity(saved | {"algorithm": "fedzo"})


def test_only_what_the_method_reads_makes_a_run_what_it_is():
    one = config.resolve(tiny.config("zowarmup"))
    same = config.resolve(tiny.config("fedavg+zo", decomfl__lr=0.5, heterofl__levels="abc"))
    other = config.resolve(tiny.config("zowarmup", zo__lr=0.5))
    assert config.identity(one) == config.identity(same) != config.identity(other)


def test_a_config_may_have_last_words():
    assert "zo-fl --config=forward_only" in config.closing("quickstart")
    assert config.closing("cifar10_10_90") == ""


@pytest.mark.parametrize("text", ('CLOSING = "é"', "CLOSING = f'{1}'", "closing = 1"))
def test_last_words_of_a_file_are_read_whatever_it_holds(text, tmp_path):
    (tmp_path / "c.py").write_bytes(f"# coding: latin-1\n{text}\n".encode("latin-1"))
    assert config.closing(tmp_path / "c.py") == ("é" if "é" in text else "")
