"""Data and models of the user: they train and predict, or are refused in one line."""

import functools
import shutil
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import zo_fl
from zo_fl import config as configs
from zo_fl import own_model, saved_model
from zo_fl.config.check import defaults
from zo_fl.data import federated
from zo_fl.engine.fields import ConfigError

pytestmark = pytest.mark.slow

FEW = {
    "algorithm": "fedavg",
    "warmup.num_rounds": 2,
    "zo.num_rounds": 2,
    "data.num_clients": 4,
    "data.high_fraction": 0.5,
    "run.num_devices": 1,
}


class Linear(nn.Module):
    num_classes: int = 3

    @nn.compact
    def __call__(self, x):
        return nn.Dense(self.num_classes, name="head")(x.reshape(x.shape[0], -1))


class WithStatistics(nn.Module):
    momentum: float = 0.9
    num_classes: int = 3

    @nn.compact
    def __call__(self, x, train, mask=None):
        mask = None if mask is None else mask[:, None]
        x = nn.BatchNorm(not train, momentum=self.momentum)(x.reshape(x.shape[0], -1), mask=mask)
        return nn.Dense(self.num_classes, name="head")(x)


class WithoutMask(WithStatistics):
    @nn.compact
    def __call__(self, x, train):
        return WithStatistics.__call__(self, x, train)


class Drawing(WithStatistics):
    """Drops inputs, adds noise of a stream of its own, and normalizes, all while it trains."""

    @nn.compact
    def __call__(self, x, train, mask=None):
        x = nn.Dropout(0.5, deterministic=not train)(x.reshape(x.shape[0], -1))
        if train:
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return WithStatistics.__call__(self, x, train, mask)


class Deterministic(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic=True):
        x = nn.Dropout(0.5, deterministic=deterministic)(x.reshape(x.shape[0], -1))
        return nn.Dense(3, name="head")(x)


