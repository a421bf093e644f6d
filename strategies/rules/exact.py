"""Aggregation rules for the product of A and B: exact, heterogeneous and aligned means.

Averaging A and B apart does not average their products: sum p_k B_k A_k differs from B_mean A_mean.
The rules here look at the pair of a layer instead. ``FedSA`` calls ``combine`` once a round.

The factors are those of s B A with a scale s that all clients have in common, whatever their rank:
with s = alpha / r of each client's own r, a sum of B_k A_k would not be the sum of what they learned.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from flwr.common import FitRes, Parameters, Scalar
from flwr.server.client_proxy import ClientProxy
from flwr.server.strategy import FedAvg
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError, RunError
from fedsa_lora.exchange.arrays import Layout, NamedArrays
from fedsa_lora.seeds import generator
from strategies.rules.factors import Factors, Matrix, align, residual, stack, truncate
from strategies.rules.pairs import Pair, pairs

if TYPE_CHECKING:
    from fedsa_lora.settings import RunConfig


@dataclass(frozen=True)
class Combined:
    """New common values of a round.

    ``common``: the new server value of every tensor of the layout, by name. ``merge``, by layer: what
    every client adds to its frozen weight W0, as factors A (n, d_in) and B (d_out, n) in float32 of
    any rank n, without the scale s; a layer with nothing to add is absent. For a convolution B A is
    the flattened kernel (d_out, c_in kh kw); for an embedding it is the transpose of the table.
    """

    common: dict[str, NDArray[np.float32]]
    merge: dict[str, Factors] = field(default_factory=dict)


class FactorRule(FedAvg):
    """Combines the clients' factors layer by layer; samples clients as Flower's FedAvg does.

    Takes the keyword arguments of FedAvg. A rule says in ``layer`` what becomes of one pair; every
    other tensor, such as a shared head, gets the weighted mean.
    """

    mixes_ranks: ClassVar[bool] = False  # clients may have different ranks, padded with zeros
    renews: ClassVar[bool] = False  # factors of one round have nothing to do with those of the next
    merges: ClassVar[bool] = False  # a part of what was learned goes into W0

    @classmethod
    def clashes(cls, run: RunConfig) -> Iterator[str]:
        """Faults of a run with this rule, which must know A and B of every client."""
        name = cls.__name__
        if run.downlink is not None and not run.downlink.lossless:
            yield (
                f"downlink: {name} is exact only where clients hold the server's factors; expected whole or "
                "dense"
            )
        yield from cls.split_fault(run)
        if cls.merges and run.model.dtype != "fp32":
            yield (
                f"model.dtype={run.model.dtype}: {name} merges what was learned into the frozen weights, "
                "which are too coarse for it so; expected model.dtype=fp32"
            )
        if cls.renews and run.codec.leaves:
            yield (
                f"codec: {name} gives clients other factors each round, so what a codec left out of the last "
                "cannot be sent later; expected codec.error_feedback=false, or a lossless codec"
            )

    @classmethod
    def split_fault(cls, run: RunConfig) -> Iterator[str]:
        """A fault where the split does not share what the rule combines."""
        if not run.split.shares_both:
            yield f"strategy: {cls.__name__} needs A and B of every client; expected split=share_ab"

    def combine(
        self,
        round_: int,
        layout: Layout,
        start: NamedArrays,
        clients: Sequence[NamedArrays],
        weights: Sequence[float],
    ) -> Combined:
        """New values from those that the clients started from and those that each ended with.

        ``weights`` are p_k, in the order of ``clients``, with sum 1. Where ranks differ, the rows of A
        and the columns of B beyond a client's rank are zero. Raises ConfigError as ``pairs`` does.
        """
        found = pairs(layout)
        paired = {spec.name for pair in found.values() for spec in (pair.A, pair.B)}
        common = {
            name: _mean([client[name] for client in clients], weights).astype(np.float32)
            for name in layout.names
            if name not in paired
        }
        merge = {}
        for layer, pair in found.items():
            ended = [pair.read(client) for client in clients]
            new, added = self.layer(round_, pair, pair.read(start), ended, weights)
            common |= pair.write(new)
            if added is not None and added.rank:
                merge[layer] = Factors(added.A.astype(np.float32), added.B.astype(np.float32))
        return Combined(common, merge)

    @abstractmethod
    def layer(
        self, round_: int, pair: Pair, start: Factors, clients: Sequence[Factors], weights: Sequence[float]
    ) -> tuple[Factors, Factors | None]:
        """The new factors of a layer, and what clients merge into its W0, if anything."""

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: list[tuple[ClientProxy, FitRes] | BaseException],
    ) -> tuple[Parameters | None, dict[str, Scalar]]:
        """Raises RunError: in flat arrays the A and B of a layer are not known."""
        raise RunError(
            f"{type(self).__name__} combines A with B and cannot average flat arrays: FedSA has to call "
            "its combine(), so put no other strategy around it"
        )


class FedEx(FactorRule):
    """FedEx-LoRA (arXiv:2410.09432): the means of A and B, and their error merged into W0.

    W0 + s (B_mean A_mean + residual) is exactly W0 + s sum p_k B_k A_k. The residual of the weighted
    mean is sum p_k (B_k - B_mean)(A_k - A_mean) of rank (K - 1) r, so recompressing makes it smaller
    than the (K + 1) r of its definition. Clients weigh p_k, and not all alike as in the paper.
    """

    merges = True

    def layer(
        self, round_: int, pair: Pair, start: Factors, clients: Sequence[Factors], weights: Sequence[float]
    ) -> tuple[Factors, Factors | None]:
        mean = mean_factors(clients, weights)
        return mean, truncate(residual(clients, weights, mean))


class FLoRA(FactorRule):
    """FLoRA (arXiv:2409.05976): all updates are merged into W0, and clients start from fresh factors.

    Clients replace their factors, so the merge is the whole sum p_k B_k A_k, of rank sum r_k. The fresh
    A is drawn as LoRA draws it, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), from (``seed``, round, name); B is 0.
    """

    mixes_ranks = True
    renews = True
    merges = True

    def __init__(self, *, seed: int, **fedavg: Any) -> None:
        super().__init__(**fedavg)
        self.seed = seed

    def layer(
        self, round_: int, pair: Pair, start: Factors, clients: Sequence[Factors], weights: Sequence[float]
    ) -> tuple[Factors, Factors | None]:
        learned = stack(clients, weights)
        if learned.rank > min(len(start.B), start.A.shape[1]):
            learned = truncate(learned)  # many clients: more components than the matrix can have
        bound = start.A.shape[1] ** -0.5
        rng = generator(self.seed, "flora", round_, pair.A.name)
        return Factors(rng.uniform(-bound, bound, start.A.shape), np.zeros(start.B.shape)), learned


class FlexLoRA(FactorRule):
    """FlexLoRA (arXiv:2402.11505): the best approximation of sum p_k B_k A_k by the layout's rank.

    Components are ordered by size, so a client of rank r_k takes the first r_k of them.
    """

    mixes_ranks = True
    renews = True

    def layer(
        self, round_: int, pair: Pair, start: Factors, clients: Sequence[Factors], weights: Sequence[float]
    ) -> tuple[Factors, Factors | None]:
        return _fill(truncate(stack(clients, weights), start.rank), start), None


class FedSVD(FactorRule):
    """FedSVD (arXiv:2505.12805): clients train B alone; the server turns B_mean A into U S V'.

    A becomes V', with orthonormal rows, and B becomes U S: the product stays as it is.
    """

    renews = True

    @classmethod
    def split_fault(cls, run: RunConfig) -> Iterator[str]:
        if run.split.turns != ("B",):
            yield f"strategy: {cls.__name__} chooses A on the server and has B trained; expected split=fedsvd"

    def layer(
        self, round_: int, pair: Pair, start: Factors, clients: Sequence[Factors], weights: Sequence[float]
    ) -> tuple[Factors, Factors | None]:
        if not all(np.array_equal(client.A, start.A) for client in clients):
            raise ConfigError(
                f"FedSVD needs a shared A, but clients changed {pair.A.name}: let them train only B"
            )
        mean = Factors(start.A, _mean([client.B for client in clients], weights))
        return _fill(truncate(mean, start.rank), start), None


class FedRot(FactorRule):
    """Rotation alignment (FedRot, arXiv:2602.23638): factors are rotated onto ``start``, then averaged.

    A rotation does not change a client's product, and the means of aligned factors lose less of the
    sum. Both factors are aligned by one rotation, on the server. In the first round B is 0 at the
    start, its distance does not depend on the rotation, and so A alone decides: it is what the clients
    have in common then.

    The paper aligns to A in one round and to B in the next, by a part of the rotation (its lambda), and not
    in the first round. Here there is one rotation or reflection for both, taken whole, in every round.
    """

    def layer(
        self, round_: int, pair: Pair, start: Factors, clients: Sequence[Factors], weights: Sequence[float]
    ) -> tuple[Factors, Factors | None]:
        return mean_factors([align(client, start) for client in clients], weights), None


def _mean(arrays: Sequence[Matrix], weights: Sequence[float]) -> NDArray[np.float64]:
    """Weighted mean of arrays of one shape, in float64."""
    total = np.zeros(arrays[0].shape, np.float64)
    for array, weight in zip(arrays, weights, strict=True):
        total += np.multiply(array, weight, dtype=np.float64)
    return total


def mean_factors(factors: Sequence[Factors], weights: Sequence[float]) -> Factors:
    """The weighted means of A and of B, each by itself."""
    return Factors(_mean([f.A for f in factors], weights), _mean([f.B for f in factors], weights))


def _fill(factors: Factors, start: Factors) -> Factors:
    """Filled up to the rank of ``start`` with its A and with B = 0, which leaves the product as it is.

    Zeros in both would never learn again: the gradient of each has the other as a factor.
    """
    missing = slice(factors.rank, start.rank)
    a = np.concatenate([factors.A, start.A[missing]])
    return Factors(a, np.concatenate([factors.B, np.zeros_like(start.B[:, missing])], axis=1))
