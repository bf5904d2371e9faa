"""Prints every field of a config: its value, what is allowed, what it means.

python -m experiments.configs                        # the defaults
python -m experiments.configs --config=quickstart    # marked where the config differs from them
"""

from absl import flags

from . import cli


def main(argv: list[str]) -> int:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table

    from zo_fl import config
    from zo_fl.engine import fields

    del argv
    given = cli.resolved_config() if flags.FLAGS.config else config.resolve({})
    values, table = config.flatten(given), Table(title=flags.FLAGS.config or "defaults")
    for heading in ("field", "value", "allowed", "meaning"):
        table.add_column(heading, overflow="fold")
    block = None
    for name, field in fields.flat(config.blocks()).items():
        if name.split(".")[0] != block:
            block = name.split(".")[0]
            table.add_section()
        changed = values[name] != field.default
        value = f"[bold]{values[name]}[/] *" if changed else str(values[name])
        table.add_row(name, value, field.allowed(), field.meaning)
    Console(highlight=False).print(table)
    if flags.FLAGS.config:
        print("* differs from the default")
    return 0


if __name__ == "__main__":
    cli.define_config()
    cli.run(main)
