"""Encoded images by the first and the last bytes of their files: nothing is decoded."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray

PNG, JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"  # as these files begin
PNG_END = b"IEND\xaeB`\x82"
JPEG_END, JPEG_SCAN = b"\xff\xd9", b"\xff\xda"  # neither stands in the data of a scan
BITS = 24  # place of the bits of a level in a PNG, after its sides
USUAL_BITS = 8
HEAD, TAIL = (
    BITS + 1,
    64,
)  # bytes that are looked at; behind the end of an image some programs write a few more
COMMON = 2**26  # pixels of an image that Pillow is sure to open


def are_usual(column: Any) -> NDArray[np.bool_]:
    """Images (m,) of an Arrow array of bytes that need no closer look: each JPEG, and each PNG of at most
    eight bits a level and of a size that is opened, that has its end."""
    heads, tails = pc.binary_slice(column, 0, HEAD), pc.binary_slice(column, -TAIL)
    pairs = zip(heads.to_pylist(), tails.to_pylist(), strict=True)
    return np.array([_is_usual(head, tail) for head, tail in pairs], dtype=bool)


def _is_usual(head: bytes, tail: bytes) -> bool:
    if head.startswith(JPEG):
        return JPEG_END in tail
    if not head.startswith(PNG) or PNG_END not in tail:
        return False
    width, height = int.from_bytes(head[16:20]), int.from_bytes(head[20:24])
    return head[BITS] <= USUAL_BITS and width * height <= COMMON


def is_cut_off(data: bytes) -> bool:
    """True for a PNG or a JPEG without its end, whatever a program wrote behind that; the end of a preview
    inside a JPEG lies before the image."""
    if data.startswith(JPEG):
        end = data.rfind(JPEG_END)
        return end < 0 or JPEG_SCAN in data[end:]
    return data.startswith(PNG) and PNG_END not in data
