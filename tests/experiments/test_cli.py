"""The commands as a user types them: bad input, signals, help, both spellings."""

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from experiments import cli, main
from experiments.inspection import client_costs
from tests import commands, tiny
from zo_fl import config as configs
from zo_fl.engine.fields import ConfigError
from zo_fl.host.files import StorageError

pytestmark = pytest.mark.slow

FAST = (
    "--config.data.name=synthetic",
    "--config.model.name=mlp",
    "--config.model.norm=none",
    "--config.run.num_devices=1",
)
RUN = ("main", "--config=quickstart", "--workdir=W")
BAD_INPUT = (
    ((*RUN, "--config.zo.epz=1"), "unknown field config.zo.epz; did you mean config.zo.eps"),
    ((*RUN, "--config.zo.tau=abc"), "config.zo.tau='abc' is not allowed; allowed: a number"),
    ((*RUN, "--config.zo.eps=0"), "allowed: a number above 0, or auto, which 0 meant before"),
    ((*RUN, "--zo.eps=1"), "zo.eps"),
    ((*RUN, "config.zo.eps=1"), "unexpected argument 'config.zo.eps=1'"),
    ((*RUN, "--config.data.name=cifar10", "--config.data.data_dir=D"), "prepare_data"),
    ((*RUN[:2], "--workdir=gs://bucket/run"), "gs://bucket/run is an address"),
    (("main",), "no config given; pass --config=quickstart"),
    (
        ("sweep", "--config=quickstart", "--sweep=splits", "--workdir=W", "--config.seed=1"),
        "use --first_seed and --seeds",
    ),
    (("tables",), "no --runs given"),
    (("report", "--runs=."), "there is no sweep.json"),
    (("replay", "--workdir=.", "--round=0"), "0 is not a positive integer"),
    (("replay", "--workdir=."), "holds no run; change --workdir"),
)


@pytest.mark.parametrize("arguments, said", BAD_INPUT, ids=lambda one: one[-1])
def test_bad_input_is_one_line_and_status_2_and_writes_nothing(arguments, said, tmp_path):
    command, *rest = arguments
    got = commands.run("-m", f"experiments.{command}", *rest, cwd=tmp_path)
    assert got.returncode == 2, got.stderr
    assert got.stdout == "" and got.stderr.count("\n") == 1, got.stderr
    assert said in got.stderr and list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "raised, status, said",
    (
        (ConfigError("a field\n is wrong"), 2, "error: a field is wrong\n"),
        (StorageError(28, "cannot write x"), 1, "error: cannot write x; make room for it, then"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ),
)
def test_an_exception_of_a_command_is_one_line_and_a_status(
    raised, status, said, monkeypatch, capsys
):
    def fails(argv):
        raise raised

    monkeypatch.setattr(cli.app, "run", lambda wrapped, flags_parser: wrapped([]))
    monkeypatch.setattr(cli, "ignore_signals", lambda: None)
    monkeypatch.setattr(cli, "leave_at_once", sys.exit)
    with pytest.raises(SystemExit) as end:
        cli.run(fails, lambda: None, "")
    printed = capsys.readouterr().err
    assert end.value.code == status and printed.startswith(said) and printed.count("\n") == 1


def test_output_that_nobody_reads_ends_a_command_without_a_line():
    """As by ``| head``, of more than fits into a pipe, or of what is flushed at the end alone."""
    for lines in (10**6, 10):
        code = (
            "from experiments import cli\n"
            f"cli.run(lambda argv: print('line\\n' * {lines}), lambda: None, '')"
        )
        reads, writes = os.pipe()
        os.close(reads)
        with os.fdopen(writes, "wb") as out:
            got = subprocess.run([sys.executable, "-c", code], stdout=out, stderr=subprocess.PIPE)
        assert (got.returncode, got.stderr) == (141, b"")


def test_costs_prints_formula_and_measurement_of_both_phases():
    got = commands.run(
        "-m",
        "experiments.costs",
        "--config=quickstart",
        "--config.algorithm=zowarmup",
        *FAST,
        "--time",
    )
    assert got.returncode == 0, got.stderr
    assert "12 B" in got.stdout and "240 B" in got.stdout and "warmup" in got.stdout


def test_costs_of_a_model_that_leaves_something_out_by_name():
    shown = io.StringIO()
    client_costs.show(configs.resolve(tiny.config("patches")), Console(file=shown))
    assert shown.getvalue().startswith("patches, ")


def test_configs_prints_a_line_a_field_of_what_the_algorithm_reads_and_the_rest_with_all():
    few, all_ = (
        commands.run("-m", "experiments.configs", "--config.algorithm=fedavg+ridge", *more).stdout
        for more in (("--config=quickstart",), ("--config=quickstart", "--all"))
    )
    for block in ("data", "model", "warmup", "ridge", "run"):
        assert f"\n{block}." in few
    assert "\nzo." not in few and "does not read" in few
    assert "\nzo." in all_ and "\nmezo." in all_
    line = "warmup.weight_decay  0.0  a number at least 0  client weight decay, coupled (L2)"
    assert line in few.splitlines()


