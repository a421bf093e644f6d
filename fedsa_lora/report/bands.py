"""Bands over a figure, not to be seen, which show the values below a pointer as their title."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TypeVar

from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from fedsa_lora.errors import printable

MARK = "value:"  # begins the id of a band in a figure, of which the rest is its title
MOST = 60  # bands of rounds
Place = TypeVar("Place")


def kept(places: Sequence[Place]) -> list[Place]:
    """All of them, or every nth where there are more than MOST."""
    return list(places[:: max(1, math.ceil(len(places) / MOST))])


def edges(centres: Sequence[float], low: float, high: float) -> list[tuple[float, float]]:
    """The stretch around each of ascending centres, from low to high without gaps."""
    between = [(one + other) / 2 for one, other in pairwise(centres)]
    return list(pairwise([low, *between, high]))


def add_bands(ax: Axes, places: Sequence[tuple[float, str]], upright: bool = True) -> None:
    """Put a band with a text around each place on the x axis, or on the y axis where not ``upright``. The
    limits of the axis stay as they are by now."""
    low, high = sorted(ax.get_xlim() if upright else ax.get_ylim())
    transform = ax.get_xaxis_transform() if upright else ax.get_yaxis_transform()
    stretches = edges([centre for centre, _ in places], low, high)
    for (_, text), (start, end) in zip(places, stretches, strict=True):
        corner, width, height = ((start, 0), end - start, 1) if upright else ((0, start), 1, end - start)
        band = Rectangle(corner, width, height, transform=transform, alpha=0, gid=f"{MARK}{printable(text)}")
        band.set_in_layout(False)
        ax.add_artist(band)
