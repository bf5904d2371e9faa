"""Lists the fields of a config that its algorithm reads: value, what is allowed, what it means.

    zo-fl configs                        # the defaults
    zo-fl configs --config=quickstart    # marked where the config differs from them
    zo-fl configs --all                  # also the fields of all other algorithms

Exit status 0, or 2 for bad input.
"""

from absl import flags

from . import cli


def define_flags() -> None:
    """Defines the command's flags."""
    cli.define_config()
    flags.DEFINE_bool("all", False, "Also list what other algorithms read.")


def main(argv: list[str]) -> int:
    """Prints the table and returns the exit status."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from zo_fl import config, methods
    from zo_fl.config import check

    del argv
    given = cli.resolved_config() if flags.FLAGS.config else config.resolve({})
    read = {"algorithm", "seed", "run"} | config.blocks_read(methods.parts(given["algorithm"]))
    blocks = config.blocks()
    shown = blocks if flags.FLAGS.all else {name: blocks[name] for name in blocks if name in read}
    values, table = config.flatten(given), Table(title=flags.FLAGS.config or "defaults")
    for heading in ("field", "value", "allowed", "meaning"):
        table.add_column(heading, no_wrap=heading == "field", overflow="fold")
    for name in shown:
        table.add_section()
        for field, declared in check.flat({name: shown[name]}).items():
            value = str(values[field])
            changed = f"[bold]{value}[/] *" if values[field] != declared.usual else value
            table.add_row(field, changed, check.allowed(declared), declared.meaning)
    console = Console(highlight=False)
    if console.is_terminal:
        console.print(table)
    else:  # a line a field, for grep
        for row in zip(*(column.cells for column in table.columns), strict=True):
            print("  ".join(Text.from_markup(str(cell)).plain for cell in row))
    if flags.FLAGS.config:
        print("* differs from the default")
    if len(shown) < len(blocks):
        rest = ", ".join(name for name in blocks if name not in shown)
        print(f"{given['algorithm']} does not read: {rest} (--all lists them too)")
    return 0


if __name__ == "__main__":
    cli.run(main, define_flags, __doc__)
