"""What a user can get wrong: a clear error that names it, before anything starts or is written."""

import pytest

from fedsa_lora.cli import main

ROWS = "text,label\n" + "".join(f"example number {i},{'yes' if i % 2 else 'no'}\n" for i in range(60))
TEXT = ["experiment=smoke", "task=text"]


@pytest.fixture
def table(tmp_path):
    path = tmp_path / "data.csv"
    path.write_text(ROWS)
    return path


def outcome(capsys, *overrides: str) -> tuple[int, str]:
    code = main(["run", "--dry-run", *overrides])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, " ".join(captured.err.split())


def test_good_data_of_ones_own_make_a_plan(capsys, table):
    assert outcome(capsys, *TEXT, f"task.dataset={table}")[0] == 0


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["task.dataset={folder}/absent.csv"], ["absent.csv"]),
        (["task.dataset={table}", "task.label=lable"], ["lable", "label"]),
        (["task.dataset={table}", "task.text=txt"], ["txt", "text"]),
        (["task.dataset={table}", "task.class_names=[yes]"], ["'no'"]),
        (["task.dataset={table}", "federation.clients=100"], ["100", "60"]),
        (["task.dataset={table}", "model.path={folder}/nowhere", "model.pretrained=true"], ["nowhere"]),
        (["task.dataset={table}", "lora.target_modules=[nolayer]"], ["nolayer"]),
        (["task.dataset={table}", "federation.clients=2", "federation.partitioner=null"], ["partitioner"]),
    ],
)
def test_each_fault_is_named_and_nothing_is_written(capsys, tmp_path, table, overrides, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = [word.format(folder=tmp_path, table=table) for word in overrides]
    code, error = outcome(capsys, *TEXT, *words)
    assert code == 1
    assert all(word in error for word in said), error
    assert [path.name for path in tmp_path.iterdir()] == ["data.csv"]


def test_a_hub_id_without_network_says_what_to_do(capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    code, error = outcome(capsys, "experiment=smoke", "task=glue_sst2")
    assert code == 1
    assert "glue" in error
    assert "network" in error or "offline" in error.lower()


def test_a_gpu_that_is_not_there_is_named(capsys, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    code, error = outcome(capsys, "experiment=smoke", "machine.device=cuda")
    assert code == 1
    assert "machine.device=cuda" in error
    assert "machine.device=cpu" in error


def test_every_fault_is_listed_at_once(capsys):
    code, error = outcome(
        capsys, "task=snipps", "train.lrate=1", "train.lr=-1", "lora.r=big", "federation.rounds=0",
        "strategy._target_=os.system",
    )  # fmt: skip
    assert code == 1
    for word in ("snipps", "'snips'", "lrate", "train.lr", "lora.r", "federation.rounds", "os.system"):
        assert word in error, word


def test_a_used_run_directory_is_refused_and_stays_as_it_is(capsys, smoke_run):
    before = {path: path.stat().st_mtime_ns for path in smoke_run.rglob("*")}
    code = main(["run", "experiment=smoke", f"run.dir={smoke_run}"])
    assert code == 1
    assert "already holds a run" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in smoke_run.rglob("*")} == before
