"""Exports of a real run in a process that knows transformers and PEFT alone: the run's own answers."""

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import AutoTokenizer

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.client import build
from fedsa_lora.config.compose import read_config
from fedsa_lora.learning.training import predict
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.reading import read_jsonl
from fedsa_lora.server.build import skeleton

# What a stranger runs: the code of each model card, then the texts in batches of 1 and of 8.
STRANGER = """
import json, sys
import numpy as np
import torch
texts, found, called = json.load(open("texts.json")), {}, {}
for place, code in json.load(open("cards.json")).items():
    names = {}
    exec(code, names)
    model, tokenizer = names["model"].eval(), names["tokenizer"]
    how = {"truncation": True, "max_length": names["max_length"], "padding": True, "return_tensors": "pt"}
    for size in (1, 8):
        parts = [texts[i : i + size] for i in range(0, len(texts), size)]
        batches = [tokenizer(part, **how) for part in parts]
        with torch.no_grad():
            found[f"{place} {size}"] = np.concatenate([model(**b).logits.numpy() for b in batches])
    called[place] = [model.config.id2label[i] for i in range(model.config.num_labels)]
assert not {name for name in sys.modules if name.split(".")[0] in ("fedsa_lora", "strategies", "flwr")}
np.savez("found.npz", **found)
json.dump(called, open("called.json", "w"))
"""
MEAN = ["model=tiny_bert", "model.pooling=mean"]
RUNS = {
    "a pretrained encoder, own label meanings": ["model=minilm", "federation.label_meaning=per_client"],
    "PiSSA, shared head": [*MEAN, "lora=pissa", "head=shared"],
    "the whole model": [*MEAN, "lora=none", "split=full", "head=shared"],
}


def stranger(folders: dict[str, Path], texts: list[str], place: Path) -> tuple[dict, dict]:
    """Logits by export and batch size, and the names of the outputs by export, from the cards' code."""
    cards = {}
    for name, folder in folders.items():
        code = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0]
        assert 'Path(".")' in code
        cards[name] = code.replace('Path(".")', f"Path({str(folder)!r})")
    place.mkdir()
    (place / "cards.json").write_text(json.dumps(cards))
    (place / "texts.json").write_text(json.dumps(texts))
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", STRANGER], cwd=place, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    return dict(np.load(place / "found.npz")), json.loads((place / "called.json").read_text())


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (MEAN[0] in RUNS[n])) for n in RUNS]
)
def test_an_export_gives_the_answers_of_the_run_in_stock_code(run_smoke, tmp_path, name):
    run = run_smoke(
        "federation.clients=2", "federation.rounds=2", "evaluation.local_only=false", "run.report=true",
        "federation.test_examples=24", *RUNS[name],
    )  # fmt: skip
    config = read_config(run)
    exporter = Exporter(config, RunDirectory(run, config), skeleton(config))
    bench = build.workbench(config)
    bench.model.write(exporter.tensors("1"))
    data = config.task.load_client("1").test
    expected = predict(bench.model, config.task, data, config.train)
    rows = config.task.data.test or config.task.data.train
    texts = list(rows.inputs.select(config.task.split.clients["1"].test)["text"])
    assert len(texts) >= 16
    recorded = [
        r for r in read_jsonl(run / "clients.jsonl") if r["phase"] == "evaluate" and r["client"] == "1"
    ]

    folders = {"merged": exporter.export("1", tmp_path / "merged", merge=True)}
    if config.lora is not None:
        folders["adapter"] = exporter.export("1", tmp_path / "adapter")
    if (run / "adapters").is_dir():
        folders["of the run"] = run / "adapters" / "1"
    assert ("of the run" in folders) == (config.lora is not None)
    found, called = stranger(folders, texts, tmp_path / "stranger")
    assert len(found) == 2 * len(folders)
    for logits in found.values():
        np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-3)
        np.testing.assert_array_equal(logits.argmax(1), expected.argmax(1))
        assert np.mean(logits.argmax(1) == data.labels) == pytest.approx(recorded[-1]["accuracy"])
    assert {tuple(names) for names in called.values()} == {config.task.client_labels("1")}


