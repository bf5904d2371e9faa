"""The table at the end of a run, and of several."""

import statistics
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from zo_fl.host import units

WIDTH = 80


def of_run(summary: Mapping[str, Any]) -> str:
    """Returns a run's summary as a table, at most 80 columns wide; missing entries are left out.

    Args:
      summary: of ``zo_fl.run``, and optionally ``workdir``.
    """
    rows = _of_phases(summary.get("phases") or []) + _of_privacy(summary.get("privacy") or {})
    for key, (label, show) in _SUMMARY.items():
        if summary.get(key) is not None:
            rows.append((label, show(summary[key])))
    width, lines = max((len(label) for label, _ in rows), default=0), []
    for label, text in rows:
        # Folded, not shortened: a path is there to be copied.
        parts = textwrap.wrap(text, WIDTH - width - 3, break_on_hyphens=False) or [""]
        names = [label, *[""] * (len(parts) - 1)]
        lines += [f" {name:{width}}  {part}" for name, part in zip(names, parts, strict=True)]
    rule = "─" * max(map(len, lines), default=0)
    return "\n".join([rule, *lines, rule])


def of_runs(summaries: Mapping[str, Mapping[str, Any]], path: Any, *, mean: bool = False) -> str:
    """Returns a line for each of several runs, with its accuracies in percent.

    Args:
      summaries: name -> of ``zo_fl.run``.
      path: folder of their folders.
      mean: whether to add their mean and standard deviation.
    """
    columns = {"pivot": "pivot_accuracy", "test": "final_accuracy", "gain": "delta_lo"}
    columns["best validation"] = "best_val_accuracy"
    lines, width = [], max(map(len, [*summaries, "mean"]))
    for name, summary in summaries.items():
        known = {label: summary[key] for label, key in columns.items() if summary[key] is not None}
        parts = [f"{label} {units.percent(reached)}" for label, reached in known.items()]
        if summary["diverged_round"] is not None:
            parts.append(f"diverged in round {summary['diverged_round']}")
        lines.append(f" {name:{width}}  {', '.join(parts)}")
    if mean:
        spread = {label: _spread(summaries.values(), key) for label, key in columns.items()}
        known = ", ".join(f"{label} {text}" for label, text in spread.items() if text)
        lines.append(f" {'mean':{width}}  {known}")
    return "\n".join([*lines, f" results in {path}"])


def _of_phases(phases: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Returns a line for each phase with its gain, if there are more than two."""
    rows, before = [], None
    for phase in phases if len(phases) > 2 else ():
        reached = phase["test_accuracy"]
        gain = "" if before is None else f"  ({units.points(reached - before)})"
        rows.append((f"after {phase['phase']}", units.percent(reached) + gain))
        before = reached
    return rows


def _of_privacy(revealed: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Returns a line for each phase that promises privacy, and one for the others."""
    rows = [
        (f"privacy of {phase}", f"epsilon {epsilon:.3g} at delta {revealed['delta']:g}")
        for phase, epsilon in revealed.get("epsilon", {}).items()
    ]
    if len(rows) > 1:
        rows.append(("privacy in all", f"epsilon {revealed['epsilon_in_all']:.3g}"))
    without = ", ".join(revealed.get("not_private", ()))
    return [*rows, ("not private", without)] if without else rows


def _spread(summaries: Iterable[Mapping[str, Any]], field: str) -> str:
    """Returns mean(standard deviation) of a fraction, in percent."""
    values = [100 * summary[field] for summary in summaries if summary[field] is not None]
    if not values:
        return ""
    spread = f"({statistics.stdev(values):.1f})" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} %"


def _parts(seconds: Mapping[str, float]) -> str:
    """Returns the parts of a run's time in words, the longest first."""
    most_first = sorted(seconds.items(), key=lambda item: -item[1])
    return ", ".join(f"{part} {units.duration(spent)}" for part, spent in most_first)


_SUMMARY: dict[str, tuple[str, Callable[[Any], str]]] = {
    "pivot_accuracy": ("test accuracy at the pivot", units.percent),
    "final_accuracy": ("test accuracy at the end", units.percent),
    "delta_lo": ("gain after the pivot", units.points),
    "best_val_accuracy": ("best validation accuracy", units.percent),
    "uplink_bytes": ("sent by clients", units.num_bytes),
    "low_uplink_bytes": ("by one low-resource client", units.num_bytes),
    "downlink_bytes": ("sent to clients", units.num_bytes),
    "forward_passes": ("forward passes", units.integer),
    "wall_seconds": ("time", units.duration),
    "seconds": ("spent on", _parts),
    "workdir": ("results in", str),
}
