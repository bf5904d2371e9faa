"""What a person sees of a finished run, or of several seeds: a table."""

import statistics
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zo_fl.host import units

WIDTH = 80


def closing_table(summary: Mapping[str, Any]) -> str:
    """Returns a run's summary as a table, at most 80 columns wide; missing entries are left out.

    Args:
      summary: what ``train.run`` returns, and optionally ``workdir``. Accuracies are fractions,
        sizes bytes, times seconds; each may be None.
    """
    rows = (
        _of_phases(summary.get("phases") or [])
        + _of_privacy(summary.get("privacy"))
        + [
            (label, show(summary[key]))
            for key, (label, show) in _SUMMARY.items()
            if summary.get(key) is not None
        ]
    )
    width = max((len(label) for label, _ in rows), default=0)
    lines = []
    for label, text in rows:
        # Folded, not shortened: a path is there to be copied.
        parts = textwrap.wrap(text, WIDTH - width - 3, break_on_hyphens=False) or [""]
        lines += [
            f" {label:{width}}  {parts[0]}",
            *(" " * (width + 3) + part for part in parts[1:]),
        ]
    rule = "─" * max(map(len, lines), default=0)
    return "\n".join([rule, *lines, rule])


def _of_phases(phases: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Returns a line a phase with its gain, where there are more than the pivot tells of."""
    if len(phases) < 3:
        return []
    rows, before = [], None
    for phase in phases:
        reached = phase["test_accuracy"]
        gain = "" if before is None else f"  ({units.points(reached - before)})"
        rows.append((f"after {phase['phase']}", units.percent(reached) + gain))
        before = reached
    return rows


def _of_privacy(revealed: Mapping[str, Any] | None) -> list[tuple[str, str]]:
    """Returns a line a phase that promises privacy, and one of those that do not."""
    if not revealed:
        return []
    rows = [
        (f"privacy of {phase}", f"epsilon {epsilon:.3g} at delta {revealed['delta']:g}")
        for phase, epsilon in revealed["epsilon"].items()
    ]
    without = ", ".join(revealed["not_private"])
    return [*rows, ("not private", without)] if without else rows


def print_closing_table(summary: Mapping[str, Any]) -> None:
    """Prints ``closing_table(summary)``."""
    print(closing_table(summary))


def print_seeds_table(summaries: Sequence[Mapping[str, Any]], path: Any) -> None:
    """Prints mean(standard deviation) of the accuracies of several seeds, in percent.

    Args:
      summaries: what ``train.run_seeds`` returns.
      path: folder of their folders.
    """
    rows = {
        "seeds": str(len(summaries)),
        "test accuracy at the pivot": _spread(summaries, "pivot_accuracy"),
        "test accuracy at the end": _spread(summaries, "final_accuracy"),
        "gain after the pivot": _spread(summaries, "delta_lo"),
        "time": units.duration(max(summary["wall_seconds"] for summary in summaries)),
        "results in": str(path),
    }
    rows = {label: text for label, text in rows.items() if text}
    width = max(map(len, rows))
    print("\n".join(f" {label:{width}}  {text}" for label, text in rows.items()))


def print_values_table(
    summaries: Sequence[Mapping[str, Any]], field: str, values: Sequence[float], path: Any
) -> None:
    """Prints a line a value: its accuracies.

    Args:
      summaries: what ``train.run_values`` returns.
      field: the one that varied.
      values: of it.
      path: folder of their folders.
    """
    shown = {"final_accuracy": "test", "best_val_accuracy": "best validation"}
    for value, summary in zip(values, summaries, strict=True):
        known = [(name, summary[key]) for key, name in shown.items() if summary[key] is not None]
        text = ", ".join(f"{name} {units.percent(reached)}" for name, reached in known)
        diverged = summary["diverged_round"]
        end = f"diverged in round {diverged}" if diverged is not None else ""
        print(f" {field}={value:<8g}  {', '.join(part for part in (text, end) if part)}")
    print(f" results in {path}")


def _spread(summaries: Sequence[Mapping[str, Any]], field: str) -> str:
    values = [100 * summary[field] for summary in summaries if summary[field] is not None]
    if not values:
        return ""
    spread = f"({statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} %"


def _parts(seconds: Mapping[str, float]) -> str:
    """Returns what a run's time went into, the most of it first."""
    most_first = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{part} {units.duration(spent)}" for part, spent in most_first)


_SUMMARY: dict[str, tuple[str, Callable[[Any], str]]] = {
    "pivot_accuracy": ("test accuracy at the pivot", units.percent),
    "final_accuracy": ("test accuracy at the end", units.percent),
    "delta_lo": ("gain after the pivot", units.points),
    "best_val_accuracy": ("best validation accuracy", units.percent),
    "uplink_bytes": ("sent by clients", units.num_bytes),
    "low_uplink_bytes": ("of it by a low-resource one", units.num_bytes),
    "downlink_bytes": ("sent to clients", units.num_bytes),
    "forward_passes": ("forward passes", units.integer),
    "wall_seconds": ("time", units.duration),
    "seconds": ("of it", _parts),
    "workdir": ("results in", str),
}
