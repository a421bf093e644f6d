"""The card of a model of images: its code makes the inputs of the run, and it names a client's shift."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from fedsa_lora.analysis.model_card import model_card, of_client, of_everyone
from fedsa_lora.config.compose import load
from fedsa_lora.tasks.text import TextTask

WORDS = ("task=image", "model=tiny_vit", "lora=none", "split=full", "head=shared", "federation.clients=3")


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
    exec(re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0], said)
    exec(re.sub("^    ", "", re.findall(r"```\n\n((?:    .*\n)+)", text)[0], flags=re.M), said)

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
