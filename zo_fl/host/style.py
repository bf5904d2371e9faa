"""The look of every figure: one palette, one ink, one pair of axes; without pyplot."""

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Okabe and Ito's palette, which people of any colour vision can tell apart.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
INK, FAINT, GREY, GRID = "#444444", "#767676", "#999999", "#DDDDDD"
SHADES = ("#FFFFFF", "#EEF2F6")  # of phases, in turn

# A decorator: its function draws in this look, whatever a matplotlibrc or a caller has set.
own = style.context("default")


def new_figure(width: float, height: float, title: str = "") -> Figure:
    """Returns an empty figure of a size in inches; its title is text, never mathematics."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    FigureCanvasAgg(figure)
    if title:
        figure.suptitle(plain(title), fontsize=11, color=INK)
    return figure


def decorate(axes: Axes) -> None:
    """Gives axes a faint grid below what is drawn, two spines, and labels in ink."""
    axes.grid(color=GRID, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=9, colors=INK)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set_color(INK)
        label.set_fontsize(10)


def plain(text: str) -> str:
    """Returns text that matplotlib does not take for mathematics."""
    return text.replace("$", r"\$")
