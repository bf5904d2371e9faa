"""Settings of every test process, read when jax is imported: nothing here imports it."""

import atexit
import gc
import os
import shutil
import signal
import sys
import tempfile
import threading
from pathlib import Path

import pytest

if "jax" in sys.modules:
    raise RuntimeError("jax was imported before tests/conftest.py could configure it")

# Eight virtual devices, so that sharded code runs as such on any machine.
_FLAGS = ["--xla_force_host_platform_device_count=8"]
# Tests compile more than they compute. Without LLVM's optimizations, with XLA's older loops for
# fused operations, and in one piece, that takes a quarter of the time. Set ZO_FL_TESTS_FULL=1 to
# compile as users do, and to run the tests marked ``nightly`` too: all must pass like that.
FULL = os.environ.get("ZO_FL_TESTS_FULL", "0") not in ("", "0")
if not FULL:
    _FLAGS += [
        "--xla_backend_optimization_level=0",
        "--xla_cpu_use_fusion_emitters=false",
        "--xla_cpu_parallel_codegen_split_count=1",
    ]
os.environ["XLA_FLAGS"] = " ".join((*_FLAGS, os.environ.get("XLA_FLAGS", ""))).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# f32[3] + f32[2, 3] is an error: where clients are mapped over, it usually is a forgotten axis.
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"

# Tests compile the same programs again and again, in several processes: the first one, which the
# others inherit their environment from, makes a cache for all.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="zo_fl_tests_xla_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)

# A folder a process (pytest-xdist runs several), apart from the user's own cache.
os.environ["ZO_FL_CACHE"] = tempfile.mkdtemp(prefix="zo_fl_tests_")
atexit.register(shutil.rmtree, os.environ["ZO_FL_CACHE"], ignore_errors=True)

# Tests send signals to processes that they start. These inherit what nohup, or a shell's &, told
# this process to ignore, and would never end.
if threading.current_thread() is threading.main_thread():
    for _name, _handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        _number = getattr(signal, _name, None)
        if _number is not None and signal.getsignal(_number) is signal.SIG_IGN:
            signal.signal(_number, _handler)

# Tracing makes millions of small objects that stay: looking for garbage among them after every few
# hundred took a twelfth of the suite's time.
gc.set_threshold(100_000, 50, 100)


# The files that take longest begin first, so that none is left to one worker at the end.
_FIRST = (
    "methods/test_contract.py",
    "methods/test_same_bits.py",
    "test_run_many.py",
    "methods/test_references.py",
    "host/test_processes.py",
    "experiments/test_survival.py",
    "test_run.py",
    "methods/test_audit.py",
    "experiments/test_diagnose.py",
    "methods/test_replay.py",
    "host/test_ledger.py",
    "heads/test_runs.py",
    "test_own.py",
    "host/test_folder.py",
    "experiments/test_sweep.py",
    "experiments/test_examples.py",
    "heads/test_iterating_heads.py",
    "heads/test_sum_heads.py",
    "host/test_streaming.py",
)


def pytest_collection_finish():
    """Takes all that is imported by now out of what is looked through for garbage."""
    gc.freeze()


def pytest_collection_modifyitems(config, items):
    """Leaves nightly tests out; puts files in the order in which workers take them.

    The latter with ``--no-loadscope-reorder``.
    """
    nightly = [item for item in items if item.get_closest_marker("nightly") and not FULL]
    config.hook.pytest_deselected(items=nightly)
    items[:] = [item for item in items if item not in nightly]
    place = {Path(__file__).parent / name: i for i, name in enumerate(_FIRST)}
    items.sort(key=lambda item: place.get(item.path, len(place)))


@pytest.fixture(scope="session", autouse=True)
def pictures_are_empty():
    """Runs end with an empty picture: drawing took a tenth of the suite's time."""
    from zo_fl.host import curves

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "draw_curves", lambda rows, path, *_: Path(path).touch())
        yield
