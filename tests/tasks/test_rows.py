"""Labels become class ids, and each unusable row is named by its number."""

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Value

from fedsa_lora.errors import DataError
from fedsa_lora.tasks.rows import Columns, infer_classes, read_rows
from fedsa_lora.tasks.sources import read_split
from fedsa_lora.tasks.tables import Part, Table
from fedsa_lora.tasks.text import read_texts

COLUMNS = Columns({"text": "body"}, "intent")


def table(labels, texts=None, **more) -> Dataset:
    return Dataset.from_dict(
        {"body": texts or [f"text {i}" for i in range(len(labels))], "intent": labels, **more}
    )


def read(data: Dataset, classes=None, columns=COLUMNS):
    rows = Table("rows", [Part.of(data, "rows.csv")])
    classes = classes or infer_classes(rows, columns)
    return classes, read_rows(rows, columns, classes, read_texts)


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


def test_a_label_beyond_the_names_of_its_file_is_named(tmp_path):
    said = r"row 2 \(and 1 more\) has the label '5', but .* names are for 0 to 1 only; correct it"
    described = Features({"body": Value("string"), "intent": ClassLabel(names=["neg", "pos"])}).arrow_schema
    rows = pa.table({"body": ["a", "b", "c", "d"], "intent": [1, 5, 0, 5]}).replace_schema_metadata(
        described.metadata
    )
    pq.write_table(rows, tmp_path / "rows.parquet")
    data = read_split(str(tmp_path / "rows.parquet"), "train")
    for look in (
        lambda: infer_classes(data, COLUMNS),
        lambda: read_rows(data, COLUMNS, ("neg", "pos"), read_texts),
    ):
        with pytest.raises(DataError, match=f"rows.parquet, column 'intent': {said}") as caught:
            look()
        sent = "rows have a label that the file has no name for (task.label, 2 rows)"
        assert caught.value.sendable == sent


@pytest.mark.parametrize("role", ["text", "label", "group", "where"])
def test_the_type_of_a_column_is_told_without_the_names_inside_it(role):
    data = table(["a", "b"], nested=[{"secret": 1}, {"secret": 2}])
    chosen = {
        "text": Columns({"text": "nested"}, "intent"), "label": Columns({"text": "body"}, "nested"),
        "group": Columns({"text": "body"}, "intent", "nested"),
        "where": Columns({"text": "body"}, "intent", where={"nested": 1}),
    }  # fmt: skip
    with pytest.raises(DataError, match=r"column 'nested': expected .*secret") as caught:
        read(data, ("a", "b"), columns=chosen[role])
    assert "secret" not in caught.value.sendable


def test_files_of_other_types_are_told_without_the_names_inside_them():
    parts = [Part.of(table(labels), f"train-{i}.csv") for i, labels in enumerate([["a"], [{"secret": 1}]])]
    with pytest.raises(DataError, match=r"its files hold string, struct<secret") as caught:
        Table("folder", parts).column("intent")
    assert "secret" not in caught.value.sendable


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
        (
            [1.0, 0.5],
            "column 'intent': row 2 has the label 0.5, which is not a whole number; round it, or list",
        ),
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


def words(*values, **more):
    """Class names, class ids and remarks of a column with these values."""
    classes, rows = read(table(list(values)), **more)
    return classes, rows.labels.tolist(), rows.notes


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["10.0", "2.0", "1.0"], ("1", "2", "10")),
        ([10.0, 2.0, 1.0], ("1", "2", "10")),
        (["10", "2", "1"], ("1", "2", "10")),
        (["-1", "0", "1.0"], ("-1", "0", "1")),
        (["007", "07", "7"], ("007", "07", "7")),
        (["True", "False"], ("False", "True")),
        ([True, False], ("False", "True")),
        (["1.5", "v1"], ("1.5", "v1")),
        (["it", "it ", " it\t", "office"], ("it", "office")),
        (["cafe\u0301", "caf\u00e9", "x"], ("caf\u00e9", "x")),
        (["null", "NA", "nan"], ("NA", "nan", "null")),
        ([str(10**30), str(10**29)], (str(10**29), str(10**30))),
    ],
)
def test_a_class_is_what_its_cells_say(values, classes):
    assert words(*values)[0] == classes


def test_another_form_of_a_label_is_remarked_and_that_of_the_file_is_not():
    _, labels, notes = words("it", "it ", "it ", "office", "office")
    assert labels == [0, 0, 0, 1, 1]
    assert notes == ("rows, column 'intent': 'it ' is read as 'it' (2 rows hold such values)",)
    assert words("it", "it", "office", "office")[2] == ()


def test_lone_classes_and_those_that_differ_in_case_only_are_remarked():
    *_, notes = words("IT", "IT", "it", "it", "x", classes=("IT", "it", "x", "y"))
    assert notes == (
        "rows: classes without a row: y",
        "rows: classes with a single row: x",
        "rows: classes that differ in upper and lower case only: 'IT' and 'it'",
    )


@pytest.mark.parametrize("values", [["1.0", "1.5"], [1.0, 1.5]])
def test_a_fraction_is_a_class_only_where_it_is_listed(values):
    with pytest.raises(DataError, match=r"rows.csv, column 'intent': row 2 has the label 1.5.*round it, or"):
        words(*values)
    assert words(*values, classes=("1.5", "1.0"))[1] == [1, 0]


