"""flwr-datasets' partitioners, built from a config node and asked for row numbers."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import io
import sys
import types
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError, DataError
from fedsa_lora.seeds import generator
from fedsa_lora.suggest import listing, nearest

MODULE = "flwr_datasets.partitioner"
LABEL, GROUP = "label", "group"
_ROW = "row"


def assign_rows(
    node: Mapping[str, Any], clients: int, seed: int, columns: Mapping[str, NDArray[Any]]
) -> tuple[list[NDArray[np.int64]], str]:
    """The sorted row numbers of each client, and the column that the partitioner went by.

    ``columns`` holds ``label`` and, where the data has natural groups, ``group``, each (n,).
    Rows are shuffled first, because IID and size partitioners cut the table as it lies, and many
    files are sorted by class. Raises ConfigError for a bad node, DataError when it cannot be done.
    """
    import datasets

    rows = len(columns[LABEL])
    if clients > rows:
        raise DataError(f"{clients} clients but only {rows} train examples: lower federation.clients")
    name = str(node.get("_target_", "")).removeprefix(f"{MODULE}.")
    arguments = _arguments(_partitioner_class(name), node, clients, seed)
    by = str(arguments.get("partition_by", LABEL))
    if by not in columns:
        raise ConfigError(
            f"federation.partitioner.partition_by is {by!r}: expected {listing(columns)}. "
            + (
                "Name the natural column in task.group."
                if by == GROUP
                else "Use 'group' for a natural column."
            )
        )
    order = generator(seed, "rows").permutation(rows)
    table = datasets.Dataset.from_dict(
        {_ROW: order, **{column: values[order].tolist() for column, values in columns.items()}}
    )
    with _explained(name, clients, rows):
        partitioner = _partitioner_class(name)(**arguments)
        partitioner.dataset = table
        count = partitioner.num_partitions
        if count != clients:
            raise ConfigError(
                f"{name} makes {count} clients, but federation.clients is {clients}: set it to {count}"
            )
        parts = [partitioner.load_partition(client).with_format("arrow")[:] for client in range(clients)]
    return [np.sort(part[_ROW].to_numpy().astype(np.int64)) for part in parts], by


def _partitioner_class(name: str) -> Any:
    with _late("seaborn"):  # flwr_datasets only draws with it, and it takes longer than the partition itself
        from flwr_datasets import partitioner

    # Vertical partitioners split columns, not rows: no client would have a whole example.
    allowed = [export for export in partitioner.__all__ if not export.startswith("Vertical")]
    allowed.remove("Partitioner")
    if name not in allowed:
        raise ConfigError(
            f"federation.partitioner._target_ is {name!r}{nearest(name, allowed)}: expected "
            f"{MODULE}. followed by one of {listing(allowed, limit=len(allowed))}"
        )
    return getattr(partitioner, name)


@contextlib.contextmanager
def _late(name: str) -> Iterator[None]:
    """A library that others import within it is loaded when one of them first uses it."""

    class Late(types.ModuleType):
        def __getattr__(self, attribute: str) -> Any:
            return getattr(importlib.import_module(name), attribute)

    if name in sys.modules:
        yield
        return
    sys.modules[name] = Late(name)
    try:
        yield
    finally:
        del sys.modules[name]


def _arguments(target: Any, node: Mapping[str, Any], clients: int, seed: int) -> dict[str, Any]:
    """The node's arguments, completed with the number of clients, the seed and the label column."""
    parameters = inspect.signature(target).parameters
    given = {str(key): value for key, value in node.items() if key != "_target_"}
    unknown = sorted(set(given) - set(parameters))
    if unknown:
        raise ConfigError(
            f"{target.__name__} has no argument {unknown[0]!r}{nearest(unknown[0], parameters)}: there are "
            f"{listing(parameters)}"
        )
    partition_seed = int(generator(seed, "partitioner").integers(2**31))
    defaults = {"num_partitions": clients, "partition_by": LABEL, "seed": partition_seed}
    arguments = {key: value for key, value in defaults.items() if key in parameters} | given
    missing = [
        key for key, value in parameters.items() if value.default is value.empty and key not in arguments
    ]
    if missing:
        raise ConfigError(f"{target.__name__} needs {listing(missing)}: add it to federation.partitioner")
    return arguments


@contextlib.contextmanager
def _explained(name: str, clients: int, rows: int) -> Iterator[None]:
    """Silence retries and progress bars; turn failures, division by zero included, into DataError."""
    try:
        with (
            np.errstate(divide="raise", invalid="raise"),
            warnings.catch_warnings(action="ignore"),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            yield
    except (ValueError, TypeError, IndexError, KeyError, FloatingPointError) as error:
        raise DataError(
            f"{name} cannot divide {rows} train examples between {clients} clients: {error} "
            "Change its arguments, or lower federation.clients."
        ) from error
