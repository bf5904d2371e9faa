"""Works through a plan of sweeps, the most worth first, for as long as there is time.

    zo-fl campaign --plan=table2_w16 --minutes=90 [--workdir=W]

A run that ends leaves one small file, RECORDS/SWEEP/ROW--COLUMN/SEED.json: what it was, how it
ended, its curve. ``zo-fl tables|plots|report --runs=RECORDS`` read them like runs. What has a file
is done, on whatever machine. All else is in the working folder: unfinished runs, which the same
command resumes, and warm-ups, which runs share; take it along to another machine, or they are
computed again. ``--minutes=0`` only prints what is done, what is left, and how long that takes at
the pace so far.

Exit status: 0 all is done, 1 a run failed, 2 bad input, 130 the time is up (and all is saved).
"""

import collections
import itertools
import shlex
import statistics
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from absl import flags

from zo_fl.engine.fields import ConfigError
from zo_fl.host.signals import INTERRUPTED

from . import cli

if TYPE_CHECKING:
    from ml_collections import ConfigDict

    from zo_fl.config.sweeps import Step

    from .jobs.plan import Job

PLANS = Path(__file__).parent / "plans"


class Entry(NamedTuple):
    """One run of a plan."""

    chain: "list[Job]"  # the warm-ups that it needs, each before what starts from it, and itself
    record: Path  # the file that says it is done


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_config()
    flags.DEFINE_string("plan", None, "Name of a plan, such as table2_w16, or path of a file.")
    flags.DEFINE_float("minutes", None, "How long. Default: until all is done.", lower_bound=0)
    flags.DEFINE_string("workdir", None, "Folder of runs and warm-ups. Default: runs/PLAN.")
    flags.DEFINE_string(
        "records",
        None,
        "Folder of what is done. Default: beside the plan, of an installed one records/PLAN.",
    )


def main(argv: list[str]) -> int:
    """Works through the plan of the flags and returns the exit status."""
    from zo_fl import config as configs
    from zo_fl.host import files

    from .jobs import record

    del argv
    given = flags.FLAGS
    path = find(given.plan)
    plan = configs.call(path, "get_plan")
    config_file, overrides, config = cli.given_config(plan.config)
    root = files.path_of(given.workdir or Path("runs") / path.stem)
    records = files.path_of(given.records or default_records(path))
    name = path.stem if path.parent == PLANS else given.plan
    command = shlex.join(["zo-fl", "campaign", f"--plan={name}", f"--config={config_file}"])
    entries = [entries_of(step, config, overrides, root, records) for step in plan.steps]
    print(plan.title)
    show(plan.steps, entries)
    if given.minutes == 0:
        return 0
    until = time.monotonic() + 60 * given.minutes if given.minutes else float("inf")
    with files.owned(root):
        for step in plan.steps:
            sweep = step.get_sweep(config)
            content = record.make(sweep, config_file, overrides, command, step.seeds)
            record.write(records / step.name / "sweep.json", content)
        return work(itertools.chain(*entries), config_file, until)


def find(plan: str | None) -> Path:
    """Returns the file of a plan that is given by name or by path.

    Raises:
      ConfigError: there is no such file.
    """
    for path in (Path(plan or ""), PLANS / f"{plan}.py"):
        if path.is_file():
            return path
    known = ", ".join(sorted(path.stem for path in PLANS.glob("*.py")))
    given = f"no plan {plan!r}" if plan else "no --plan given"
    raise ConfigError(f"{given}; there are: {known}; pass one of them, or a file's path")


def default_records(plan: Path) -> Path:
    """Returns the folder of what is done of a plan: beside it, but not among installed files."""
    in_checkout = (PLANS.parents[1] / "setup.py").exists()
    if in_checkout or plan.parent != PLANS:
        return plan.with_suffix("")
    return Path("records", plan.stem)


