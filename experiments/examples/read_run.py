"""Reads the metrics of some runs and plots their test accuracy against what clients have sent.

python -m experiments.examples.read_run runs/a runs/b
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

import zo_fl


def main(folders: list[str], picture: str = "accuracy_against_bytes.png") -> None:
    """Draws a line a folder."""
    figure, axes = plt.subplots(figsize=(6, 4), layout="constrained")
    for folder in folders:
        rows = zo_fl.read_metrics(Path(folder) / "metrics.jsonl")
        evaluated = [row for row in rows if "test_accuracy" in row]
        uplink = [row["uplink_bytes"] / 1e6 for row in evaluated]
        accuracy = [100 * row["test_accuracy"] for row in evaluated]
        axes.plot(uplink, accuracy, marker=".", label=folder)
    axes.set(xlabel="sent by all clients, MB", ylabel="test accuracy, %", xscale="log")
    axes.legend()
    figure.savefig(picture, dpi=150)
    plt.close(figure)


if __name__ == "__main__":
    main(sys.argv[1:])
