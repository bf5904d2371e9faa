"""Every config and sweep means what it meant at 4ea9af5, fields renamed or taken away apart.

``resolved.json.gz`` holds, for each config and each point of each sweep on the quickstart, the
fields that its method reads, by dotted names.
"""

import functools
import gzip
import json
from pathlib import Path

import pytest

from zo_fl import config as configs

STORED = json.loads(gzip.decompress(Path(__file__).with_name("resolved.json.gz").read_bytes()))


def as_of_now(fields):
    """Returns stored fields by the names of now."""
    return fields


def resolved(config, overrides=None):
    found = configs.identity(configs.changed(config, overrides or {}))
    return json.loads(json.dumps(found))


@functools.cache
def quickstart():
    return configs.resolve(configs.load("quickstart"))


@pytest.mark.parametrize("name", STORED["configs"])
def test_a_config_resolves_to_what_it_did(name):
    found = resolved(configs.resolve(configs.load(name)))
    assert found == as_of_now(STORED["configs"][name])


@pytest.mark.parametrize("name", STORED["sweeps"])
def test_the_points_of_a_sweep_resolve_to_what_they_did(name):
    path = configs.find(name, "sweep", "sweeps")
    sweep = configs.call(path, "get_sweep", configs.load("quickstart"))
    found = {
        f"{point.row} | {point.column}": resolved(quickstart(), point.overrides)
        for point in sweep.points
    }
    assert found == {cell: as_of_now(fields) for cell, fields in STORED["sweeps"][name].items()}
