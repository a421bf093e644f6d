"""Rows are found and read wherever they lie, and what is missing is named."""

import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import make_shakespeare
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fedsa_lora.errors import DataError
from fedsa_lora.tasks import shipped, sources
from fedsa_lora.tasks.shipped import DATA_VARIABLE, SHIPPED, shipped_folder
from fedsa_lora.tasks.sources import read_split
from fedsa_lora.tasks.tables import Table

PACKAGE = Path(sources.__file__).resolve().parent.parent
SHAKESPEARE = PACKAGE.parent.parent / "shared" / "data" / "tinyshakespeare" / "input.txt"
FRAME = pd.DataFrame({"text": ["null", "a, b", 'say "c"'], "label": ["x", "y", "x"]})
WRITERS = {
    "parquet": lambda path: FRAME.to_parquet(path),
    "csv": lambda path: FRAME.to_csv(path, index=False),
    "tsv": lambda path: FRAME.to_csv(path, index=False, sep="\t"),
    "jsonl": lambda path: FRAME.to_json(path, orient="records", lines=True),
}


@pytest.mark.parametrize(
    ("name", "train", "test", "classes"),
    [("snips", 13784, 700, 7), ("banking77", 10003, 3080, 77), ("clinc150", 15000, 4500, 150)],
)
def test_shipped_sets_are_complete_and_attributed(name, train, test, classes):
    tables = {"train": read_split(name, "train"), "test": read_split(name, "test")}
    assert [len(table) for table in tables.values()] == [train, test]
    for table in tables.values():
        assert len(set(table.column("label").to_pylist())) == classes
    attribution = (shipped_folder(name) / "ATTRIBUTION.md").read_text()
    assert all(word in attribution for word in ("Source: https://", "Licence:", "Changes:"))


def test_the_shipped_speeches_are_made_by_their_script(tmp_path):
    tables = {split: read_split("shakespeare", split) for split in ("train", "test")}
    speakers = [sorted(set(table.column("speaker").to_pylist())) for table in tables.values()]
    assert speakers[0] == speakers[1]
    assert len(speakers[0]) == 10
    attribution = (shipped_folder("shakespeare") / "ATTRIBUTION.md").read_text()
    assert all(word in attribution for word in ("Source: https://", "Licence:", "Changes:"))
    if not SHAKESPEARE.is_file():
        pytest.skip("shared/data/tinyshakespeare is not there")
    make_shakespeare.make(SHAKESPEARE, tmp_path)
    for split, table in tables.items():
        assert frame_of(read_split(str(tmp_path), split)).equals(frame_of(table))


def test_shipped_sets_are_small_enough_for_a_package():
    assert sum(path.stat().st_size for path in (PACKAGE / "data").rglob("*.parquet")) < 1_500_000


def frame_of(table: Table) -> pd.DataFrame:
    return pd.DataFrame({name: table.column(name).to_pandas() for name in table.column_names})


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_a_folder_and_a_mapping_read_the_same_rows(kind, tmp_path):
    path = tmp_path / f"train.{kind}"
    WRITERS[kind](path)
    for source in (str(path), str(tmp_path), {"train": str(path)}):
        assert frame_of(read_split(source, "train")).equals(FRAME), source


@pytest.mark.parametrize("shards", [("00000-of-00002", "00001-of-00002"), ("1-of-2", "2-of-2"), ("a", "b")])
def test_shards_of_a_folder_are_read_together(tmp_path, shards):
    for shard in shards:
        FRAME.to_csv(tmp_path / f"train-{shard}.csv", index=False)
    assert len(read_split(str(tmp_path), "train")) == 6


def test_reading_leaves_nothing_behind(tmp_path, capfd):
    script = f"""
import tempfile
from fedsa_lora.tasks.sources import read_split
assert read_split({str(tmp_path / "data")!r}, "train").column("text").to_pylist()[0] == "null"
"""
    (tmp_path / "data").mkdir()
    WRITERS["csv"](tmp_path / "data" / "train.csv")
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    home.mkdir()
    temporary.mkdir()
    run_python(script, PACKAGE.parent, HOME=str(home), TMPDIR=str(temporary))
    assert [path for path in (*home.rglob("*"), *temporary.rglob("*")) if path.is_file()] == []


