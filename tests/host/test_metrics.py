import json
import math
import struct
from pathlib import Path

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event  # pyright: ignore

from zo_fl.engine.fields import ConfigError
from zo_fl.host.metrics import MetricsWriter, read_metrics


def row(round_idx, **more):
    return {"round": round_idx, "phase": "zo", "train_loss": 1 / round_idx, **more}


def write(folder, rows, resume_after=0):
    """Writes rows, and returns the rounds whose rows were lost before."""
    with MetricsWriter(folder, resume_after) as writer:
        writer.write(rows)
    return writer.lost


def rounds(folder):
    return [row["round"] for row in read_metrics(folder)]


def events(folder):
    """Returns every event in tb/, in the order of writing."""
    found = []
    for path in sorted(Path(folder, "tb").iterdir(), key=lambda path: path.stat().st_mtime_ns):
        data = path.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def scalars(folder):
    return {
        (value.tag, event.step): value.simple_value
        for event in events(folder)
        for value in event.summary.value
    }


def test_rows_come_back_as_they_were_written(tmp_path):
    rows = [row(1, uplink_bytes=10**15), row(2, test_accuracy=0.1 + 0.2), row(3)]
    write(tmp_path, rows)
    assert read_metrics(tmp_path) == read_metrics(tmp_path / "metrics.jsonl") == rows
    assert read_metrics(tmp_path / "nothing") == []


def test_a_row_is_standard_json_with_numpy_s_scalars_in_full_precision(tmp_path):
    write(tmp_path, [row(np.int32(1), a=math.nan, b=np.float32("inf"), c=np.float32(0.1))])
    line = (tmp_path / "metrics.jsonl").read_text()
    read = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read["a"] is read["b"] is None and read["c"] == float(np.float32(0.1))
    assert ("train/a", 1) not in scalars(tmp_path)


def test_rows_are_on_disk_after_each_write(tmp_path):
    with MetricsWriter(tmp_path) as writer:
        writer.write([row(1)])
        assert len(read_metrics(tmp_path)) == 1
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


def test_resuming_gives_the_same_file_as_not_stopping_and_hides_old_steps(tmp_path):
    all_rows = [row(i) for i in range(1, 6)]
    write(tmp_path / "whole", all_rows)
    write(tmp_path / "parts", all_rows[:4])
    assert write(tmp_path / "parts", all_rows[2:], resume_after=2) == []
    whole, parts = (tmp_path / name / "metrics.jsonl" for name in ("whole", "parts"))
    assert whole.read_bytes() == parts.read_bytes()
    started = [e.step for e in events(tmp_path / "parts") if e.HasField("session_log")]
    assert started == [1, 3]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir()) == ["metrics.jsonl", "tb"]


def test_a_fresh_run_replaces_what_is_there(tmp_path):
    write(tmp_path, [row(1), row(2)])
    write(tmp_path, [row(1)])
    assert rounds(tmp_path) == [1]


@pytest.mark.parametrize("torn", ['{"round": 3, "tr', '{"round": 3, "phase": "\udc80'])
def test_a_torn_last_line_is_left_out_and_dropped_on_resuming(tmp_path, torn):
    write(tmp_path, [row(1), row(2)])
    with (tmp_path / "metrics.jsonl").open("a", errors="surrogateescape") as file:
        file.write(torn)
    assert rounds(tmp_path) == [1, 2]
    assert write(tmp_path, [row(3)], resume_after=2) == []
    assert rounds(tmp_path) == [1, 2, 3]


def test_damage_elsewhere_names_the_line_and_is_a_lost_row_on_resuming(tmp_path):
    write(tmp_path, [row(1)])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write("not json\n" + json.dumps(row(3)) + "\n")
    with pytest.raises(ConfigError, match="line 2"):
        read_metrics(tmp_path)
    assert write(tmp_path, [row(4)], resume_after=3) == [2]
    assert rounds(tmp_path) == [1, 3, 4]
