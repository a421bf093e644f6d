"""Abilities of an inner strategy, by its class: a subclass of FedAvg is what FedAvg is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from flwr.server.strategy import (
    Bulyan,
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    Krum,
    Strategy,
)

# linear: it uses its clients' results through their weighted mean alone. averages: it makes that mean itself.
# stateless: it remembers nothing of the rounds before.
Ability = Literal["linear", "averages", "stateless"]
# Of Flower's ways to aggregate: what is not named here may do anything with the results.
_KNOWN: dict[type[Strategy], frozenset[Ability]] = {
    FedAvg: frozenset({"linear", "averages", "stateless"}),
    FedAvgM: frozenset({"linear"}),
    FedAdam: frozenset({"linear"}),
    FedYogi: frozenset({"linear"}),
    FedAdagrad: frozenset({"linear"}),
}


def able(kind: type[Strategy], ability: Ability) -> bool:
    """True for a class that has an ability: as it or the nearest class above it declares (``linear = True``),
    unless its ``aggregate_fit`` is defined nearer than that, which then decides."""
    for cls in kind.__mro__:
        if ability in vars(cls):
            return bool(vars(cls)[ability])
        if "aggregate_fit" in vars(cls):
            return issubclass(cls, Strategy) and ability in _KNOWN.get(cls, ())
    return False


def layers(strategy: Strategy) -> Iterator[Strategy]:
    """A strategy, then the one that it wraps, and so on."""
    yield strategy
    for value in vars(strategy).values():
        if isinstance(value, Strategy):
            yield from layers(value)


def can(strategy: Strategy, ability: Ability) -> bool:
    """True for a strategy that has an ability, with all that it wraps."""
    return all(able(type(layer), ability) for layer in layers(strategy))


def signs_loss(strategy: Strategy) -> bool:
    """True where a strategy, or one that it wraps, declares that clients make something smaller that may be
    below 0 (``signed_loss = True``)."""
    return any(getattr(layer, "signed_loss", False) for layer in layers(strategy))


def needed_clients(strategy: Strategy, round_: int) -> frozenset[str]:
    """The clients without whose answer a round is none, as a strategy, or one that it wraps, says."""
    found: frozenset[str] = frozenset()
    for layer in layers(strategy):
        if hasattr(layer, "needs"):
            found |= layer.needs(round_)
    return found


def fewest_results(kind: type[Strategy], malicious: int) -> int:
    """The fewest results with which a robust rule holds against some ``malicious`` ones, f: 2 f + 3 of Krum
    (arXiv:1703.02757), 4 f + 3 of Bulyan (arXiv:1802.07927), 1 of any other."""
    factor = 4 if issubclass(kind, Bulyan) else 2 if issubclass(kind, Krum) else 0
    return factor * malicious + 3 if factor else 1
