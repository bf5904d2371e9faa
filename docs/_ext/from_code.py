"""Reference made from the code, and the looks of what the code says.

In a page ``<!-- fields zo -->`` becomes the table of a config block, ``<!-- fields -->`` those of
all blocks, and ``<!-- commands -->`` the help of all commands.
"""

import re
import subprocess
from collections.abc import Iterator

from docutils import nodes
from zo_fl.experiments.main import COMMANDS

from zo_fl import config
from zo_fl.config import check
from zo_fl.engine.fields import Field

_SHELL = "%%sh\n"


def table(headings: list[str], rows: list[tuple[str, ...]]) -> str:
    """Returns a Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    cells = ([cell.replace("|", r"\|") for cell in line] for line in lines)
    return "\n".join(f"| {' | '.join(line)} |" for line in cells) + "\n"


def fields(block: str = "") -> str:
    """Returns the table of a config block, or of all, each under a heading."""
    blocks = config.blocks()
    if not block:
        nested = [name for name, entry in blocks.items() if not isinstance(entry, Field)]
        top = _fields({name: blocks[name] for name in blocks if name not in nested})
        return top + "\n".join(f"\n## {name}\n\n{fields(name)}" for name in nested)
    return _fields({block: blocks[block]})


def _fields(block) -> str:
    rows = [
        (f"`{name}`", f"`{field.usual!r}`", check.allowed(field), field.meaning)
        for name, field in check.flat(block).items()
    ]
    return table(["field", "default", "allowed", "meaning"], rows)


def commands() -> str:
    """Returns the help of all commands, each under a heading."""
    return "\n".join(_command(name) for name in COMMANDS)


def _command(name: str) -> str:
    given = ["zo-fl", *([] if name == "run" else [name])]
    helped = subprocess.run([*given, "--help"], capture_output=True, text=True, check=True).stdout
    described, _, listed = helped.partition("\n\nFlags:\n")
    flags = re.findall(r"^  --(\S+): (.*)$", listed, re.MULTILINE)
    rows = [(f"`--{flag}`", meaning) for flag, meaning in flags]
    described = re.sub(r"^  (zo-fl \w+)", r"- `\1`", described, flags=re.MULTILINE)
    return f"## {' '.join(given)}\n\n{described}\n\n{table(['flag', 'meaning'], rows)}"


def fill(app, page: str, source: list[str]) -> None:
    """Replaces the marks of a page by what they stand for."""
    make = {"fields": fields, "commands": commands}
    source[0] = re.sub(
        r"^<!-- (fields|commands)(?: (\w+))? -->$",
        lambda found: make[found[1]](*filter(None, [found[2]])),
        source[0],
        flags=re.MULTILINE,
    )


def show_shell(app, doctree) -> None:
    """Shows the cells that run in a shell as commands."""
    for node in doctree.findall(nodes.literal_block):
        if node.astext().startswith(_SHELL):
            text = node.astext().removeprefix(_SHELL)
            node.replace_self(nodes.literal_block(text, text, language="sh"))


def keep_layout(app, what, name, obj, options, lines: list[str]) -> None:
    """Marks the indented parts of a docstring, formulas and tables, as literal."""
    lines[:] = _marked(lines)


def _marked(lines: list[str]) -> Iterator[str]:
    inside, before = False, ""
    for line in list(lines):
        indented = line.startswith("    ")
        if indented and not inside and not before.strip():
            yield from (".. code-block:: text", "")
        inside = indented or (inside and not line.strip())
        before = line
        yield line


def skip_field(app, what, name, obj, skip, options) -> bool | None:
    """Leaves out the fields of a NamedTuple, which its docstring explains."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def setup(app) -> dict[str, bool]:
    """Connects all of this to Sphinx."""
    app.connect("source-read", fill)
    app.connect("doctree-read", show_shell)
    app.connect("autodoc-process-docstring", keep_layout, priority=900)
    app.connect("autodoc-skip-member", skip_field)
    return {"parallel_read_safe": True}
