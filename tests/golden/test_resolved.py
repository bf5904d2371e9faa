"""Every config, and every point of every sweep on the quickstart, means what it meant.

``resolved.json.gz`` holds the fields that its method reads, by dotted names; it is older than the
names that stand for 0 (``Field.zero``). Up to e05b98d it was what 4ea9af5 resolved, with a table of
renamed fields; it is made anew when a field is renamed or a config is meant to change:

    python -m tests.golden.test_resolved
"""

import gzip
import json
from pathlib import Path

import pytest

from zo_fl import config as configs
from zo_fl.config import check

FILE = Path(__file__).with_name("resolved.json.gz")
STORED = json.loads(gzip.decompress(FILE.read_bytes())) if FILE.exists() else {"": {}}


def found(kind):
    """Returns file or point -> the fields that its method reads."""
    base, resolved = configs.resolve(configs.load("quickstart")), {}
    folder = configs.folder() / ("" if kind == "configs" else kind)
    for path in sorted(folder.glob("[!_]*.py")):
        if kind == "sweeps":
            for point in configs.call(path, "get_sweep", configs.load("quickstart")).points:
                changed = configs.changed(base, point.overrides)
                resolved[f"{path.stem} | {point.row} | {point.column}"] = configs.identity(changed)
        else:
            resolved[path.stem] = configs.identity(configs.resolve(configs.load(path.stem)))
    return json.loads(json.dumps(resolved))


@pytest.mark.parametrize("kind", STORED)
def test_configs_and_sweeps_resolve_to_what_they_did(kind):
    now, known = found(kind), check.flat(configs.blocks())
    assert STORED[kind].keys() <= now.keys()
    for name, then in STORED[kind].items():
        then = configs.flatten(configs.named(then))
        since = {field: known[field].usual for field in now[name].keys() - then.keys()}
        assert now[name] == then | since, name


if __name__ == "__main__":
    made = json.dumps({kind: found(kind) for kind in ("configs", "sweeps")}, sort_keys=True)
    FILE.write_bytes(gzip.compress(made.encode(), mtime=0))
