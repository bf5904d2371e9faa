"""The trained model of a run: saved at its end, loaded to predict."""

import dataclasses
import importlib
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
from etils import epy

from zo_fl import config as configs
from zo_fl import models, own_model
from zo_fl.data import own_data
from zo_fl.engine import activations, image_task
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.types import Dataset, ModelState, Params, Task
from zo_fl.host import devices, files, processes

with epy.lazy_imports():  # as in host.checkpoint
    import orbax.checkpoint as ocp

_FOLDER, _FACTS = "model", "model.json"
_BATCH = 500


class Images(NamedTuple):
    """The images that a model was trained on.

    Attributes:
      shape: ``(H, W, c)``.
      dtype: ``uint8`` or ``float32``; of a model of version 0.2 "", any.
      low: smallest value of a pixel.
      high: largest value.
    """

    shape: tuple[int, ...]
    dtype: str
    low: float
    high: float

    def checked(self, images: Any) -> np.ndarray:
        """Returns images ``[n, H, W, c]`` as they were in training; grey ones may lack ``c``.

        Raises:
          ConfigError: their shape, dtype or range is another.
        """
        given = own_data.as_array("images", images)
        if given.ndim == 3 and self.shape[-1] == 1 and given.shape[1:] == self.shape[:2]:
            given = given[..., None]
        if given.shape[1:] != self.shape:
            one = "; one image needs a leading axis" if given.shape == self.shape else ""
            raise ConfigError(f"images {given.shape}; allowed: (n, {str(self.shape)[1:]}{one}")
        if given.dtype.kind not in {"": "iuf", "uint8": "iu"}.get(self.dtype, "f"):
            raise ConfigError(
                f"images of {given.dtype}; the model was trained on {self.dtype} in "
                f"[{self.low:g}, {self.high:g}]: give these"
            )
        width = self.high - self.low
        least, most = self.low - width, self.high + width
        if self.dtype == "uint8":
            least, most = max(least, 0), min(most, 255)
        ends = (given.min(), given.max()) if given.size else (self.low, self.high)
        low, high = map(float, ends)
        if self.dtype and not least <= low <= high <= most:
            raise ConfigError(
                f"pixels in [{low:g}, {high:g}]; the model was trained on [{self.low:g}, "
                f"{self.high:g}]: scale them as then"
            )
        if 0 < high - low < width / own_data.FAR:
            warnings.warn(
                f"all pixels lie in [{low:g}, {high:g}]; the model was trained on [{self.low:g}, "
                f"{self.high:g}]: are they on its scale?",
                stacklevel=3,
            )
        return given


class TrainedModel(NamedTuple):
    """A finished run's model, ready to predict.

    Attributes:
      params: trained parameters, as evaluated last.
      model_state: running statistics, or ``{}``.
      config: the run's, resolved.
      summary: content of ``summary.json``.
      task: model, preprocessing and loss as pure functions.
      images: what it was trained on, and is to be given.
    """

    params: Params
    model_state: ModelState
    config: dict[str, Any]
    summary: dict[str, Any]
    task: Task
    images: Images

    def logits(self, images: Any) -> np.ndarray:
        """Returns logits ``f32[n, classes]`` of images like those of training, see ``Images``."""
        return _in_batches(self._logits, self.images.checked(images))

    def predict(self, images: Any) -> np.ndarray:
        """Returns the most likely labels ``i32[n]`` of images like those of training."""
        return self.logits(images).argmax(-1).astype(np.int32)

    def features(self, images: Any, layers: tuple[str, ...] = ()) -> np.ndarray:
        """Returns ``f32[n, d]``, inputs of the last layer or outputs of others; see ``task``."""
        return _in_batches(
            lambda batch, mask: activations.features(
                self.task, self.params, self.model_state, {"image": batch}, mask, layers
            ),
            self.images.checked(images),
        )

    def _logits(self, batch, mask):
        return self.task.logits(self.params, self.model_state, {"image": batch}, mask, False)[0]


def save(
    path: Path, model: tuple[Params, ModelState], dataset: Dataset, module: nn.Module | None
) -> None:
    """Saves the model of a run in its folder; all processes take part.

    It was trained on a data set; ``module`` is the user's own, or None if the config names it.
    """
    params, model_state = model
    with ocp.StandardCheckpointer() as checkpointer:
        tree = {"params": params, "model_state": model_state}
        checkpointer.save((path / _FOLDER).absolute(), tree, force=True)
    images = dataset.train["image"]
    facts = {
        "image_shape": list(images.shape[1:]),
        "dtype": str(images.dtype),
        "low": float(images.min()),
        "high": float(images.max()),
        "num_classes": dataset.num_classes,
        "mean": dataset.mean.tolist(),
        "std": dataset.std.tolist(),
        "own": None if module is None else _describe(module),
    }
    if processes.is_first():
        files.write_json(path / _FACTS, facts)


