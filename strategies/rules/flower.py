"""Rules that make new common values of the updates: a Flower strategy's numbers, or an exact rule for LoRA
factors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from flwr.common import Code, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy import (
    DifferentialPrivacyServerSideAdaptiveClipping,
    FedAvgM,
    FedOpt,
    Strategy,
)
from numpy.typing import NDArray

from fedsa_lora.errors import RunError, WireError
from fedsa_lora.exchange.arrays import Layout, NamedArrays, Vector, check_vector
from strategies.rules.abilities import can, layers
from strategies.rules.exact import FactorRule
from strategies.rules.factors import Factors
from strategies.rules.updates import Update, mean_update, tensor_weights


@dataclass(frozen=True)
class Step:
    """The new values of everything that may be shared, (layout.size,), and by layer what every client
    adds to its frozen weights."""

    vector: Vector
    merge: Mapping[str, Factors] = field(default_factory=dict)


SERVER = "server/"  # in the memory of a checkpoint: what a strategy of Flower remembers of earlier rounds
_REMEMBERED = ("m_t", "v_t", "momentum_vector")
ADAPTED = SERVER + "clipping_norm"


def remembered(inner: Strategy) -> dict[str, NDArray[Any]]:
    """The momentum of a server optimizer and a norm that adapts, by name; nothing of a strategy without."""
    found = {}
    for layer in layers(inner):
        for name in _REMEMBERED:
            if values := getattr(layer, name, None):
                found[SERVER + name] = values[0]
        if isinstance(layer, DifferentialPrivacyServerSideAdaptiveClipping):
            found[ADAPTED] = np.array([layer.clipping_norm], float)
    return found


def recall(inner: Strategy, memory: NamedArrays, vector: Vector) -> None:
    """Make a strategy resume from what was ``remembered``, and from the server's vector."""
    for layer in layers(inner):
        for name in _REMEMBERED:
            if SERVER + name in memory and hasattr(layer, name):
                setattr(layer, name, [memory[SERVER + name]])
        if isinstance(layer, DifferentialPrivacyServerSideAdaptiveClipping) and ADAPTED in memory:
            layer.clipping_norm = float(memory[ADAPTED][0])
    _set_values(inner, vector)


def forget_rounds(inner: Strategy) -> None:
    """Make a strategy continue as if no round had been before: without the momentum of a server optimizer."""
    for layer in layers(inner):
        for name in _REMEMBERED:
            if values := getattr(layer, name, None):
                setattr(layer, name, [np.zeros_like(value) for value in values])


class Rule(ABC):
    """From the server's values and the clients' updates, sorted by client, to new values."""

    def __init__(self, inner: Strategy, layout: Layout) -> None:
        self.inner, self.layout = inner, layout

    @abstractmethod
    def __call__(self, round_: int, vector: Vector, updates: Sequence[Update]) -> Step:
        """The step of a round, of which the rule may remember something."""

    def state(self) -> dict[str, NDArray[Any]]:
        """The memory of earlier rounds, as arrays under names of the rule's own."""
        return remembered(self.inner)

    def restore(self, vector: Vector, memory: NamedArrays) -> None:
        """Resume from a ``state`` and the server's vector; other arrays of the memory are ignored."""
        recall(self.inner, memory, vector)


def rule_for(inner: Strategy, layout: Layout) -> Rule:
    """The rule by which an inner strategy is given what clients sent."""
    if isinstance(inner, FactorRule):
        return OfFactors(inner, layout)
    return OfMean(inner, layout) if can(inner, "linear") else OfEach(inner, layout)


def sound_step(rule: Rule, inner: Strategy, round_: int, vector: Vector, updates: Sequence[Update]) -> Step:
    """The step of a rule. Raises RunError where a decomposition does not converge, a strategy divides by 0,
    or the step or what the strategy remembers is not finite, so that neither is sent or kept."""
    try:
        with np.errstate(over="ignore", invalid="ignore"):
            step = rule(round_, vector, updates)
    except ZeroDivisionError as error:  # Flower's clipping divides by the norm of each update
        zero = [update.client for update in updates if not update.values.any()]
        raise RunError(
            f"strategy {type(inner).__name__} divided by 0; the updates of these clients are 0: {zero}"
        ) from error
    except np.linalg.LinAlgError as error:
        raise RunError(f"strategy {type(inner).__name__} cannot decompose the updates: {error}") from error
    merged = [value for factors in step.merge.values() for value in (factors.A, factors.B)]
    if not all(np.isfinite(value).all() for value in [step.vector, *merged, *remembered(inner).values()]):
        raise RunError(f"strategy {type(inner).__name__} made values that are NaN or infinite")
    return step


