"""Sphinx settings of the site: ``sphinx-build -W docs docs/_build``.

The tutorials run while the site is built, each in an empty folder. furo is the theme: one
dependency, no configuration, readable on a phone and in the dark.
"""

import logging
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent / "_ext"))
# The console script of this environment, for the shell cells, also where it is not activated.
os.environ["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
os.environ["TTY_COMPATIBLE"] = "0"  # plain lines, where ipykernel asks for colours and bars
logging.getLogger("traitlets").setLevel(logging.WARNING)

from nbclient import NotebookClient  # noqa: E402

import zo_fl  # noqa: E402

# A shell's output comes in pieces; this joins them, nb_merge_streams would break lines there.
NotebookClient.coalesce_streams = True

project = "zo_fl"
version = release = zo_fl.__version__
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "from_code"]
# myst_nb writes the notebooks that it has run beside the site.
exclude_patterns = ["_build", "_ext", "_static", "jupyter_execute"]
smartquotes = False  # -- is the beginning of a flag
html_theme = "furo"
html_title = f"zo_fl {version}"
html_show_sourcelink = html_show_copyright = False
html_static_path = ["_static"]
html_css_files = ["site.css"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_raise_on_error = True
nb_execution_timeout = 300

autodoc_member_order = "bysource"
maximum_signature_line_length = 88
napoleon_use_ivar = True
napoleon_attr_annotations = False  # the signature has them
nitpicky = True
# Other projects' names are not here; Taken is a type variable.
nitpick_ignore_regex = [("py:.*", r"(?!zo_fl\.).*|.*\.Taken")]
