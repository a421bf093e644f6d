"""JSON as people have it: an object a line, a list, or what pandas writes when it is not told otherwise."""

import json

import pandas as pd
import pytest

from fedsa_lora.errors import DataError
from fedsa_lora.tasks.sources import read_split
from fedsa_lora.tasks.tables import Table

FRAME = pd.DataFrame({"text": ["a", "b", "c"], "label": ["x", "y", "x"]})
LINES = FRAME.to_json(orient="records", lines=True)


def read(tmp_path, content: str | bytes, name: str = "rows.jsonl"):
    path = tmp_path / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return read_split(str(path), "train")


def frame_of(table: Table) -> pd.DataFrame:
    return pd.DataFrame({name: table.column(name).to_pandas() for name in table.column_names})


@pytest.mark.parametrize(
    "content",
    [
        LINES,
        LINES.replace("\n", "\r\n"),
        "\n" + LINES.replace("\n", "\n\n"),
        FRAME.to_json(orient="records"),
        json.dumps(json.loads(FRAME.to_json(orient="records")), indent=2),
        LINES.encode("utf-16"),
        LINES.encode("utf-8-sig"),
    ],
)
@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "ROWS.JSON"])
def test_lines_and_lists_of_objects_are_the_same_rows(tmp_path, content, name):
    assert frame_of(read(tmp_path, content, name)).equals(FRAME)


@pytest.mark.parametrize("orient", ["columns", "index", "split", "table"])
@pytest.mark.parametrize("indent", [0, 2])
def test_what_pandas_writes_by_columns_is_named_in_one_line_with_the_remedy(tmp_path, orient, indent):
    large = pd.concat([FRAME] * 1000, ignore_index=True)
    with pytest.raises(
        DataError, match=r"rows.json holds one object.*orient='records', lines=True"
    ) as caught:
        read(tmp_path, large.to_json(orient=orient, indent=indent), "rows.json")
    assert len(str(caught.value)) < 400
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (LINES + '{"text": "d",\n', "rows.jsonl, line 4: not JSON"),
        (f"[{LINES}", "rows.jsonl, line 2: not JSON"),
        (LINES + '["d", "x"]\n', "rows.jsonl, line 4: .*is not an object with columns"),
        ('["a", "b"]', "rows.jsonl, row 1: 'a' is not an object with columns"),
        ("5", "line 1: '5' is not an object"),
    ],
)
def test_a_broken_line_is_named(tmp_path, content, said):
    with pytest.raises(DataError, match=said):
        read(tmp_path, content)


def test_only_a_column_that_is_asked_for_is_typed(tmp_path):
    table = read(tmp_path, '{"text": "a", "other": 1}\n\n{"text": "b", "other": "C1"}\n')
    assert table.column("text").to_pylist() == ["a", "b"]
    with pytest.raises(DataError, match="line 3, column 'other': row 2 holds text, 'C1', and row 1 a number"):
        table.column("other")


def test_a_value_that_some_objects_lack_is_missing_there(tmp_path):
    table = read(tmp_path, '{"text": "a"}\n{"text": "b", "label": "x"}\n')
    assert table.column("label").to_pylist() == [None, "x"]


def test_numbers_beyond_64_bits_are_named(tmp_path):
    with pytest.raises(
        DataError, match=r"column 'id': a number in a form that is not read.*write it as text"
    ):
        read(tmp_path, '{"id": 99999999999999999999999}\n').column("id")


HALF = json.dumps({"text": "hi \ud83d", "label": "x"})


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (f"{LINES}\n{HALF}\n", "rows.jsonl, line 5, column 'text': row 4 has half of a character"),
        (f"[{HALF}]", "rows.jsonl, column 'text': row 1 has half of a character"),
        ('{"text": [{"a": "\\udc00"}], "label": "x"}', "line 1, column 'text': row 1 has half"),
        ('{"text": "a"}\n{"te\\ud83dxt": "a"}', r"rows.jsonl: the column 'te\\ud83dxt' has half"),
    ],
)
def test_half_a_character_is_named_and_stays_on_the_machine(tmp_path, content, said):
    with pytest.raises(DataError, match=said) as caught:
        read(tmp_path, content).column("text")
    assert caught.value.sendable.endswith("is broken Unicode")
    assert str(caught.value).encode(), "it can be written to a log"


def test_both_halves_of_a_character_and_half_in_an_unused_column_are_no_fault(tmp_path):
    whole = json.dumps({"text": "\U0001f600", "label": "\ud83d"})
    assert read(tmp_path, whole).column("text").to_pylist() == ["\U0001f600"]


@pytest.mark.parametrize(
    ("value", "said"),
    [("9" * 5000, "a number of more than 4300 digits; write it as text"),
     ("[" * 50_000 + "]" * 50_000, "nested too deeply")],
)  # fmt: skip
@pytest.mark.parametrize("form", ["{row}", "[{row}]", "{row}\n{row}", "[\n{row}", '{{"a":\n{row}}}'])
def test_what_python_does_not_read_of_sound_json_is_named(tmp_path, value, said, form):
    row = f'{{"text": "secret", "other": {value}}}'
    with pytest.raises(DataError, match=f"rows.jsonl.*: .*{said}") as caught:
        read(tmp_path, form.format(row=row))
    assert len(str(caught.value)) < 400
    assert "secret" not in caught.value.sendable
