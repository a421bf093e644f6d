"""CSV and TSV files as spreadsheets, pandas and GLUE write them: no row is lost without a word."""

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedsa_lora.errors import DataError
from fedsa_lora.tasks.sources import read_split
from fedsa_lora.tasks.tables import Table

HEADER = "text,label\n"


def rows_of(table: Table) -> list[tuple[str, ...]]:
    columns = [table.column(name).to_pylist() for name in table.column_names]
    return list(zip(*columns, strict=True))


@pytest.fixture
def reading(tmp_path):
    """Reads a file with this content: its rows as lists, and the remarks."""

    def read(content: str | bytes, name: str = "rows.csv"):
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        table = read_split(str(path), "train")
        return [list(row) for row in rows_of(table)], table.notes

    return read


TEXTS = st.text(st.characters(exclude_characters="\r\0", codec="utf-8"), min_size=1, max_size=12)


@given(
    rows=st.lists(st.tuples(TEXTS, st.sampled_from(["x", "y"])), min_size=1, max_size=6),
    separator=st.sampled_from([",", ";", "\t", "|"]),
)
@settings(max_examples=150, deadline=None)
def test_what_pandas_writes_is_read_again_whatever_the_separator(tmp_path_factory, rows, separator):
    path = tmp_path_factory.mktemp("rows") / ("rows.tsv" if separator == "\t" else "rows.csv")
    pd.DataFrame(rows, columns=["text", "label"]).to_csv(path, index=False, sep=separator)
    table = read_split(str(path), "train")
    read = rows_of(table)
    assert read == rows or table.notes, "read in another way without a word"
    if not any("\n" in text for text, _ in rows):
        assert read == rows


def test_lone_quotation_marks_of_glue_are_text(reading):
    lines = [f"{mark}please{end} {i}\t{'x' if i % 2 else 'y'}" for i, (mark, end) in enumerate(MARKED * 3)]
    rows, notes = reading("text\tlabel\n" + "\n".join(lines) + "\n", "rows.tsv")
    assert rows == [line.split("\t") for line in lines]
    assert "quotation marks are read as text" in notes[0]


MARKED = [('"', ""), ("", '"'), ("", ""), ('"', '"'), ('""', "")]


def test_a_mark_that_a_later_line_closes_swallows_nothing_of_a_tsv(reading):
    rows, (note,) = reading('text\tlabel\n"a\tx\nb\ty\nof 5"\tx\nlast\ty\n', "rows.tsv")
    assert rows == [['"a', "x"], ["b", "y"], ['of 5"', "x"], ["last", "y"]]
    assert "line 2 opens a quotation mark that a later line closes" in note


def test_tabs_new_lines_and_marks_that_pandas_quotes_in_a_tsv_are_a_part_of_the_text(reading):
    rows, (note,) = reading('text\tlabel\n"a\tb"\tx\n"c\nd"\ty\n"say ""e"""\tx\n', "rows.tsv")
    assert rows == [["a\tb", "x"], ["c\nd", "y"], ['say "e"', "x"]]
    assert "1 row goes over several lines, the first from line 3 on" in note


@pytest.mark.parametrize(("name", "separator"), [("rows.csv", ","), ("rows.tsv", "\t")])
def test_lines_that_a_lone_mark_swallows_are_remarked_also_beside_a_quoted_separator(
    reading, name, separator
):
    lines = [
        ["label", "text"],
        ["0", "a"],
        ["1", '"hello'],
        ["0", "foo"],
        ["1", 'bar"'],
        ["0", f'"x{separator}y"'],
    ]
    content = "".join(separator.join(line) + "\n" for line in lines)
    rows, notes = reading(content, name)
    assert [len(rows), len(notes)] == [3, 1]
    assert "1 row goes over several lines, the first from line 3 on" in notes[0]
    assert reading(content.replace('"hello', "hello").replace('bar"', "bar"), name)[1] == ()


