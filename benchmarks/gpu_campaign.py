"""Runs the measurements that want a GPU, the most wanted first, within so many minutes.

    python -m benchmarks.gpu_campaign --out=R --minutes=10 [--peers=ENVS] [--data_dir=D]
    python -m benchmarks.gpu_campaign --out=R --show

Rounds of fixed size first (W2 to W5 of ``benchmarks.benchmark``, the peers' beside them where
``--peers`` has their environments), then the same at other precisions, a trace of one round, other
numbers of clients at once and other convolutions; at last, if there is CIFAR-10 in D, the paper's
10/90 cell. Each step is a process of its own and leaves a small JSON file in R. What is there is
not done again, and a step that the time does not suffice for is ended, the cell's run after it has
saved: the same command goes on later, on another machine too, with what R has. ``--show`` prints
the figures as Markdown. Exit status: 0 all done, 1 some steps failed, 3 the time was up and none
failed.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from absl import flags

from experiments import cli
from zo_fl.engine.fields import ConfigError
from zo_fl.host.files import storing, write_whole

from . import contest

TIME_IS_UP = 3
_SAVING = 60.0  # seconds that a run may take to save


class Step(NamedTuple):
    """Rounds to time.

    Attributes:
      name: of the file of its figures.
      workload: of ``benchmarks.workloads``.
      changes: of the config, ``FIELD=VALUE``.
      contested: whether peers take part.
      traced: whether a trace of one more round is kept.
    """

    name: str
    workload: str
    changes: tuple[str, ...] = ()
    contested: bool = False
    traced: bool = False


STEPS = (
    *(Step(name, name, contested=True) for name in ("W2", "W3", "W4", "W5")),
    *(
        Step(f"{name}-{precision}", name, (f"{block}.precision={precision}",))
        for name, block in (("W4", "zo"), ("W5", "warmup"), ("W3", "zo"), ("W2", "zo"))
        for precision in ("tf32", "bfloat16")
    ),
    Step("W3-trace", "W3", traced=True),
    *(
        Step(f"{name}-{count}-at-once", name, (f"run.clients_per_vmap={count}",))
        for name in ("W3", "W2", "W5")
        for count in (1, 2, 5)
    ),
)


def main(argv: list[str]) -> int:
    """Runs the steps that are left, or shows what there is; returns the exit status."""
    del argv
    if flags.FLAGS.out is None:
        raise ConfigError("no --out given; name a folder for the results")
    out = Path(flags.FLAGS.out)
    if flags.FLAGS.show:
        print(table(out))
        return 0
    deadline = time.monotonic() + 60 * flags.FLAGS.minutes
    ours = ["--tiny"] if flags.FLAGS.tiny else []
    status = run(STEPS, out, deadline, ours, Path(flags.FLAGS.peers) if flags.FLAGS.peers else None)
    if flags.FLAGS.data_dir is None or time.monotonic() >= deadline:
        return status
    return run_cell(out, deadline, [f"--config.data.data_dir={flags.FLAGS.data_dir}"]) or status


def run(
    steps: Sequence[Step], out: Path, deadline: float, ours: Sequence[str], peers: Path | None
) -> int:
    """Runs the steps that have no results yet, and returns the exit status.

    Args:
      steps: in order.
      out: folder of the results.
      deadline: by ``time.monotonic()``.
      ours: more arguments of ``benchmarks.measure``.
      peers: folder of their environments, None for none.
    """
    with storing(out):
        out.mkdir(parents=True, exist_ok=True)
    failed, up = 0, "the time is up; the same command goes on"
    for step in steps:
        if (out / f"{step.name}.json").exists():
            continue
        if time.monotonic() >= deadline:
            return _say(up, 1 if failed else TIME_IS_UP)
        try:
            took = _run(step, out, deadline, ours, peers if step.contested else None)
        except subprocess.TimeoutExpired:
            return _say(f"{step.name}: {up}", 1 if failed else TIME_IS_UP)
        except ConfigError as error:
            failed += 1
            _say(f"{step.name}: {error}")
            continue
        _say(f"{step.name}: {took:.0f} s")
    return min(failed, 1)


def table(out: Path) -> str:
    """Returns the results in a folder, as Markdown.

    Raises:
      ConfigError: there is nothing.
    """
    lines = ["| | who | s a round | images/s | share of inference | memory | compile |"]
    lines.append("|---|---|---|---|---|---|---|")
    for step in STEPS:
        path = out / f"{step.name}.json"
        if not path.exists():
            continue
        for who, figures in json.loads(path.read_text(encoding="utf-8")).items():
            lines.append(f"| {step.name} | {who} | {' | '.join(_cells(figures))} |")
    if len(lines) == 2:
        raise ConfigError(f"no results in {out}; change --out")
    return "\n".join(lines)


def _cells(figures: contest.Figures) -> list[str]:
    seconds = statistics.median(figures["seconds"])
    memory = figures.get("peak_device_bytes") or figures.get("peak_rss_bytes")
    compiled = figures.get("compile_seconds")
    return [
        f"{seconds:.3g}",
        f"{figures['images'] / seconds:,.0f}",
        contest.share_of_inference(figures),
        f"{memory / 1e9:.2f} GB" if memory else "",
        f"{compiled:.0f} s" if compiled else "",
    ]


def _run(step: Step, out: Path, deadline: float, ours: Sequence[str], peers: Path | None) -> float:
    """Writes the figures of a step, whole or not at all; returns the seconds that it took."""
    began = time.monotonic()
    ours = [*ours, *(f"--set={change}" for change in step.changes)]
    if step.traced:
        ours.append(f"--trace={out / step.name}")
    figures: dict[str, Any] = {}
    for who, command in contest.contestants(step.workload, peers, ours).items():
        figures[who] = contest.run(command, 3, deadline - time.monotonic())
    write_whole(out / f"{step.name}.json", json.dumps(figures, indent=1) + "\n")
    return time.monotonic() - began


def run_cell(out: Path, deadline: float, changes: Sequence[str]) -> int:
    """Runs the paper's 10/90 cell until the time is up; it goes on from its last checkpoint.

    Args:
      out: folder of the results.
      deadline: by ``time.monotonic()``.
      changes: of the config, as on a command line.
    """
    command = [sys.executable, "-m", "experiments.main", "--config=cifar10_10_90"]
    process = subprocess.Popen([*command, f"--workdir={out / 'cell'}", *changes])
    try:
        status = process.wait(timeout=max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return _say("the cell: the time is up; the same command goes on", TIME_IS_UP)
    finally:
        _end(process)  # after Ctrl-C as well
    return int(status != 0)


def _end(process: subprocess.Popen) -> None:
    """Stops a run and lets it save; one that takes too long is killed, and loses a few rounds."""
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(timeout=_SAVING)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _say(line: str, status: int = 0) -> int:
    print(line, flush=True)
    return status


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_string("out", None, "Folder of the results.")
    flags.DEFINE_float("minutes", 10.0, "After which nothing runs any more.", 0.0)
    flags.DEFINE_string("peers", None, "Folder of the peers' virtual environments.")
    flags.DEFINE_string("data_dir", None, "Folder with CIFAR-10, for the paper's 10/90 cell.")
    flags.DEFINE_bool("tiny", False, "The same steps on two clients of four images.")
    flags.DEFINE_bool("show", False, "Print what there is instead.")


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
