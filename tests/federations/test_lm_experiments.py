"""The experiments on language models: their settings, and that they run on a model of the package."""

import json
from pathlib import Path

import pytest

from fedsa_lora.config.compose import CONF, load
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import read_jsonl

NAMES = ("base", "gsm8k", "shakespeare")
GSM8K = Path(__file__).resolve().parents[3] / "shared" / "data" / "gsm8k"
SMALL = ["model=stories260k", "task.template=alpaca"]  # a model without a chat template


def test_these_are_all_there_are_and_each_says_how_it_is_run():
    folder = CONF / "experiment" / "lm"
    assert sorted(path.stem for path in folder.glob("*.yaml")) == [*NAMES]
    for name in NAMES:
        first, second = (folder / f"{name}.yaml").read_text().splitlines()[:2]
        assert first == "# @package _global_"
        assert second.startswith(f"# fedsa-lora run experiment=lm/{name}")


@pytest.mark.parametrize(
    "words",
    [
        ["experiment=lm/shakespeare"],
        ["experiment=lm/gsm8k", *SMALL],
        ["experiment=lm/base", "task=causal_lm", "task.dataset=shakespeare", "task.text=text"],
    ],
)
def test_none_needs_an_override_of_what_an_encoder_has(words):
    config = load(words)
    primary = config.task.measures[0]
    assert (primary.name, primary.higher_is_better) == ("perplexity", False)
    assert config.head.row_norm is None
    assert config.federation.label_meaning == "common"
    model = config.task.build_model(seed=0, empty=True)
    assert type(model).__name__ == "LlamaForCausalLM"


@pytest.mark.slow
def test_speakers_learn_and_their_perplexity_stands_in_every_record(tmp_path):
    words = ["experiment=lm/shakespeare", "federation.rounds=2", "train.steps=4", "evaluation.every=1"]
    path = run_in_process([*words, "federation.test_examples=6", f"run.dir={tmp_path / 'run'}"])
    rounds = [row["perplexity"] for row in read_jsonl(path / "rounds.jsonl")]
    assert rounds[1] < rounds[0] < 82, "that of the model as it comes"
    summary = json.loads((path / "summary.json").read_text())
    assert summary["majority"] is None
    assert "perplexity" in (path / "report.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not GSM8K.is_dir(), reason="shared/data/gsm8k is not there")
def test_word_problems_from_a_folder_run_with_every_measure(tmp_path):
    words = [
        "experiment=lm/gsm8k",
        *SMALL,
        f"task.dataset={GSM8K}",
        "task.subset=null",
        "task.max_new_tokens=8",
    ]
    words += ["task.measured=[perplexity,loss,exact_match,rouge_l,bleu]", "federation.test_examples=2"]
    path = run_in_process([*words, "federation.rounds=2", f"run.dir={tmp_path / 'run'}"])
    rows = [row for row in read_jsonl(path / "clients.jsonl") if row["phase"] == "evaluate"]
    assert all({"perplexity", "exact_match", "rouge_l", "bleu"} <= row.keys() for row in rows)
    rounds = [row["perplexity"] for row in read_jsonl(path / "rounds.jsonl")]
    assert rounds[-1] < rounds[0]
