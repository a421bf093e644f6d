"""Digests of rows: of their values and order, and of nothing else."""

from dataclasses import replace

import datasets
import numpy as np
import pyarrow as pa
import pytest

from fedsa_lora.config.compose import load
from fedsa_lora.tasks.fingerprint import Fingerprint, fingerprint_of, of_rows
from fedsa_lora.tasks.rows import LabelledData, Rows

TEXTS, LABELS, GROUPS = ["one", "two", "trois \N{SNOWMAN}"], [0, 1, 0], ["a", "b", "b"]


def data(texts=TEXTS, labels=LABELS, groups=GROUPS, classes=("x", "y"), test=None) -> LabelledData:
    inputs = datasets.Dataset.from_dict({"text": list(texts)})
    rows = Rows(inputs, np.array(labels, np.int64), None if groups is None else np.array(groups))
    return LabelledData(classes, rows, rows if test else None)


def told(found: LabelledData) -> Fingerprint:
    return Fingerprint("data.csv", of_rows(found))


@pytest.mark.parametrize(
    ("changed", "part"),
    [
        (data(["one", "two", "three"]), "train rows"),
        (data(["two", "one", "trois \N{SNOWMAN}"]), "train rows"),
        (data(["onet", "wo", "trois \N{SNOWMAN}"]), "train rows"),
        (data(labels=[0, 1, 1]), "train rows"),
        (data(groups=["a", "b", "c"]), "train rows"),
        (data(groups=None), "train rows"),
        (data(TEXTS[:2], LABELS[:2], GROUPS[:2]), "train rows"),
        (data(classes=("y", "x")), "classes"),
        (data(test=True), "test rows"),
    ],
)
def test_every_change_of_a_value_or_of_the_order_is_seen_and_its_part_named(changed, part):
    (line,) = told(data()).differences(told(changed))
    assert line.startswith(f"{part}: then ")
    assert told(data()).digest != told(changed).digest


def test_the_same_rows_have_the_same_digest_whatever_read_them():
    table = pa.table({"text": pa.chunked_array([TEXTS[:1], TEXTS[1:]], pa.large_string())})
    chunked = Rows(datasets.Dataset(table), np.array(LABELS, np.int64), np.array(GROUPS, object))
    picked = data(["zero", *TEXTS], [1, *LABELS], ["a", *GROUPS]).train
    picked = Rows(picked.inputs.select([1, 2, 3]), picked.labels[1:], picked.groups[1:])
    for rows in (chunked, picked):
        assert told(replace(data(), train=rows)) == told(data())


def test_inputs_that_are_bytes_are_told_apart():
    one, other = (
        LabelledData(
            (), Rows(datasets.Dataset.from_dict({"image": [b"\x00" + bytes([n])]}), np.zeros(1, int))
        )
        for n in (1, 2)
    )
    assert told(one) != told(other)


@pytest.mark.parametrize("task", ["task=snips", "task=image model=tiny_vit"])
def test_another_seed_deals_other_rows_to_clients_and_changes_no_row(task):
    one, other = (load(["experiment=smoke", *task.split(), f"seed={seed}"]).task for seed in (0, 1))
    (line,) = one.fingerprint().differences(other.fingerprint())
    assert line.startswith("clients: then 4 ")
    assert fingerprint_of(object()) is None
