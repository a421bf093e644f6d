"""Linear algebra on LoRA factors: sums, residuals, truncation and alignment of products B A.

A product has d_out x d_in entries, up to billions for an embedding, and rank r of about 8: every
function here works on the factors, and the largest matrix that is decomposed is the stack of all
clients' factors. Computed in float64, whatever the factors are stored in.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import LayoutError

Matrix = NDArray[np.floating[Any]]
_ROUNDING = float(np.finfo(np.float32).eps)


@dataclass(frozen=True)
class Factors:
    """The matrix B A (d_out, d_in), never formed: A (r, d_in), B (d_out, r). r may be 0.

    Raises LayoutError unless both are matrices of the same rank r.
    """

    A: Matrix
    B: Matrix

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or len(self.A) != self.B.shape[1]:
            raise LayoutError(f"expected A (r, d_in) and B (d_out, r), got {self.A.shape} and {self.B.shape}")

    @property
    def rank(self) -> int:
        """The number of components, r: an upper bound of the rank of B A."""
        return len(self.A)


def stack(factors: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """sum p_k B_k A_k as [B_1, ..., B_K] [p_1 A_1; ...; p_K A_K] (FLoRA, arXiv:2409.05976).

    The weights stand on A alone: on both factors they would count twice. The rank is the sum of
    the r_k, less the components that are zero, such as those that pad a smaller rank.
    """
    alive = [np.logical_and(part.A.any(axis=1), part.B.any(axis=0)) for part in factors]
    rows = [w * f.A[i].astype(np.float64) for f, w, i in zip(factors, weights, alive, strict=True)]
    columns = [f.B[:, i].astype(np.float64) for f, i in zip(factors, alive, strict=True)]
    return Factors(np.concatenate(rows), np.concatenate(columns, axis=1))


def residual(factors: Sequence[Factors], weights: Sequence[float], mean: Factors) -> Factors:
    """sum p_k B_k A_k - B_mean A_mean, of rank at most (K + 1) r (FedEx-LoRA, arXiv:2410.09432).

    ``mean`` may be any product, for instance a mean that was rounded: the rounding is in the residual.
    """
    return stack([*factors, mean], [*weights, -1.0])


def truncate(factors: Factors, rank: int | None = None) -> Factors:
    """The best approximation of B A by ``rank`` components, as B = U S and A = V'.

    QR of both factors and an SVD of the small core U S V' = R_B R_A' (FlexLoRA, arXiv:2402.11505;
    FedSVD, arXiv:2505.12805). The rows of A are orthonormal, the components ordered by their
    singular values, and the entry of largest magnitude in a row of A is positive. There are at most
    min(rank, r, d_out, d_in) components.

    Without ``rank`` the product stays as it is and components are dropped only where they are
    smaller than what rounding the given factors to float32 changes. This is how a residual, or the
    stack of those of several rounds, is made small.
    """
    q_a, r_a = np.linalg.qr(factors.A.T.astype(np.float64))
    q_b, r_b = np.linalg.qr(factors.B.astype(np.float64))
    u, s, vt = np.linalg.svd(r_b @ r_a.T, full_matrices=False)
    kept = int(np.count_nonzero(s > _floor(r_a, r_b))) if rank is None else rank
    u, s, a = u[:, :kept], s[:kept], vt[:kept] @ q_a.T
    signs = _signs(a)
    return Factors(a * signs[:, None], q_b @ (u * (s * signs)))


def _floor(r_a: Matrix, r_b: Matrix) -> float:
    """The change in B A by rounding A and B to float32: each component by its own length, at random."""
    lengths = np.linalg.norm(r_a, axis=0) * np.linalg.norm(r_b, axis=0)
    return _ROUNDING * float(np.linalg.norm(lengths))


def _signs(rows: Matrix) -> NDArray[np.float64]:
    """+-1 for each row, the sign of its entry of largest magnitude."""
    largest = np.abs(rows).argmax(axis=1, keepdims=True)
    return np.where(np.take_along_axis(rows, largest, axis=1)[:, 0] < 0, -1.0, 1.0)


def align(factors: Factors, reference: Factors) -> Factors:
    """(Q' A, B Q) with the orthogonal Q that brings both factors closest to the reference; B A stays.

    With Q orthogonal, ||B Q||, ||Q' A|| and the reference are constants, so
      ||B Q - B_ref||^2 + ||Q' A - A_ref||^2 = const - 2 tr(Q' B' B_ref) - 2 tr(A_ref' Q' A)
                                             = const - 2 tr(Q' (B' B_ref + A A_ref')),
    one Procrustes problem for both factors: with the SVD B' B_ref + A A_ref' = U S V' (r x r),
    tr(Q' U S V') <= tr(S), reached by Q = U V'. Q is unique unless a singular value is 0.
    The idea is FedRot's (arXiv:2602.23638). Raises LayoutError when the ranks differ.
    """
    if factors.rank != reference.rank:
        raise LayoutError(f"cannot align rank {factors.rank} to rank {reference.rank}: give both the same")
    a, b = factors.A.astype(np.float64), factors.B.astype(np.float64)
    u, _, vt = np.linalg.svd(b.T @ reference.B + a @ reference.A.T)
    q = u @ vt
    return Factors(q.T @ a, b @ q)


def aggregation_error(layers: Iterable[tuple[Sequence[Factors], Factors]], weights: Sequence[float]) -> float:
    """||sum p_k B_k A_k - B_mean A_mean||_F / ||sum p_k B_k A_k||_F over all layers, with 0 / 0 = 0.

    The inexactness of averaging A and B apart. Each layer is the clients' factors and their mean. The
    difference is taken between entries of the small core, not between squared norms, so errors down to
    1e-15 can be distinguished from 0.
    """
    norms = [(norm(residual(parts, weights, mean)), norm(stack(parts, weights))) for parts, mean in layers]
    error, size = (float(np.linalg.norm(of_layers)) for of_layers in zip(*norms, strict=True))
    if size == 0.0:
        return math.inf if error > 0.0 else 0.0
    return error / size


def norm(factors: Factors) -> float:
    """||B A||_F = ||R_B R_A'||_F, with R of the QR of B and of A'."""
    return float(np.linalg.norm(_triangle(factors.B) @ _triangle(factors.A.T).T))


def _triangle(matrix: Matrix) -> NDArray[np.float64]:
    """R of a QR decomposition; NumPy's types know only the mode that returns Q as well."""
    return np.asarray(np.linalg.qr(matrix.astype(np.float64), mode="r"))