def entries_of(
    step: "Step", config: "ConfigDict", given: Mapping[str, Any], root: Path, records: Path
) -> list[Entry]:
    """Returns the runs of a step, seed by seed.

    Args:
      step: a sweep with its seeds.
      config: the config with ``given`` in it.
      given: overrides of the command line.
      root: the working folder.
      records: the folder of what is done.

    Raises:
      ConfigError: what is done was done by another config.
    """
    from .jobs import plan as jobs
    from .jobs import record

    sweep = step.get_sweep(config)
    planned = jobs.jobs_of(sweep, config, dict(given), step.seeds, root, step.name)
    by_folder = {job.folder: job for job in planned}
    entries = []
    for job in planned:
        if job.folder.is_relative_to(root / step.name):  # not a warm-up
            chain = [job]
            while (after := chain[0].after) is not None:
                chain.insert(0, by_folder[after])
            kept = record.kept_of(records / job.folder.relative_to(root))
            _check(kept, config, job)
            entries.append(Entry(chain, kept))
    return entries


def _check(path: Path, config: "ConfigDict", job: "Job") -> None:
    """Fails if what was kept of a run is of another one than the plan has now."""
    from zo_fl import config as configs
    from zo_fl.host import files

    from .jobs import record

    content, problem = record.read_json(path)
    if problem:
        raise ConfigError(f"{path} is {problem}; delete it, and the run is done again")
    if content is None:
        return
    now = configs.identity(configs.changed(config.to_dict(), job.overrides))
    then = configs.flatten(configs.named(content["config"]["config"]))
    for field, value in files.as_json(now).items():
        if not field.startswith("run.") and then.get(field, value) != value:
            raise ConfigError(
                f"{path} is of a run with config.{field}={then[field]}, the plan has {value}; "
                "delete the file, or change --records"
            )


def work(entries: Iterable[Entry], config_file: str, until: float) -> int:
    """Runs what is not done, one run at a time until ``time.monotonic() > until``.

    Returns the exit status.
    """
    from zo_fl.host import units

    from .jobs import launch, pool, record

    def command(jobs: "list[Job]", after: Path | None) -> list[str]:
        return launch.command_line(jobs[0], after, config_file)

    failed = False
    for entry in (entry for entry in entries if not entry.record.exists()):
        job, began = entry.chain[-1], time.monotonic()
        try:
            statuses = pool.run(entry.chain, 1, command, until=until)
        except KeyboardInterrupt as stop:
            print(f"{str(stop) or 'stopped'}; {job.name} is saved, the same command goes on")
            return INTERRUPTED
        status = statuses[job.folder]
        if status.state == pool.DONE:
            content = record.keep(job.folder, entry.record)
            result = units.percent(content["summary"]["final_accuracy"])
            took = units.duration(time.monotonic() - began)
            print(f"{job.name}: {result}, {took}", flush=True)
        else:
            failed = True
            print(f"failed: {job.name}: {status.message}", file=sys.stderr, flush=True)
    return int(failed)


def show(steps: "Sequence[Step]", entries: Sequence[Sequence[Entry]]) -> None:
    """Prints how much of each step is done, and how long the rest takes at the pace so far."""
    from zo_fl.host import units

    from .jobs import record

    seconds = collections.defaultdict(list)
    for entry in itertools.chain(*entries):
        content, _ = record.read_json(entry.record)
        if content is not None:
            seconds[_row(entry)].append(content["seconds"])
    for step, own in zip(steps, entries, strict=True):
        left = [_row(entry) for entry in own if not entry.record.exists()]
        known = [statistics.mean(seconds[row]) for row in left if row in seconds]
        text = f"{len(own) - len(left)} of {len(own)} done"
        text += f", {units.duration(sum(known))} for {len(known)} more" if known else ""
        text += f", {len(left) - len(known)} not timed yet" if len(left) > len(known) else ""
        print(f"  {step.name}, seeds {step.seeds[0]} to {step.seeds[-1]}: {text}")


def _row(entry: Entry) -> tuple[Path, str]:
    """Returns a run's sweep and row: runs of one row take about as long."""
    point = entry.record.parent
    return point.parent, point.name.partition("--")[0]


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
