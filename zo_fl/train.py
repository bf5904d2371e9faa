"""Runs an experiment: phases, chunks of rounds, evaluation, logs, checkpoints.

All side effects of a run are here and in ``experiments``. A chunk of rounds is one jitted program
whose length is an argument, so that each phase compiles once whatever the cadence of evaluation.
What a chunk leaves behind depends on the round alone, not on where a run was stopped: a resumed run
ends bit-identical to one that never stopped.
"""

import functools
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from zo_fl import cost, curves, evaluate, experiment, keys, warm_starts, workdir
from zo_fl.checkpoint import Checkpoints
from zo_fl.data import summary as label_summary
from zo_fl.errors import ConfigError
from zo_fl.experiment import Experiment
from zo_fl.metrics import MetricsWriter, read_metrics
from zo_fl.phase import Phase
from zo_fl.progress import Progress
from zo_fl.provenance import provenance
from zo_fl.types import FederatedAlgorithm, ServerState

Row = dict[str, Any]
_CADENCES = ("rounds_per_jit", "eval_every", "eval_batch_size", "checkpoint_every")


class Interrupted(Exception):
    """The user asked to stop; everything so far is saved."""


class Stretch(NamedTuple):
    """A phase, the rounds it covers (``start < round <= end``) and its traffic."""

    phase: Phase
    start: int
    end: int
    traffic: cost.Traffic


def run(
    config: Mapping[str, Any],
    path: str | Path,
    *,
    warm_start: str | Path | None = None,
    quiet: bool = False,
) -> dict[str, Any]:
    """Runs or resumes the experiment of a config in a folder, and returns its summary.

    Args:
      config: resolved, as nested dicts (``ConfigDict.to_dict()`` of ``configs/base.py`` and
        changes).
      path: the run's folder. An unfinished run in it is resumed, a finished one only reported.
      warm_start: folder of a finished warm-up (``algorithm="fedavg"``) of the same data, model,
        seed and settings: a new run starts after it instead of repeating it, and ends as if it had.
        A run that has begun goes on from its own checkpoints.
      quiet: no progress output.

    Returns:
      The content of ``summary.json``.

    Raises:
      ConfigError: bad config or folder; nothing was written.
      Interrupted: SIGINT or SIGTERM; the run is saved and can be resumed.
    """
    path = Path(path)
    workdir.check(path, config)
    finished = workdir.read_json(path / "summary.json")
    if finished is not None:
        return finished
    began = time.perf_counter()
    for field in _CADENCES:
        if config["run"][field] < 1:
            raise ConfigError(
                f"{field} is {config['run'][field]}; it must be >= 1; change config.run.{field}"
            )
    if warm_start is not None:
        warm_starts.check(config, Path(warm_start))
    built = experiment.build(config)
    workdir.create(path, config, provenance(), built.federation.summary)
    if not quiet:
        print(label_summary.format_summary(built.federation.summary), flush=True)
    with _deferred_signals() as interrupted:
        trainer = _Trainer(built, config, path, began, quiet, interrupted)
        if warm_start is not None:
            trainer.adopt(Path(warm_start))
        return trainer.finish(trainer.train())


def make_chunk(algorithm: FederatedAlgorithm, capacity: int) -> Callable[..., Any]:
    """Returns jitted ``(state, data, run_key, num_rounds i32[]) -> (state, metrics)``.

    Args:
      algorithm: what a round does.
      capacity: the largest ``num_rounds``; metrics are ``f32[capacity]``, filled up to num_rounds.

    The state is donated. The number of rounds is an argument: one program serves every chunk.
    """

    @functools.partial(jax.jit, donate_argnums=0)
    def run_chunk(state: ServerState, data, run_key, num_rounds):
        shapes = jax.eval_shape(algorithm.round, state, data, run_key)[1]
        buffers = jax.tree.map(lambda leaf: jnp.zeros(capacity, leaf.dtype), shapes)

        def body(i, carry):
            state, buffers = carry
            state, metrics, _ = algorithm.round(state, data, run_key)
            return state, jax.tree.map(lambda b, m: b.at[i].set(m), buffers, metrics)

        return jax.lax.fori_loop(0, num_rounds, body, (state, buffers))

    return run_chunk


