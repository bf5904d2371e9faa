"""Configs: all fields, their defaults and their check, and config files by name.

A block of fields is declared beside the function that takes it. A config file exports
``get_config()``; it changes fields of ``default()``, or of another one, got by ``load``.
"""

import ast
import importlib.util
import traceback
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from flax import traverse_util
from ml_collections import ConfigDict

from zo_fl import methods, models
from zo_fl.config import check
from zo_fl.data import federated
from zo_fl.engine.fields import Block, ConfigError, Field, Rule, path_of
from zo_fl.wrap import faults, robust

RUN: Block = {
    "num_devices": Field(
        0,
        "devices to use; auto: all there are, of a CPU's cores those that pay",
        at_least=1,
        zero="auto",
    ),
    "clients_per_vmap": Field(
        0,
        "clients evaluated at once on a device; auto: what was best on CPUs",
        at_least=1,
        zero="auto",
    ),
    "data": Field(
        "auto",
        "place of the data: on each device, or streamed from the host",
        ("auto", "device", "stream"),
    ),
    "rounds_per_jit": Field(10, "rounds a dispatch at most", at_least=1),
    "eval_every": Field(
        10, "rounds between evaluations; the end of a phase is always evaluated", at_least=1
    ),
    "eval_batch_size": Field(500, "examples evaluated at once", at_least=1),
    "checkpoint_every": Field(
        10, "rounds between checkpoints; the end of a phase is always saved", at_least=1
    ),
}


_METHOD = Rule(
    lambda: f"{', '.join(sorted(methods.names()))}, or several joined by +",
    lambda name: set(name.split("+")) <= methods.names(),
)


def blocks() -> Block:
    """Returns the declaration of every field."""
    return {
        "algorithm": Field("zowarmup", "the method, or methods one after the other", rule=_METHOD),
        "seed": Field(
            0,
            "seed of weights, cohorts, batches, augmentation, directions",
            at_least=0,
            below=2**32,
        ),
        "data": federated.BLOCK,
        "model": models.BLOCK,
        "faults": faults.BLOCK,
        "robust": robust.BLOCK,
        **methods.blocks(),
        "run": RUN,
    }


def default() -> ConfigDict:
    """Returns every field with its default: ZOWarmUp on CIFAR-10, ResNet18, 10/90."""
    # Locked: a misspelt field fails where it is set. Types are checked by ``resolve``: some fields
    # take a number or a name.
    return ConfigDict(check.defaults(blocks()), type_safe=False).lock()


