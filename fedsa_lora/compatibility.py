"""Choices that are sound one by one and do not go together: all said before anything runs."""

from __future__ import annotations

from collections.abc import Iterator

from flwr.server.strategy import Bulyan, FedAvg, FedProx, Krum, Strategy

from fedsa_lora.exchange.adaptive import Importance
from fedsa_lora.exchange.codec import Codec
from fedsa_lora.exchange.selection import Threshold
from fedsa_lora.exchange.split import Alternate, RoleSplit, SplitPolicy
from fedsa_lora.learning.personalisation import Distillation, PFedMe
from fedsa_lora.outside import run_name_fault
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.classification import ClassificationTask
from fedsa_lora.tasks.text import TextData
from strategies.clustered import ungroupable
from strategies.exact import FactorRule, FedSVD
from strategies.rules import LINEAR, fewest_results


def clashes(config: RunConfig, strategy: type[Strategy]) -> list[str]:
    """One line for each pair of settings that cannot be had together."""
    found = (_of_ranks, _of_personalisation, _of_clusters, _of_bounds)
    faults = [*_of_split(config), *_of_passing(config), *_of_deployment(config)]
    faults += [fault for look in found for fault in look(config, strategy)]
    if issubclass(strategy, FactorRule):
        return [*faults, *_of_factors(config, strategy)]
    if strategy not in LINEAR:
        faults += _of_whole_vectors(config, strategy)
    return faults


def _of_split(config: RunConfig) -> Iterator[str]:
    if isinstance(config.split, Importance) and config.train.steps == 1:
        yield (
            "split: importance is not measured in the first local step, where the gradient of A vanishes; "
            "expected train.steps of at least 2"
        )


def _of_passing(config: RunConfig) -> Iterator[str]:
    if not config.federation.b_passing:
        return
    if config.federation.ranks is not None:
        yield "federation.b_passing: a client cannot take over a B of another rank; expected ranks=null"
    if not isinstance(config.split, RoleSplit) or "local" not in config.split.words().values():
        yield "federation.b_passing: nothing is always a client's own to be passed on; expected split=share_a"


def _of_deployment(config: RunConfig) -> Iterator[str]:
    federation = config.federation
    if federation.superlink is None:
        if federation.own:
            yield "partition=own: simulated clients have no data of their own; choose federation=deployment"
        if federation.insecure or federation.root_certificates:
            yield "federation.insecure, root_certificates: of a connection to federation.superlink, not set"
        if federation.registry:
            yield "federation.registry: simulated nodes have no keys; expected registry=null"
        return
    if fault := run_name_fault(config.run_dir.name):
        yield fault
    if federation.registry and federation.insecure:
        yield (
            "federation.registry: without TLS a SuperLink does not authenticate nodes, so their keys are "
            "claims like their names; expected federation.insecure=false, or registry=null"
        )
    if federation.own and not isinstance(config.task, TextData):
        yield f"partition=own: {type(config.task).__name__} reads no files; expected a task of texts"
    if federation.own and federation.label_meaning != "common":
        yield "partition=own: classes are agreed by name; expected federation.label_meaning=common"
    if federation.own and federation.ranks is not None:
        yield "partition=own: ranks are given by client number; expected federation.ranks=null"


def _of_ranks(config: RunConfig, strategy: type[Strategy]) -> Iterator[str]:
    ranks = config.federation.ranks
    if ranks is None:
        return
    if not issubclass(strategy, FactorRule) or not strategy.mixes_ranks:
        yield (
            f"federation.ranks: {strategy.__name__} cannot mix adapters of different ranks; expected "
            "strategy=flora, flexlora or another that combines products"
        )
    if config.downlink is not None:
        yield "federation.ranks: broadcasts differ by rank, so they cannot be coded: set downlink=whole"
    if config.lora is None or config.lora.variant == "vera":
        yield "federation.ranks: this model has no A and B of a rank to limit"
        return
    wrong = sorted({r for r in _numbers(ranks) if not 1 <= r <= config.lora.r})
    if wrong or not ranks:
        yield f"federation.ranks: {wrong or 'none'}; expected ranks from 1 to lora.r={config.lora.r}"
    clients = {str(number) for number in range(config.federation.clients)}
    if isinstance(ranks, dict) and (unknown := sorted(ranks.keys() - clients)):
        yield f"federation.ranks: no clients {unknown}; there are 0 to {config.federation.clients - 1}"


def _of_personalisation(config: RunConfig, strategy: type[Strategy]) -> Iterator[str]:
    method = config.personalisation
    name = type(method).__name__
    if method.beside and issubclass(strategy, FactorRule):
        yield (
            f"personalisation: {name} keeps a model beside the common one, and {strategy.__name__} changes "
            "the frozen weights or the factors under it; expected personalisation=none or finetune"
        )
    if isinstance(method, Distillation) and not isinstance(config.task, ClassificationTask):
        yield "personalisation: Distillation learns from class probabilities; expected a task of classes"
    if isinstance(method, PFedMe) and issubclass(strategy, FedProx):
        yield "personalisation: PFedMe has a proximal term of its own; expected strategy=fedavg"
    if isinstance(method, PFedMe) and isinstance(config.split, Importance) and method.inner == 1:
        yield (
            "personalisation.inner=1: importance is not measured in the first of the inner steps; expected "
            "at least 2"
        )
    if method.mixes:
        yield from _of_mixture(config, strategy)