def load(path: str | Path, model: nn.Module | None = None) -> TrainedModel:
    """Returns the model of a finished run.

    Args:
      path: the run's folder.
      model: the user's own module, if the run had one and it cannot be imported again. A warning
        says if it computes something else than the one that was trained.

    Raises:
      ConfigError: there is no finished run, it is damaged, or its module cannot be made.
    """
    path = files.path_of(path)
    saved = files.read_json(path / "config.json", "config")
    facts = files.read_json(path / _FACTS, "image_shape", "num_classes", "mean", "std", "own")
    summary = files.read_json(path / "summary.json")
    if saved is None or facts is None or summary is None:
        raise ConfigError(f"{path} holds no finished run with a model; finish it, or run it again")
    config = configs.named(saved["config"])
    if model is None and facts["own"] is not None:
        model = _import(facts["own"], path)
    shape, dtype = tuple(facts["image_shape"]), facts.get("dtype", "")
    mean, std = (np.array(facts[name], np.float32) for name in ("mean", "std"))
    # Known fields alone: another version may have had more of them, or fewer.
    given, fields = config["model"], models.BLOCK.items()
    block = {name: field.plain(given.get(name, field.default)) for name, field in fields}  # pyright: ignore
    precision = block.pop("precision")
    if model is None:
        module = models.create(**block, num_classes=facts["num_classes"])
        learning = image_task.classification(module, shape, facts["num_classes"], mean, std)
    else:
        two = {"image": np.zeros((2, *shape), dtype or "float32"), "label": np.zeros(2, np.int32)}
        blank = Dataset("", two, two, facts["num_classes"], mean, std)
        learning, said = own_model.own_task(model, blank), own_model.identity(model, blank)
        if dtype and said != saved.get("model"):
            warnings.warn(
                f"{path} was trained with the model {saved.get('model')}, and {said} is another, "
                "or is written otherwise by this version of JAX",
                stacklevel=2,
            )
    learning = learning.with_precision(precision)
    params, model_state = jax.eval_shape(learning.init, jax.random.key(0))
    device = jax.sharding.SingleDeviceSharding(devices.all_devices()[0])
    like = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        {"params": params, "model_state": model_state},
    )
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            tree = checkpointer.restore((path / _FOLDER).absolute(), like)
    except Exception as error:  # of orbax: many kinds
        first = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"{path / _FOLDER} is damaged, or of another model ({type(error).__name__}: {first}); "
            "pass the model that was trained, or run again in another folder"
        ) from None
    images = Images(shape, dtype, facts.get("low", 0.0), facts.get("high", 0.0))
    return TrainedModel(tree["params"], tree["model_state"], config, summary, learning, images)


def _describe(module: nn.Module) -> dict[str, Any]:
    """Returns file, class and, if they are JSON, fields of a module; ``_import`` reads it."""
    fields = {
        field.name: getattr(module, field.name)
        for field in dataclasses.fields(module)
        if field.name not in ("parent", "name")
    }
    try:
        fields = json.loads(json.dumps(fields))
    except TypeError:
        fields = None
    kind = type(module)
    return {"file": kind.__module__, "class": kind.__qualname__, "fields": fields}


def _import(own: dict[str, Any], path: Path) -> nn.Module:
    try:
        kind: Any = importlib.import_module(own["file"])
        for name in own["class"].split("."):
            kind = getattr(kind, name)
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in own["fields"].items()}
        return kind(**fields)
    except Exception:  # of a user's module: anything
        raise ConfigError(
            f"{path} was trained with {own['class']} of {own['file']}, which cannot be made here; "
            "pass it: zo_fl.load(path, model=...)"
        ) from None


def _in_batches(function, images: np.ndarray) -> np.ndarray:
    """Applies a function of ``(images, mask)`` to any number of images, in batches."""
    size = max(1, min(_BATCH, len(images)))
    program, parts = jax.jit(function), []
    for start in range(0, max(1, len(images)), size):  # of none, the shape of nothing
        batch = images[start : start + size]
        padding = [(0, size - len(batch))] + [(0, 0)] * (images.ndim - 1)
        mask = np.arange(size) < len(batch)
        parts.append(np.asarray(program(np.pad(batch, padding), mask))[: len(batch)])
    return np.concatenate(parts)
