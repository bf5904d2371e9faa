"""Runs contestants on a workload in turn, each in a process of its own, and merges their figures.

A contestant is a command that prints one JSON object: ``measure`` for this project, the scripts of
``benchmarks/peers`` for the others. They take turns, so that a slow minute of the machine meets
all alike: compare within a table, never between tables.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zo_fl.engine.fields import ConfigError

# glibc gives every large buffer back to the system and pays page faults for it again; PyTorch at
# batch 500 runs 2.4 times faster when it may keep them. The same for all contestants.
ENVIRONMENT = {"MALLOC_MMAP_THRESHOLD_": str(2**32), "MALLOC_TRIM_THRESHOLD_": str(2**33)}

Figures = dict[str, Any]


class Peer(NamedTuple):
    """Someone else's implementation of some workloads.

    Attributes:
      environment: folder of its virtual environment, and its requirements file's name.
      module: of ``benchmarks.peers``.
      arguments: of the module.
      workloads: those that it can do.
    """

    environment: str
    module: str
    arguments: tuple[str, ...]
    workloads: tuple[str, ...]


_FEDAVG = ("W1", "W1-7", "W1-30", "W1-4")
PEERS = {
    "PyTorch, a loop": Peer("torch", "torch_fedavg", (), (*_FEDAVG, "W5", "W5-45")),
    "pfl-research": Peer("pfl", "pfl_fedavg", (), _FEDAVG),
    "Flower, 2 actors": Peer("flower", "flower_fedavg", (), _FEDAVG),
    "FedJAX": Peer("fedjax", "fedjax_fedavg", (), _FEDAVG),
    "PyTorch, fused": Peer("torch", "torch_zo", ("--style=fused",), ("W2", "W3")),
    "PyTorch, flat": Peer("torch", "torch_zo", ("--style=flat",), ("W2", "W3")),
    "PyTorch, MeZO's": Peer("torch", "torch_zo", ("--style=mezo",), ("W2", "W3")),
    "plain JAX": Peer("jax", "plain_jax_zo", (), ("W2", "W3")),
}


def contestants(
    workload: str, environments: Path | None, ours: Sequence[str]
) -> dict[str, list[str]]:
    """Returns name -> command of all who can do a workload.

    Args:
      workload: name.
      environments: folder of the peers' virtual environments; without one there are no peers. A
        peer whose environment is not there is left out.
      ours: more arguments of ``measure``.

    Raises:
      ConfigError: not one environment is there.
    """
    commands = {
        "zo_fl": [sys.executable, "-m", f"{__package__}.measure", *ours],
    }
    if environments is not None:
        # They know nothing of zo_fl, where it is installed or not: they run from the source.
        if not Path("benchmarks", "peers").is_dir():
            raise ConfigError("--peers needs the repository; run from its root, or leave it out")
        found = {peer.environment for peer in PEERS.values()}
        found = {name for name in found if _python(environments, name).exists()}
        if not found:
            raise ConfigError(
                f"no peer's environment in {environments}; make one as benchmarks/peers/README.md "
                "says, or leave out --peers"
            )
        for name, peer in PEERS.items():
            if workload in peer.workloads and peer.environment in found:
                python = str(_python(environments, peer.environment))
                commands[name] = [python, "-m", f"benchmarks.peers.{peer.module}", *peer.arguments]
    return {name: [*command, f"--workload={workload}"] for name, command in commands.items()}


def run(command: Sequence[str], rounds: int, timeout: float | None = None) -> Figures:
    """Returns the figures of one turn of a contestant.

    Raises:
      ConfigError: it failed; the last line that it printed is part of the message.
      subprocess.TimeoutExpired: it took longer than ``timeout`` seconds.
    """
    result = subprocess.run(
        [*command, f"--rounds={rounds}"],
        capture_output=True,
        text=True,
        env=os.environ | ENVIRONMENT,
        check=False,
        timeout=None if timeout is None else max(timeout, 0.0),
    )
    lines = [line for line in result.stdout.splitlines() if line.startswith("{")]
    if result.returncode or not lines:
        last = (result.stderr.strip().splitlines() or ["it printed nothing"])[-1]
        raise ConfigError(f"{' '.join(command[1:])} failed: {last}")
    return json.loads(lines[-1])


def merge(turns: Sequence[Figures]) -> Figures:
    """Returns the figures of several turns as one: times together, the largest memory."""
    merged = dict(turns[0])
    for key in ("seconds", "forward_seconds", "host_seconds"):
        if merged.get(key) is not None:
            merged[key] = [seconds for turn in turns for seconds in turn[key]]
    for key in ("peak_rss_bytes", "compile_seconds"):
        if merged.get(key) is not None:
            merged[key] = max(turn[key] for turn in turns)
    return merged


def share_of_inference(figures: Figures) -> str:
    """Returns the median time of inference over the median time of a round, "" for training."""
    forward = figures.get("forward_seconds")
    if forward is None:
        return ""
    return f"{statistics.median(forward) / statistics.median(figures['seconds']):.2f}"


def _python(environments: Path, name: str) -> Path:
    return environments.absolute() / name / "bin" / "python"