def _of_mixture(config: RunConfig, strategy: type[Strategy]) -> Iterator[str]:
    """A client takes its own part off what is common, which must be the mean of what clients shared."""
    name = type(config.personalisation).__name__
    if not _shares_both(config.split):
        yield f"personalisation: {name} mixes whole adapters, A with B; expected split=share_ab"
    if config.clusters is not None or config.federation.weights != "examples":
        yield (
            f"personalisation: {name} takes a client's own part off the mean by its examples; expected "
            "clusters=none and federation.weights=examples"
        )
    if strategy not in (FedAvg, FedProx) and not issubclass(strategy, FactorRule):
        yield (
            f"personalisation: {name} needs the mean of what clients shared, and {strategy.__name__} makes "
            "something else of it; expected strategy=fedavg or fedprox"
        )
    for key, codec in (("codec", config.codec), ("downlink", config.downlink)):
        if codec is not None and not codec.lossless:
            yield (
                f"{key}: {name} takes a client's own part off the mean, which {codec.name!r} alters; "
                f"expected {key}={'dense' if key == 'codec' else 'whole or dense'}"
            )


def _of_clusters(config: RunConfig, strategy: type[Strategy]) -> Iterator[str]:
    clusters, federation = config.clusters, config.federation
    if clusters is None:
        return
    yield from ungroupable(strategy, config.downlink)
    if clusters.groups is not None and clusters.groups > federation.clients:
        yield f"clusters.groups={clusters.groups}: there are {federation.clients} clients; expected no more"
    if clusters.after >= federation.rounds:
        yield (
            f"clusters.after={clusters.after}: no round is left for the groups; expected less than "
            f"federation.rounds={federation.rounds}"
        )


def _of_bounds(config: RunConfig, strategy: type[Strategy]) -> Iterator[str]:
    bounds = config.bounds
    if bounds.median_factor is not None and (sampled := _sampled(config)) < 3:
        yield (
            f"bounds.median_factor: a median of {sampled} clients a round cannot tell who is out of the "
            "ordinary; expected at least 3, or bounds.norm"
        )
    if bounds.median_factor is not None and isinstance(config.codec, Threshold):
        yield (
            "bounds.median_factor: with codec=threshold most clients may send nothing, and the median would "
            "be 0; expected another codec, or bounds.norm"
        )
    normed = bounds.norm is not None or bounds.median_factor is not None
    if config.personalisation.mixes and normed and bounds.action == "clip":
        yield (
            f"bounds.action: {type(config.personalisation).__name__} takes a client's own part off the mean, "
            "which clipping alters; expected bounds.action=reject"
        )


def _numbers(ranks: dict[str, int] | list[int]) -> list[int]:
    return list(ranks.values()) if isinstance(ranks, dict) else ranks


def _of_factors(config: RunConfig, strategy: type[FactorRule]) -> Iterator[str]:
    """A rule that combines A with B must know both of every client."""
    split, name = config.split, strategy.__name__
    if config.downlink is not None and not config.downlink.lossless:
        yield (
            f"downlink: {name} is exact only where clients hold the server's factors; expected whole or dense"
        )
    if issubclass(strategy, FedSVD):
        if not (isinstance(split, Alternate) and split.order == ("B",)):
            yield f"strategy: {name} chooses A on the server and has B trained; expected split=fedsvd"
    elif not _shares_both(split):
        yield f"strategy: {name} needs A and B of every client; expected split=share_ab"
    if strategy.renews and _keeps_residual(config.codec):
        yield (
            f"codec: {name} gives clients other factors each round, so what a codec left out of the last "
            "cannot be sent later; expected codec.error_feedback=false, or a lossless codec"
        )


def _of_whole_vectors(config: RunConfig, strategy: type[Strategy]) -> Iterator[str]:
    """A strategy that compares clients' vectors value by value."""
    split, head, name = config.split, config.head, strategy.__name__
    if isinstance(split, Importance) and split.scope == "client":
        yield f"strategy: {name} compares whole vectors, with split.scope=client those of clients differ"
    if head.policy in ("shared", "soft") and head.count_weighted:
        yield (
            f"strategy: {name} compares clients' heads, which head.count_weighted averages instead; expected "
            "head.count_weighted=false"
        )
    sampled = _sampled(config)
    malicious = int(config.strategy.get("num_malicious_clients", 0))
    if sampled < (fewest := fewest_results(strategy, malicious)):
        rule = "4 f + 3" if issubclass(strategy, Bulyan) else "2 f + 3"
        yield f"strategy: {name} needs {rule} = {fewest} clients a round, {sampled} are sampled"
    kept = int(config.strategy.get("num_clients_to_keep", 0))
    if issubclass(strategy, Krum) and kept > sampled:
        yield f"strategy.num_clients_to_keep={kept}: expected at most {sampled}, the clients of a round"


def _sampled(config: RunConfig) -> int:
    """How many clients a round has, as Flower counts them."""
    share = int(config.federation.clients * float(config.strategy.get("fraction_fit", 1.0)))
    return max(share, int(config.strategy.get("min_fit_clients", 2)))


def _shares_both(split: SplitPolicy) -> bool:
    return isinstance(split, RoleSplit) and split.A == "shared" and split.B == "shared"


def _keeps_residual(codec: Codec) -> bool:
    return codec.error_feedback and not codec.lossless