class DrawingAlways(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = x.reshape(x.shape[0], -1)
        return nn.Dense(3, name="head")(x + jax.random.normal(self.make_rng("noise"), x.shape))


def arrays(count=60, shape=(5, 4), seed=0):
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    lift = labels.reshape(-1, *(1,) * len(shape))
    return (rng.normal(size=(count, *shape)) + 2 * lift).astype(np.float32), labels


def nan_at(index):
    images = arrays()[0]
    images[index, 0, 0] = np.nan
    return images


def data(**changes):
    return zo_fl.dataset(*arrays(), *arrays(30, seed=1), **changes)


def test_a_trained_model_predicts_as_it_did_when_it_was_evaluated(tmp_path):
    rows, changes = [], FEW | {"algorithm": "zowarmup"}
    options = dict(dataset=data(), model=Linear(), changes=changes, quiet=True)
    summary = zo_fl.run("quickstart", tmp_path, on_round=rows.append, **options)
    assert [row["round"] for row in rows] == [1, 2, 3, 4]
    model = zo_fl.load(tmp_path)
    images, labels = arrays(30, seed=1)
    assert np.mean(model.predict(images) == labels) == pytest.approx(summary["final_accuracy"])
    assert model.logits(images[:1]).shape == (1, 3) and model.features(images).shape == (30, 20)
    assert model.predict(images[:0]).shape == (0,)
    with pytest.raises(ConfigError, match="scale them as then"):
        model.predict(255 * images)
    again = zo_fl.load(tmp_path, model=Linear())
    np.testing.assert_array_equal(again.predict(images), model.predict(images))


@pytest.mark.parametrize(
    ("images", "message"),
    (
        (np.zeros((5, 4), np.float32), r"images \(5, 4\); allowed: \(n, 5, 4, 1\)"),
        (np.zeros((5, 4, 1), np.float32), "one image needs a leading axis"),
        (np.zeros((2, 4, 5), np.float32), r"allowed: \(n, 5, 4, 1\)"),
        (np.zeros((2, 5, 4, 3), np.float32), r"allowed: \(n, 5, 4, 1\)"),
        (np.zeros((2, 5, 4), np.uint8), "images of uint8; the model was trained on float32 in"),
        (np.full((2, 5, 4), 200.0), r"pixels in \[200, 200\]; the model was trained on \["),
        (np.full((2, 5, 4), np.nan), r"pixels in \[nan, nan\]"),
        (np.ones((2, 5, 4), bool), "images of bool"),
        (np.ones((2, 5, 4), object), "images of object"),
        (np.ma.masked_equal(np.eye(5, 4)[None], 1), "masked values"),
        ([np.zeros((5, 4)), np.zeros((4, 4))], "images is no array"),
    ),
)
def test_images_unlike_those_of_training_are_refused_in_one_line(images, message):
    shown = saved_model.Images((5, 4, 1), "float32", -2.0, 6.0)
    with pytest.raises(ConfigError, match=message):
        shown.checked(images)


def test_no_images_and_images_of_the_range_are_fine():
    shown = saved_model.Images((5, 4, 1), "float32", -2.0, 6.0)
    assert shown.checked(np.zeros((0, 5, 4))).shape == (0, 5, 4, 1)
    assert shown.checked(np.full((2, 5, 4), 9.0)).shape == (2, 5, 4, 1)
    assert shown.checked(np.full((2, 5, 4), 1.0, ">f4")).dtype == np.float32
    with pytest.warns(UserWarning, match="are they on its scale"):
        shown.checked(np.arange(20.0).reshape(1, 5, 4) / 255)
    bytes_ = saved_model.Images((5, 4, 3), "uint8", 0.0, 255.0)
    assert bytes_.checked(np.zeros((2, 5, 4, 3), np.uint8)).dtype == np.uint8
    with pytest.raises(ConfigError, match="images of float64; the model was trained on uint8 in"):
        bytes_.checked(np.zeros((2, 5, 4, 3)))
    with pytest.raises(ConfigError, match=r"pixels in \[0, 256\]"):
        bytes_.checked(np.arange(60).reshape(1, 5, 4, 3) // 59 * 256)


class WithPart(nn.Module):
    part: Callable = nn.relu
    table: np.ndarray | None = None

    @nn.compact
    def __call__(self, x):
        x = self.part(x.reshape(x.shape[0], -1))
        if self.table is not None:
            x = x * jnp.asarray(self.table)[None]
        return nn.Dense(3, name="head")(x)


class Headless(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, name="out")(x.reshape(x.shape[0], -1))


class Odd(nn.Module):
    """Does something of its own with the outputs of its last layer, whose weights have a dtype."""

    part: Callable = lambda x: x
    dtype: str = "float32"

    @nn.compact
    def __call__(self, x):
        return self.part(
            nn.Dense(3, name="head", param_dtype=self.dtype)(x.reshape(x.shape[0], -1))
        )


def with_slope(slope):
    """Returns the identity, with a derivative that is not its own."""
    same = jax.custom_jvp(lambda x: x)
    same.defjvp(lambda at, along: (at[0], slope * along[0]))
    return Odd(same)


def test_methods_that_set_the_last_layer_need_its_outputs_to_be_the_logits():
    few = configs.resolve(configs.changed(configs.resolve({}), FEW | {"algorithm": "ridge"}))
    assert zo_fl.build(few, data(), Odd(nn.log_softmax)).phases
    for part in (nn.softmax, jnp.negative, lambda x: 2 * x):
        with pytest.raises(ConfigError, match="Odd does something to the outputs of its layer"):
            zo_fl.build(few, data(), Odd(part))


def test_only_methods_that_set_the_last_layer_need_to_know_it(tmp_path):
    options = dict(dataset=data(), model=Headless(), changes=FEW, quiet=True)
    assert zo_fl.run("quickstart", tmp_path / "zo", **options)["final_accuracy"] > 0
    options["changes"] = FEW | {"algorithm": "ridge"}
    with pytest.raises(ConfigError, match="no Dense layer 'head'.*there are: out; name the last"):
        zo_fl.run("quickstart", tmp_path / "ridge", **options)
    assert not (tmp_path / "ridge").exists()


def power(x, exponent):
    return x**exponent


def test_models_are_told_apart_by_what_they_compute_not_by_what_it_is_called():
    def of(part, table=None):
        return own_model.identity(WithPart(part, table), data())

    square = of(lambda x: x * x)
    assert of(lambda y: y * y) == square
    key = jax.random.key(0)
    assert of(lambda x: x * jax.random.normal(key)) != square
    slopes = [own_model.identity(with_slope(slope), data()) for slope in (1.0, 1.0, 2.0)]
    assert slopes[0] == slopes[1] != slopes[2]
    assert of(lambda x: jnp.sin(x)) != square
    assert of(functools.partial(power, exponent=2)) == of(functools.partial(power, exponent=2))
    assert of(functools.partial(power, exponent=2)) != of(functools.partial(power, exponent=3))
    tables = [np.arange(20.0, dtype=np.float32) + shift for shift in (0, 0, 1)]
    first, again, other = (of(nn.relu, table) for table in tables)
    assert first == again != other


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The folder of a run, its options, and its summary."""
    path = tmp_path_factory.mktemp("finished")
    options = dict(dataset=data(), model=WithPart(lambda x: x * x), changes=FEW, quiet=True)
    return path, options, zo_fl.run("quickstart", path, **options)


def test_the_same_folder_is_resumed_with_the_same_data_and_model_alone(finished):
    path, options, once = finished
    assert zo_fl.run("quickstart", path, **options) == once
    other = zo_fl.dataset(*arrays(seed=5), *arrays(30, seed=1))
    with pytest.raises(ConfigError, match=r"config\.data\.name='own:"):
        zo_fl.run("quickstart", path, **options | {"dataset": other})
    with pytest.raises(ConfigError, match="only the same model resumes"):
        zo_fl.run("quickstart", path, **options | {"model": None})


def test_another_model_under_the_same_name_is_not_taken_for_the_first(finished, tmp_path):
    path, options, _ = finished
    with pytest.raises(ConfigError, match=r"the model WithPart \w+, given WithPart \w+; only"):
        zo_fl.run("quickstart", path, **options | {"model": WithPart(lambda x: jnp.sin(x))})
    with pytest.warns(UserWarning, match="trained with the model WithPart .*WithPart .* is anoth"):
        zo_fl.load(path, model=WithPart(lambda x: jnp.sin(x)))
    with pytest.raises(ConfigError, match="no submodule 'stem'"):
        zo_fl.load(path, model=WithPart(lambda x: x * x)).features(arrays()[0], ("stem",))
    path = shutil.copytree(path, tmp_path / "copy", ignore=shutil.ignore_patterns("model"))
    with pytest.raises(ConfigError, match="model is damaged, or of another model"):
        zo_fl.load(path, model=WithPart(lambda x: x * x))


@pytest.mark.parametrize(
    ("change", "message"),
    (
        (
            {"x_train": np.where(np.arange(60)[:, None, None] == 9, 1e30, arrays()[0])},
            "in image 9;",
        ),
        ({"x_test": 300 * arrays(30)[0]}, "give both on one scale"),
        ({"y_train": np.arange(60) % 3 * 50}, "labels reach 100, and 3 of these 101 classes"),
        (
            {"x_train": np.ones((60, 3, 8, 8)), "x_test": np.ones((30, 3, 8, 8))},
            r"look like \(N, c, H, W\)",
        ),
    ),
)
def test_arrays_that_are_likely_meant_otherwise_are_a_warning(change, message):
    (x_train, y_train), (x_test, y_test) = arrays(), arrays(30)
    given = dict(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test) | change
    with pytest.warns(UserWarning, match=message):
        zo_fl.dataset(**given)


@pytest.mark.parametrize(
    "name, norm", (("cnn", "none"), ("cnn_large", "none"), ("patches", "none"))
)
def test_images_too_small_for_the_config_s_model_are_one_line(name, norm, tmp_path):
    images, labels = np.ones((60, 1, 2, 1), np.uint8), arrays()[1]
    small = zo_fl.dataset(images, labels, images, labels)
    changes = FEW | {"model.name": name, "model.norm": "none"}
    with pytest.raises(ConfigError, match=rf"the model '{name}' cannot take images \(1, 2, 1\)"):
        zo_fl.run("quickstart", tmp_path / "run", dataset=small, changes=changes)
    assert not (tmp_path / "run").exists()


def test_uint8_and_float_images_of_equal_pixels_are_the_same_inputs():
    images = np.random.default_rng(0).integers(0, 256, (12, 4, 4, 3), np.uint8)
    labels = np.arange(12) % 3
    small, large = (zo_fl.dataset(x, labels, x, labels) for x in (images, images / 255.0))
    np.testing.assert_allclose(small[4:6], large[4:6], rtol=1e-5)  # mean and deviation


def test_pixels_that_float32_hardly_holds_are_not_divided_by_their_deviation():
    images, labels = arrays()
    assert zo_fl.dataset(images * 1e-41, labels, images * 1e-41, labels).std == 1.0


def test_pixels_are_normalized_by_what_is_given_and_that_is_part_of_the_name():
    usual, other = data(), data(mean=1.0, std=[2.0])
    assert other.mean.tolist() == [1.0] and other.std.tolist() == [2.0]
    half = data(mean=1.0)
    assert half.mean.tolist() == [1.0] and half.std == usual.std
    assert len({one.name for one in (usual, other, half)}) == 3


def test_a_given_partition_of_unequal_clients_is_kept():
    held = [np.arange(0, 10), np.arange(10, 30), np.arange(30, 34)]
    block = defaults(federated.BLOCK) | {"val_fraction": 0.2, "high_fraction": 0.4}
    found = federated.load(**block, dataset=data(client_indices=held))
    assert found.clients.client_sizes.tolist() == [8, 16, 3]
    table, sizes = found.clients.client_indices, found.clients.client_sizes
    kept = [set(row[:size]) for row, size in zip(table, sizes, strict=True)]
    assert all(part <= set(rows) for part, rows in zip(kept, held, strict=True))
    assert len(found.val_indices) == 34 - 27 and found.clients.client_tiers.sum() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    (
        ({"x_train": np.zeros((60, 5))}, "x_train has shape"),
        ({"x_train": np.zeros((60, 5, 4), int)}, "x_train is int64; allowed: uint8"),
        ({"x_train": np.zeros((60, 6, 4), np.float32)}, "one shape and one dtype"),
        ({"x_train": np.zeros((60, 5, 4), np.uint8)}, "one shape and one dtype"),
        ({"y_train": np.zeros(59, int)}, "y_train is int64"),
        ({"y_train": np.zeros(60)}, "y_train is float64"),
        ({"y_train": np.full(60, -1)}, "y_train has a label -1"),
        ({"x_train": np.zeros((60, 0, 4))}, "x_train has shape"),
        ({"x_train": [[1], [1, 2]]}, "x_train is no array"),
        ({"y_train": np.ma.masked_equal(arrays()[1], 1)}, "y_train has masked values"),
        ({"y_train": arrays()[1].astype("m8[s]")}, "y_train is timedelta64"),
        ({"num_classes": 2}, "num_classes=2 and there is a label 2"),
        ({"num_classes": 3.5}, "num_classes=3.5 .* an integer from 3 to"),
        ({"num_classes": 10**7}, "num_classes=10000000 .* an integer from 3 to"),
        ({"y_train": np.full(60, 2**32 + 1)}, "y_train has a label 4294967297; allowed: below"),
        ({"x_train": nan_at(7)}, "x_train has 1 images with pixels that are NaN .* is image 7;"),
        ({"x_test": nan_at(3)[:30]}, "x_test has 1 images .* is image 3;"),
        ({"x_train": np.full((60, 5, 4), 1e300)}, "x_train has 60 images"),
        ({"mean": [0.1, 0.2]}, r"mean=\[0.1, 0.2\]; allowed: one number, or 1 of them"),
        ({"std": 0.0}, r"std=0.0; allowed: one number above 0, or 1 of them"),
        ({"std": 1e-40}, r"std=1e-40; allowed: one number above 0"),
        ({"mean": "a"}, "mean='a'; allowed: one number"),
        ({"mean": np.nan}, "mean=nan; allowed: one number"),
        ({"client_indices": [[0, 60]]}, r"client_indices\[0\] has row 60; allowed: 0 to 59"),
        ({"client_indices": {"a": [0]}}, "client_indices is a dict; allowed: a list"),
        ({"client_indices": 5}, "client_indices is a int; allowed: a list"),
        ({"client_indices": [np.ones(60, bool)]}, "np.flatnonzero makes rows of a mask"),
        ({"client_indices": [[0, [1]]]}, "client_indices is no array"),
        ({"client_indices": [[]]}, r"client_indices\[0\] is"),
        ({"client_indices": []}, "client_indices is empty"),
        ({"client_indices": [[0, 1], [1, 2]]}, "client_indices has row 1 2 times"),
    ),
)
def test_arrays_that_do_not_go_together_are_one_line(change, message):
    (x_train, y_train), (x_test, y_test) = arrays(), arrays(30)
    given = dict(x_train=x_train, y_train=y_train, x_test=x_test, y_test=y_test) | change
    with pytest.raises(ConfigError, match=message) as error:
        zo_fl.dataset(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("model", "changes", "message"),
    (
        (Linear(num_classes=4), {}, "gives float32.4. an image, the data set has 3 classes"),
        (Odd(lambda x: (x, x)), {}, "gives tuple an image"),
        (Odd(jnp.int32), {}, "gives int32.3. an image"),
        (Odd(dtype="bfloat16"), {}, "has parameters of bfloat16"),
        (nn.Embed(3, 3), {}, "the model Embed fails on images"),
        (DrawingAlways(), {}, "the model DrawingAlways fails on images.*InvalidRngError"),
        (WithStatistics(momentum=0.99), {}, "keeps 0.99 of its running statistics"),
        (Linear(), {"algorithm": "heterofl"}, "Linear has no narrow form"),
    ),
)
def test_a_model_that_does_not_fit_is_one_line_and_nothing_is_written(
    model, changes, message, tmp_path
):
    changes = FEW | changes
    with pytest.raises(ConfigError, match=message) as error:
        zo_fl.run("quickstart", tmp_path / "run", dataset=data(), model=model, changes=changes)
    assert "\n" not in str(error.value) and not (tmp_path / "run").exists()


def test_batch_statistics_are_averaged_and_a_missing_mask_is_said(tmp_path):
    options = dict(dataset=data(), changes=FEW | {"warmup.batch_size": 4}, quiet=True)
    summary = zo_fl.run("quickstart", tmp_path / "a", model=WithStatistics(), **options)
    assert summary["diverged_round"] is None
    assert zo_fl.load(tmp_path / "a").model_state["BatchNorm_0"]["mean"].shape == (20,)
    with pytest.warns(UserWarning, match="takes no `mask`"):
        own_model.own_task(WithoutMask(), data())


def test_modules_that_draw_while_they_train_do_and_both_sides_of_a_pair_draw_the_same(tmp_path):
    rows = []
    changes = {"algorithm": "zowarmup", "zo.bn_policy": "batch", "zo.eps": 1e-3, "zo.lr": 1.0}
    changes = FEW | changes
    options = dict(dataset=data(), model=Drawing(), changes=changes, quiet=True)
    summary = zo_fl.run("quickstart", tmp_path, on_round=rows.append, **options)
    assert rows[0]["update_norm"] > 0 and summary["diverged_round"] is None
    # Draws that differ would move the loss by about 0.1, and a slope by 0.1 / (2 eps) = 50.
    assert rows[-1]["update_norm"] < 10
    model = zo_fl.load(tmp_path, model=Drawing())
    images = arrays()[0]
    np.testing.assert_array_equal(model.logits(images), model.logits(images))


def test_a_module_with_flax_s_argument_deterministic_draws_while_it_trains():
    learning = own_model.own_task(Deterministic(), data())
    given = *learning.init(jax.random.key(0)), {"image": arrays()[0][..., None]}, np.ones(60, bool)
    plain, drawn = (learning.logits(*given, train, jax.random.key(1))[0] for train in (False, True))
    assert not np.allclose(plain, drawn)


def test_what_is_no_data_set_and_no_function_is_one_line(tmp_path):
    with pytest.raises(ConfigError, match="dataset is a tuple; allowed: that of zo_fl.dataset"):
        zo_fl.run({}, tmp_path / "run", dataset=arrays())  # pyright: ignore
    with pytest.raises(ConfigError, match="on_round is a int; allowed: a function of a row"):
        zo_fl.run({}, tmp_path / "run", on_round=5)  # pyright: ignore
    with pytest.raises(ConfigError, match="has a null byte"):
        zo_fl.run({}, "a\0b")
    assert not (tmp_path / "run").exists()


def test_a_folder_without_a_finished_run_is_said(tmp_path):
    with pytest.raises(ConfigError, match="holds no finished run with a model"):
        zo_fl.load(tmp_path)


def test_every_exported_name_is_there_and_has_a_docstring():
    for name in zo_fl.__all__:
        assert getattr(zo_fl, name).__doc__, name
    assert len(zo_fl.__all__) <= 12 and set(zo_fl.__all__) == set(zo_fl._HOME)