def test_a_bundle_finds_data_and_models_of_the_installed_copy(tmp_path):
    """A Flower bundle carries the code but no binary file, and comes first on sys.path."""
    bundle = tmp_path / "bundle" / "fedsa_lora"
    for path in [*PACKAGE.rglob("*.py"), *PACKAGE.rglob("*.md")]:
        copy = bundle / path.relative_to(PACKAGE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_bytes(path.read_bytes())
    script = """
import sys, fedsa_lora.tasks.shipped as shipped
assert shipped.__file__.startswith(sys.argv[1]), shipped.__file__
print(shipped.shipped_folder("snips"))
from fedsa_lora.tasks.model_settings import resolve
print(resolve("pkg://fedsa_lora/pretrained/vit_small"))
print(resolve("pkg://fedsa_lora/pretrained/stories260k"))
"""
    found = run_python(script, bundle.parent, PACKAGE.parent)
    pretrained = [PACKAGE / "pretrained" / name for name in ("vit_small", "stories260k")]
    assert [*map(Path, found.split())] == [PACKAGE / "data" / "snips", *pretrained]


def run_python(script: str, *path: Path, **environment: str) -> str:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **environment}
    environment.pop(DATA_VARIABLE, None)
    result = subprocess.run(
        [sys.executable, "-c", script, str(path[0])],
        env=environment,
        capture_output=True,
        text=True,
        cwd=path[0],
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_the_environment_variable_comes_first(tmp_path, monkeypatch):
    (tmp_path / "snips").mkdir()
    FRAME.to_parquet(tmp_path / "snips" / "train.parquet")
    monkeypatch.setenv(DATA_VARIABLE, str(tmp_path))
    assert len(read_split("snips", "train")) == 3
    assert len(read_split("banking77", "train")) == 10003


def test_a_shipped_set_that_is_nowhere_lists_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "copies", lambda inner: iter([tmp_path / "one", tmp_path / "two"]))
    with pytest.raises(DataError) as caught:
        read_split("snips", "train")
    for expected in (str(tmp_path / "one" / "snips"), str(tmp_path / "two" / "snips"), DATA_VARIABLE):
        assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("source", "split", "message"),
    [
        ("snips", "tset", "no split 'tset' .did you mean 'test'.*there are test, train"),
        ("./nowhere", "train", "no data at './nowhere'"),
        ("nowhere.csv", "train", "no data at 'nowhere.csv'"),
        ({"train": "nowhere.csv"}, "train", "no data at 'nowhere.csv' for split 'train'"),
        ({"train": "nowhere.csv"}, "test", "no file for split 'test': there are train"),
    ],
)
def test_missing_data_are_named(source, split, message):
    with pytest.raises(DataError, match=message):
        read_split(source, split)


def test_one_file_has_no_test_split(tmp_path):
    WRITERS["csv"](tmp_path / "rows.csv")
    with pytest.raises(DataError, match="one file, so its only split is 'train'"):
        read_split(str(tmp_path / "rows.csv"), "test")


@pytest.mark.parametrize("name", ["train.parquet", "train.jsonl", "train.xlsx"])
def test_a_broken_or_unknown_file_is_named(name, tmp_path):
    path = tmp_path / name
    path.write_bytes(b"\x00not what it says")
    with pytest.raises(DataError, match=name):
        read_split(str(path), "train")


