"""The site has every page and name that a reader looks for; building it is a step of its own."""

import re
from pathlib import Path

import zo_fl
from experiments.main import COMMANDS
from zo_fl import config, methods
from zo_fl.engine.fields import Field

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(
    path for path in DOCS.rglob("*.md") if not {"_build", "jupyter_execute"} & set(path.parts)
)


def text_of(*names):
    return "\n".join((DOCS / name).read_text() for name in names)


def test_every_public_name_is_on_the_reference_page():
    told = re.findall(r"^\.\. auto\w+:: zo_fl\.(\w+)$", text_of("reference/api.md"), re.MULTILINE)
    assert sorted(told) == sorted(zo_fl.__all__)


def test_every_page_is_in_one_table_of_contents():
    listed = []
    for page in PAGES:
        for block in re.findall(r"```{toctree}\n(.*?)```", page.read_text(), re.DOTALL):
            entries = [line for line in block.splitlines() if line and not line.startswith(":")]
            for entry in entries:
                found = page.parent.glob(f"{entry}.md")
                listed += [path for path in found if path != page or "*" not in entry]
    assert sorted(listed) == [page for page in PAGES if page != DOCS / "index.md"]


def test_every_block_of_a_method_has_its_table_beside_the_method():
    pages = text_of("methods/zo.md", "methods/sgd.md", "methods/heads.md")
    own = {name for name, block in methods.blocks().items() if not isinstance(block, Field)}
    assert set(re.findall(r"^<!-- fields (\w+) -->$", pages, re.MULTILINE)) == own
    assert own <= config.blocks().keys()


def test_every_method_is_in_a_table():
    for page in ("methods/index.md", "../README.md"):
        named = set(re.findall(r"`(\w+)`", text_of(page)))
        assert methods.names() <= named, page


def test_fields_and_commands_come_from_the_code():
    assert "<!-- fields -->" in text_of("reference/config.md")
    assert "<!-- commands -->" in text_of("reference/commands.md")


def test_every_command_and_field_that_a_page_names_is_there():
    known = {
        f"{block}.{field}"
        for block, entry in config.blocks().items()
        if not isinstance(entry, Field)
        for field in entry
    }
    blocks = {name.split(".")[0] for name in known} - {"data", "model", "patches"}
    # An example's, a misspelt one, and options that results tell of and that are gone.
    known |= {"fedprox.mu", "zo.num_direction", "zo.by_layer", "ridge_cg.preconditioner"}
    for page in PAGES:
        text = page.read_text()
        assert set(re.findall(r"zo-fl ([a-z]\w*)", text)) <= COMMANDS.keys(), page
        named = re.findall(r"(?:--config\.|[`\"])((?:[a-z_]+)\.(?:[a-z_]+))(?==|`|\":)", text)
        fields = {name for name in named if name.split(".")[0] in blocks}
        assert fields <= known, page


def test_every_picture_says_in_words_what_it_shows():
    for page in PAGES:
        for alt in re.findall(r"!\[(.*?)\]\(", page.read_text(), re.DOTALL):
            assert len(alt.split()) > 5, page
