"""Bash completes what ``zo-fl completion`` tells it of."""

import subprocess

import pytest

from experiments import completion


@pytest.fixture(scope="module")
def script():
    with pytest.MonkeyPatch.context() as patch:
        printed = []
        patch.setattr("builtins.print", printed.append)
        assert completion.main([]) == 0
    return printed[0]


@pytest.mark.parametrize(
    ("typed", "expected"),
    (
        (["zo-fl", "cam"], ["campaign"]),
        (["zo-fl", "--config", "=", "quicks"], ["quickstart"]),
        (["zo-fl", "sweep", "--sweep", "=", "fa"], ["faults"]),
        (["zo-fl", "sweep", "--see"], ["--seeds="]),
        (["zo-fl", "--dis"], ["--distributed"]),
        (["zo-fl", "--vmap"], ["--vmap_seeds=", "--vmap_values="]),
    ),
)
def test_words_are_completed(script, typed, expected):
    words = " ".join(f"'{word}'" for word in typed)
    asked = f"compopt() {{ :; }}; COMP_WORDS=({words}) COMP_CWORD={len(typed) - 1}; _zo_fl; "
    asked += "echo ${COMPREPLY[@]}"
    done = subprocess.run(
        ["bash", "-c", f"{script}\n{asked}"], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == expected
