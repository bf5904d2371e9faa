"""Parts of a self-contained HTML page. Text is escaped here; ``inner`` arguments are HTML."""

import base64
import io
from collections.abc import Callable, Iterable
from html import escape

from matplotlib.figure import Figure

from .runs import Point
from .text_table import TextTable

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #595959; --line: #ddd; --back: #fff;
  --box: #f4f6f8; --link: #00558a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #aaa; --line: #444;
  --back: #16181b; --box: #22262b; --link: #8cc8f0; }
  figure img { filter: invert(.88) hue-rotate(180deg); } }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; background: var(--back);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; } a { color: var(--link); }
section { border-top: 1px solid var(--line); margin-top: 2rem; } nav a { margin-right: .8rem; }
pre { background: var(--box); padding: .6rem .8rem; font-size: .85rem; margin: .3rem 0;
  white-space: pre-wrap; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .2rem 0 .8rem; }
.title { font-weight: 600; font-size: .95rem; margin: 1.2rem 0 .2rem; }
table { border-collapse: collapse; font-size: .9rem; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums; vertical-align: top; }
th { color: var(--soft); }
.name { text-align: left; white-space: normal; min-width: 5.5rem; max-width: 20rem; }
.note { color: var(--soft); font-size: .9rem; margin: .3rem 0; }
ul { padding-left: 1.2rem; overflow-wrap: anywhere; }
figure { margin: 1rem 0; max-width: 40rem; } figure img { width: 100%; }
.commands code { display: block; margin-top: .3rem; } .commands span { display: inline-block; }
.run:target { outline: 2px solid var(--link); outline-offset: .4rem; } summary { cursor: pointer; }
""".strip()


def document(title: str, inner: str) -> str:
    """Returns a whole page."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n"
        f"<body>\n{inner}\n</body>\n</html>\n"
    )


def element(name: str, inner: str, **attributes: str) -> str:
    """Returns an element; ``class_`` becomes ``class``."""
    text = "".join(f' {key.rstrip("_")}="{escape(value)}"' for key, value in attributes.items())
    return f"<{name}{text}>{inner}</{name}>"


def table(made: TextTable, link: Callable[[Point], str] | None = None) -> str:
    """Returns a table that scrolls by itself if the page is narrow.

    ``link`` gives the address of a point; cells that show a point lead there.
    """

    def cell(kind: str, text: str, column: int, point: Point | None = None) -> str:
        inner = element("a", escape(text), href=link(point)) if link and point else escape(text)
        return element(kind, inner, **({"class_": "name"} if column < made.num_names else {}))

    head = "".join(cell("th", text, j) for j, text in enumerate(made.headers))
    rows = [element("tr", head)] if any(made.headers) else []
    for i, row in enumerate(made.rows):
        cells = (cell("td", text, j, made.points.get((i, j))) for j, text in enumerate(row))
        rows.append(element("tr", "".join(cells)))
    # The title stays in sight: it is above the part that scrolls.
    title = element("p", escape(made.title), class_="title") if made.title else ""
    return title + element("div", element("table", "\n".join(rows)), class_="scroll")


def picture(name: str, figure: Figure) -> str:
    """Returns a figure as an SVG inside the page; as an image, its ids stay its own."""
    file = io.BytesIO()
    # Transparent, as the page may be dark.
    figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
    data = base64.b64encode(file.getvalue()).decode()
    alt = escape(f"picture {name}; its numbers are in the table")
    return f'<figure><img alt="{alt}" src="data:image/svg+xml;base64,{data}"></figure>'


def commands(lines: Iterable[str]) -> str:
    """Returns command lines to copy; a fold never tears a flag apart."""
    parts = (" ".join(element("span", escape(word)) for word in line.split(" ")) for line in lines)
    return element("pre", "".join(element("code", part) for part in parts), class_="commands")


def bullets(title: str, lines: Iterable[str]) -> str:
    """Returns a list under a title, folded if it is long."""
    lines = list(lines)
    items = element("ul", "\n".join(element("li", escape(line)) for line in lines))
    return folded(title, items) if len(lines) > 10 else element("p", escape(title)) + items


def folded(title: str, inner: str) -> str:
    """Returns a part that opens when its title is clicked."""
    return element("details", element("summary", escape(title)) + "\n" + inner)
