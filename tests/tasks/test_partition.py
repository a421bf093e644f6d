"""Laws of the partition: disjoint, seeded, and validation and test follow train."""

from itertools import combinations

import numpy as np
import pytest

from fedsa_lora.errors import ConfigError, DataError
from fedsa_lora.seeds import generator
from fedsa_lora.tasks.partition import (
    PartitionSettings,
    deal,
    label_permutations,
    own_rows,
    split_federation,
    stratified_sample,
)

CLASSES = 7
PREFIX = "flwr_datasets.partitioner."
NODES = {
    "iid": {"_target_": PREFIX + "IidPartitioner"},
    "dirichlet": {
        "_target_": PREFIX + "DirichletPartitioner",
        "alpha": 0.1,
        "min_partition_size": 20,
        "self_balancing": True,
    },
    "pathological": {
        "_target_": PREFIX + "PathologicalPartitioner",
        "num_classes_per_partition": 2,
        "class_assignment_mode": "first-deterministic",
    },
    "shard": {"_target_": PREFIX + "ShardPartitioner", "num_shards_per_partition": 2},
    "natural": {"_target_": PREFIX + "NaturalIdPartitioner", "partition_by": "group"},
}


def columns(rows: int, seed: int) -> dict[str, np.ndarray]:
    """Sorted by class, as many published files are; ten groups."""
    rng = np.random.default_rng(seed)
    labels = np.sort(rng.integers(CLASSES, size=rows))
    return {"label": labels, "group": np.array([f"site {i}" for i in rng.integers(10, size=rows)])}


TRAIN, TEST = columns(3000, 0), columns(700, 1)


def histogram(labels: np.ndarray) -> np.ndarray:
    return np.bincount(labels, minlength=CLASSES) / max(1, len(labels))


def divide(kind: str, *, seed: int = 0, test=TEST, **settings):
    return split_federation(PartitionSettings(partitioner=NODES[kind], **settings), seed, TRAIN, test)


def assert_disjoint(parts: list[np.ndarray], rows: int) -> None:
    together = np.concatenate(parts)
    assert len(np.unique(together)) == len(together)
    assert together.min() >= 0
    assert together.max() < rows


@pytest.mark.parametrize("kind", NODES)
@pytest.mark.parametrize("test", [TEST, None], ids=["official test", "carved test"])
def test_the_parts_of_all_clients_are_disjoint_and_inside_the_data(kind, test):
    clients = divide(kind, test=test, validation_examples=15).clients.values()
    train = [rows for c in clients for rows in (c.train, c.validation)]
    tests = [c.test for c in clients]
    assert_disjoint(train + (tests if test is None else []), len(TRAIN["label"]))
    assert_disjoint(tests, 700 if test is not None else len(TRAIN["label"]))


@pytest.mark.parametrize("kind", ["iid", "dirichlet", "shard", "natural"])
def test_nothing_is_lost_without_caps(kind):
    split = divide(kind, validation_examples=15)
    assert sum(len(c.train) + len(c.validation) for c in split.clients.values()) == 3000
    assert sum(len(c.test) for c in split.clients.values()) == 700
    assert split.notes == ()


def test_rows_that_belong_to_nobody_are_reported():
    split = divide("pathological", clients=2)
    held = sum(len(c.train) for c in split.clients.values())
    assert held < 3000
    assert f"{3000 - held} of 3000 train rows belong to no client" in split.notes[0]
    assert "test rows belong to no client" in split.notes[1]


@pytest.mark.parametrize("test", [TEST, None], ids=["official test", "carved test"])
def test_validation_and_test_follow_the_class_proportions_of_train(test):
    split = divide("dirichlet", test=test, validation_examples=40)
    labels = TRAIN["label"] if test is None else test["label"]
    for rows in split.clients.values():
        train = histogram(TRAIN["label"][rows.train])
        assert np.corrcoef(train, histogram(TRAIN["label"][rows.validation]))[0, 1] > 0.95
        assert np.corrcoef(train, histogram(labels[rows.test]))[0, 1] > 0.95
        if test is not None:
            held = np.concatenate([rows.train, rows.validation])
            assert set(labels[rows.test]) <= set(TRAIN["label"][held])


def test_a_natural_client_is_tested_on_its_own_group_only():
    for client, rows in divide("natural", validation_examples=5).clients.items():
        for values in (TRAIN["group"][rows.train], TRAIN["group"][rows.validation], TEST["group"][rows.test]):
            assert set(values) == {f"site {client}"}