@pytest.mark.case(37)
@pytest.mark.parametrize("loader", ["csv", "json", "pandas", "text", "parquet", "arrow", "imagefolder"])
def test_a_loader_of_datasets_is_no_data_set_that_reads_what_lies_here(tmp_path, monkeypatch, loader):
    (tmp_path / "train.csv").write_text("text,label\nprivate,yes\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=f"'{loader}' names no data: expected a local file"):
        read_split(loader, "train")


@pytest.mark.case(37)
@pytest.mark.parametrize(
    "file", ["/etc/passwd", "https://host/rows.csv", "zip://x::/srv/rows.zip", "rows.csv"]
)
def test_a_hub_data_set_whose_description_names_other_files_than_its_own_is_refused(monkeypatch, file):
    class Builder:
        config = type("Config", (), {"data_files": {"train": ["hf://datasets/a/b@c/own.csv", file]}})

        def download_and_prepare(self):
            raise AssertionError("it was read")

    monkeypatch.setattr("datasets.load_dataset_builder", lambda *asked: Builder())
    with pytest.raises(DataError, match=f"'a/b' would read '{file}', which is none of its files"):
        read_split("a/b", "train")


def test_a_hub_data_set_is_read_by_its_builder(tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_text("text,label\nsome words,yes\n")
    real = datasets.load_dataset_builder(
        "csv", data_files={"train": str(tmp_path / "rows.csv")}, cache_dir=tmp_path
    )
    monkeypatch.setattr("datasets.load_dataset_builder", lambda *asked: real)
    monkeypatch.setattr("fedsa_lora.tasks.huggingface._HUB_FILES", str(tmp_path))
    assert len(read_split("a/b", "train")) == 1


def test_a_hub_id_without_network_says_what_to_do(monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match=r"train.* of 'nobody/snip/x'(.|\n)*HF_HOME"):
        read_split("nobody/snip", "train", "x")
    assert "snips" in SHIPPED


SAVED = datasets.Dataset.from_dict(
    {"text": FRAME["text"].tolist(), "label": [1, 0, 1]},
    features=datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["y", "x"])}
    ),
)


def labels_of(path: Path, split: str = "train", subset: str | None = None) -> list:
    return read_split(str(path), split, subset).column("label").to_pylist()


@pytest.mark.parametrize("shards", [1, 2])
def test_a_folder_of_save_to_disk_is_read_with_its_class_names(tmp_path, shards):
    SAVED.save_to_disk(str(tmp_path / "saved"), num_shards=shards)
    table = read_split(str(tmp_path / "saved"), "train")
    assert table.column("text").to_pylist() == FRAME["text"].tolist()
    assert (table.column("label").to_pylist(), table.class_names("label")) == ([1, 0, 1], ["y", "x"])
    with pytest.raises(DataError, match="one data set, saved by datasets, so its only split is 'train'"):
        read_split(str(tmp_path / "saved"), "test")


def test_a_folder_of_save_to_disk_with_splits_has_these(tmp_path):
    datasets.DatasetDict({"train": SAVED, "test": SAVED.select([1])}).save_to_disk(str(tmp_path))
    assert (labels_of(tmp_path), labels_of(tmp_path, "test")) == ([1, 0, 1], [0])
    with pytest.raises(DataError, match=r"no split 'tset' \(did you mean 'test'\?\): there are test, train"):
        labels_of(tmp_path, "tset")


def test_a_damaged_folder_of_save_to_disk_is_told_without_what_it_holds(tmp_path):
    SAVED.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "data-00000-of-00001.arrow").rename(tmp_path / "saved" / "secret.arrow")
    with pytest.raises(DataError, match=r"cannot read .*data-00000-of-00001") as caught:
        labels_of(tmp_path / "saved")
    assert "data-00000" not in caught.value.sendable


@pytest.mark.case(37)
@pytest.mark.parametrize(
    "name", ["{private}/data-00000-of-00001.arrow", "../private/data-00000-of-00001.arrow"]
)
@pytest.mark.parametrize("splits", [False, True])
def test_a_folder_of_save_to_disk_that_names_files_outside_of_it_is_refused(tmp_path, name, splits):
    SAVED.save_to_disk(str(tmp_path / "private"))
    folder = tmp_path / "saved"
    if splits:
        datasets.DatasetDict({"train": SAVED}).save_to_disk(str(folder))
    else:
        SAVED.save_to_disk(str(folder))
    place = folder / "train" if splits else folder
    state = json.loads((place / "state.json").read_text())
    state["_data_files"] = [{"filename": name.format(private=tmp_path / "private")}]
    (place / "state.json").write_text(json.dumps(state))
    with pytest.raises(DataError, match="which is not a file of its folder") as caught:
        labels_of(folder)
    assert "private" not in caught.value.sendable


