"""What a user can get wrong: a clear error that names it, before anything starts or is written."""

import re

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


FLORA = "strategy=flora split=share_ab"
METHODS = {
    "codec=topk codec.ratio=0": ["codec: ratio=0.0", "more than 0 and at most 1"],
    "codec=topk codec.ratio=1.5": ["codec: ratio=1.5", "at most 1"],
    "codec=randomk codec.ratio=-1": ["codec: ratio=-1.0", "more than 0"],
    "downlink=topk downlink.ratio=nan": ["downlink: ratio=nan", "more than 0"],
    "codec=threshold codec.threshold=0": ["codec: threshold=0.0", "above 0"],
    "codec=int8 codec.block=0": ["codec: block=0", "1 to 65536"],
    "split=layer_wise split.last=null split.layers=[1,99]": ["no layers [99]", "[0, 1]"],
    "split=layer_wise split.last=3": ["3 layers", "has 2"],
    "split=least_variance split.count=9": ["split.count=9", "2 layers"],
    "split.B=shared": ["B is to be shared", "split.allow=['A']", "add B"],
    "split.B=-0.5": ["split: B=-0.5", "from 0 (shared) to 1 (local)"],
    "head=soft head.degree=2": ["head.degree: 2", "at least 0 and at most 1"],
    "split.head=shared": ["split.head", "head="],
    "split=importance train.steps=1": ["importance", "train.steps of at least 2"],
    "split=importance split.ema=1.0": ["ema=1.0", "below 1"],
    "split=importance split.scope=client strategy=krum federation.clients=9": ["Krum", "split.scope=client"],
    "head=shared strategy=krum federation.clients=9": ["Krum", "head.count_weighted=false"],
    "strategy=krum": ["Krum needs 2 f + 3 = 5", "4 are sampled"],
    "strategy=multikrum federation.clients=5 strategy.num_clients_to_keep=7": ["expected at most 5"],
    "strategy=bulyan": ["Bulyan needs 4 f + 3 = 7", "4 are sampled"],
    "strategy=krum federation.clients=9 strategy.fraction_fit=0.5": ["Krum needs", "4 are sampled"],
    "strategy=fedtrimmedavg strategy.beta=0.7": ["beta", "0.5"],
    "strategy._target_=strategies.FedSA": ["FedSA is not a strategy that FedSA can wrap"],
    "federation.ranks={0: 4}": ["FedAvg cannot mix", "strategy=flora"],
    f"{FLORA} federation.ranks=[4,9]": ["[9]", "lora.r=8"],
    f"{FLORA} federation.ranks={{0: 0}}": ["[0]", "from 1"],
    f"{FLORA} federation.ranks={{7: 4}}": ["no clients ['7']", "0 to 3"],
    f"{FLORA} federation.ranks=[4,many]": ["federation.ranks[1]: expected int, got 'many'"],
    f"{FLORA} federation.ranks=[4] downlink=dense": ["broadcasts differ by rank", "downlink=whole"],
    f"{FLORA} codec=topk": ["FLoRA", "codec.error_feedback=false"],
    "strategy=fedex": ["FedEx needs A and B", "split=share_ab"],
    "strategy=fedex split=soft head=soft": ["FedEx needs A and B", "split=share_ab"],
    "strategy=fedsvd split=share_ab": ["FedSVD", "split=fedsvd"],
    "strategy=fedex split=share_ab downlink=int8": ["FedEx is exact only", "expected whole or dense"],
    "strategy=fedex split=share_ab lora=pissa": ["FedEx needs the factors", "lora.init=default"],
    "clusters=updates clusters.groups=0": ["clusters: groups=0", "at least 1"],
    "clusters=updates clusters.groups=5": ["clusters.groups=5", "4 clients"],
    "clusters=updates clusters.groups=null": ["clusters: give either groups or distance"],
    "clusters=updates clusters.distance=0.5": ["clusters: give either groups or distance"],
    "clusters=updates clusters.groups=null clusters.distance=0": ["clusters: distance=0", "at most 2"],
    "clusters=updates clusters.after=0": ["clusters: after=0", "at least 1"],
    "clusters=updates clusters.after=3": ["clusters.after=3", "less than federation.rounds=3"],
    "clusters=updates clusters.every=-1": ["clusters: every=-1", "at least 0"],
    "clusters=updates clusters.ema=1": ["clusters: ema=1", "below 1"],
    "clusters=updates clusters.group=3": ["clusters.group", "groups"],
    "clusters=updates strategy=fedavgm": ["clusters: FedAvgM", "strategy=fedavg or fedprox"],
    "clusters=updates strategy=fedadam": ["clusters: FedAdam", "strategy=fedavg or fedprox"],
    "clusters=updates strategy=fedmedian": ["clusters: FedMedian", "strategy=fedavg or fedprox"],
    "clusters=updates strategy=fedex split=share_ab": ["clusters: FedEx", "strategy=fedavg or fedprox"],
    "clusters=updates downlink=dense": ["clusters", "set downlink=whole"],
    "clusters=updates split=local_only": ["clusters: clients share nothing", "clusters=none"],
    "bounds.norm=0": ["bounds.norm: 0", "more than 0"],
    "bounds.norm=nan": ["bounds.norm: nan", "more than 0"],
    "bounds.median_factor=0.5": ["bounds.median_factor: 0.5", "at least 1"],
    "bounds.max_examples=0": ["bounds.max_examples: 0", "at least 1"],
    "bounds.max_rejections=1.1": ["bounds.max_rejections: 1.1", "at most 1"],
    "bounds.action=drop": ["bounds.action", "reject", "clip"],
    "bounds.normal=3": ["bounds.normal", "bounds.norm"],
    "bounds=median federation.clients=2": ["bounds.median_factor", "2 clients", "at least 3"],
    "bounds=median codec=threshold": ["bounds.median_factor", "codec=threshold", "bounds.norm"],
    "bounds=median split=share_ab personalisation=experts": ["bounds.action", "bounds.action=reject"],
    "strategy=fedex split=share_ab lora=vera": ["combines A with B", "plain LoRA"],
}  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize(("words", "said"), METHODS.items(), ids=METHODS)
def test_what_cannot_be_had_together_is_said_at_once_and_nothing_is_written(
    capsys, tmp_path, monkeypatch, words, said
):
    monkeypatch.chdir(tmp_path)
    code = main(["run", "experiment=smoke", *re.split(r" (?=\w+(?:\.\w+)*=)", words)])
    error = " ".join(capsys.readouterr().err.split())
    assert code == 1
    assert "Traceback" not in error
    assert all(word in error for word in said), error
    assert error.count("the configuration has") <= 1
    assert list(tmp_path.iterdir()) == []


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