def test_iid_clients_all_see_every_class_of_a_file_sorted_by_class():
    for rows in divide("iid").clients.values():
        assert np.abs(histogram(TRAIN["label"][rows.train]) - histogram(TRAIN["label"])).max() < 0.08


@pytest.mark.parametrize("kind", NODES)
def test_the_same_seed_gives_the_same_split_and_another_seed_another(kind):
    settings = {"validation_examples": 10, "train_examples": [30, 60], "test_examples": 25}
    first, again, other = (divide(kind, seed=seed, **settings).clients for seed in (0, 0, 1))
    for client in first:
        for part in ("train", "validation", "test"):
            np.testing.assert_array_equal(getattr(first[client], part), getattr(again[client], part))
    assert any(not np.array_equal(first[c].train, other[c].train) for c in first)


def test_the_order_of_the_node_does_not_matter():
    node = NODES["dirichlet"]
    reverse = dict(reversed(node.items()))
    splits = [split_federation(PartitionSettings(partitioner=n), 3, TRAIN, TEST) for n in (node, reverse)]
    np.testing.assert_array_equal(splits[0].clients["4"].train, splits[1].clients["4"].train)


def test_caps_and_unequal_sizes():
    clients = divide("iid", train_examples=[60, 100], validation_examples=20, test_examples=30).clients
    sizes = [len(rows.train) for rows in clients.values()]
    assert all(60 <= size <= 100 for size in sizes)
    assert len(set(sizes)) > 3
    assert all(len(rows.validation) == 20 and len(rows.test) == 30 for rows in clients.values())


def test_a_cap_on_train_leaves_the_other_parts_alone():
    free, capped = (
        divide("dirichlet", validation_examples=20),
        divide("dirichlet", validation_examples=20, train_examples=[5, 9]),
    )
    for client, rows in free.clients.items():
        np.testing.assert_array_equal(rows.validation, capped.clients[client].validation)
        np.testing.assert_array_equal(rows.test, capped.clients[client].test)
        assert set(capped.clients[client].train) <= set(rows.train)


def test_clients_with_too_little_are_reported_by_name():
    split = divide("iid", train_examples=[400, 400], validation_examples=500, min_examples=1000)
    text = "\n".join(split.notes)
    assert "fewer train examples than drawn from train_examples: client 0 (150 of 400), 1 (" in text
    assert "fewer train examples than min_examples: client 0 (150 of 1000)" in text
    assert "fewer validation examples than validation_examples: client 0 (150 of 500)" in text
    nobody = {"label": np.full(5, CLASSES + 1), "group": np.full(5, "elsewhere")}
    assert "no test examples: client 0 (0 of 1), 1 (0 of 1)" in "\n".join(divide("iid", test=nobody).notes)


def test_a_client_without_train_examples_is_an_error_that_names_it():
    one_class = {"label": np.zeros(40, dtype=np.int64)}
    node = {"_target_": PREFIX + "DirichletPartitioner", "alpha": 0.02, "min_partition_size": 0}
    with pytest.raises(DataError, match=r"no train examples for client \d+.*lower federation.clients"):
        split_federation(PartitionSettings(partitioner=node), 0, one_class, one_class)


def test_more_clients_than_examples_is_an_error():
    with pytest.raises(DataError, match="3001 clients but only 3000 train examples"):
        divide("iid", clients=3001)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({}, "expected flwr_datasets.partitioner. followed by one of ContinuousPartitioner"),
        ({"_target_": PREFIX + "DirichletPartitoner"}, "did you mean 'DirichletPartitioner'"),
        ({"_target_": "os.system"}, r"federation\.partitioner\._target_ is 'os.system'"),
        ({"_target_": PREFIX + "Partitioner"}, "_target_ is 'Partitioner'"),
        ({"_target_": PREFIX + "VerticalEvenPartitioner"}, "_target_ is 'VerticalEvenPartitioner'"),
        ({"_target_": PREFIX + "DirichletPartitioner"}, "needs alpha: add it to federation.partitioner"),
        ({**NODES["dirichlet"], "alhpa": 1}, "no argument 'alhpa' .did you mean 'alpha'"),
        (
            {**NODES["natural"], "partition_by": "domain"},
            r"federation\.partitioner\.partition_by is 'domain': expected label, group",
        ),
    ],
)
def test_a_bad_partitioner_is_refused_with_the_remedy(node, message):
    with pytest.raises(ConfigError, match=message):
        split_federation(PartitionSettings(partitioner=node), 0, TRAIN, TEST)


