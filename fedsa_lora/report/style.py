"""Style of the figures: colours that colour-blind readers tell apart, and sizes for a laptop and a phone."""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import FuncFormatter
from PIL import Image

from fedsa_lora.exchange.measure import Measure

DPI = 150
PERCENT = FuncFormatter(lambda share, _: f"{100 * share:g}%")  # a tick of 82.5 % says so


@dataclass(frozen=True)
class FigureStyle:
    """Colours (Okabe-Ito for what carries meaning) and whether the figure is for a narrow screen."""

    paper: str
    ink: str
    muted: str
    grid: str
    personalised: str
    alone: str
    down: str
    counts_map: str
    narrow: bool = False

    @property
    def text(self) -> float:
        """Font size in points."""
        return 9.0 if self.narrow else 10.5

    def width(self, crowded: bool = False) -> float:
        """Width in inches; a crowded figure gets the full width of a laptop page."""
        return 4.2 if self.narrow else 10.4 if crowded else 6.4

    @property
    def counts(self) -> Colormap:
        """Colours for counts, without the end that is too close to the paper's."""
        return ListedColormap(colormaps[self.counts_map](np.linspace(0.2, 1, 256)))

    def short(self, name: str) -> str:
        """A label that fits, of characters that can be written, where no dollar sign starts mathematics."""
        most = 16 if self.narrow else 30
        name = "".join(letter if letter.isprintable() else " " for letter in name)
        return (name if len(name) <= most else name[: most - 1] + "…").replace("$", r"\$")


LIGHT = FigureStyle("#ffffff", "#1c2127", "#5d6771", "#dfe3e7", "#0072B2", "#D55E00", "#009E73", "YlGnBu")
DARK = FigureStyle("#171b20", "#e6e9ec", "#a3acb5", "#333a42", "#56B4E9", "#E69F00", "#2FC79B", "cividis")
SCREENS = {"dark": DARK, "light": LIGHT}


def blank(style: FigureStyle, title: str, height: float, crowded: bool = False) -> tuple[Figure, Axes]:
    """An empty figure in `style`, built without pyplot so that nothing global is touched."""
    width = style.width(crowded)
    fig = Figure(figsize=(width, height), layout="constrained", facecolor=style.paper)
    ax = fig.add_subplot(facecolor=style.paper)
    for side in ("top", "right"):
        ax.spines[side].set_visible(False)
    for side in ("left", "bottom"):
        ax.spines[side].set_color(style.muted)
    ax.tick_params(colors=style.muted, labelcolor=style.ink, labelsize=style.text - 0.5, length=3)
    ax.grid(color=style.grid, linewidth=0.8)
    ax.set_axisbelow(True)
    lines = textwrap.fill(title, int(width * 72 / (style.text + 1.5) / 0.58))
    fig.suptitle(lines, x=0.01, ha="left", fontsize=style.text + 1.5, fontweight="bold", color=style.ink)
    return fig, ax


def name_axes(ax: Axes, style: FigureStyle, across: str, up: str) -> None:
    """Label both axes, with units."""
    ax.set_xlabel(across, color=style.ink, fontsize=style.text)
    ax.set_ylabel(up, color=style.ink, fontsize=style.text)


def show_measure(axis: Axis, measure: Measure) -> None:
    """Ticks in the format of a measure."""
    if measure.format == "percent":
        axis.set_major_formatter(PERCENT)


def thin_ticks(axis: Axis, names: Sequence[str], most: int, tilt: int = 0) -> None:
    """Name every nth position so that at most `most` names are written."""
    step = max(1, -(-len(names) // most))
    axis.set_ticks(range(0, len(names), step), labels=list(names[::step]), rotation=tilt)


def add_legend(fig: Figure, ax: Axes, style: FigureStyle) -> None:
    """A legend under the plot, where it never covers data."""
    handles, labels = ax.get_legend_handles_labels()
    if not handles:
        return
    fig.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=1 if style.narrow else 2,
        frameon=False,
        labelcolor=style.ink,
        fontsize=style.text - 0.5,
    )


def shade(ax: Axes, values: np.ndarray, **options: Any) -> AxesImage:
    """Draw values as cells, blank where masked: a picture for each kind of screen, the one for paper on top.

    Cells are pixels, and not shapes, so that a hundred clients with a hundred classes stay a few kilobytes.
    """
    for screen, style in SCREENS.items():
        image = ax.imshow(
            values, aspect="auto", cmap=style.counts, vmin=0, interpolation="none", gid=screen, **options
        )
    return image


def spread(heights: Sequence[float], gap: float) -> list[float]:
    """Move label heights apart by at least `gap`, keeping their order and, together, their middle."""
    order = sorted(range(len(heights)), key=heights.__getitem__)
    placed = list(heights)
    for below, above in pairwise(order):
        placed[above] = max(placed[above], placed[below] + gap)
    shift = (sum(placed) - sum(heights)) / max(1, len(heights))
    return [height - shift for height in placed]


def to_png(fig: Figure) -> bytes:
    """The figure as a PNG of few colours: a third of the size, and no difference to the eye.

    It is drawn once, where ``savefig`` draws twice, for the layout and for the picture. The layout stays for
    whatever else is made of the figure.
    """
    fig.set_dpi(DPI)
    canvas = FigureCanvasAgg(fig)
    canvas.draw()  # type: ignore[no-untyped-call]
    fig.set_layout_engine("none")
    small = io.BytesIO()
    full = Image.fromarray(np.asarray(canvas.buffer_rgba()))  # type: ignore[no-untyped-call]
    full.convert("RGB").quantize(256).save(small, format="png", dpi=(DPI, DPI))
    return small.getvalue()
