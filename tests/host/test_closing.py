import pytest

from zo_fl.host.closing import WIDTH, closing_table

SUMMARY = {
    "pivot_accuracy": 0.234,
    "final_accuracy": 0.33,
    "best_val_accuracy": 0.35,
    "delta_lo": 0.096,
    "uplink_bytes": 44_700_000,
    "downlink_bytes": 1_340_000_000,
    "forward_passes": 1_234_567,
    "wall_seconds": 4021.2,
    "seconds": {"compiling": 21.0, "rounds": 4000.2},
    "workdir": "runs/quickstart",
}


def test_the_closing_table_has_every_entry_in_human_units():
    table = closing_table(SUMMARY)
    for text in ("23.4 %", "33.0 %", "35.0 %", "+9.6 points", "44.7 MB", "1.34 GB", "1,234,567"):
        assert text in table
    assert "rounds 1:06:40, compiling 0:21" in table
    assert "1:07:01" in table and "runs/quickstart" in table


@pytest.mark.parametrize("name", SUMMARY)
def test_the_closing_table_leaves_out_what_is_missing(name):
    rest = {key: value for key, value in SUMMARY.items() if key != name}
    assert closing_table(SUMMARY | {name: None}) == closing_table(rest)


def test_the_closing_table_fits_80_columns_and_loses_nothing():
    path = "/home/someone/" + "experiments-of-a-long-name/" * 8
    table = closing_table(SUMMARY | {"workdir": path})
    assert max(map(len, table.splitlines())) <= WIDTH
    assert path in "".join(line.strip() for line in table.splitlines())


def test_an_empty_summary_is_no_error():
    closing_table({})
