"""An inner strategy as a config names it: its class, its arguments, and the strategy that it wraps."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import (
    Bulyan,
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DPFedAvgFixed,
    FedProx,
    Strategy,
)

from fedsa_lora.binding import TARGET, arguments_of, check_arguments, resolve_target
from fedsa_lora.group import Group, held
from fedsa_lora.suggest import listing
from strategies.fedsa import FedSA
from strategies.rules.abilities import Ability, able, fewest_results
from strategies.rules.exact import FactorRule

if TYPE_CHECKING:
    from fedsa_lora.settings import RunConfig

ALLOWED = ("flwr.server.strategy.", "strategies.")
OURS = ("flwr.", "strategies.")
EVALUATING = ("configure_evaluate", "aggregate_evaluate", "evaluate")
BUILT = ("initial_parameters", "seed")  # arguments of a strategy that the run itself supplies
CLIPPED_BY_CLIENTS = (
    DifferentialPrivacyClientSideAdaptiveClipping,
    DifferentialPrivacyClientSideFixedClipping,
    DPFedAvgFixed,
)


@dataclass(frozen=True)
class Inner(Group):
    """A Flower strategy that is yet to be built: ``kind`` with ``arguments``, of which those that are
    strategies are ``Inner`` themselves."""

    kind: type[Strategy]
    arguments: dict[str, Any]

    def build(self, **known: Any) -> Strategy:
        """The strategy, from the inside out; of ``known`` arguments each gets those that it takes and
        lacks."""
        taken = arguments_of(self.kind)
        supplied = {name: value for name, value in known.items() if name in taken}
        given = {
            name: value.build(**known) if isinstance(value, Inner) else value
            for name, value in self.arguments.items()
        }
        return self.kind(**(supplied | given))

    @property
    def layers(self) -> list[Inner]:
        """This one, then the one that it wraps, and so on."""
        wrapped = [value for value in self.arguments.values() if isinstance(value, Inner)]
        return [self, *(layer for value in wrapped for layer in value.layers)]

    @property
    def name(self) -> str:
        """The class, with what it wraps in brackets."""
        wrapped = [value.name for value in self.arguments.values() if isinstance(value, Inner)]
        return f"{self.kind.__name__}({', '.join(wrapped)})" if wrapped else self.kind.__name__

    def can(self, ability: Ability) -> bool:
        """True where it has an ability, with all that it wraps."""
        return all(able(layer.kind, ability) for layer in self.layers)

    @property
    def needs_factors(self) -> bool:
        """True where it combines A with B and must know both of every client."""
        return issubclass(self.kind, FactorRule)

    @property
    def mixes_ranks(self) -> bool:
        """True where clients may have adapters of different ranks."""
        return issubclass(self.kind, FactorRule) and self.kind.mixes_ranks

    @property
    def proximal(self) -> bool:
        """True where it has clients train with a proximal term."""
        return any(issubclass(layer.kind, FedProx) for layer in self.layers)

    def sampled(self, clients: int) -> int:
        """The number of clients of a round, of all ``clients``, as Flower counts them."""
        share = int(clients * float(self._argument("fraction_fit", 1.0)))
        return max(share, int(self._argument("min_fit_clients", 2)))

    def describe(self) -> dict[str, str]:
        if ignored := self._ignored():
            return {"server rule": f"{self.name}; not called, as FedSA evaluates: {listing(ignored)}"}
        return {"server rule": self.name}

    def _ignored(self) -> list[str]:
        """Methods of a user's own class that FedSA does not call."""
        return [
            f"{cls.__name__}.{name}"
            for layer in self.layers
            for cls in layer.kind.__mro__
            for name in EVALUATING
            if name in vars(cls) and not cls.__module__.startswith(OURS)
        ]

    def clashes(self, run: RunConfig) -> Iterator[str]:
        yield from self._of_wrapping(run)
        if issubclass(self.kind, FactorRule):
            yield from self.kind.clashes(run)
        elif not self.can("linear"):
            yield from self._of_whole_vectors(run)

    def _of_wrapping(self, run: RunConfig) -> Iterator[str]:
        """Faults of a strategy around a strategy that could not keep what it promises."""
        for layer in self.layers[1:]:
            if layer.needs_factors:
                yield (
                    f"strategy: {layer.name} combines A with B and cannot average flat arrays, so no other "
                    "strategy can be around it; expected one of Flower's within it"
                )
        for layer in self.layers:
            if issubclass(layer.kind, CLIPPED_BY_CLIENTS):
                yield (
                    f"strategy: {layer.kind.__name__} adds noise to what clients clip, and these clients do "
                    "not; expected DifferentialPrivacyServerSideFixedClipping"
                )
            elif layer.arguments.get("noise_multiplier"):
                yield from layer._of_noise(run)

    def _of_noise(self, run: RunConfig) -> Iterator[str]:
        """Noise is enough for a mean in which each of the named number of clients weighs the same."""
        name, federation = self.kind.__name__, run.federation
        named, sampled = self.arguments.get("num_sampled_clients"), self.sampled(federation.clients)
        if named is not None and named != sampled:
            yield f"strategy.num_sampled_clients={named}: {sampled} are sampled; expected the same number"
        if federation.weights != "uniform":
            yield (
                f"strategy: the noise of {name} is for clients of equal weight, and one with many examples "
                "would weigh more; expected federation.weights=uniform"
            )
        if federation.min_results != 1:
            yield (
                f"strategy: the noise of {name} is for a mean of all that were sampled; expected "
                "federation.min_results=1"
            )
        if not all(able(layer.kind, "averages") for layer in self.layers[1:]):
            yield (
                f"strategy: the noise of {name} is for a mean, and {self.layers[1].name} does not take the "
                f"mean of the updates; expected FedAvg within it"
            )
        if run.bounds.median_factor is not None:
            yield (
                f"bounds.median_factor: one client would move the bound of others, to which {name} adds no "
                f"noise; expected bounds=default, as its clipping bounds norms"
            )
        if run.split.adaptive:
            yield (
                f"split: {type(run.split).__name__} chooses by what clients send, to which {name} adds no "
                "noise; expected a split that is known beforehand, such as split=share_a"
            )

    def _of_whole_vectors(self, run: RunConfig) -> Iterator[str]:
        """It may compare clients' vectors value by value."""
        remedy = self._declarable()
        if run.split.by_client:
            yield (
                f"strategy: {self.name} may compare whole vectors, which differ between clients with "
                f"split.scope=client; expected split.scope=global{remedy}"
            )
        if run.head.counted:
            yield (
                f"strategy: {self.name} may compare clients' heads, which head.count_weighted averages "
                f"instead; expected head.count_weighted=false{remedy}"
            )
        sampled = self.sampled(run.federation.clients)
        for layer in self.layers:
            malicious = int(layer.arguments.get("num_malicious_clients", 0))
            if sampled < (fewest := fewest_results(layer.kind, malicious)):
                rule = "4 f + 3" if issubclass(layer.kind, Bulyan) else "2 f + 3"
                yield f"strategy: {layer.name} needs {rule} = {fewest} clients a round, {sampled} are sampled"
        kept = int(self._argument("num_clients_to_keep", 0))
        if kept > sampled:
            yield f"strategy.num_clients_to_keep={kept}: expected at most {sampled}, the clients of a round"

    def _declarable(self) -> str:
        """The remedy for a user's own class that may be linear, and does not say so."""
        for layer in self.layers:
            if not layer.kind.__module__.startswith(OURS) and not able(layer.kind, "linear"):
                return f", or linear = True in {layer.name} if it uses only the weighted mean of results"
        return ""

    def _argument(self, name: str, default: Any) -> Any:
        """An argument of this strategy or the outermost that it wraps and that has it."""
        return next((layer.arguments[name] for layer in self.layers if name in layer.arguments), default)