def test_a_natural_partition_states_both_counts_when_they_differ():
    with pytest.raises(ConfigError, match=r"makes 10 clients, but federation.clients is 4: set it to 10"):
        divide("natural", clients=4)


def test_a_natural_partition_without_a_group_column_says_so():
    with pytest.raises(
        ConfigError, match=r"partition_by is 'group': expected label. Name the natural column"
    ):
        split_federation(PartitionSettings(partitioner=NODES["natural"]), 0, {"label": TRAIN["label"]})


@pytest.mark.parametrize(
    "node",
    [
        {**NODES["dirichlet"], "min_partition_size": 299},
        {**NODES["pathological"], "num_classes_per_partition": 8},
        {**NODES["dirichlet"], "alpha": -1.0},
    ],
)
def test_what_a_partitioner_cannot_do_is_a_data_error(node, recwarn, capfd):
    with pytest.raises(DataError, match="cannot divide 3000 train examples between 10 clients"):
        split_federation(PartitionSettings(partitioner=node), 0, TRAIN, TEST)
    assert not len(recwarn)
    assert capfd.readouterr().err == ""


def test_every_fault_of_the_settings_is_listed_at_once():
    with pytest.raises(ConfigError) as caught:
        PartitionSettings(
            clients=0,
            train_examples=[5, 2],
            validation_examples=-1,
            test_examples=0,
            min_examples=0,
            test_fraction=1.0,
            label_meaning="own",  # type: ignore[arg-type]
        )
    message = str(caught.value)
    assert message.count("expected") == 7
    assert "train_examples is [5, 2]: expected [lo, hi] with 1 <= lo <= hi" in message


@pytest.mark.parametrize("count", [0, 1, 13, 99, 100, 200])
def test_a_stratified_sample_takes_every_class_within_one_of_its_share(count):
    rows, labels = np.arange(50, 150), np.repeat(np.arange(5), 40)
    chosen = stratified_sample(rows, labels, count, generator(0, count))
    assert len(np.unique(chosen)) == len(chosen) == min(count, 100)
    assert set(chosen) <= set(rows)
    share = np.bincount(labels[rows], minlength=5) * len(chosen) / len(rows)
    assert np.abs(np.bincount(labels[chosen], minlength=5) - share).max() < 1


def test_dealing_gives_each_client_its_quota_within_one_row():
    train, test = np.repeat([0, 1], 100), np.repeat([0, 1, 2], 33)
    parts = [np.arange(0, 30), np.arange(30, 120), np.arange(120, 200)]
    hands = deal(train, test, parts, seed=0)
    counts = np.array([np.bincount(test[hand], minlength=3) for hand in hands])
    np.testing.assert_allclose(counts[:, 0], [9.9, 23.1, 0], atol=1)
    np.testing.assert_allclose(counts[:, 1], [0, 6.6, 26.4], atol=1)
    assert counts[:, 2].sum() == 0
    assert counts[:, :2].sum() == 66


@pytest.mark.parametrize(("classes", "clients"), [(2, 2), (3, 6), (7, 40), (150, 10)])
def test_label_permutations_are_bijections_and_differ_pairwise(classes, clients):
    permutations = label_permutations(classes, clients, seed=0)
    assert all(sorted(permutation) == list(range(classes)) for permutation in permutations)
    assert all(not np.array_equal(one, two) for one, two in combinations(permutations, 2))


def test_permutations_repeat_evenly_when_there_are_fewer_than_clients():
    drawn = [tuple(permutation) for permutation in label_permutations(2, 6, seed=0)]
    assert drawn.count((0, 1)) == drawn.count((1, 0)) == 3


def test_permutations_do_not_depend_on_how_many_clients_follow():
    for few, many in zip(label_permutations(7, 3, 1), label_permutations(7, 9, 1), strict=False):
        np.testing.assert_array_equal(few, many)


@pytest.mark.parametrize("rows", range(1, 9))
@pytest.mark.parametrize("fraction", [0.01, 0.5, 0.8, 0.9])
def test_a_node_with_few_rows_of_its_own_trains_on_one_at_least(rows, fraction):
    settings = PartitionSettings(clients=1, test_fraction=fraction)
    found = own_rows(settings, 0, "north", np.arange(rows) % 2)
    assert len(found.train) >= 1
    assert len(found.train) + len(found.test) == rows
    assert len(found.test) >= (rows > 1)
