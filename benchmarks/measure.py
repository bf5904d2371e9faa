"""Times one workload's rounds in this process and prints the figures as one JSON object.

    python -m benchmarks.measure --workload=W2 [--set=zo.precision=bfloat16]

A process of its own for each workload, so that its peak of memory is its own. The program that is
timed is a run's: a chunk of rounds, its state donated, its metrics fetched and written.
"""

import functools
import itertools
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

import zo_fl
from experiments import cli
from zo_fl import config as configs
from zo_fl.compiled import make_chunk
from zo_fl.engine.algorithm import start
from zo_fl.engine.fields import ConfigError
from zo_fl.engine.layout import Engine
from zo_fl.engine.round import make_algorithm
from zo_fl.engine.types import FederatedData
from zo_fl.experiment import Experiment
from zo_fl.host import devices, streaming
from zo_fl.host.metrics import MetricsWriter

from . import workloads
from .workloads import Workload


def measure(
    workload: Workload, rounds: int, changes: Mapping[str, Any], trace: str | None = None
) -> dict[str, Any]:
    """Returns the figures of some timed chunks of rounds after one that is not timed.

    Args:
      workload: which.
      rounds: timed chunks, each of ``workload.rounds`` rounds.
      changes: see ``workloads.set_up``.
      trace: folder for a trace of one more chunk, which is not timed, for TensorBoard or Perfetto.

    Returns:
      ``seconds`` a round, ``host_seconds`` a round that the host was busy outside of the program
      (an upper bound: dispatching may overlap with computing), and ``forward_seconds`` that plain
      inference would take, are lists with an entry a chunk; ``forward_seconds`` is None unless
      all passes are forward ones. ``peak_rss_bytes_after`` is the most memory that the process has
      held, after stages; rounds come after compiling plain inference, too.
    """
    built, config = workloads.set_up(workload, changes)
    peaks = {"data and model": _peak_bytes()}
    (phase,) = built.phases
    engine = built.engine.of(phase.groups)
    init = jax.jit(
        lambda key: start(phase, *built.task.init(key)),
        out_shardings=engine.replicated,
        compiler_options=engine.compiler_options_once,
    )
    state, run_key = init(built.run_key), jax.device_put(built.run_key, engine.replicated)
    feed = _feed(built, engine, workload.rounds, rounds + 1)
    data = next(feed)
    began = time.perf_counter()
    algorithm = make_algorithm(phase, engine)
    chunk = jax.jit(
        make_chunk(lambda numbers: algorithm, workload.rounds),
        donate_argnums=0,
        compiler_options=engine.compiler_options,
    )
    program = chunk.lower(state, data, run_key, jnp.int32(1), ()).compile()
    compile_seconds = time.perf_counter() - began
    peaks["compiling"] = _peak_bytes()
    devices.return_memory()
    images = sum(group.forward_passes for group in phase.groups)
    forward = _forward_pass(workload, built, config, state)
    analysis: Any = program.memory_analysis()
    seconds, host_seconds, forward_seconds = [], [], []
    with tempfile.TemporaryDirectory() as folder, MetricsWriter(Path(folder)) as writer:
        for turn in range(rounds + 1):
            forward_seconds.append(_seconds_of(forward) * images / workload.images)
            began = time.perf_counter()
            state, metrics = program(state, data, run_key, jnp.int32(workload.rounds), ())
            data = next(feed, data)
            dispatched = time.perf_counter()
            jax.block_until_ready((state, metrics))
            ready = time.perf_counter()
            writer.write(_rows(turn, workload.rounds, jax.device_get(metrics)))
            end = time.perf_counter()
            seconds.append((end - began) / workload.rounds)
            host_seconds.append((dispatched - began + end - ready) / workload.rounds)
    peaks["rounds"] = _peak_bytes()
    if trace is not None:
        with jax.profiler.trace(trace):
            jax.block_until_ready(program(state, data, run_key, jnp.int32(workload.rounds), ()))
    forward_only = workload.algorithm == "zo"
    training = 1 if forward_only else 3  # a backward pass counts as two forward ones
    flops = workloads.forward_flops(workload.model) * images * training
    device = jax.devices()[0]
    memory = device.memory_stats() or {}
    return {
        "peer": "zo_fl",
        "workload": workload.name,
        "versions": {
            "jax": jax.__version__,
            "git": devices.provenance(zo_fl.__version__)["git"],
        },
        "device": device.device_kind,
        "threads": os.cpu_count(),
        "seconds": seconds[1:],
        "images": images,
        "flops": flops,
        "forward_seconds": forward_seconds[1:] if forward_only else None,
        "peak_rss_bytes": peaks["rounds"],
        "peak_rss_bytes_after": peaks,
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(state.params)),
        "temporary_bytes": analysis.temp_size_in_bytes,
        "argument_bytes": analysis.argument_size_in_bytes,
        "peak_device_bytes": memory.get("peak_bytes_in_use"),
        "compile_seconds": compile_seconds,
        "host_seconds": host_seconds[1:],
    }