# Each in a fork of a process that has imported the commands, as the console script does.
WITHOUT_JAX = """
import os, sys
from experiments import main
for arguments in {}:
    if not os.fork():
        sys.argv = ["zo-fl", *arguments]
        try:
            main.run()
        except SystemExit as end:
            slow = {{"jax", "matplotlib", "numpy"}} & set(sys.modules)
            print("ended with", end.code, sorted(slow), flush=True)
        os._exit(0)
    os.wait()
"""


def test_help_and_a_misspelt_flag_do_without_jax():
    """Which takes seconds to import."""
    given = [["--help"], *([name, "--help"] for name in main.COMMANDS)]
    given += [["--no_such_flag=1"], ["no_such_command"]]
    command = [sys.executable, "-c", WITHOUT_JAX.format(given)]
    done = subprocess.run(command, cwd=commands.ROOT, capture_output=True, text=True)
    ends = [line for line in done.stdout.splitlines() if line.startswith("ended with")]
    assert ends == ["ended with 0 []"] * (len(given) - 2) + ["ended with 2 []"] * 2, done
    assert done.stdout.count("Flags:") == len(given) - 2


def test_runs_that_begin_in_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    made = {main._new_workdir("configs/quickstart.py") for _ in range(5)}
    assert len(made) == 5
    assert {path.parent for path in map(Path, made)} == {Path("runs/quickstart")}


@pytest.mark.parametrize(
    "program, package, run, sweep",
    (
        ("/v/bin/zo-fl", "zo_fl.experiments", "zo-fl", "zo-fl sweep"),
        ("report.py", "experiments", "python -m experiments.main", "python -m experiments.sweep"),
        (
            "x",
            "zo_fl.experiments",
            *(f"python -m zo_fl.experiments.{n}" for n in ("main", "sweep")),
        ),
    ),
)
def test_a_command_in_a_text_is_one_of_the_installation_that_prints_it(
    program, package, run, sweep, monkeypatch, capsys
):
    monkeypatch.setattr(sys, "argv", [program])
    monkeypatch.setattr(cli, "__package__", package)
    for recorded in ("zo-fl ", "python -m experiments.", "python -m zo_fl.experiments."):
        assert cli.as_called(f"by {recorded}sweep --config=a") == f"by {sweep} --config=a"
    for recorded in ("zo-fl", "zo-fl run", "python -m experiments.main"):
        assert cli.as_called(f"{recorded} --config=a") == f"{run} --config=a"
    with pytest.raises(SystemExit):
        cli._fail("give a --workdir of zo-fl sweep")
    assert capsys.readouterr().err == f"error: give a --workdir of {sweep}\n"
    assert cli._help("    zo-fl sweep --jobs=1", []).startswith(f"    {sweep} --jobs=1")


def test_an_encoding_without_the_signs_of_tables_replaces_them(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="cp1252")
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(cli.app, "run", lambda wrapped, flags_parser: wrapped([]))
    cli.run(lambda argv: print("−1 †"), lambda: None, "")
    assert out.buffer.getvalue().strip() == "?1 †".encode("cp1252")


@pytest.mark.parametrize(
    ("message", "named"),
    (
        ('Invalid value "x" for JAX flag jax_default_matmul_precision', "of this name in capitals"),
        ("Key backend: 'x' is not a valid value for backend", "MPLBACKEND"),
    ),
)
def test_a_variable_that_an_import_cannot_read_is_one_line(message, named, monkeypatch, capsys):
    monkeypatch.setattr(cli.app, "run", lambda wrapped, flags_parser: wrapped([]))

    def main(argv):
        raise ValueError(message)

    with pytest.raises(SystemExit) as ended:
        cli.run(main, lambda: None, "")
    assert ended.value.code == cli.BAD_INPUT
    expected = f"error: {message}; change the environment variable {named}\n"
    assert capsys.readouterr().err == expected


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_an_output_that_is_full_is_one_line_and_one_that_is_closed_is_nothing(monkeypatch, capsys):
    monkeypatch.setattr(cli.app, "run", lambda wrapped, flags_parser: wrapped([]))
    with open("/dev/full", "w") as full, pytest.raises(SystemExit) as ended:
        monkeypatch.setattr(sys, "stdout", full)
        cli.run(lambda argv: print("text"), lambda: None, "")
    assert ended.value.code == 1
    expected = "error: cannot write the output: No space left on device"
    assert capsys.readouterr().err.strip() == expected
    monkeypatch.setattr(sys, "stdout", None)
    cli.run(lambda argv: print("text"), lambda: None, "")
    sys.stdout.close()


def test_the_version_is_told_with_those_of_what_it_stands_on(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["zo-fl", "--version"])
    with pytest.raises(SystemExit) as ended:
        main.run()
    said = capsys.readouterr().out
    assert ended.value.code == 0 and said.startswith("zo_fl 0.") and "jax 0." in said


def test_who_diverges_is_told_to_lower_rates_that_the_run_has():
    resolve = lambda name: configs.resolve({"algorithm": name})  # noqa: E731
    assert main._rates(resolve("zowarmup")) == ["config.warmup.lr", "config.zo.lr"]
    assert main._rates(resolve("mezo")) == ["config.mezo.lr"]
    assert main._rates(resolve("ridge+zo")) == ["config.zo.lr"]
    assert main._rates(resolve("ridge")) == []