@pytest.fixture(scope="module")
def exported(smoke_run, tmp_path_factory) -> Path:
    config = read_config(smoke_run)
    exporter = Exporter(config, RunDirectory(smoke_run, config), skeleton(config))
    place = tmp_path_factory.mktemp("exported")
    exporter.export("2", place / "adapter")
    exporter.export("2", place / "merged", merge=True)
    return place


def test_no_export_names_a_path_of_this_machine(exported, smoke_run):
    for folder in (exported / "adapter", smoke_run / "adapters" / "2"):
        base = json.loads((folder / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert not Path(base).is_absolute()
        assert (folder / base / "config.json").is_file()
    written = [path for path in exported.rglob("*") if path.suffix in (".json", ".md")]
    assert len(written) >= 6
    assert not [path for path in written if str(smoke_run.parent) in path.read_text()]


def test_overrides_padding_and_length_are_in_what_is_exported(run_smoke, tmp_path):
    run = run_smoke(
        "federation.clients=2", "federation.rounds=1", "evaluation.local_only=false", "task.max_length=24",
        "+model.config.hidden_dropout_prob=0.03",
    )  # fmt: skip
    config = read_config(run)
    exporter = Exporter(config, RunDirectory(run, config), skeleton(config))
    exporter.export("0", tmp_path / "adapter")
    exporter.export("0", tmp_path / "merged", merge=True)
    for folder in (tmp_path / "adapter" / "backbone", tmp_path / "merged"):
        written = json.loads((folder / "config.json").read_text())
        assert written["hidden_dropout_prob"] == 0.03
        assert written["pad_token_id"] == config.task.tokenizer.pad_token_id
        assert list(written["id2label"].values()) == list(config.task.labels())
        tokenizer, own = AutoTokenizer.from_pretrained(folder), config.task.tokenizer
        assert tokenizer("play some jazz")["input_ids"] == own("play some jazz")["input_ids"]
        assert tokenizer.model_max_length == own.model_max_length  # a further run may have longer texts
    assert "max_length = 24" in (tmp_path / "merged" / "README.md").read_text()


def test_a_second_run_starts_from_what_the_first_exported(run_smoke, tmp_path):
    quick = ["federation.clients=2", "evaluation.local_only=false", "evaluation.before=false"]
    run = run_smoke(*quick, *MEAN, "federation.rounds=2")
    config = read_config(run)
    exporter = Exporter(config, RunDirectory(run, config), skeleton(config))
    folder = exporter.export("1", tmp_path / "merged", merge=True)
    still = ["train.lr=1e-12", "train.head_lr=1e-12", "federation.rounds=1"]
    again = run_smoke(*quick, "model=roberta_base", f"model.path={folder}", *still)
    losses = []
    for path in (run, again):
        rows = [row for row in read_jsonl(path / "clients.jsonl") if row["phase"] == "evaluate"]
        losses.append([row["loss"] for row in rows if row["client"] == "1"][-1])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)


def test_others_can_read_what_is_exported_as_far_as_the_umask_says(exported):
    umask = os.umask(0)
    os.umask(umask)
    files = [path for path in exported.rglob("*") if path.is_file()]
    assert any(path.suffix == ".safetensors" for path in files)
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o666 & ~umask}


def test_a_merged_model_answers_in_a_pipeline_from_any_folder(exported, smoke_run, tmp_path, monkeypatch):
    from transformers import pipeline

    monkeypatch.chdir(tmp_path)
    answers = pipeline("text-classification", model=str(exported / "merged"))(["play some jazz"])
    assert answers[0]["label"] in read_config(smoke_run).task.labels()


def test_an_export_is_replaced_whole_and_other_files_are_left_alone(exported, smoke_run):
    config = read_config(smoke_run)
    exporter = Exporter(config, RunDirectory(smoke_run, config), skeleton(config))
    folder = exporter.export("1", exported / "again")
    assert (folder / "adapter_config.json").is_file()
    exporter.export("1", folder, merge=True)
    assert not (folder / "adapter_config.json").exists()  # it would be loaded in place of the whole model
    assert not list(exported.glob(".*"))
    other = exported / "other"
    other.mkdir()
    (other / "thesis.txt").write_text("mine")
    with pytest.raises(Exception, match="holds files that are not an export"):
        exporter.export("1", other)
    assert [path.name for path in other.iterdir()] == ["thesis.txt"]