def _feed(built: Experiment, engine: Engine, rounds: int, chunks: int) -> Iterator[FederatedData]:
    """Returns the data of each chunk of rounds."""
    if not engine.streamed:
        return itertools.repeat(jax.device_put(built.data, engine.replicated))
    cuts = [(i * rounds, (i + 1) * rounds) for i in range(chunks)]
    groups = built.phases[0].groups
    return streaming.stream(built.data, groups, engine, built.run_key, cuts)


def _forward_pass(workload: Workload, built, config, state):
    """Returns a call that computes the losses of one client's images once."""
    block = config["zo" if workload.algorithm == "zo" else "warmup"]
    batch_statistics = block.get("bn_policy") in ("batch", "batch_sync")
    examples = jax.tree.map(lambda leaf: jnp.asarray(leaf[: workload.images]), built.data.examples)
    mask = jnp.ones(workload.images, bool)

    task = built.task.with_precision(block["precision"])

    @functools.partial(jax.jit, compiler_options=built.engine.compiler_options)
    def losses(params, model_state, examples):
        return task.losses(params, model_state, examples, mask, batch_statistics)[0]

    # A copy: the round is given the state to destroy.
    model = jax.tree.map(jnp.copy, (state.params, state.model_state))
    params, model_state = jax.device_put(model, built.engine.replicated)
    return lambda: losses(params, model_state, examples)


def _peak_bytes() -> int:
    """Returns the most memory that this process has held until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _seconds_of(call) -> float:
    """Returns the median seconds of five calls."""
    each = []
    for _ in range(5):
        start = time.perf_counter()
        jax.block_until_ready(call())
        each.append(time.perf_counter() - start)
    return float(np.median(each))


def _rows(turn: int, rounds: int, metrics: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    return [
        {"round": turn * rounds + i + 1, **{name: float(v[i]) for name, v in metrics.items()}}
        for i in range(rounds)
    ]


def main(argv: list[str]) -> int:
    """Measures, prints or writes the figures, returns the exit status."""
    del argv
    given = flags.FLAGS
    if given.workload is None:
        raise ConfigError(f"no --workload given; allowed: {', '.join(workloads.WORKLOADS)}")
    workload = workloads.WORKLOADS[given.workload]
    if given.tiny:
        workload = workloads.tiny(workload)
    changes = dict(map(change, given.set or []))
    text = json.dumps(measure(workload, given.rounds, changes, given.trace))
    if given.json == "-":
        print(text)
    else:
        Path(given.json).write_text(text + "\n")
    return 0


def change(text: str) -> tuple[str, Any]:
    """Returns the field and the value of ``FIELD=VALUE``."""
    name, _, value = text.partition("=")
    return name, configs.parse(name, value)


def define_flags() -> None:
    """Defines the command's flags."""
    flags.DEFINE_enum("workload", None, list(workloads.WORKLOADS), "Which.")
    flags.DEFINE_bool("tiny", False, "The same work on two clients of four images.")
    flags.DEFINE_integer("rounds", 3, "Timed rounds.", lower_bound=1)
    flags.DEFINE_multi_string("set", [], "FIELD=VALUE changes a field of the config.")
    flags.DEFINE_string("json", "-", "File of the figures; - is the standard output.")
    flags.DEFINE_string("trace", None, "Folder for a trace of one more round.")


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
