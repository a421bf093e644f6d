"""The small vision transformer that comes with the package: what its card says, and that it is pretrained."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from fedsa_lora.config.compose import load
from fedsa_lora.tasks.inspection import inspect_task
from fedsa_lora.tasks.model_settings import resolve

FOLDER = Path(resolve("pkg://fedsa_lora/pretrained/vit_small"))
CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"
HELD_OUT = "task.classes=[1,3,5,7,9]"  # automobile, cat, dog, horse, truck


def test_its_card_has_the_figures_that_pretraining_wrote():
    card = (FOLDER / "README.md").read_text()
    probe = json.loads((FOLDER / "probe.json").read_text())
    with (FOLDER / "curve.csv").open() as file:
        last = [*csv.DictReader(file)][-1]
    for figure in [*probe.values(), float(last["accuracy"])]:
        assert f"{figure:.3f}".lstrip("0") in card
    assert f"{last['epoch']} epochs" in card
    assert probe["pretrained"] > probe["random"] + 0.1
    assert probe["pretrained"] > probe["pixels"] + 0.1


def test_it_is_read_with_its_own_normalisation_and_a_new_head():
    task = load(["task=digits", "task.size=32", "model=vit_small"]).task
    assert task.read_by_model.mean == (0.4914, 0.4822, 0.4465)
    assert any("104 weights of the checkpoint" in note for note in inspect_task(task))


@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_dir(), reason="shared/data/cifar10 is not there")
def test_its_features_tell_classes_apart_that_it_has_not_seen_better_than_pixels_do():
    words = ["task=cifar10", f"task.dataset={CIFAR}", "task.image=image", HELD_OUT, "model=vit_small"]
    task = load(
        [*words, "federation.clients=2", "partition=iid", "federation.train_examples=[1000,1000]"]
    ).task
    data = [task.load_client(client).train for client in ("0", "1")]
    model = task.build_model(seed=0).eval()
    found = {}
    for name, view in {"pixels": None, "features": model.vit}.items():
        seen = []
        for part in data:
            pixels = task.collate(part, np.arange(len(part)))["pixel_values"]
            with torch.no_grad():
                rows = pixels if view is None else view(pixels).last_hidden_state[:, 0]
            seen.append(rows.flatten(1).numpy())
        classifier = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=2000))
        found[name] = classifier.fit(seen[0], data[0].labels).score(seen[1], data[1].labels)
    assert found["features"] > found["pixels"] + 0.1
