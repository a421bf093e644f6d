"""Similarity of the matrices of different clients (as arXiv:2410.01463, figure 2, asks of A and B)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations, product
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import orth

Matrix = NDArray[np.floating]
T = TypeVar("T")


def cosine(one: Matrix, two: Matrix) -> float:
    """Cosine of the angle between two arrays of one shape, taken as vectors; NaN where one is zero."""
    a, b = one.ravel().astype(np.float64), two.ravel().astype(np.float64)
    norms = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norms if norms else float("nan")


def basis(matrix: Matrix) -> Matrix:
    """Orthonormal columns that span the columns of a matrix (d, r), to the accuracy of float32: (d, rank)."""
    columns: Matrix = orth(matrix.astype(np.float64), rcond=max(matrix.shape) * np.finfo(np.float32).eps)
    return columns


def overlap(one: Matrix, two: Matrix) -> float:
    """||Q1' Q2||_F^2 / r of two orthonormal bases (d, r), the mean squared cosine of their principal angles.

    1 where one space holds the other, r / d on average for random spaces; r is the smaller rank. NaN for an
    empty space.
    """
    rank = min(one.shape[1], two.shape[1])
    return float(np.square(one.T @ two).sum()) / rank if rank else float("nan")


def factor(array: Matrix, role: str) -> Matrix:
    """As a matrix whose columns span what the factor determines: the row space of A (d_in, r), the column
    space of B (d_out, r). Kernels of convolutions are laid flat."""
    return array.reshape(len(array), -1).T if role == "A" else array.reshape(len(array), -1)


def over_pairs(
    measure: Callable[[T, T], float], ours: Sequence[T], theirs: Sequence[T] | None = None
) -> float:
    """Mean over all pairs of different clients, or of one of ours with one of theirs; NaN where no pair
    has a value."""
    pairs = combinations(ours, 2) if theirs is None else product(ours, theirs)
    values = np.array([measure(one, two) for one, two in pairs], float)
    values = values[~np.isnan(values)]
    return float(values.mean()) if len(values) else float("nan")