def resolve(config: ConfigDict | Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config as plain nested dicts, every field of it checked.

    Args:
      config: fields that are absent have their defaults.

    Raises:
      ConfigError: a field that there is not, or a value that is not allowed.
    """
    given = config.to_dict() if isinstance(config, ConfigDict) else config
    return check.resolve(blocks(), given)


def parse(field: str, text: str) -> Any:
    """Returns the checked value that a text on a command line gives a field, by its dotted name.

    Raises:
      ConfigError: an unknown field, or a value that is not allowed.
    """
    known = check.flat(blocks())
    if field not in known:
        raise ConfigError(check.unknown(field, known))
    return check.checked(known[field], field, check.parse(known[field], text))


def changed(resolved: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a resolved config with dotted fields changed, not yet checked.

    Raises:
      ConfigError: a field that there is not.
    """
    flat = flatten(resolved)
    for field in changes:
        if field not in flat:
            raise ConfigError(check.unknown(field, flat))
    return traverse_util.unflatten_dict({**flat, **changes}, sep=".")


def blocks_read(parts: Iterable[str]) -> set[str]:
    """Returns the blocks that decide what methods, keys of ``METHODS``, do: common ones and own."""
    own = {block for part in parts for block in methods.METHODS[part].reads}
    return {"data", "model", "faults", "robust"} | own


def read_by(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the part of a run's config that its method reads, checked.

    Other blocks need not be known: they may be of another version of this program.

    Raises:
      ConfigError: a method, field or value of another version.
    """
    known = resolve({"algorithm": config["algorithm"]})
    parts = methods.parts(known["algorithm"])
    names = {"algorithm", "seed", "run"} | blocks_read(parts)
    resolved = resolve(named({name: config[name] for name in names if name in config}))
    return {name: resolved[name] for name in sorted(names)} | {"algorithm": "+".join(parts)}


def identity(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the fields that identify a run, by dotted names: the blocks that its method reads.

    Raises:
      ConfigError: of another version of this program, with fields that there are not now.
    """
    return flatten(read_by(config))


def named(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a config of any version, nested or by dotted names, with names that once were 0."""
    known = check.flat(blocks())
    flat = {f: known[f].named(v) if f in known else v for f, v in flatten(config).items()}
    return traverse_util.unflatten_dict(flat, sep=".")


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a resolved config as methods read it: with 0 for names, see ``Field.zero``."""
    known = check.flat(blocks())
    flat = {f: known[f].plain(v) for f, v in flatten(config).items()}
    return traverse_util.unflatten_dict(flat, sep=".")


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested dicts as one dict of dotted names."""
    return traverse_util.flatten_dict(dict(tree), sep=".")


def numbers_that_differ(resolved: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """Returns the values of the fields but the seed in which configs differ, by dotted name.

    Raises:
      ConfigError: runs that differ in one of them cannot be one program.
    """
    whole, known = [flatten(one) for one in resolved], check.flat(blocks())
    found = {
        field: [one[field] for one in whole]
        for field in whole[0]
        if field != "seed" and any(one[field] != whole[0][field] for one in whole)
    }
    may = [field for field, declared in known.items() if declared.varies]
    for field, values in found.items():
        if field not in may:
            shown = ", ".join(map(str, values))
            raise ConfigError(
                f"config.{field}={shown}: runs that differ in it cannot be one program; allowed: "
                f"the seed, {', '.join(may)}"
            )
        if known[field].zero in values:
            raise ConfigError(
                f"config.{field}={known[field].zero} lets the program choose, which one program "
                "cannot do for some of its runs; give that number itself"
            )
    return found


def load(name: str | Path) -> ConfigDict:
    """Returns the config of a file, by a name in ``configs``, such as ``quickstart``, or by a path.

    Raises:
      ConfigError: there is no such file, or it fails.
    """
    return call(find(name), "get_config")


def closing(name: str | Path) -> str:
    """Returns the last words of a run, the text ``CLOSING`` of its config's file, or "".

    Raises:
      ConfigError: there is no such file.
    """
    for node in ast.parse(find(name).read_bytes()).body:
        match node:
            case ast.Assign(targets=[ast.Name("CLOSING")], value=ast.Constant(str(text))):
                return text
    return ""


def folder() -> Path:
    """Returns the folder of the configs that come along."""
    here = Path(__file__).parent.parent
    # Within the package where it is installed, beside it in a checkout.
    return here / "configs" if (here / "configs").is_dir() else here.parent / "configs"


def names(within: str = "") -> list[str]:
    """Returns the names of the configs that come along; ``within`` is a folder of them."""
    files = (path.stem for path in (folder() / within).glob("*.py"))
    return sorted(name for name in files if name not in ("__init__", "base", "common"))


def find(name: str | Path, kind: str = "config", within: str = "") -> Path:
    """Returns the path of a file that is given by name or by path.

    Args:
      name: of one that comes along, without its ending, or any path.
      kind: what it is, for the message; ``--KIND`` is the flag.
      within: folder in ``configs`` of those that come along.

    Raises:
      ConfigError: there is no such file.
    """
    path, known = path_of(name), folder() / within
    if path.is_file():
        return path
    # A name; or a path in the repository, from elsewhere.
    is_ours = path.suffix in ("", ".py") and path.parent.parts[-1:] in ((), (known.name,))
    if is_ours and (known / f"{path.stem}.py").is_file():
        return known / f"{path.stem}.py"
    near = check.near(path.stem, names(within))
    hint = " or ".join(near)
    hint = f"did you mean {hint}?" if near else f"there are: {', '.join(names(within))}"
    raise ConfigError(f"no {kind} file {str(name)!r}; {hint}; change --{kind}")


def call(path: Path, function: str, *arguments: Any) -> Any:
    """Calls a function of a user's file, and returns its result.

    Raises:
      ConfigError: it fails; names the file and the line.
    """
    spec = importlib.util.spec_from_file_location(f"zo_fl_file_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{path} is no Python file; its name must end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        return getattr(module, function)(*arguments)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except Exception as error:
        own = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == str(path)]
        number = error.lineno if isinstance(error, SyntaxError) else own[-1].lineno if own else 0
        text = error.msg if isinstance(error, SyntaxError) else str(error).strip()
        first = text.splitlines()[0] if text else ""
        raise ConfigError(f"{path}, line {number}: {type(error).__name__}: {first}") from error
