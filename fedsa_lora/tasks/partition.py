"""Partition of the rows: train, validation and test parts of a client all follow its train partition."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError, DataError
from fedsa_lora.group import Group, at_least, more_than
from fedsa_lora.seeds import generator
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.partitioners import LABEL, MODULE, assign_rows

Indices = NDArray[np.int64]
LabelMeaning = Literal["common", "per_client"]


@dataclass(frozen=True)
class PartitionSettings(Group):
    """The partition of the rows among clients.

    ``partitioner`` is a node with ``_target_`` naming a class of ``flwr_datasets.partitioner`` and
    its arguments; {}: nothing is divided, every node has its own data. Each client keeps a
    uniformly drawn number of train examples in ``train_examples`` = [lo, hi] (all without it), gives up
    ``validation_examples`` of these, and at most ``test_examples`` for test. ``test_fraction`` of its
    rows is its test part where the data has no test split. With ``label_meaning`` "per_client" each
    client renames the classes.
    Raises ConfigError that lists every fault.
    """

    clients: Annotated[int, at_least(1)] = 10
    partitioner: dict[str, Any] = field(default_factory=lambda: {"_target_": f"{MODULE}.IidPartitioner"})
    train_examples: list[int] | None = None
    validation_examples: Annotated[int, at_least(0)] = 0
    test_examples: Annotated[int | None, at_least(1)] = None
    min_examples: Annotated[int, at_least(1)] = 1
    test_fraction: Annotated[float, more_than(0, 0.9)] = 0.2
    label_meaning: LabelMeaning = "common"

    def __post_init__(self) -> None:
        size, faults = self.train_examples, self.out_of_range()
        if size is not None and not (len(size) == 2 and 1 <= size[0] <= size[1]):
            faults.append(f"train_examples is {size!r}: expected [lo, hi] with 1 <= lo <= hi, or null")
        if self.label_meaning not in get_args(LabelMeaning):
            faults.append(f"label_meaning is {self.label_meaning!r}: expected common or per_client")
        if faults:
            raise ConfigError("; ".join(faults))

    @property
    def own(self) -> bool:
        """True where every node has its own data."""
        return not self.partitioner


@dataclass(frozen=True)
class ClientRows:
    """Sorted row numbers; ``test`` counts in the test split, or in the train split where there is none."""

    train: Indices
    validation: Indices
    test: Indices


@dataclass(frozen=True)
class FederationSplit:
    """The rows of every client "0" to "clients - 1", and remarks that a user should see; ``unassigned``
    counts the rows of each split that the partition gives to nobody."""

    clients: dict[str, ClientRows]
    notes: tuple[str, ...]
    unassigned: dict[str, int] = field(default_factory=dict)


def split_federation(
    settings: PartitionSettings,
    seed: int,
    train: Mapping[str, NDArray[Any]],
    test: Mapping[str, NDArray[Any]] | None = None,
) -> FederationSplit:
    """Divide the train rows between clients, and the test rows in the same proportions.

    ``train`` and ``test`` map ``label`` and, where there is one, ``group`` to an array (n,). All
    parts are disjoint. Official test rows of a class (of a group under a natural partition) are
    dealt in proportion to the train rows of it that each client received.
    Raises DataError for a client without train examples.
    """
    parts, by = assign_rows(settings.partitioner, settings.clients, seed, train)
    labels = train[LABEL]
    unassigned = {"train": len(labels) - sum(map(len, parts))}
    notes = _leftover("train", len(labels), unassigned["train"])
    if test is None:
        tests = [_carve_test(settings, seed, client, part, labels) for client, part in enumerate(parts)]
        parts = [np.setdiff1d(part, held_out) for part, held_out in zip(parts, tests, strict=True)]
    else:
        tests = deal(train[by], test[by], parts, seed)
        unassigned["test"] = len(test[by]) - sum(map(len, tests))
        notes += _leftover("test", len(test[by]), unassigned["test"])
    test_labels = labels if test is None else test[LABEL]
    clients = {}
    for client, (part, held_out) in enumerate(zip(parts, tests, strict=True)):
        limit = settings.test_examples or len(held_out)
        kept = stratified_sample(held_out, test_labels, limit, generator(seed, "test", client))
        clients[str(client)] = _client_rows(settings, seed, client, part, labels, kept)
    _refuse_empty(clients)
    return FederationSplit(clients, (*notes, *_shortfalls(settings, seed, clients)), unassigned)


def own_rows(
    settings: PartitionSettings,
    seed: int,
    client: str,
    train: NDArray[Any],
    test: NDArray[Any] | None = None,
) -> ClientRows:
    """All rows of a node whose data are its own, by their labels (n,); without test rows, ``test_fraction``
    of the others."""
    part, labels = np.arange(len(train)), train
    if test is None:
        held_out = _carve_test(settings, seed, client, part, train)
        part = np.setdiff1d(part, held_out)
    else:
        held_out, labels = np.arange(len(test)), test
    limit = settings.test_examples or len(held_out)
    kept = stratified_sample(held_out, labels, limit, generator(seed, "test", client))
    return _client_rows(settings, seed, client, part, train, kept)


def stratified_sample(rows: Indices, labels: NDArray[Any], count: int, rng: np.random.Generator) -> Indices:
    """``count`` of ``rows`` (all when there are fewer), sorted; every class within one of its fair share.

    Systematic sampling: the rows lie sorted by class, shuffled within, and every n/count-th is taken.
    """
    if count >= len(rows):
        return np.sort(rows)
    shuffled = rng.permutation(rows)
    by_class = shuffled[np.argsort(labels[shuffled], kind="stable")]
    positions = (np.arange(count) + rng.random()) * len(rows) / max(count, 1)
    return np.sort(by_class[positions.astype(np.int64)])


def deal(train: NDArray[Any], test: NDArray[Any], parts: Sequence[Indices], seed: int) -> list[Indices]:
    """Deal test rows of each value in proportion to the train rows of that value in each part.

    Test rows whose value no part holds go to nobody.
    """
    # as words, because groups are numbers in a file where each is one, and 3 is "3" in another
    train, test = train.astype(str), test.astype(str)
    owner = np.full(len(train), -1)
    for client, part in enumerate(parts):
        owner[part] = client
    hands: list[list[Indices]] = [[] for _ in parts]
    for value in np.unique(test):
        owners = owner[(train == value) & (owner >= 0)]
        if not len(owners):
            continue
        rng = generator(seed, "deal", str(value))
        # Rounding favours nobody over many classes, because the order of the clients is drawn anew.
        order = rng.permutation(len(parts))
        shares = np.cumsum(np.bincount(owners, minlength=len(parts))[order]) / len(owners)
        rows = rng.permutation(np.flatnonzero(test == value))
        cuts = np.rint(shares[:-1] * len(rows)).astype(np.int64)
        for client, hand in zip(order, np.split(rows, cuts), strict=True):
            hands[client].append(hand)
    return [np.sort(np.concatenate(hand or [np.empty(0, np.int64)])) for hand in hands]


def label_permutations(classes: int, clients: int, seed: int) -> list[Indices]:
    """One permutation of the class ids per client: class c is called ``permutation[c]`` there.

    They differ pairwise while there are permutations left; after that they repeat.
    """
    drawn: list[tuple[int, ...]] = []
    for client in range(clients):
        rng = generator(seed, "label meaning", client)
        taken = set(drawn[client - client % math.factorial(classes) :])
        candidate = tuple(rng.permutation(classes).tolist())
        while candidate in taken:
            candidate = tuple(rng.permutation(classes).tolist())
        drawn.append(candidate)
    return [np.array(permutation, dtype=np.int64) for permutation in drawn]


def _carve_test(
    settings: PartitionSettings, seed: int, client: int | str, part: Indices, labels: NDArray[Any]
) -> Indices:
    # One example at least is kept for training; where it is the only one, the test part is empty.
    count = max(min(max(round(len(part) * settings.test_fraction), 1), len(part) - 1), 0)
    return stratified_sample(part, labels, count, generator(seed, "carve", client))


def _client_rows(
    settings: PartitionSettings,
    seed: int,
    client: int | str,
    part: Indices,
    labels: NDArray[Any],
    test: Indices,
) -> ClientRows:
    # At least half of a client's rows stay for training.
    count = min(settings.validation_examples, len(part) // 2)
    validation = stratified_sample(part, labels, count, generator(seed, "validation", client))
    rest = np.setdiff1d(part, validation)
    size = _train_size(settings, seed, client)
    if size is not None:
        rest = stratified_sample(rest, labels, size, generator(seed, "train", client))
    return ClientRows(rest, validation, test)


def _train_size(settings: PartitionSettings, seed: int, client: int | str) -> int | None:
    if settings.train_examples is None:
        return None
    low, high = settings.train_examples
    return int(generator(seed, "train size", client).integers(low, high, endpoint=True))


def _refuse_empty(clients: Mapping[str, ClientRows]) -> None:
    empty = [client for client, rows in clients.items() if not len(rows.train)]
    if empty:
        raise DataError(
            f"no train examples for client {listing(empty)}: lower federation.clients, or raise the "
            "partitioner's min_partition_size or alpha"
        )


def _leftover(kind: str, rows: int, left: int) -> list[str]:
    return [f"{left} of {rows} {kind} rows belong to no client under this partition"] if left else []


def _shortfalls(settings: PartitionSettings, seed: int, clients: Mapping[str, ClientRows]) -> list[str]:
    """Names the clients that hold less than was asked for, one remark for each kind of lack."""
    lacking: dict[str, list[str]] = {}

    def check(what: str, client: str, held: int, wanted: int) -> None:
        if held < wanted:
            lacking.setdefault(what, []).append(f"{client} ({held} of {wanted})")

    for client, rows in clients.items():
        drawn = _train_size(settings, seed, int(client)) or 0
        check("fewer train examples than drawn from train_examples", client, len(rows.train), drawn)
        check("fewer train examples than min_examples", client, len(rows.train), settings.min_examples)
        wanted = settings.validation_examples
        check("fewer validation examples than validation_examples", client, len(rows.validation), wanted)
        check("no test examples", client, len(rows.test), 1)
    return [f"{what}: client {', '.join(found)}" for what, found in lacking.items()]