class OfMean(Rule):
    """The inner strategy is given the weighted mean as the result of one client.

    For strategies that are linear in their results this gives what giving it all of them would, and
    sparse updates never become dense.
    """

    def __call__(self, round_: int, vector: Vector, updates: Sequence[Update]) -> Step:
        mean = vector + mean_update(self.layout, updates)
        result = FitRes(_OK, ndarrays_to_parameters([mean]), 1, {})
        return Step(_aggregated(self.inner, self.layout, round_, vector, updates, [result]))


class OfEach(Rule):
    """The inner strategy is given what every client ended with, (layout.size,) each."""

    def __call__(self, round_: int, vector: Vector, updates: Sequence[Update]) -> Step:
        results = [
            FitRes(
                _OK,
                ndarrays_to_parameters([vector + update.dense(self.layout.size)]),
                update.examples,
                {"loss": update.loss},
            )
            for update in updates
        ]
        return Step(_aggregated(self.inner, self.layout, round_, vector, updates, results))


class OfFactors(Rule):
    """A rule that needs the A and the B of every client."""

    inner: FactorRule

    def __call__(self, round_: int, vector: Vector, updates: Sequence[Update]) -> Step:
        start = self.layout.unpack(vector)
        clients = [ended_with(self.layout, vector, update) for update in updates]
        weights = client_weights(updates)
        combined = self.inner.combine(round_, self.layout, start, clients, weights)
        means = self.layout.unpack(vector + mean_update(self.layout, updates))
        heads = {spec.name: means[spec.name] for spec in self.layout if spec.role == "head"}
        return Step(self.layout.pack(combined.common | heads), combined.merge)


def ended_with(layout: Layout, vector: Vector, update: Update) -> NamedArrays:
    """The tensors that a client ended its round with, zero beyond its rank."""
    ended = vector + update.dense(layout.size)
    index = None if update.rank is None else layout.index(layout.limited(update.rank))
    if index is not None:
        cut = np.zeros_like(ended)
        cut[index] = ended[index]
        ended = cut
    return layout.unpack(ended)


def client_weights(updates: Sequence[Update]) -> list[float]:
    """p_k of all clients."""
    total = sum(update.examples for update in updates)
    return [update.examples / total for update in updates]


def _aggregated(
    inner: Strategy,
    layout: Layout,
    round_: int,
    before: Vector,
    updates: Sequence[Update],
    results: list[FitRes],
) -> Vector:
    """Aggregates the results with the inner strategy. What nobody shared keeps its value, whatever
    momentum says, and the strategy's own copy of the values is that of the server, in float32."""
    pairs: Any = [(None, result) for result in results]  # no strategy of Flower looks at the node
    parameters, _ = inner.aggregate_fit(server_round=round_, results=pairs, failures=[])
    if parameters is None:
        return before
    after = _sound(inner, parameters, layout)
    for name, weight in zip(layout.names, tensor_weights(layout, updates).sum(axis=0), strict=True):
        if not weight:
            after[layout.span(name)] = before[layout.span(name)]
    _set_values(inner, after)
    return after


def _set_values(inner: Strategy, vector: Vector) -> None:
    """The copy of the server's vector that some strategies keep."""
    for layer in layers(inner):
        if isinstance(layer, FedOpt):
            layer.current_weights = [vector]
        elif isinstance(layer, FedAvgM):
            layer.initial_parameters = ndarrays_to_parameters([vector])


def _sound(inner: Strategy, parameters: Parameters, layout: Layout) -> Vector:
    """The aggregate as float32, to be written to. Raises RunError when it is not such a vector."""
    try:
        (vector,) = parameters_to_ndarrays(parameters)
        return np.array(check_vector(vector.astype(np.float32, copy=False), layout.size))
    except (WireError, ValueError) as error:
        raise RunError(f"strategy {type(inner).__name__} made an unusable aggregate: {error}") from None


_OK = Status(Code.OK, "")
