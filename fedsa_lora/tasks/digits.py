"""The handwritten digits that come with scikit-learn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedsa_lora.tasks.images import Images
from fedsa_lora.tasks.rows import LabelledData, Rows

DIGITS = "digits"
SIDE = 8
LEVELS = 16  # of a pixel, beside 0


class Digits(Images):
    """Images of 8 x 8 pixels from 0 to 16."""

    def __getitem__(self, rows: slice) -> Mapping[str, list[Any]]:
        """The pixels themselves: so are they in the records of runs."""
        chosen = self.column[self.rows[rows]]
        return {"pixels": chosen.reshape(len(chosen), -1).astype(np.float32).tolist()}


def read_digits() -> LabelledData:
    """1,797 grey images in ten classes, all of them train rows."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = Digits(digits.images.astype(np.uint8), np.arange(len(digits.images)), LEVELS, name=DIGITS)
    classes = tuple(str(name) for name in digits.target_names)
    return LabelledData(classes, Rows(images, digits.target.astype(np.int64)))
