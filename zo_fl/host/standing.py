"""What a run has come to, round by round: accuracies, warnings, and where it diverged.

No files: ``run_folder`` writes what is found here, and saves it beside the state, as a resumed run
does not see the rounds before it again.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from zo_fl.host import privacy
from zo_fl.host.divergence import FAULTS, Divergence, all_zero, divergence_in, is_mute
from zo_fl.host.schedule import Schedule, Stretch
from zo_fl.host.units import is_number

Row = dict[str, Any]


class Standing:
    """What is known of one run.

    Attributes:
      saved: what a resumed run cannot redo, as JSON.
      divergence: of the first round whose numbers are of no use, None while there is none.
    """

    def __init__(self):
        self.saved: dict[str, Any] = {
            "seconds": {},  # by what they went into
            "pivot_accuracy": None,
            "final_accuracy": None,
            "best_val_accuracy": None,
            "accuracy_at_best_val": None,
            "phases": [],  # the accuracy that each arrived at
            "warnings": [],
            "mute_rounds": 0,  # in turn, up to now
            "ended": [],  # (place, round) of phases that ended before their rounds were over
            "missing": [],  # rounds whose rows were lost by damage
            "ledger_from": 0,  # the ledger is whole from this round on
        }
        self.divergence: Divergence | None = None
        self._faults: dict[int, dict[str, float]] = {}  # of rounds that are not looked at yet
        self._still: set[int] = set()  # places of phases in which nothing moved, which was said
        self._news: list[str] = []

    def restore(self, saved: Mapping[str, Any]) -> None:
        """Goes on from what was saved, of an earlier version without what is new since."""
        said = self.saved["warnings"]
        self.saved |= {**saved, "seconds": _by_part(saved)}
        for text in said:
            self.warn(text)

    def adopt(self, saved: Mapping[str, Any], schedule: Schedule, done: int) -> None:
        """Goes on from what another run saved, which ended after ``done`` rounds of this one."""
        ends = [stretch.end for stretch in schedule.stretches]
        # Where it ended this run may be in the midst of a phase.
        reached = [phase for phase in saved["phases"] if phase["round"] in ends]
        self.saved |= {**saved, "phases": reached, "seconds": _by_part(saved)}
        if done == schedule.pivot:
            self.saved["pivot_accuracy"] = self.saved["final_accuracy"]

    def warn(self, text: str) -> None:
        """Notes a warning, for the summary and for who looks on; the same one once."""
        if text not in self.saved["warnings"]:
            self.saved["warnings"] = [*self.saved["warnings"], text]
            self._news.append(text)

    def news(self) -> list[str]:
        """Returns the warnings since it was asked last."""
        news, self._news = self._news, []
        return news

    def ended(self, place: int, done: int) -> None:
        """Notes that phase ``place`` ended early, after round ``done`` of what is now the run."""
        if [place, done] not in self.saved["ended"]:
            self.saved["ended"] = [*self.saved["ended"], [place, done]]

    def rows(
        self,
        schedule: Schedule,
        stretch: Stretch,
        done: int,
        count: int,
        metrics: Mapping[str, np.ndarray],
        seconds: float,
        checked: Mapping[str, float],
    ) -> list[Row]:
        """Returns the rows of a chunk of rounds.

        Args:
          schedule: the run's.
          stretch: what the rounds belong to.
          done: rounds before the chunk.
          count: rounds of the chunk.
          metrics: ``f32[count]`` each, or longer.
          seconds: a round.
          checked: what was measured by a check after the last one.
        """
        rows = []
        for i in range(count):
            values = {name: float(value[i]) for name, value in metrics.items()}
            found = {name: values.pop(name) for name in FAULTS}
            self._faults[done + i + 1] = found
            if found["all_zero"] and stretch.place not in self._still:
                self._still.add(stretch.place)
                self.warn(all_zero(stretch.phase.name, done + i + 1))
            uplink, downlink = schedule.traffic(done + i + 1)
            row: Row = {"round": done + i + 1, "phase": stretch.phase.name}
            if "loss" in values:  # a method need not have one
                row["train_loss"] = values.pop("loss")
            row |= values | {"uplink_bytes": uplink, "downlink_bytes": downlink}
            rows.append(row | {"seconds": seconds})
        rows[-1] |= checked
        return rows

    def look_at(self, rows: Sequence[Row], schedule: Schedule) -> None:
        """Notes where the run diverged, and what the last of some rows was evaluated at."""
        self._find_divergence(rows)
        row, saved = rows[-1], self.saved
        if "test_accuracy" not in row:
            return
        saved["final_accuracy"] = row["test_accuracy"]
        if row["round"] == schedule.pivot:
            saved["pivot_accuracy"] = row["test_accuracy"]
        if row["round"] in [stretch.end for stretch in schedule.stretches]:
            reached = {key: row[key] for key in ("phase", "round", "test_accuracy")}
            saved["phases"] = [*saved["phases"], reached]
        best = saved["best_val_accuracy"]
        # NaN of no validation examples is the best of nothing.
        if is_number(row["val_accuracy"]) and (best is None or row["val_accuracy"] > best):
            saved["best_val_accuracy"] = row["val_accuracy"]
            saved["accuracy_at_best_val"] = row["test_accuracy"]

    def _find_divergence(self, rows: Sequence[Row]) -> None:
        """Notes the first of some rows in which the run diverged."""
        faults, self._faults = self._faults, {}
        for row in rows:
            found = faults.get(row["round"], {})
            mute = self.saved["mute_rounds"] + 1 if is_mute(found) else 0
            self.saved["mute_rounds"] = mute
            self.divergence = divergence_in(row, found, mute)
            if self.divergence is not None:
                return

    def summary(
        self, schedule: Schedule, done: int, seconds: Mapping[str, float]
    ) -> dict[str, Any]:
        """Returns what ``summary.json`` has.

        Args:
          schedule: the run's.
          done: rounds.
          seconds: that they took, by what these went into.
        """
        saved, divergence = self.saved, self.divergence
        pivot, final = saved["pivot_accuracy"], saved["final_accuracy"]
        uplink, downlink = schedule.traffic(done)
        low_uplink, low_passes = schedule.of_low_client(done)
        summary = {
            "rounds": done,
            "diverged_round": None if divergence is None else divergence.round,
            "divergence": None if divergence is None else divergence.why,
            "pivot_accuracy": pivot,
            "final_accuracy": final,
            "best_val_accuracy": saved["best_val_accuracy"],
            "accuracy_at_best_val": saved["accuracy_at_best_val"],
            "delta_lo": None if pivot is None or final is None else final - pivot,
            "uplink_bytes": uplink,
            "downlink_bytes": downlink,
            "forward_passes": schedule.forward_passes(done),
            "backward_passes": schedule.backward_passes(done),
            "low_uplink_bytes": low_uplink,
            "low_passes": low_passes,
            "phases": saved["phases"],
            "warnings": saved["warnings"],
            "wall_seconds": sum(seconds.values()),
            "seconds": {part: round(spent, 3) for part, spent in seconds.items()},
        }
        revealed = privacy.account(schedule.stretches, done)
        return summary if revealed is None else summary | {"privacy": revealed}


def _by_part(saved: Mapping[str, Any]) -> dict[str, float]:
    """Returns the seconds that were saved; an earlier version counted all as one."""
    seconds = saved.get("seconds", {})
    return {"rounds": seconds} if is_number(seconds) else seconds