def test_every_row_of_several_lines_counts_where_all_are_quoted(reading):
    frame = pd.DataFrame({"text": ["a\nb", "c", "d\n\ne", "f\ng"], "label": ["x"] * 4})
    rows, (note,) = reading(frame.to_csv(index=False, quoting=1))
    assert [row[0] for row in rows] == frame["text"].tolist()
    assert "3 rows go over several lines, the first from line 2 on" in note


def test_a_letter_over_several_lines_is_one_row_of_a_csv_and_that_is_remarked(reading):
    rows, (note,) = reading(HEADER + '"Dear all,\nfix it",x\nb,y\n')
    assert rows == [["Dear all,\nfix it", "x"], ["b", "y"]]
    assert "line 2" in note
    assert "2 rows, not 3" in note


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (HEADER + 'a,x\n"b, c,y\nd, e,x\n', "line 3: a quotation mark opens"),
        (HEADER + '"he \\"said\\", no",x\nb,y\n', 'line 2: a quotation mark.*write a mark.*twice'),
        ('"text","label"\n"a","x"\n"b,"y"\n', "line 3: a quotation mark opens"),
        (HEADER + '"a","x"\n"b "c" d","y"\n"e","x"\n', "line 3: a quotation mark opens"),
        (HEADER + '"two\nlines, of one row",x\nb, and c,y\n', "line 4: 3 fields, but the header has 2"),
        (HEADER + "a,x\nb\n", "line 3: 1 fields, but the header has 2"),
        (HEADER + "a,x\nb\0,y\n", "line 3: a NUL byte"),
        (HEADER.encode("utf-16-le"), "line 1: a NUL byte.*UTF-16"),
        (b"text,label\na,x\ngr\xf6\xdfer,y\n", "line 3: byte 0xf6 is not UTF-8; save.*as UTF-8.*größer"),
        (b"", "rows.csv is empty"),
        (b"\n \n", "rows.csv is empty: expected a line with the names"),
    ],
)  # fmt: skip
def test_a_fault_names_its_line_and_the_remedy(reading, content, said):
    with pytest.raises(DataError, match=f"rows.csv.*{said}" if not said.startswith("rows") else said):
        reading(content)


@pytest.mark.parametrize("name", ["rows.csv", "ROWS.CSV", "rows.tsv"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_however_a_spreadsheet_exports_the_rows_are_the_same(reading, name, separator, end, encoding):
    lines = [["text", "label"], ["größer", "007"], ["null", "NA"], ["1,5", "x"]]
    lines = [[field if separator != "," else field.replace(",", ".") for field in line] for line in lines]
    content = "".join(separator.join(line) + end for line in lines) + 2 * end
    rows, notes = reading(content.encode(encoding), name)
    assert rows == lines[1:]
    usual = "\t" if name.endswith("tsv") else ","
    assert bool(notes) == (separator != usual), "another separator is remarked"


def test_a_tsv_with_commas_and_a_csv_with_semicolons_in_its_texts_stay_what_they_are(reading):
    assert reading("text\ta, b, c\n1\t2\n", "rows.tsv")[0] == [["1", "2"]]
    assert reading("text,a;b;c\n1,2\n")[0] == [["1", "2"]]


def test_what_is_a_new_line_to_python_only_is_a_part_of_the_text(reading):
    text = "a\u2028b\x0bc\x85d"
    assert reading(f"{HEADER}{text},x\n")[0] == [[text, "x"]]


def test_a_text_longer_than_the_limit_of_pythons_csv_is_read(reading):
    assert len(reading(f"{HEADER}{'a' * 300_000},x\n")[0][0][0]) == 300_000


def test_blanks_around_the_names_of_columns_do_not_count(tmp_path):
    (tmp_path / "rows.csv").write_text("text , label\na,x\n")
    assert read_split(str(tmp_path / "rows.csv"), "train").column_names == ["text", "label"]