@pytest.mark.parametrize(
    "state", ["[]", "{}", '{"_data_files": 3}', '{"_data_files": [{}]}', '{"_data_files": ["x"]}']
)
def test_a_state_of_save_to_disk_that_is_none_is_a_damaged_folder(tmp_path, state):
    SAVED.save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "saved" / "state.json").write_text(state)
    with pytest.raises(DataError, match=r"cannot read .*, a folder of datasets\.save_to_disk"):
        labels_of(tmp_path / "saved")


def test_a_clone_of_the_hub_is_read(tmp_path):
    for place in (tmp_path / "one" / "data", tmp_path / "two" / "cola", tmp_path / "three" / "data" / "cola"):
        place.mkdir(parents=True)
        FRAME.to_parquet(place / "train-00000-of-00001.parquet")
        (place.parent / "README.md").write_text("# A data set")
    assert labels_of(tmp_path / "one") == FRAME["label"].tolist()
    for name in ("two", "three"):
        assert labels_of(tmp_path / name, subset="cola") == FRAME["label"].tolist()
        with pytest.raises(
            DataError, match=r"holds one data set in each of cola: choose one with task\.subset"
        ):
            labels_of(tmp_path / name)


def test_a_subset_is_a_folder_inside_and_nothing_else(tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    FRAME.to_csv(tmp_path / "there" / "train.csv")
    with pytest.raises(DataError, match=r"here has no subset '../there': set task.subset=null"):
        labels_of(tmp_path / "here", subset="../there")


def test_a_subset_that_is_not_there_is_refused_whatever_else_there_is(tmp_path):
    for place in (tmp_path, tmp_path / "en", tmp_path / "data" / "de", tmp_path / "images"):
        place.mkdir(parents=True, exist_ok=True)
        FRAME.head(1 if place == tmp_path else 2).to_csv(place / "train.csv", index=False)
    (tmp_path / "images" / "train.csv").rename(tmp_path / "images" / "1.png")
    assert [len(labels_of(tmp_path, subset=subset)) for subset in (None, "en", "de")] == [1, 2, 2]
    with pytest.raises(DataError) as caught:
        labels_of(tmp_path, subset="eng")
    assert "has no subset 'eng' (did you mean 'en'?): there are de, en; choose one" in str(caught.value)
    assert "de, en" not in caught.value.sendable
    (tmp_path / "saved").mkdir()
    SAVED.save_to_disk(str(tmp_path / "saved"))
    for place in (tmp_path / "train.csv", tmp_path / "en", tmp_path / "saved", "snips", {"train": "x.csv"}):
        with pytest.raises(DataError, match=r"has no subset 'eng': set task\.subset=null"):
            read_split(place if isinstance(place, dict) else str(place), "train", "eng")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["train-00000-of-00003", "train-00002-of-00003"], r"2 of the 3 .*train-00001-of-00003\.csv is miss"),
        (["train-00001-of-00002-0a1b2c3d"], r"1 of the 2 .*train-00000-of-00002\.csv is missing"),
        (["train-1-of-3", "train-3-of-3"], r"2 of the 3 .*train-2-of-3\.csv is missing"),
        (["train-0-of-99999999999"], r"1 of the 99999999999 .*train-1-of-99999999999\.csv is missing"),
        (["train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"], "more than one split"),
        (["train-00000-of-00001", "train-old"], "more than one split"),
        (["train-a-00000-of-00001", "train-b-00000-of-00001"], "more than one split"),
        (["train-00000-of-00002-0a1b", "train-00000-of-00002-2c3d"], "more than one split"),
    ],
)
@pytest.mark.parametrize("place", [".", "data"])
def test_shards_that_are_not_all_there_or_of_several_sets_are_refused(tmp_path, place, files, said):
    (tmp_path / place).mkdir(exist_ok=True)
    for name in files:
        FRAME.to_csv(tmp_path / place / f"{name}.csv", index=False)
    with pytest.raises(DataError, match=said) as caught:
        labels_of(tmp_path)
    assert ".csv" not in caught.value.sendable, "the names of a client's files stay on its machine"


