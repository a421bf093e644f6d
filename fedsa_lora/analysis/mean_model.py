"""Mean of the clients' models: what all hold as it is, what is local as its mean over clients."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.arrays import ROLES, Arrays, Layout, Role
from fedsa_lora.runs.reading import read_jsonl


@dataclass(frozen=True)
class MeanModel:
    """Every tensor of a layout by name, the ``roles`` of which tensors are means, and over how many
    ``clients``."""

    tensors: Arrays
    roles: tuple[Role, ...]
    clients: int


def mean_model(exporter: Exporter) -> MeanModel:
    """The mean over the clients that trained, each weighted as the run weighs it.

    Tensors that are equal for all clients are taken as they are. Where only one factor of a layer differs,
    the product of the means is the mean of the products: B_mean A = mean of B_k A. Raises RunError where both
    differ, or the backbone does, and where the state of a client is not on this machine.
    """
    layout, weights = exporter.model.layout, _weights(exporter)
    first: Arrays = {}
    sums = {spec.name: np.zeros(spec.shape) for spec in layout}
    differing: set[str] = set()
    for client, weight in weights.items():
        values = exporter.own_model(client).common
        first = first or dict(values)
        for name, value in values.items():
            sums[name] += weight * value.astype(np.float64)
            if not np.array_equal(value, first[name]):
                differing.add(name)
    _refuse_products(exporter, layout.select(differing))
    total = sum(weights.values())
    means = {name: (sums[name] / total).astype(np.float32) for name in differing}
    found = {spec.role for spec in layout if spec.name in differing}
    roles = tuple(role for role in ROLES if role in found)
    return MeanModel(first | means, roles, len(weights))


def _weights(exporter: Exporter) -> dict[str, float]:
    """The weight of each client that trained, sorted by client: its train examples, or 1 where all count the
    same. Raises RunError where the state of one is not on this machine."""
    rows = read_jsonl(exporter.directory.path / "clients.jsonl")
    examples = {row["client"]: float(row["examples"]) for row in rows if row["phase"] == "fit"}
    if missing := sorted(examples.keys() - set(exporter.clients())):
        raise RunError(
            f"{exporter.config.store_dir} lacks the state of {len(missing)} of {len(examples)} clients that "
            f"trained, for example {missing[0]!r}: their mean can be computed where all states are, as "
            f"after a simulation (give the folder with --store)"
        )
    if exporter.config.federation.weights == "uniform":
        return dict.fromkeys(sorted(examples), 1.0)
    return {client: examples[client] for client in sorted(examples)}


def _refuse_products(exporter: Exporter, differing: Layout) -> None:
    """Raise RunError where the mean of tensors is no mean of what the clients' models compute with them."""
    roles: dict[str, set[Role]] = defaultdict(set)
    for spec in differing:
        roles[spec.layer].add(spec.role)
    run = exporter.directory.path
    if differing.count("base"):
        raise RunError(
            f"{run}: each client has its own weights of the whole model, and their mean is close to none "
            f"of them; fedsa-lora export {run} --client NAME writes a client's model"
        )
    if both := sorted(layer for layer, found in roles.items() if {"A", "B"} <= found):
        raise RunError(
            f"{run}: A and B both differ between clients in {len(both)} layers, for example {both[0]}, and "
            "the product of their means is not the mean of the products B A: --mean-b needs one of them to "
            f"be shared (split=share_a); fedsa-lora export {run} --client NAME writes a client's model"
        )
