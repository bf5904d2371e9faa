"""Parts of a self-contained HTML page. Text is escaped here; what is called ``inner`` is HTML."""

from collections.abc import Iterable
from html import escape

from .text_tables import TextTable

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
  overflow-x: auto; }
.scroll { overflow-x: auto; margin: .2rem 0 .8rem; }
table { border-collapse: collapse; font-size: .9rem; }
.title { font-weight: 600; font-size: .95rem; margin: 1.2rem 0 .2rem; }
th, td { padding: .25rem .8rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; font-variant-numeric: tabular-nums; vertical-align: top; }
th { color: var(--soft); font-weight: 600; }
.name { text-align: left; white-space: normal; }
.name + .name { min-width: 5.5rem; }
.note { color: var(--soft); font-size: .9rem; margin: .3rem 0; }
ul { padding-left: 1.2rem; overflow-wrap: anywhere; }
figure { margin: 1rem 0; background: #fff; border-radius: 4px; overflow-x: auto; max-width: 45rem; }
figure img { display: block; width: 100%; min-width: 34rem; height: auto; }
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


def table(made: TextTable) -> str:
    """Returns a table that scrolls by itself where the page is narrow."""
    head = _row("th", made.headers, made.num_names) if any(made.headers) else ""
    body = "\n".join(_row("td", row, made.num_names) for row in made.rows)
    inner = f"<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>"
    # Above the part that scrolls, so that it stays in sight.
    title = element("p", escape(made.title), class_="title")
    return title + element("div", element("table", inner), class_="scroll")


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


def _row(name: str, texts: Iterable[str], num_names: int) -> str:
    cells = [
        element(name, escape(text), class_="name") if i < num_names else element(name, escape(text))
        for i, text in enumerate(texts)
    ]
    return element("tr", "".join(cells))
