import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore

from zo_fl.engine.errors import ConfigError
from zo_fl.host import workdir
from zo_fl.host.metrics import MetricsWriter, read_metrics, whole_until


def row(round_idx, **more):
    return {"round": round_idx, "phase": "zo", "train_loss": 1 / round_idx, **more}


def write(workdir, rows, resume_after=None):
    with MetricsWriter(workdir, resume_after) as writer:
        writer.write(rows)


def events(workdir):
    """Returns every event in tb/, in the order of writing."""
    found = []
    for path in sorted(Path(workdir, "tb").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(workdir):
    return {
        (value.tag, event.step): value.simple_value
        for event in events(workdir)
        for value in event.summary.value
    }


def test_what_is_read_is_what_was_written(tmp_path):
    rows = [row(1, uplink_bytes=10**15), row(2, test_accuracy=0.1 + 0.2), row(3)]
    write(tmp_path, rows)
    assert read_metrics(tmp_path / "metrics.jsonl") == rows


def test_numpy_scalars_become_plain_numbers_in_full_precision(tmp_path):
    write(tmp_path, [row(np.int32(1), a=np.float32(0.1), b=np.array(2))])
    (read,) = read_metrics(tmp_path / "metrics.jsonl")
    assert read["a"] == float(np.float32(0.1)) and read["b"] == 2 and read["round"] == 1


def test_non_finite_values_are_null_in_standard_json(tmp_path):
    write(tmp_path, [row(1, a=math.nan, b=-math.inf, c=np.float32("inf"))])
    line = (tmp_path / "metrics.jsonl").read_text()
    read = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["a"] is read["b"] is read["c"] is None
    assert ("train/a", 1) not in scalars(tmp_path)


def test_rows_are_on_disk_after_each_write(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write([row(1)])
        assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1
        assert ("train/loss", 1) in scalars(tmp_path)


def test_tensorboard_scalars_are_grouped(tmp_path):
    write(tmp_path, [row(4, test_accuracy=0.5, val_loss=2.0, uplink_bytes=8, update_norm=3.0)])
    assert scalars(tmp_path) == {
        ("train/loss", 4): 0.25,
        ("train/update_norm", 4): 3.0,
        ("eval/test_accuracy", 4): 0.5,
        ("eval/val_loss", 4): 2.0,
        ("comm/uplink_bytes", 4): 8.0,
    }


def test_resuming_drops_rows_that_will_be_written_again(tmp_path):
    write(tmp_path, [row(i) for i in range(1, 8)])
    write(tmp_path, [row(5), row(6)], resume_after=4)
    assert [r["round"] for r in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4, 5, 6]


def test_resuming_tells_tensorboard_which_steps_to_hide(tmp_path):
    write(tmp_path, [row(i) for i in range(1, 8)])
    write(tmp_path, [row(5)], resume_after=4)
    started = [event.step for event in events(tmp_path) if event.HasField("session_log")]
    assert started == [1, 5]


def test_resuming_gives_the_same_file_as_not_stopping(tmp_path):
    rows = [row(i) for i in range(1, 6)]
    write(tmp_path / "whole", rows)
    write(tmp_path / "parts", rows[:4])
    write(tmp_path / "parts", rows[2:], resume_after=2)
    whole, parts = (tmp_path / name / "metrics.jsonl" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()


@pytest.mark.parametrize("torn", ['{"round": 3, "tr', '{"round": 3, "phase": "\udc80', "{"])
def test_a_torn_last_line_is_left_out_and_dropped_on_resuming(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    write(tmp_path, [row(1), row(2)])
    with path.open("a", errors="surrogateescape") as file:
        file.write(torn)
    assert [r["round"] for r in read_metrics(path)] == [1, 2]
    write(tmp_path, [row(3)], resume_after=2)
    assert [r["round"] for r in read_metrics(path)] == [1, 2, 3]


def test_no_bit_of_a_row_can_flip_unseen_and_rows_without_checksum_are_rows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(tmp_path, [row(1, test_accuracy=0.25), row(2)])
    line, rest = path.read_bytes().split(b"\n", 1)
    for place in range(8 * len(line)):
        flipped = bytearray(line)
        flipped[place // 8] ^= 1 << place % 8
        path.write_bytes(bytes(flipped) + b"\n" + rest)
        assert whole_until(path)[0] == 0
    plain = json.dumps(row(1))
    path.write_bytes(plain.encode() + b"\n" + rest)
    assert read_metrics(path) == [row(1), row(2)]


def test_a_fresh_run_replaces_what_is_there(tmp_path):
    write(tmp_path, [row(1), row(2)])
    write(tmp_path, [row(1)])
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 1


def test_nothing_temporary_stays(tmp_path):
    write(tmp_path, [row(1)])
    write(tmp_path, [row(2)], resume_after=1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.jsonl", "tb"]


def test_damage_elsewhere_names_the_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(tmp_path, [row(1)])
    with path.open("a") as file:
        file.write("not json\n" + json.dumps(row(3)) + "\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_metrics(path)


def test_no_file_means_no_rows(tmp_path):
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_what_json_lacks_is_null_in_a_summary_too(tmp_path):
    workdir.write_json(tmp_path / "a.json", {"best": math.nan, "all": [1.5, math.inf], "n": 3})
    text = (tmp_path / "a.json").read_text()
    assert json.loads(text) == {"best": None, "all": [1.5, None], "n": 3} and "NaN" not in text
