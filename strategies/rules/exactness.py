"""Measures how far the mean of the factors is from the mean of their products."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Layout, NamedArrays, Vector
from fedsa_lora.exchange.split import SplitPolicy
from strategies.rules import factors
from strategies.rules.exact import mean_factors
from strategies.rules.flower import client_weights
from strategies.rules.pairs import Pair, pairs
from strategies.rules.updates import Update


@dataclass(frozen=True)
class Frozen:
    """Factors that all clients hold at the same value and nobody trains."""

    layout: Layout
    tensors: NamedArrays


def aggregation_error(
    split: SplitPolicy, layout: Layout, frozen: Frozen | None, vector: Vector, updates: Sequence[Update]
) -> float | None:
    """||sum p_k B_k A_k - B_mean A_mean||_F / ||sum p_k B_k A_k||_F over all layers.

    That of averaging A and B apart, whatever the strategy then does. None where the server does not
    know both factors of each client: what is local, or local by degree, it does not; nor where ranks
    differ, because there is no mean of the factors then.
    """
    everything = Layout((*layout.specs, *frozen.layout.specs)) if frozen else layout
    unknown = (
        any(update.rank for update in updates)
        or bool(split.degrees(everything))
        or (split.idle == "local" and any(set(layout.names) - update.shared for update in updates))
    )
    if unknown or frozen is None:
        return None
    try:
        found = pairs(everything)
    except ConfigError:  # not both factors of every layer
        return None
    weights = client_weights(updates)
    # layer by layer: no client's whole update is made dense
    layers = ([p.read(_ended(p, layout, frozen, vector, u)) for u in updates] for p in found.values())
    return factors.aggregation_error(((parts, mean_factors(parts, weights)) for parts in layers), weights)


def _ended(pair: Pair, layout: Layout, frozen: Frozen, vector: Vector, update: Update) -> NamedArrays:
    """The two factors of a layer that a client ended its round with."""
    ended = {}
    for spec in (pair.A, pair.B):
        if spec.name in frozen.tensors:
            ended[spec.name] = frozen.tensors[spec.name]
        else:
            span = layout.span(spec.name)
            ended[spec.name] = (vector[span] + update.stretch(span)).reshape(spec.shape)
    return ended
