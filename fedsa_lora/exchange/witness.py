"""The witness: searches a serialised message for values that must not leave the client.

Two consecutive float32 values (64 bits) of a private tensor that stand next to each other
anywhere in the message, at any byte offset, count as a match. The digest, the names and the
layout already forbid B in an upload; this looks at the bytes themselves and trusts none of them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.exchange.arrays import NamedArrays

ONE_SIZE = 1024  # units in the last place: as close as Adam's epsilon leaves the steps of usual gradients


def private_pairs(states: Iterable[NamedArrays], public: Iterable[NamedArrays] = ()) -> NDArray[np.uint64]:
    """Every pair of neighbouring values in the private tensors, as sorted distinct 64-bit words.

    A pair with a zero, or of two values of one size, says nothing about its origin: B starts at zero, and
    the first step of AdamW takes each value by the learning rate up or down. It is left out, and so is a
    pair that the public tensors hold as well.
    """
    pairs, known = _pairs(states), _pairs(public)
    return pairs[~_among(pairs, known)]


def matches(message: bytes, pairs: NDArray[np.uint64]) -> int:
    """At how many byte offsets of the message one of the pairs stands."""
    found = 0
    for offset in range(min(8, max(len(message) - 7, 0))):
        count = (len(message) - offset) // 8
        words = np.frombuffer(message, dtype="<u8", count=count, offset=offset)
        found += int(_among(words, pairs).sum())
    return found


def _among(words: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Which of the words are among the known ones, which are sorted."""
    if not known.size:
        return np.zeros(words.size, bool)
    nearest = known[np.minimum(np.searchsorted(known, words), known.size - 1)]
    return np.equal(nearest, words)


def _pairs(states: Iterable[NamedArrays]) -> NDArray[np.uint64]:
    words = [np.zeros(0, np.uint64)]
    for arrays in states:
        for array in arrays.values():
            bits = np.ascontiguousarray(array, dtype="<f4").view("<u4").ravel()
            size = (bits & 0x7FFFFFFF).astype(np.int64)
            telling = (size[:-1] != 0) & (size[1:] != 0) & (abs(np.diff(size)) > ONE_SIZE)
            left, right = bits[:-1].astype(np.uint64), bits[1:].astype(np.uint64)
            words.append(left[telling] | (right[telling] << np.uint64(32)))
    found = np.sort(np.concatenate(words))
    first = np.ones(found.size, bool)
    first[1:] = found[1:] != found[:-1]
    return found[first]  # as np.unique, which hashes at forty times the cost
