"""A finished run and data that changed since: nothing goes on with them in silence."""

import json
import logging
import shutil
from pathlib import Path

import pytest

from fedsa_lora.analysis.evaluation import evaluate_run
from fedsa_lora.analysis.reevaluate import reevaluate
from fedsa_lora.cli import main
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import DataError
from fedsa_lora.runs.changed_data import DATA, check_classes, check_data
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.store import ClientState, DirectoryStore

ROWS = [f"please look at number {n},{('it', 'billing')[n % 2]}\n" for n in range(40)]
REFUSED = (
    r"data\.csv differs from the data of .*(.|\n)*train rows: then 40 .*, now 40 (.|\n)*allow-changed-data"
)


def write(path: Path, rows: list[str]) -> None:
    path.write_text("text,label\n" + "".join(rows))


@pytest.fixture(scope="module")
def made(run_smoke, tmp_path_factory) -> tuple[Path, Path]:
    data = tmp_path_factory.mktemp("data") / "data.csv"
    write(data, ROWS)
    words = ("task=text", f"task.dataset={data}", "federation.clients=2", "federation.rounds=1")
    return run_smoke(*words, "evaluation.local_only=false"), data


@pytest.fixture
def changed(made, tmp_path):
    """A copy of the run, whose data have the same rows in another order until the test ends."""
    run, data = made
    copy = Path(shutil.copytree(run, tmp_path / "run"))
    write(data, [*ROWS[1:], ROWS[0]])
    yield copy
    write(data, ROWS)


def longer(run: Path, data: Path, *words: str) -> list[str]:
    return [
        "experiment=smoke", "run.report=false", "task=text", f"task.dataset={data}", "federation.clients=2",
        "federation.rounds=2", "evaluation.local_only=false", f"run.dir={run}", "run.resume=true", *words,
    ]  # fmt: skip


def test_the_same_data_are_gone_on_with_without_a_word(made):
    run, _ = made
    assert check_data(run, read_config(run)) == ""
    check_classes(run, read_config(run))
    assert [row.value for row in reevaluate(run)] == [row.recorded for row in reevaluate(run)]


def test_whatever_measures_again_stops_and_goes_on_where_it_may(changed):
    with pytest.raises(DataError, match=REFUSED):
        next(reevaluate(changed))
    with pytest.raises(DataError, match=REFUSED):
        evaluate_run(changed, union=True)
    assert not (changed / "evaluation.json").exists()
    assert len([*reevaluate(changed, allow_changed_data=True)]) == 2
    assert "which is allowed" in check_data(changed, read_config(changed), allow=True)
    check_classes(changed, read_config(changed))


CLASSES = {
    "another number": [row.replace("billing", "zoo") if n % 3 else row for n, row in enumerate(ROWS)],
    "other names": [row.replace("billing", "zoo") for row in ROWS],
}


def everything(run: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in sorted(run.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("rows", CLASSES.values(), ids=CLASSES)
def test_other_classes_are_never_allowed_and_nothing_is_written(changed, made, capsys, rows):
    write(made[1], rows)
    before, words = everything(changed), "outputs would get wrong class names"
    for allow in (True, False):
        with pytest.raises(DataError, match=words):
            next(reevaluate(changed, allow_changed_data=allow))
        with pytest.raises(DataError, match=words):
            evaluate_run(changed, union=True, allow_changed_data=allow)
    with pytest.raises(DataError, match=words):
        run_in_process(longer(changed, made[1], "run.allow_changed_data=true"))
    for command in (["evaluate"], ["resume", "federation.rounds=2", "--allow-changes"]):
        assert main([command[0], str(changed), *command[1:], "--allow-changed-data"]) == 1
        assert words in capsys.readouterr().err
    assert {path: before.get(path) for path in before} == {
        path: content for path, content in everything(changed).items() if path in before
    }
    assert not (changed / "evaluation.json").exists()


def test_a_server_does_not_resume_on_other_data_and_says_from_which_round_on_they_are_others(
    changed, made, caplog
):
    before = json.loads((changed / DATA).read_text())
    with pytest.raises(DataError, match=REFUSED):
        run_in_process(longer(changed, made[1]))
    assert json.loads((changed / DATA).read_text()) == before
    run_in_process(longer(changed, made[1], "run.allow_changed_data=true"))
    assert "which is allowed" in caplog.text
    assert "the data of client 0 differ from those of round 1" in caplog.text
    (note,) = [n for n in json.loads((changed / "partition.json").read_text())["notes"] if "resumed" in n]
    assert note.startswith("resumed after round 1: ")
    assert check_data(changed, read_config(changed)) == "", "the last rounds were trained on these"


def test_a_change_of_settings_may_not_bring_a_change_of_data(changed, capsys):
    words = ["resume", str(changed), "federation.rounds=2", "--allow-changes"]
    assert main(words) == 1
    assert "differs from the data of" in capsys.readouterr().err


def test_a_run_without_a_digest_is_gone_on_with_and_one_line_says_so(changed, capsys):
    (changed / DATA).unlink()
    assert main(["evaluate", str(changed)]) == 0
    assert capsys.readouterr().out.count("recorded no digest of the data") == 1


def test_an_export_stops_only_where_the_classes_are_others(changed, made, capsys):
    assert main(["export", str(changed), "--client", "0", "--to", str(changed / "one")]) == 0
    write(made[1], [row.replace("billing", "zoo") for row in ROWS])
    assert main(["export", str(changed), "--client", "0", "--to", str(changed / "two")]) == 1
    assert "outputs would get wrong class names" in capsys.readouterr().err
    assert not (changed / "two").exists()


def test_a_digest_that_is_damaged_is_named(changed):
    (changed / DATA).write_text('{"source": "x", "parts": {"train rows": 3}}')
    with pytest.raises(DataError, match=r"data\.json is damaged"):
        check_data(changed, read_config(changed))


def test_a_client_says_in_its_own_log_that_its_data_are_not_those_it_was_trained_on(tmp_path, caplog):
    def warnings(data: str) -> int:
        caplog.clear()
        store = DirectoryStore(tmp_path, "7", "e")
        store.claim("run", data=data)
        assert all(record.levelno == logging.WARNING for record in caplog.records)
        return len(caplog.records)

    assert warnings("one") == 0, "it has trained nothing yet"
    trained = DirectoryStore(tmp_path, "7", "e")
    trained.claim("run", data="one")
    trained.save(ClientState(4, {}))
    assert [warnings(data) for data in ("one", "two", "")] == [0, 1, 0]
    assert warnings("two") == 1
    assert "the data of client 7 differ from those of round 4" in caplog.text
