"""The card of a model: its code makes the inputs of the run, and what a task adds to it is there."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from my_methods.task import Digits
from PIL import Image

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.analysis.model_card import model_card, of_client, of_everyone
from fedsa_lora.cli import main
from fedsa_lora.client import build
from fedsa_lora.config.compose import load, read_config
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.server.build import skeleton
from fedsa_lora.tasks.defaults import Code
from fedsa_lora.tasks.text import TextTask

WORDS = ("task=image", "model=tiny_vit", "lora=none", "split=full", "head=shared", "federation.clients=3")


def follow(card: str, said: dict[str, Any]) -> None:
    """Run the code of a card that loads the model, and then the one that uses it."""
    exec(re.findall(r"```python\n(.*?)```", card, re.DOTALL)[0], said)
    exec(re.sub("^    ", "", re.findall(r"```\n\n((?:    .*\n)+)", card)[0], flags=re.M), said)


def test_the_code_of_a_card_makes_the_inputs_of_the_run_and_its_answers(tmp_path, monkeypatch):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 20, 12, 3), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", image=pixels, label=np.arange(4) % 2)
    config = load([*WORDS, f"task.dataset={tmp_path / 'images.npz'}", "task.mean=0.3", "task.std=0.2"])
    task, model = config.task, config.task.build_model(seed=0)
    model.save_pretrained(tmp_path)
    task.read_by_model.save(tmp_path)

    text = model_card(config, of_everyone(config, 1, ""), None, model)
    monkeypatch.chdir(tmp_path)
    said: dict[str, Any] = {"pictures": [Image.fromarray(each) for each in pixels]}
    follow(text, said)

    rows = task.data.train
    batch = task.collate(task.encode(rows.inputs, rows.labels), np.arange(4))
    torch.testing.assert_close(said["inputs"]["pixel_values"], batch["pixel_values"], rtol=0, atol=1e-6)
    assert torch.equal(said["classes"], task.predict(model, batch).argmax(1))


def test_the_card_of_a_client_names_the_shift_of_its_images():
    config = load([*WORDS, "regime=feature_shift"])
    model = config.task.build_model(seed=0, empty=True)
    for client in "012":
        card = model_card(config, of_client(config, client), None, model)
        assert f"shifted:\n{config.task.shift_of(client)} (kind" in card
        assert "from 0 to 16: scale" in card
    plain = load(WORDS)
    assert "shifted" not in model_card(plain, of_client(plain, "0"), None, model)


@dataclass(frozen=True, kw_only=True)
class Upside(TextTask):
    """Inputs of a user's own: the tokens of a text in reverse."""

    def encode(self, inputs, labels):
        found = super().encode(inputs, labels)
        turned = {name: [row[::-1] for row in rows] for name, rows in found.features.items()}
        return type(found)(turned, found.labels, found.lengths)


def test_the_card_of_a_foreign_task_shows_no_use_that_is_not_the_tasks(monkeypatch):
    monkeypatch.setenv("FEDSA_LORA_PLUGINS", __name__)
    words = ["experiment=smoke"]
    cards = []
    for config in (load(words), load([*words, f"task._target_={__name__}.Upside"])):
        model = config.task.build_model(seed=0, empty=True)
        cards.append(model_card(config, of_client(config, "0"), "backbone", model))
    assert "logits.argmax(1)" in cards[0]
    assert "see its `encode`" not in cards[0]
    assert "argmax" not in cards[1]
    assert f"the task `{__name__}.Upside` of the run" in cards[1]
    assert 'AutoModelForSequenceClassification.from_pretrained(folder / "backbone")' in cards[1]


@dataclass(frozen=True)
class Amplifier:
    """What a model of signals needs before it: nothing that stock libraries have."""

    gain: float

    @classmethod
    def load(cls, folder: Path) -> "Amplifier":
        return cls(json.loads((folder / "amplifier.json").read_text())["gain"])

    def __call__(self, signals):
        return torch.tensor(signals, dtype=torch.float32) * self.gain


@dataclass(frozen=True, kw_only=True)
class Signals(Digits):
    """A modality of a user's own: digits as signals of 64 samples, that are amplified."""

    gain: float = 3.0

    def encode(self, inputs, labels):
        found = super().encode(inputs, labels)
        return type(found)({"pixels": found.features["pixels"] * self.gain}, found.labels, found.lengths)

    def save_preprocessor(self, folder):
        (folder / "amplifier.json").write_text(json.dumps({"gain": self.gain}))

    def preprocessor_code(self, folder):
        return Code(((__name__, "Amplifier"),), (f"amplifier = Amplifier.load({folder})",))

    def usage(self):
        return "    classes = model(amplifier(signals)).argmax(1)"

    def about_client(self, client):
        return f"The signals are of sensor {client}."

    def model_code(self):
        return "from my_methods.task import Network", f"Network({self.width})"


@pytest.fixture(scope="module")
def signals(tmp_path_factory):
    """A run of a plug-in task, which this machine allows."""
    task = f"task={{_target_: {__name__}.Signals, width: 24, gain: 5}}"
    words = [task, "model=own", "lora.target_modules=[body.0,body.2]", "head=local", "federation.clients=2"]
    brief = ("federation.rounds=1", "federation.train_examples=[40,40]")
    folder = tmp_path_factory.mktemp("signals") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FEDSA_LORA_PLUGINS", f"{__name__},my_methods")
        yield run_in_process([*words, *brief, f"run.dir={folder}"])


@pytest.mark.parametrize("form", ["of the run", "adapter", "merged"])
def test_a_task_of_its_own_modality_has_its_lines_and_its_preprocessor_in_every_export(
    signals, tmp_path, monkeypatch, form
):
    folder = signals / "adapters" / "1" if form == "of the run" else tmp_path / "1"
    if form != "of the run":
        merge = ["--merge"] if form == "merged" else []
        assert main(["export", str(signals), "--client", "1", *merge, "--to", str(folder)]) == 0
    card = (folder / "README.md").read_text()
    assert "The signals are of sensor 1." in card
    monkeypatch.chdir(folder)
    config = read_config(signals)
    inputs = config.task.data.train.inputs[:50]["pixels"]
    said: dict[str, Any] = {"signals": inputs}
    follow(card, said)

    assert said["amplifier"] == Amplifier(5)
    model = build.model(config)
    model.write(Exporter(config, RunDirectory(signals, config), skeleton(config)).tensors("1"))
    assert torch.equal(said["classes"], model.module(5 * torch.tensor(inputs)).argmax(1))
