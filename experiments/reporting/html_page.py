"""Parts of a self-contained HTML page. Text is escaped here; what is called ``inner`` is HTML."""

from collections.abc import Callable, Iterable
from html import escape

from .text_tables import Point, TextTable

_STYLE = """
:root { color-scheme: light dark; --ink: #222; --soft: #595959; --line: #ddd; --back: #fff;
  --box: #f4f6f8; --link: #00558a; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e6; --soft: #aaa; --line: #444;
  --back: #16181b; --box: #22262b; --link: #8cc8f0; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 62rem; background: var(--back);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.2rem; line-height: 1.3; }
section { border-top: 1px solid var(--line); margin-top: 2rem; padding-top: .5rem; }
a { color: var(--link); } nav a { display: inline-block; margin-right: .8rem; padding: .2rem 0; }
pre { background: var(--box); padding: .6rem .8rem; border-radius: 4px; font-size: .85rem;
  margin: .3rem 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; margin: .2rem 0 .8rem; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; }
.title { font-weight: 600; font-size: .95rem; margin: 1.2rem 0 .2rem; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
.name { text-align: left; white-space: normal; overflow-wrap: break-word; min-width: 5.5rem; }
.numbers .name:first-child { position: sticky; left: 0; background: var(--back); }
@media (max-width: 40rem) { .numbers { width: max-content; } .numbers .name { max-width: 9rem; } }
.note { color: var(--soft); font-size: .9rem; margin: .3rem 0; }
ul { padding-left: 1.2rem; overflow-wrap: anywhere; }
figure { margin: 1rem 0; max-width: 40rem; }
figure img { display: block; width: 100%; height: auto; }
@media (prefers-color-scheme: dark) { figure img { filter: invert(.88) hue-rotate(180deg); } }
.commands code { display: block; } .commands code + code { margin-top: .6rem; }
.commands span { display: inline-block; max-width: 100%; }
.run { margin: .8rem 0; scroll-margin-top: 1rem; }
.run .title { margin-top: .6rem; }
.run pre { max-height: 5.2rem; overflow-y: auto; }
.run:target pre { max-height: none; }
.run:target { outline: 2px solid var(--link); outline-offset: .4rem; border-radius: 2px; }
details { margin: .4rem 0; } summary { cursor: pointer; padding: .2rem 0; }
details details { margin-left: .8rem; }
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
    """Returns a table that scrolls by itself where the page is narrow.

    Args:
      made: the table.
      link: the address of a point; cells that show one lead there.
    """

    def cell(text: str, place: tuple[int, int]) -> str:
        point = made.points.get(place) if link else None
        inner = element("a", escape(text), href=link(point)) if link and point else escape(text)
        return element("td", inner, **_kind(made, place[1]))

    head = _head(made) if any(made.headers) else ""
    body = "\n".join(
        element("tr", "".join(cell(text, (i, j)) for j, text in enumerate(row)))
        for i, row in enumerate(made.rows)
    )
    inner = f"<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>"
    # Above the part that scrolls, so that it stays in sight.
    title = element("p", escape(made.title), class_="title") if made.title else ""
    kind = "numbers" if len(made.headers) > made.num_names else "words"
    return title + element("div", element("table", inner, class_=kind), class_="scroll")


def commands(lines: Iterable[str]) -> str:
    """Returns command lines to copy; where they are folded, no flag is torn apart."""
    parts = (" ".join(element("span", escape(word)) for word in line.split(" ")) for line in lines)
    return element("pre", "".join(element("code", part) for part in parts), class_="commands")


def bullets(title: str, lines: Iterable[str]) -> str:
    """Returns a list under a title, folded if it is long."""
    lines = list(lines)
    items = "\n".join(element("li", escape(line)) for line in lines)
    if len(lines) > 10:
        return folded(title, element("ul", items))
    return element("p", escape(title)) + element("ul", items)


def folded(title: str, inner: str) -> str:
    """Returns a part that opens when its title is clicked."""
    return element("details", element("summary", escape(title)) + "\n" + inner)


def _head(made: TextTable) -> str:
    cells = (element("th", escape(text), **_kind(made, i)) for i, text in enumerate(made.headers))
    return element("tr", "".join(cells))


def _kind(made: TextTable, column: int) -> dict[str, str]:
    return {"class_": "name"} if column < made.num_names else {}