@pytest.mark.parametrize("name", sources.DESCRIPTIONS)
def test_what_describes_data_is_no_data(tmp_path, name):
    (tmp_path / "data").mkdir()
    FRAME.to_parquet(tmp_path / "data" / "train-00000-of-00001.parquet")
    if name not in (sources.SAVED, sources.SAVED_SPLITS):
        (tmp_path / name).write_text("{}")
    (tmp_path / "data" / name).write_text("{}")
    assert labels_of(tmp_path) == FRAME["label"].tolist()
    with pytest.raises(DataError, match="no split 'test': there are train"):
        labels_of(tmp_path, "test")


def test_a_file_that_git_lfs_has_not_fetched_is_named(tmp_path):
    (tmp_path / "train.parquet").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
    )
    with pytest.raises(
        DataError, match=r"train.parquet is a Git LFS pointer, not the data: run 'git lfs pull'"
    ):
        labels_of(tmp_path)


@pytest.mark.parametrize(
    ("files", "said"),
    [
        (["train.csv", "train.parquet"], "more than one split 'train': train.csv, train.parquet"),
        (["train.csv", "train-old.csv"], "more than one split 'train': train-old.csv, train.csv"),
        (["tickets.csv"], "one file, tickets.csv: name the file itself"),
        (["validation.csv", "test.csv"], "there are test, validation"),
        (["README.md"], "no data files .*train.csv.*README.md"),
        ([], "no data files .*train.csv"),
    ],
)
def test_a_folder_without_a_clear_train_split_is_named_with_what_is_there(tmp_path, files, said):
    for name in files:
        FRAME.to_csv(tmp_path / name, index=False)
    with pytest.raises(DataError, match=said):
        labels_of(tmp_path)


def test_hidden_files_and_the_case_of_an_ending_do_not_count(tmp_path):
    (tmp_path / ".ipynb_checkpoints").mkdir()
    FRAME.to_csv(tmp_path / ".ipynb_checkpoints" / "train.csv", index=False)
    with pytest.raises(DataError, match="no data files"):
        labels_of(tmp_path)
    FRAME.to_csv(tmp_path / "train.CSV", index=False)
    (tmp_path / "._train.csv").write_text("a file of macOS")
    assert labels_of(tmp_path) == labels_of(tmp_path / "train.CSV") == FRAME["label"].tolist()


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("rows.csv.gz", "unpack it first"),
        ("rows.zip", "unpack it first"),
        ("rows.xlsx", "save the spreadsheet as 'CSV UTF-8'"),
        ("rows.txt", "ends in .parquet, .csv, .tsv, .jsonl, .json, .npz, not '.txt'"),
    ],
)
def test_a_file_of_another_kind_is_named_with_the_remedy(tmp_path, name, said):
    (tmp_path / name).write_bytes(b"PK")
    with pytest.raises(DataError, match=f"{name} is not read: .*{said}"):
        labels_of(tmp_path / name)


@pytest.mark.parametrize("kind", WRITERS)
def test_columns_that_nobody_asks_for_are_not_looked_at(tmp_path, kind):
    odd = FRAME.assign(other=["1", "2", "C3"], nested=[{"a": 1}, {"a": 2}, None])
    path = tmp_path / f"rows.{kind}"
    if kind == "parquet":
        odd.to_parquet(path)
    elif kind == "jsonl":
        odd.assign(other=[1, 2, "C3"]).to_json(path, orient="records", lines=True)
    else:
        odd.to_csv(path, index=False, sep="\t" if kind == "tsv" else ",")
    assert labels_of(path) == FRAME["label"].tolist()


def test_categories_and_views_of_parquet_are_their_values(tmp_path):
    FRAME.astype("category").to_parquet(tmp_path / "rows.parquet")
    assert labels_of(tmp_path / "rows.parquet") == FRAME["label"].tolist()
    views = pa.table({"label": pa.array(["x", "y"], pa.string_view())})
    pq.write_table(views, tmp_path / "views.parquet")
    assert read_split(str(tmp_path / "views.parquet"), "train").column("label").type == pa.large_string()
