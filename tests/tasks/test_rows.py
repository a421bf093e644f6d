"""Labels become class ids, and each unusable row is named by its number."""

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from fedsa_lora.errors import DataError
from fedsa_lora.tasks.rows import Columns, infer_classes, read_rows
from fedsa_lora.tasks.tables import Part, Table

COLUMNS = Columns({"text": "body"}, "intent")


def table(labels, texts=None, **more) -> Dataset:
    return Dataset.from_dict(
        {"body": texts or [f"text {i}" for i in range(len(labels))], "intent": labels, **more}
    )


def read(data: Dataset, classes=None, columns=COLUMNS):
    rows = Table("rows", [Part.of(data, "rows.csv")])
    classes = classes or infer_classes(rows, columns)
    return classes, read_rows(rows, columns, classes)


def test_string_labels_are_sorted():
    classes, rows = read(table(["pay", "ask", "pay"]))
    assert classes == ("ask", "pay")
    assert rows.labels.tolist() == [1, 0, 1]
    assert rows.labels.dtype == np.int64
    assert rows.inputs["text"][:] == ["text 0", "text 1", "text 2"]


def test_whole_numbers_are_sorted_as_numbers():
    classes, rows = read(table([10, 2, 1, 2]))
    assert classes == ("1", "2", "10")
    assert rows.labels.tolist() == [2, 1, 0, 1]


def test_given_names_say_what_numbers_stand_for():
    _, rows = read(table([1, 0, 1]), classes=("negative", "positive"))
    assert rows.labels.tolist() == [1, 0, 1]


def test_given_names_that_are_the_labels_fix_their_order():
    _, rows = read(table([1, 0, 1]), classes=("1", "0"))
    assert rows.labels.tolist() == [0, 1, 0]


def test_class_labels_keep_the_order_of_their_data_set():
    features = Features({"body": Value("string"), "intent": ClassLabel(names=["zero", "alpha"])})
    data = Dataset.from_dict({"body": ["a", "b"], "intent": [1, 0]}, features=features)
    classes, rows = read(data)
    assert classes == ("zero", "alpha")
    assert rows.labels.tolist() == [1, 0]


def test_an_unlabelled_split_is_refused():
    features = Features({"body": Value("string"), "intent": ClassLabel(names=["zero", "alpha"])})
    data = Dataset.from_dict({"body": ["a", "b"], "intent": [1, -1]}, features=features)
    with pytest.raises(DataError, match=r"row 2 is unlabelled \(-1\)"):
        read(data)


@pytest.mark.parametrize("value", ["bank", ["bank"]])
def test_where_keeps_equal_rows_and_their_classes(value):
    data = table(["a", "b", "c"], domain=["bank", "travel", "bank"])
    columns = Columns({"text": "body"}, "intent", group="domain", where={"domain": value})
    classes, rows = read(data, columns=columns)
    assert classes == ("a", "c")
    assert rows.inputs["text"][:] == ["text 0", "text 2"]
    assert rows.groups is not None
    assert rows.groups.tolist() == ["bank", "bank"]


def test_where_takes_several_values_and_numbers():
    data = table(["a", "b", "c"], year=[1999, 2000, 2001])
    columns = Columns({"text": "body"}, "intent", where={"year": [1999, 2001]})
    assert len(read(data, columns=columns)[1]) == 2


def test_an_unknown_value_of_where_lists_the_values():
    data = table(["a", "b"], domain=["banking", "travel"])
    columns = Columns({"text": "body"}, "intent", where={"domain": "bankin"})
    with pytest.raises(DataError, match=r"'bankin' \(did you mean 'banking'\?\); values are banking, travel"):
        read(data, columns=columns)


@pytest.mark.parametrize(
    "columns",
    [
        Columns({"text": "Body"}, "intent"),
        Columns({"text": "body", "text_pair": "boddy"}, "intent"),
        Columns({"text": "body"}, "intend"),
        Columns({"text": "body"}, "intent", group="bod"),
        Columns({"text": "body"}, "intent", where={"bdy": 1}),
    ],
)
def test_a_missing_column_names_those_there_are_and_the_nearest(columns):
    with pytest.raises(DataError, match=r"did you mean '(body|intent)'\?\): there are body, intent"):
        read(table(["a", "b"]), columns=columns)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["a", None, "c", None], r"column 'body': row 2 \(and 1 more\) has no text"),
        (["a", "b", " \t ", "d"], "column 'body': row 3 has an empty text"),
        ([1, 2, 3, 4], "column 'body': expected text, found int64"),
    ],
)
def test_a_row_without_text_is_named(texts, message):
    with pytest.raises(DataError, match=message):
        read(table(["x", "y", "x", "y"], texts))


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["x", None], "column 'intent': row 2 has no label"),
        (["x", ""], "column 'intent': row 2 has no label"),
        ([1.0, 0.5], "column 'intent': row 2 has the label 0.5, which is no whole number; round it, or list"),
    ],
)
def test_a_row_without_label_is_named(labels, message):
    with pytest.raises(DataError, match=message):
        read(table(labels))


def test_row_numbers_count_from_the_top_of_the_file_also_after_where():
    data = table(["a", "b", "b"], ["", "fine", ""], domain=["skip", "keep", "keep"])
    columns = Columns({"text": "body"}, "intent", where={"domain": "keep"})
    with pytest.raises(DataError, match="row 3 has an empty text"):
        read(data, columns=columns)


def test_an_unknown_label_names_the_row_and_the_classes():
    with pytest.raises(DataError, match=r"row 2: unknown label 'payy' \(did you mean 'pay'\?\).* ask, pay"):
        read(table(["ask", "payy"]), classes=("ask", "pay"))
    with pytest.raises(DataError, match="row 3: unknown label '2'"):
        read(table([0, 1, 2]), classes=("no", "yes"))


def test_a_missing_group_is_named():
    data = table(["a", "b"], site=["x", None])
    with pytest.raises(DataError, match="column 'site': row 2 has no value"):
        read(data, columns=Columns({"text": "body"}, "intent", group="site"))


def test_no_rows_at_all():
    empty = Dataset.from_dict(
        {"body": [], "intent": []}, features=Features({k: Value("string") for k in ("body", "intent")})
    )
    assert isinstance(empty, datasets.Dataset)
    with pytest.raises(DataError, match="has no rows"):
        read(empty)