class _Trainer:
    """The host's side of one run: what is open (files, progress) and what accumulates."""

    def __init__(self, built: Experiment, config: Mapping, path: Path, began: float, quiet, stop):
        self.built, self.path, self.began = built, path, began
        self.options = options = config["run"]
        self.title = (
            f"{config['algorithm']}, {config['data']['name']}, {config['model']['name']}, "
            f"seed {config['seed']}"
        )
        self.quiet, self.interrupted = quiet, stop
        self.replicated = NamedSharding(built.mesh, P())
        self.checkpoints = Checkpoints(path)
        self.evaluate = evaluate.make_evaluate(built.task, options["eval_precision"])
        dataset, val = built.federation.dataset, built.federation.val_indices
        cut = functools.partial(
            evaluate.make_set, batch_size=options["eval_batch_size"], mesh=built.mesh
        )
        self.sets = {
            "test": cut(dataset.test_images, dataset.test_labels),
            "val": cut(dataset.train_images[val], dataset.train_labels[val]),
        }
        init = jax.jit(built.task.init, out_shardings=self.replicated)
        self.initial = init(keys.stream(built.run_key, "init"))
        self.stretches = _stretches(built, *self.initial)
        self.diverged_round: int | None = None
        # What a resumed run cannot recompute; saved beside the state.
        self.progress: dict[str, Any] = {
            "seconds": 0.0,
            "pivot_accuracy": None,
            "final_accuracy": None,
            "best_val_accuracy": None,
            "accuracy_at_best_val": None,
        }

    def adopt(self, donor: Path) -> None:
        """Takes over a finished warm-up's last checkpoint and metrics, unless the run has begun."""
        if self.checkpoints.latest_round() is not None:
            return
        params, model_state = self.initial
        stretch = self.stretches[0]
        like = self._first_state(stretch, params, model_state, 0)
        done, state, progress = warm_starts.restore(donor, like)
        if done == stretch.end and len(self.stretches) > 1:
            progress |= {"pivot_accuracy": progress["final_accuracy"]}
        self.progress = progress
        rows = read_metrics(donor / "metrics.jsonl")
        with MetricsWriter(self.path) as writer:
            writer.write(row for row in rows if row["round"] <= done)
        # The checkpoint last: without it nothing is adopted, and the next try starts afresh.
        self.checkpoints.save(done, state, self.progress, keep=self._is_pivot(done))

    def train(self) -> int:
        """Runs all rounds not yet done, or until one diverges; returns the rounds done."""
        state, done = self._restore()
        with (
            MetricsWriter(self.path, resume_after=done) as self.writer,
            Progress(self.stretches[-1].end, done, quiet=self.quiet) as self.bar,
        ):
            for stretch in self.stretches:
                if done >= stretch.end:
                    continue
                if done == stretch.start:
                    state = self._first_state(stretch, state.params, state.model_state, done)
                for done, state in self._rounds(stretch, state, done):  # noqa: B020
                    if self.interrupted() and self.diverged_round is None:
                        self._save(state, done, pivot=self._is_pivot(done))
                        raise Interrupted(f"stopped after round {done} of {self.stretches[-1].end}")
                if self.diverged_round is not None:
                    break
        return done

    def finish(self, done: int) -> dict[str, Any]:
        """Writes ``summary.json`` and ``curves.png``, and returns the summary."""
        progress = self.progress
        pivot, final = progress["pivot_accuracy"], progress["final_accuracy"]
        uplink, downlink = self._bytes(done)
        summary = {
            "rounds": done,
            "diverged_round": self.diverged_round,
            "pivot_accuracy": pivot,
            "final_accuracy": final,
            "best_val_accuracy": progress["best_val_accuracy"],
            "accuracy_at_best_val": progress["accuracy_at_best_val"],
            "delta_lo": None if pivot is None or final is None else final - pivot,
            "uplink_bytes": uplink,
            "downlink_bytes": downlink,
            "forward_passes": self._forward_passes(done),
            "wall_seconds": progress["seconds"] + time.perf_counter() - self.began,
        }
        pivot_round = self.stretches[0].end if len(self.stretches) > 1 else None
        rows = read_metrics(self.path / "metrics.jsonl")
        curves.draw_curves(rows, self.path / "curves.png", self.title, pivot_round)
        workdir.write_json(self.path / "summary.json", summary)
        return summary

    def _rounds(self, stretch: Stretch, state: ServerState, done: int) -> Iterator:
        """Yields ``(rounds done, state)`` after each chunk of a phase; stops after a bad loss."""
        options, data, key = self.options, self.built.data, self.built.run_key
        program = self._compile(stretch, state)
        while done < stretch.end and self.diverged_round is None:
            stop = _next_stop(done, stretch.end, options)
            began = time.perf_counter()
            state, metrics = program(state, data, key, jnp.int32(stop - done))
            metrics = jax.device_get(metrics)
            seconds = time.perf_counter() - began
            rows = [
                self._row(stretch, done, i, metrics, seconds / (stop - done))
                for i in range(stop - done)
            ]
            bad = [row["round"] for row in rows if not np.isfinite(row["train_loss"])]
            self.diverged_round = bad[0] if bad else None
            done = stop
            self._log(stretch, state, rows, seconds)
            if not bad and (done % options["checkpoint_every"] == 0 or done == stretch.end):
                self._save(state, done, pivot=self._is_pivot(done))
            yield done, state

    def _compile(self, stretch: Stretch, state: ServerState):
        began = time.perf_counter()
        chunk = make_chunk(stretch.phase.algorithm, self.options["rounds_per_jit"])
        program = chunk.lower(state, self.built.data, self.built.run_key, jnp.int32(1)).compile()
        seconds = time.perf_counter() - began
        self.bar.message(f"{stretch.phase.name}: compiled in {seconds:.1f} s")
        return program

    def _row(self, stretch: Stretch, done: int, i: int, metrics: Mapping, seconds: float) -> Row:
        round_idx = done + i + 1
        values = {name: float(value[i]) for name, value in metrics.items()}
        uplink, downlink = self._bytes(round_idx)
        return {
            "round": round_idx,
            "phase": stretch.phase.name,
            "train_loss": values.pop("loss"),
            **values,
            "uplink_bytes": uplink,
            "downlink_bytes": downlink,
            "seconds": seconds,
        }

    def _log(self, stretch: Stretch, state: ServerState, rows: list[Row], seconds: float) -> None:
        last, phase = rows[-1], stretch.phase
        if last["round"] % self.options["eval_every"] == 0 or last["round"] == stretch.end:
            model = jax.jit(phase.evaluated)(state, self.built.data)
            for name, examples in self.sets.items():
                measured = jax.device_get(self.evaluate(*model, examples))
                last |= {f"{name}_{key}": float(value) for key, value in measured.items()}
            self._remember(last)
        self.writer.write(rows)
        self.bar.update(rows, round(phase.forward_passes * len(rows)), seconds)

    def _remember(self, row: Row) -> None:
        progress = self.progress
        progress["final_accuracy"] = row["test_accuracy"]
        if self._is_pivot(row["round"]):
            progress["pivot_accuracy"] = row["test_accuracy"]
        best = progress["best_val_accuracy"]
        if best is None or row["val_accuracy"] > best:
            progress["best_val_accuracy"] = row["val_accuracy"]
            progress["accuracy_at_best_val"] = row["test_accuracy"]

    def _is_pivot(self, round_idx: int) -> bool:
        return len(self.stretches) > 1 and round_idx == self.stretches[0].end

    def _bytes(self, done: int) -> tuple[int, int]:
        """Returns cumulative uplink and downlink after ``done`` rounds of the run."""
        parts = [cost.cumulative(s.traffic, _rounds_in(s, done)) for s in self.stretches]
        return sum(up for up, _ in parts), sum(down for _, down in parts)

    def _forward_passes(self, done: int) -> int:
        """Returns single-example forward passes after ``done`` rounds of the run."""
        return round(sum(s.phase.forward_passes * _rounds_in(s, done) for s in self.stretches))

    def _first_state(self, stretch: Stretch, params, model_state, done) -> ServerState:
        """Returns a phase's first state: the model goes on, the optimizer starts afresh."""
        fresh = stretch.phase.algorithm.init(params, model_state, done)
        return jax.device_put(fresh, self.replicated)

    def _save(self, state: ServerState, done: int, pivot: bool = False) -> None:
        seconds = self.progress["seconds"] + time.perf_counter() - self.began
        self.checkpoints.save(done, state, self.progress | {"seconds": seconds}, keep=pivot)

    def _restore(self) -> tuple[ServerState, int]:
        """Returns the latest saved state, or the initial one, and the rounds it has done."""
        params, model_state = self.initial
        done = self.checkpoints.latest_round()
        index = next((i for i, s in enumerate(self.stretches) if s.start < (done or 1) <= s.end), 0)
        state = self._first_state(self.stretches[index], params, model_state, 0)
        if done is None:
            return state, 0
        state, self.progress = self.checkpoints.restore(done, state)
        return state, done


def _stretches(built: Experiment, params, model_state) -> list[Stretch]:
    stretches, start = [], 0
    for phase in built.phases:
        if phase.num_rounds:
            traffic = cost.phase_traffic(phase, params, model_state, built.data)
            stretches.append(Stretch(phase, start, start + phase.num_rounds, traffic))
            start += phase.num_rounds
    return stretches


def _rounds_in(stretch: Stretch, done: int) -> int:
    return min(max(done - stretch.start, 0), stretch.end - stretch.start)


def _next_stop(done: int, end: int, options: Mapping[str, int]) -> int:
    """Returns where the chunk after ``done`` ends: a full chunk, or sooner to evaluate or save."""
    cadences = (options["eval_every"], options["checkpoint_every"])
    return min(done + options["rounds_per_jit"], end, *((done // n + 1) * n for n in cadences))


@contextmanager
def _deferred_signals() -> Iterator[Callable[[], bool]]:
    """Yields a function that tells whether SIGINT or SIGTERM came; a second one acts at once."""
    received = []
    if threading.current_thread() is not threading.main_thread():
        yield lambda: False
        return

    def handle(number, frame):
        received.append(number)
        signal.signal(number, earlier[number])

    earlier = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in earlier.items():
            signal.signal(number, handler)