def bind_inner(node: Any, path: str, faults: list[str]) -> Inner | None:
    """The inner strategy of a config, or None after adding to ``faults``: the classes that it names must be
    allowed, and take their arguments, at every level."""
    if (kind := resolve_target(node, path, ALLOWED, faults)) is None:
        return None
    if not issubclass(kind, Strategy) or issubclass(kind, FedSA):
        faults.append(f"{path}._target_: {kind.__name__} is not a strategy that FedSA can wrap")
        return None
    given = _handed_on(kind, {str(name): value for name, value in node.items() if name != TARGET})
    wraps = [name for name, hint in arguments_of(kind).items() if name in given and _is_strategy(held(hint))]
    before = len(faults)
    wrapped = {name: bind_inner(given[name], f"{path}.{name}", faults) for name in wraps}
    plain = {name: value for name, value in given.items() if name not in wrapped}
    check_arguments(kind, plain, path, faults, (*BUILT, *wrapped))
    if len(faults) > before:
        return None
    inner = Inner(kind, given | wrapped)
    try:
        inner.build(initial_parameters=ndarrays_to_parameters([]), seed=0)
    except (TypeError, ValueError) as error:
        faults.append(f"{path}: {error}")
        return None
    return inner


def _handed_on(kind: type[Strategy], given: dict[str, Any]) -> dict[str, Any]:
    """The arguments of a wrapper, with those that only the strategy within it takes given to that one: where
    ``strategy._target_`` replaces the class of an option file, the keys of the file stay."""
    taken = arguments_of(kind)
    for name, hint in taken.items():
        if not (_is_strategy(held(hint)) and isinstance(given.get(name), Mapping)):
            continue
        within = resolve_target(given[name], name, ALLOWED, [])
        known = set() if within is None else arguments_of(within).keys() - taken.keys()
        handed = {key: value for key, value in given.items() if key in known}
        rest = {key: value for key, value in given.items() if key not in known}
        return rest | {name: handed | dict(given[name])}
    return given


def _is_strategy(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Strategy)