@pytest.mark.parametrize(
    ("values", "classes"),
    [
        (["1.0", "2.0"], ("2.0", "1.0")),
        (["1.0", "2.0"], ("2", "1")),
        (["1", "2"], ("2.0", "1.0")),
        (["0.0", "1.0"], ("positive", "negative")),
        ([False, True], ("true", "false")),
        ([False, True], ("True", "False")),
        (["False", "True"], ("True", "False")),
        (["it ", "office"], ("office ", "it")),
    ],
)  # fmt: skip
def test_listed_classes_are_found_in_whatever_form_the_file_has_them(values, classes):
    expected = [0, 1] if classes[0] == "positive" else [1, 0]
    assert words(*values, classes=classes)[1] == expected


@pytest.mark.parametrize(
    ("column", "value", "kept"),
    [
        (["True", "False", "TRUE"], True, 2),
        (["true", "False", "x"], [False], 1),
        ([True, False, True], True, 2),
        ([True, False, True], "True", 2),
        (["1999.0", "2000.0", "1999.0"], 1999, 2),
        ([1999.0, 2000.0, None], 1999, 1),
        (["1999", "2000", ""], 1999.0, 1),
        (["bank ", "bank", "x"], "bank", 2),
    ],
)
def test_where_keeps_what_says_so_in_any_form(column, value, kept):
    data = table(["a", "b", "a"], active=column)
    rows = read(data, columns=Columns({"text": "body"}, "intent", where={"active": value}))[1]
    assert len(rows) == kept
    assert rows.left_out == {"by task.where": 3 - kept}


@pytest.mark.parametrize(
    ("values", "groups"),
    [
        (["1.0", "2.0", "10.0"], [1, 2, 10]),
        ([1.0, 2.0, 10.0], [1, 2, 10]),
        (["007", "7", "x "], ["007", "7", "x"]),
        (["1", "02", "3"], ["1", "02", "3"]),
    ],
)
def test_a_group_is_what_its_cells_say(values, groups):
    data = table(["a", "b", "a"], site=values)
    rows = read(data, columns=Columns({"text": "body"}, "intent", group="site"))[1]
    assert rows.groups is not None
    assert rows.groups.tolist() == groups


@pytest.mark.parametrize("missing", [None, "", "  "])
def test_rows_without_a_group_are_no_group(missing):
    data = table(["a", "b", "c", "d"], site=["x", missing, "y", missing])
    with pytest.raises(DataError, match=r"column 'site': row 2 \(and 1 more\) has no value; fill it in"):
        read(data, columns=Columns({"text": "body"}, "intent", group="site"))


@pytest.mark.parametrize("role", ["label", "group"])
def test_a_column_of_lists_is_named_with_its_type(role):
    data = table(["a", "b"], tags=[["x"], ["y"]])
    columns = {"label": "intent"} | {role: "tags"}
    with pytest.raises(DataError, match=r"column 'tags': expected one value per row, found list"):
        read(data, columns=Columns({"text": "body"}, **columns))


def test_an_error_is_never_as_long_as_the_data():
    long = "z" * 10_000
    data = table(["a", long], domain=[f"{long}{i}" for i in range(2)], **{long: [1, 2]})
    for columns, classes in [
        (COLUMNS, ("a", "b", *(f"{long}{i}" for i in range(50)))),
        (Columns({"text": "body"}, "intent", where={"domain": "x"}), None),
        (Columns({"text": "absent"}, "intent"), None),
        (Columns({"text": "body"}, "intent", where={"domain": f"{long}2"}), None),
    ]:
        with pytest.raises(DataError) as caught:
            read(data, classes, columns=columns)
        assert len(str(caught.value)) < 2_000


def test_in_shards_a_row_is_that_of_its_file():
    parts = [Part.of(table(labels), f"train-{i}.csv") for i, labels in enumerate([["a", "b"], ["b", ""]])]
    with pytest.raises(DataError, match=r"train-1.csv, column 'intent': row 2 has no label"):
        infer_classes(Table("folder", parts), COLUMNS)


def test_shards_that_lack_a_column_or_hold_another_type_are_named():
    first = Part.of(table(["a", "b"]), "train-0.csv")
    other = Part.of(Dataset.from_dict({"body": ["c"], "label": ["a"]}), "train-1.csv")
    with pytest.raises(DataError, match=r"train-1.csv has no column 'intent'"):
        infer_classes(Table("folder", [first, other]), COLUMNS)
    numbers = Part.of(table([1, 2]), "train-1.csv")
    with pytest.raises(DataError, match="folder, column 'intent': its files hold string, int64"):
        infer_classes(Table("folder", [first, numbers]), COLUMNS)


def test_a_column_that_is_there_twice_is_refused_only_where_it_is_asked_for(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("body,intent,other,other\na,x,1,2\nb,y,1,2\n")
    rows = read_split(str(path), "train")
    assert infer_classes(rows, COLUMNS) == ("x", "y")
    with pytest.raises(DataError, match="more than one column 'other'"):
        infer_classes(rows, Columns({"text": "body"}, "other"))


def test_empty_rows_of_a_spreadsheet_are_left_out_and_counted_and_lines_are_those_of_the_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('body,intent\n\n"two\nlines",x\n,\nb,y\n\n')
    rows = read_split(str(path), "train")
    assert read_rows(rows, COLUMNS, ("x", "y"), read_texts).left_out == {"without any value": 1}
    with pytest.raises(DataError, match=r"rows.csv, line 6, column 'intent', row 2: unknown label 'y'"):
        read_rows(rows, COLUMNS, ("x", "z"), read_texts)
