"""The tensors of a trunk in a server's memory, which a checkpoint keeps: see ``fedsa_lora.server.trunk``."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from fedsa_lora.exchange.arrays import Arrays, NamedArrays

PREFIX = "trunk/"


def as_memory(values: Mapping[str, NamedArrays]) -> Arrays:
    """The tensors by client, as entries of a memory; "" are those of clients that have none."""
    return {
        f"{PREFIX}{client}/{name}": array
        for client, arrays in values.items()
        for name, array in arrays.items()
    }


def of_trunk(memory: NamedArrays) -> dict[str, Arrays]:
    """The tensors by client; none in the memory of a run whose model was not cut."""
    found: dict[str, Arrays] = defaultdict(dict)
    for key, array in memory.items():
        if key.startswith(PREFIX):
            client, _, name = key.removeprefix(PREFIX).partition("/")
            found[client][name] = array
    return dict(found)
