"""Builds the strategy of a run from its config: from names and shapes, without the weights of a backbone."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import Strategy

from fedsa_lora.client.device import device
from fedsa_lora.deployment.registry import read_registry
from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.arrays import Layout, NamedArrays, Vector
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.exchange.reported import ATTACKED
from fedsa_lora.exchange.split import AdapterSplit
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.cut.parts import (
    Part,
    adapted_part,
    build_part,
    check_adapters,
    check_cut,
    step_format,
)
from fedsa_lora.learning.given import adapted
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.server.trunk import Trunk
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.heads import unwrapped
from strategies import Attendance, ClusteredFedSA, Evaluation, FedSA, Recorder, Roster
from strategies.cut import Middle, SplitFedSA
from strategies.rules.exact import FactorRule
from strategies.rules.exactness import Frozen
from strategies.rules.pairs import pairs
from strategies.unlearning import Unlearning


def skeleton(config: RunConfig) -> AdapterModel:
    """The whole model on the meta device: names, shapes and roles, not one weight. Raises ModelError for one
    that cannot be cut as the config says."""
    empty = config.task.build_model(seed=config.seed, empty=True)
    if config.cut is not None:
        check_cut(empty, config.cut)
    model = adapted(empty, config.lora, config.seed, config.model)
    if config.cut is not None:
        check_adapters(model, config.cut)
    return model


def build_strategy(
    config: RunConfig,
    empty: AdapterModel,
    recorder: Recorder,
    run: str = "",
    resumed: int = 0,
    *,
    middle: Middle | None = None,
) -> FedSA:
    """FedSA around the configured strategy, for the ``skeleton`` of the model; ``run`` is what clients know
    it by, ``resumed`` how often it was, and ``middle`` what the server computes of a model that is cut.

    Raises SplitError, ConfigError or ModelError for a split, a strategy or a personalisation that the model
    does not fit.
    """
    config.personalisation.check(empty)
    config.unlearning.check(empty)
    split: AdapterSplit = config.split(config.at_client(empty.layout))
    layout = empty.layout.select(split.shared)
    start = empty.initial(config.seed, config.head.row_norm)
    initial = layout.pack({name: start[name] for name in layout.names})
    roster = _roster(config)
    inner = _inner(config, initial, layout, empty)
    if config.unlearning.chosen:
        inner = Unlearning(inner, config.unlearning.phases, roster.name)
    return _kind(config, middle)(
        inner,
        layout,
        initial,
        split=config.split,
        codec=config.codec,
        downlink=config.downlink,
        ranks=config.federation.client_ranks(config.seed),
        tell_total=config.personalisation.mixes,
        classes=_counted_classes(config, layout),
        frozen=_frozen(empty, split, start),
        roster=roster,
        evaluation=_evaluation(config),
        recorder=recorder,
        uniform=config.federation.weights == "uniform",
        bounds=config.bounds,
        measures=_measures(config),
        min_results=config.federation.min_results,
        attendance=_attendance(config),
        run=run,
        resumed=resumed,
    )


def build_for_run(config: RunConfig, empty: AdapterModel, directory: RunDirectory) -> FedSA:
    """The strategy of a run that writes to a directory, with the weights of what the server itself computes;
    of a run that is resumed as its last complete round left it."""
    strategy = build_strategy(
        config,
        empty,
        directory,
        directory.run,
        directory.resumptions,
        middle=build_trunk(config, empty),
    )
    if (state := directory.resumed) is not None:
        strategy.restore(state.round, strategy.layout.pack(state.tensors), state.memory)
    return strategy


def build_trunk(config: RunConfig, empty: AdapterModel) -> Trunk | None:
    """The server's part of a model that is cut, with its weights, for the ``skeleton`` of the whole; None
    where it is not. Raises ModelError where it cannot be loaded."""
    cut = config.cut
    if cut is None:
        return None
    part = build_part(unwrapped(empty.module), config.model, cut, Part.SERVER, seed=config.seed)
    model = adapted_part(part.to(device(config)), config.lora, config.seed, config.model)
    start = empty.initial(config.seed)
    return Trunk(
        model,
        cut,
        step_format(empty.module, cut, config.task, config.train),
        config.train,
        config.seed,
        {name: start[name] for name in model.layout.names},
        config.split(model.layout).trained,
        config.split(config.at_client(empty.layout)).trained,
    )


def _kind(config: RunConfig, middle: Middle | None) -> Callable[..., FedSA]:
    if middle is not None:
        return partial(SplitFedSA, middle=middle)
    if config.clusters is None:
        return FedSA
    return partial(ClusteredFedSA, clusters=config.clusters)


def _inner(config: RunConfig, initial: Vector, layout: Layout, model: AdapterModel) -> Strategy:
    """The strategy that does the numbers. Raises ConfigError where a rule cannot have the factors
    themselves."""
    inner = config.strategy.build(initial_parameters=ndarrays_to_parameters([initial]), seed=config.seed)
    if not isinstance(inner, FactorRule):
        return inner
    if unknown := sorted(_beyond_head(model) & set(layout.names)):
        raise ConfigError(
            f"{type(inner).__name__} needs the factors themselves; with this lora.variant and lora.init the "
            f"server knows only their change, for example of {unknown[0]}: expected lora.init=default"
        )
    pairs(layout)
    return inner


def _counted_classes(config: RunConfig, layout: Layout) -> int:
    """The number of classes by which the rows of a shared head are averaged; 0 where they are not."""
    if config.head.counted and layout.count("head"):
        return len(config.task.labels())
    return 0


def _frozen(model: AdapterModel, split: AdapterSplit, start: NamedArrays) -> Frozen | None:
    """The factors that no client trains; None where the server knows only their change."""
    if _beyond_head(model):
        return None
    layout = model.layout.select(split.frozen)
    factors = layout.select(spec.name for spec in layout if spec.role in ("A", "B"))
    return Frozen(factors, {name: start[name] for name in factors.names})


def _beyond_head(model: AdapterModel) -> frozenset[str]:
    """The tensors that are exchanged as differences, without those of a head that the checkpoint has."""
    return frozenset(
        spec.name for spec in model.layout if spec.name in model.relative and spec.role != "head"
    )


def _roster(config: RunConfig) -> Roster:
    """The roster of the run. Raises ConfigError for a registry with faults; where it is not on this machine,
    it is read on that of the SuperLink."""
    federation, registry = config.federation, None
    if federation.registry is not None:
        path = Path(federation.registry)
        registry = partial(read_registry, path)
        if path.exists():
            registry()
    return Roster(
        config.seed,
        federation.clients,
        None if federation.superlink is None else federation.wait_seconds,
        least=federation.min_clients,
        registry=registry,
        over_select=federation.over_select,
        per_node=federation.clients_per_node,
    )


def _evaluation(config: RunConfig) -> Evaluation:
    return Evaluation(
        rounds=config.federation.rounds,
        every=config.evaluation.every,
        before=config.evaluation.before,
        before_each=config.evaluation.before_each,
        reference=config.evaluation.local_only,
    )


def _measures(config: RunConfig) -> tuple[Measure, ...]:
    """The measures that clients answer with, that of an attack last."""
    if config.attack is None:
        return tuple(config.task.measures)
    return (*config.task.measures, ATTACKED)


def _attendance(config: RunConfig) -> Attendance:
    federation = config.federation
    return Attendance(
        max_skipped=min(federation.max_skipped, federation.rounds),
        exclude_after=federation.exclude_after,
        exclude_rounds=federation.exclude_rounds,
    )
