"""A figure of the paper stands beside runs of the paper's own setting, and of no other."""

import copy
import importlib
from pathlib import Path

from experiments.analysis import comparison, paper, tables
from tests.experiments import fake_sweeps
from tests.experiments.fake_sweeps import only

ROOT = Path(__file__).parents[2]


def config_of(name, **changes):
    config = copy.deepcopy(importlib.import_module(f"configs.{name}").get_config())
    config.update_from_flattened_dict(changes)
    return config.to_dict()


def looked_up(name, row, table="Table 2", column="10/90"):
    figure = paper.lookup(table, config_of(name), row, column)
    return figure and figure.mean


def test_the_configs_that_name_a_figure_get_it():
    expected = {
        ("cifar10_10_90", "ZOWarmUp"): 54.3,
        ("cifar10_high_res_only", "High Res Only"): 44.3,  # 200 or 500 rounds: not stated
        ("cifar10_heterofl", "HeteroFL"): 51.1,
        ("cifar10_zowarmup_fedkseed", "ZOWarmUp+FedKSeed"): 53.4,
        ("imagenet32_10_90", "ZOWarmUp"): 12.3,
        ("imagenet32_heterofl", "HeteroFL"): 16.3,
    }
    assert {pair: looked_up(*pair) for pair in expected} == expected
    assert looked_up("cifar10_mixed_tiers", "High tier first-order", "Table 7") == 48.8
    assert looked_up("cifar10_heterofl_original", "HeteroFL") is None
    assert looked_up("quickstart", "ZOWarmUp") is None


def test_the_sweeps_of_the_paper_get_all_its_figures_for_them():
    names = ("splits", "mixed_tiers", "fedadam", "vit", "local_steps", "pivot", "direction")
    config = importlib.import_module("configs.cifar10_10_90").get_config()
    for name in (*names, "num_directions", "methods"):
        sweep = importlib.import_module(f"configs.sweeps.{name}").get_sweep(config)
        for point in sweep.points:
            if point.row not in paper._read()["tables"][sweep.table]["rows"]:
                continue
            made = config_of("cifar10_10_90", **point.overrides)
            known = paper.known(sweep.table, made, point.row, point.column)
            if known is None:  # a column of ours
                assert point.column.startswith("by itself")
                continue
            # HeteroFL has another model than its own config's there.
            expected = (name, point.row) == ("methods", "HeteroFL")
            assert bool(known.differences) == expected, (point, known)


def test_one_field_otherwise_and_the_figure_is_gone_and_the_field_named():
    fields = {"data.partition": "iid", "model.norm": "group", "warmup.server": "adam"}
    for field, value in (fields | {"zo.lr": 0.0, "robust.rule": "clip"}).items():
        config = config_of("cifar10_10_90", **{field: value})
        assert paper.lookup("Table 2", config, "ZOWarmUp", "10/90") is None
        (phrase,) = paper.known("Table 2", config, "ZOWarmUp", "10/90").differences
        assert phrase.startswith(f"{field} = ")


def test_fields_of_blocks_that_the_algorithm_does_not_read_do_not_matter():
    config = config_of("cifar10_10_90", algorithm="fedavg", **{"zo.lr": 0.0, "zo.eps": 1.0})
    assert paper.lookup("Table 2", config, "High Res Only", "10/90").mean == 44.3
    one_epoch = config_of("cifar10_10_90", algorithm="fedavg", **{"warmup.local_epochs": 1})
    assert paper.lookup("Table 2", one_epoch, "High Res Only", "10/90") is None
    both = config_of("cifar10_10_90", algorithm="fedavg+zo")
    assert paper.lookup("Table 2", both, "ZOWarmUp", "10/90").mean == 54.3


def test_what_differs_is_said_below_the_table(tmp_path):
    same, other = (tmp_path / name for name in ("same", "other"))
    fake_sweeps.make(same, config=fake_sweeps.PAPER)
    fake_sweeps.make(other, config=fake_sweeps.PAPER | {"data.partition": "iid"})
    assert comparison.cells(only(same))[1].paper == (54.3, 4.8, True)
    sweep = only(other)
    cells = comparison.cells(sweep)
    assert all(cell.paper is None for cell in cells)
    (line,) = [line for line in tables.notes(sweep, cells) if "setting" in line]
    assert "High Res Only, 10/90; ZOWarmUp, 10/90" in line
    assert "data.partition = iid instead of dirichlet" in line


def test_runs_on_other_data_say_so(tmp_path):
    fake_sweeps.make(tmp_path, config=fake_sweeps.PAPER | {"data.name": "cifar10_sample"})
    sweep = only(tmp_path)
    notes = tables.notes(sweep, comparison.cells(sweep))
    assert any("Data: cifar10_sample, not the paper's" in line for line in notes)


def test_the_paper_s_nc_and_spreads_without_means_are_shown_as_such():
    figure = paper.lookup(
        "Table 2", config_of("imagenet32_fedkseed"), "FedKSeed from scratch", "10/90"
    )
    assert tables.paper_text(figure) == "nc"
    one = config_of("cifar10_10_90", **{"zo.num_directions": 1})
    assert tables.paper_text(paper.lookup("Figure 7", one, "ZOWarmUp", "S = 1")) == "–(3.0)"
    assert paper.lookup("Table 99", one, "ZOWarmUp", "10/90") is None
