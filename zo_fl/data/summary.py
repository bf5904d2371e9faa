"""What a partition looks like, per tier: for the run's metadata and for the reader."""

import io
from typing import Any

import numpy as np

from zo_fl.engine.types import HIGH, LOW


def summarize(
    labels: np.ndarray,
    client_indices: np.ndarray,
    client_sizes: np.ndarray,
    tiers: np.ndarray,
    num_classes: int,
) -> dict[str, Any]:
    """Returns the label skew of a partition, JSON-able.

    Args:
      labels: ``i32[N]``.
      client_indices: ``i32[K, n]`` training rows of each client, padded.
      client_sizes: ``i32[K]`` how many of them are real.
      tiers: ``i32[K]``.
      num_classes: labels lie in ``[0, num_classes)``.

    Returns:
      ``{"num_classes": ..., "high": tier, "low": tier, "all": tier}``, a tier being a dict of

      * ``clients``, ``examples``: counts;
      * ``classes_covered``: labels that some client of the tier holds;
      * ``labels_per_client``: mean count of labels that a client holds;
      * ``dominant_share``: mean share, in [0, 1], of a client's most frequent label;
      * ``tv_from_uniform``: total variation distance, in [0, 1], of the tier's pooled label
        distribution from the uniform one.

      The last three are None for a tier without clients.
    """
    num_clients = len(client_indices)
    offsets = np.arange(num_clients)[:, None] * num_classes
    real = np.arange(client_indices.shape[1]) < client_sizes[:, None]
    held = (np.asarray(labels)[client_indices] + offsets)[real]
    counts = np.bincount(held, minlength=num_clients * num_classes)
    counts = counts.reshape(num_clients, num_classes)
    return {
        "num_classes": int(num_classes),
        "high": _summarize_tier(counts[tiers == HIGH]),
        "low": _summarize_tier(counts[tiers == LOW]),
        "all": _summarize_tier(counts),
    }


def _summarize_tier(counts: np.ndarray) -> dict[str, Any]:
    """Returns the figures of the clients whose label counts are ``i64[clients, classes]``."""
    pooled = counts.sum(axis=0)
    summary: dict[str, Any] = {
        "clients": len(counts),
        "examples": int(counts.sum()),
        "classes_covered": int((pooled > 0).sum()),
        "labels_per_client": None,
        "dominant_share": None,
        "tv_from_uniform": None,
    }
    if summary["examples"]:
        shares = counts / counts.sum(axis=1, keepdims=True)
        distance = 0.5 * np.abs(pooled / pooled.sum() - 1 / len(pooled)).sum()
        summary["labels_per_client"] = round(float((counts > 0).sum(axis=1).mean()), 4)
        summary["dominant_share"] = round(float(shares.max(axis=1).mean()), 4)
        summary["tv_from_uniform"] = round(float(distance), 4)
    return summary


def format_summary(summary: dict[str, Any]) -> str:
    """Returns a summary as a table of at most 80 columns, plain text."""
    from rich import box, console, table  # slow to import, and wanted only here

    shown = table.Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in ("tier", "clients", "examples", "classes", "labels/client", "dominant", "TV"):
        shown.add_column(heading, justify="left" if heading == "tier" else "right")
    for tier in ("high", "low", "all"):
        row = summary[tier]
        shown.add_row(
            tier,
            str(row["clients"]),
            f"{row['examples']:,}",
            f"{row['classes_covered']} of {summary['num_classes']}",
            _number(row["labels_per_client"], "{:.1f}"),
            _number(row["dominant_share"], "{:.0%}"),
            _number(row["tv_from_uniform"], "{:.2f}"),
        )
    text = io.StringIO()
    console.Console(file=text, width=80, color_system=None).print(shown)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines() if line.strip())


def _number(value: float | None, pattern: str) -> str:
    return "-" if value is None else pattern.format(value)
