"""One HTML page about all sweeps and runs in a folder: tables, pictures, costs, commands, configs.

    python -m experiments.report --runs=R [--out=R/report.html]

The page needs nothing else: no network, no scripts, pictures inside. Each result leads to the
commands of its runs. Exit status 0, also where runs are missing (it says which), or 2 for bad input
and where there is nothing.
"""

from zo_fl.engine.errors import ConfigError

from . import cli
from .reporting import folders


def main(argv: list[str]) -> int:
    """Writes the page of the flags' folder and returns the exit status."""
    from .reporting import found, report_page

    del argv
    root, out = folders.given_folders("report.html")
    text = report_page.of(found.read(root), root)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write {out} ({error.strerror}); change --out") from None
    print(f"written to {out}")
    return 0


if __name__ == "__main__":
    folders.define_flags("report.html")
    cli.run(main)
