"""Light augmentation of train images: moved by a few pixels, and turned left to right."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Augmentation:
    """Each image is moved by up to ``crop`` pixels, up or down and left or right, and the gap is filled with
    its mirrored border (a random crop of the padded image); with ``flip`` half of the images are mirrored."""

    crop: int = 0
    flip: bool = False

    def __call__(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        """Images (n, channels, height, width), each changed by separate draws."""
        if self.crop:
            pixels = self._moved(pixels, rng)
        if self.flip:
            turned = rng.random(len(pixels)) < 0.5
            pixels = np.where(turned[:, None, None, None], pixels[..., ::-1], pixels)
        return pixels

    def _moved(self, pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
        height, width = pixels.shape[2:]
        around = ((0, 0), (0, 0), (self.crop, self.crop), (self.crop, self.crop))
        wide = np.pad(pixels, around, mode="reflect")
        windows = np.lib.stride_tricks.sliding_window_view(wide, (height, width), axis=(2, 3))
        down, right = rng.integers(2 * self.crop + 1, size=(2, len(pixels)))
        moved: NDArray[np.uint8] = windows[np.arange(len(pixels)), :, down, right]
        return moved
