"""Feature shift: each client's images differ from those of the others in one way, as with another camera."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, TypeAlias, get_args

from PIL import Image, ImageFilter

from fedsa_lora.seeds import generator

Kind: TypeAlias = Literal["brightness", "blur", "rotation", "hue"]
KINDS: tuple[Kind, ...] = get_args(Kind)

# at a level of 1; the same the other way at -1, but for blur, which is none there
FACTOR = 2.5  # of brightness
RADIUS = 1 / 12  # of blur, in parts of the shorter side
ROTATION = 60  # degrees
HUE = 120  # degrees of the colour circle


@dataclass(frozen=True)
class Shift:
    """An edit of pictures that is the same for all of a client: of one kind, at a ``level`` from -1 to 1.
    Pixels are from 0 to ``brightest``."""

    kind: Kind
    level: float
    brightest: int

    def __call__(self, picture: Image.Image) -> Image.Image:
        """The picture, shifted; of the same size, uint8 as before."""
        if self.kind == "brightness":
            return picture.point(self._scaled * len(picture.getbands()))
        if self.kind == "blur":
            radius = (self.level + 1) / 2 * RADIUS * min(picture.size)
            return picture.filter(ImageFilter.GaussianBlur(radius))
        if self.kind == "rotation":
            return picture.rotate(ROTATION * self.level, resample=Image.Resampling.BILINEAR)
        hue, saturation, value = picture.convert("HSV").split()
        return Image.merge("HSV", (hue.point(self._turned), saturation, value)).convert("RGB")

    @cached_property
    def _scaled(self) -> list[int]:
        """The new brightness of each of 256 values."""
        return [min(self.brightest, round(value * FACTOR**self.level)) for value in range(256)]

    @cached_property
    def _turned(self) -> list[int]:
        """The new place of each of the 256 places of the colour circle."""
        by = round(HUE / 360 * 256 * self.level)
        return [(place + by) % 256 for place in range(256)]

    def __str__(self) -> str:
        return f"{self.kind} {self.level:+.2f}"


def shifts_of(
    clients: int, kinds: tuple[Kind, ...], strength: float, brightest: int, seed: int
) -> tuple[Shift, ...]:
    """The shift of each of ``clients``: the clients, in an order drawn from the seed, take the kinds in turn,
    and those of one kind are at equal distances from ``-strength`` to ``strength``, no two at one level."""
    shifts = []
    for place in generator(seed, "shift").permutation(clients).tolist():
        turn, kind = divmod(place, len(kinds))
        of_kind = len(range(kind, clients, len(kinds)))
        level = 2 * turn / (of_kind - 1) - 1 if of_kind > 1 else 1.0
        shifts.append(Shift(kinds[kind], strength * level, brightest))
    return tuple(shifts)
