"""Random streams by name: the same seed and key give the same draws in any process, in any order."""

from __future__ import annotations

import hashlib
import json
import operator

import numpy as np


def generator(seed: int, *key: str | int) -> np.random.Generator:
    """A separate NumPy generator for each (seed, key), for example ``generator(0, "validation", 3)``.

    The key is hashed, so the stream depends neither on the platform nor on what was drawn before.
    """
    return np.random.default_rng(np.random.SeedSequence(int.from_bytes(_digest(seed, key))))


def torch_seed(seed: int, *key: str | int) -> int:
    """A seed for ``torch.manual_seed`` from (seed, key), in [0, 2**63)."""
    return int.from_bytes(_digest(seed, key)[:8]) >> 1


def _digest(seed: int, key: tuple[str | int, ...]) -> bytes:
    # JSON keeps 1 and "1" apart, and ("ab", "c") from ("a", "bc"); index() accepts NumPy's integers.
    parts = [operator.index(seed), *(part if isinstance(part, str) else operator.index(part) for part in key)]
    return hashlib.sha256(json.dumps(parts).encode()).digest()
