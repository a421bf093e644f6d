"""Heads of every layout that transformers has: found from the model, trained, kept and exported."""

import copy
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import CONFIG_MAPPING, AutoModel, AutoModelForImageClassification
from transformers import AutoModelForSequenceClassification as Auto
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES,
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
)

from fedsa_lora.errors import ConfigError, ModelError
from fedsa_lora.learning.adapters import AdapterModel, LoraSettings, attach, initial_state
from fedsa_lora.learning.stock import save_backbone
from fedsa_lora.tasks.backbone import ModelSettings, build_backbone
from fedsa_lora.tasks.heads import behind_backbone, head_of
from fedsa_lora.tasks.inspection import check_positions, position_tables

LABELS = ("a", "b", "c")
SMALL = {
    "vocab_size": 120, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 48, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "max_position_embeddings": 64,
}  # fmt: skip
DECODER = SMALL | {"num_key_value_heads": 2}
# One for each layout of a head: its config, and the modules that are trained whole when the backbone alone
# was saved, as after pretraining.
FAMILIES: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "bert": (SMALL, ("classifier",)),
    "distilbert": (
        {"vocab_size": 120, "dim": 32, "n_layers": 2, "n_heads": 2, "hidden_dim": 48},
        ("pre_classifier", "classifier"),
    ),
    "roberta": (SMALL, ("classifier",)),
    "deberta-v2": (SMALL, ("pooler", "classifier")),
    "xlnet": (
        {"vocab_size": 120, "d_model": 32, "n_layer": 2, "n_head": 2, "d_inner": 48},
        ("sequence_summary", "logits_proj"),
    ),
    "xlm": ({"vocab_size": 120, "emb_dim": 32, "n_layers": 2, "n_heads": 2}, ("sequence_summary",)),
    "t5": (
        {"vocab_size": 120, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 2, "num_heads": 2,
         "decoder_start_token_id": 0, "eos_token_id": 2},
        ("classification_head",),
    ),
    "bart": (
        {"vocab_size": 120, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "encoder_ffn_dim": 48,
         "decoder_ffn_dim": 48, "encoder_attention_heads": 2, "decoder_attention_heads": 2, "pad_token_id": 0,
         "bos_token_id": 1, "eos_token_id": 2, "max_position_embeddings": 64},
        ("classification_head",),
    ),
    "gpt2": ({"vocab_size": 120, "n_embd": 32, "n_layer": 2, "n_head": 2}, ("score",)),
    "llama": (DECODER, ("score",)),
    "modernbert": (SMALL | {"cls_token_id": 1, "sep_token_id": 2}, ("head", "classifier")),
    "eurobert": (DECODER | {"mask_token_id": 3}, ("dense", "classifier")),
}  # fmt: skip
IDS = torch.randint(3, 120, (6, 9), generator=torch.Generator().manual_seed(0))
IDS[:, -1] = 2  # BART reads its end token
BATCH = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
TARGETS = torch.tensor([0, 1, 2, 0, 1, 2])


def pretrained(family: str, folder) -> ModelSettings:
    """A checkpoint of the backbone without a head."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**FAMILIES[family][0])
    model = AutoModel.from_config(config)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    return ModelSettings(path=str(folder))


def adapted(settings: ModelSettings, lora: LoraSettings) -> AdapterModel:
    backbone = build_backbone(Auto, settings, LABELS, seed=3, pad_token_id=0)
    model = AdapterModel(attach(backbone, lora, 3))
    model.write(initial_state(model.layout, 3))
    return model


@torch.no_grad()
def logits(model) -> np.ndarray:
    found: np.ndarray = model.eval()(**BATCH).logits.numpy()
    return found


def trained(model: AdapterModel) -> dict[str, np.ndarray]:
    """The tensors after two steps."""
    model.set_trainable(frozenset(model.layout.names))
    optimizer = torch.optim.AdamW([model.parameter(n) for n in model.layout.names], lr=1e-2)
    model.module.train()
    for _ in range(2):
        optimizer.zero_grad()
        model.module(**BATCH, labels=TARGETS).loss.backward()
        optimizer.step()
    return model.read()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_head_of_any_layout_is_trained_and_exported(family, tmp_path):
    settings = pretrained(family, tmp_path / "checkpoint")
    lora = LoraSettings(targets="all_linear", dropout=0.0)
    model = adapted(settings, lora)
    assert tuple(head_of(model.module).modules[-len(FAMILIES[family][1]) :]) == FAMILIES[family][1]
    start = model.read()
    after = trained(model)
    heads = [spec.name for spec in model.layout if spec.role == "head"]
    weights = [name for name in heads if after[name].ndim > 1]
    assert weights
    assert all(not np.array_equal(start[name], after[name]) for name in weights)
    model.write(after)
    expected = logits(model.module)

    save_backbone(build_backbone(Auto, settings, LABELS, seed=3, pad_token_id=0), tmp_path / "backbone")
    model.save_adapter(tmp_path / "adapter", after, "../backbone")
    stock = PeftModel.from_pretrained(Auto.from_pretrained(tmp_path / "backbone"), tmp_path / "adapter")
    np.testing.assert_allclose(logits(stock), expected, rtol=0, atol=1e-5)

    model.save_merged(tmp_path / "whole")
    whole = Auto.from_pretrained(tmp_path / "whole")
    np.testing.assert_allclose(logits(whole), expected, rtol=0, atol=1e-4)

    # a second stage starts from the trained head: what is exchanged of it is the difference from that
    second = adapted(ModelSettings(path=str(tmp_path / "whole")), lora)
    assert all(name.endswith(".difference") for name in second.layout.names if "lora_" not in name)
    np.testing.assert_allclose(logits(second.module), logits(whole), rtol=0, atol=1e-6)


def small_config(model_type: str) -> Any:
    """The default config of an architecture with two layers, as far as it has such a setting."""
    config = CONFIG_MAPPING[model_type](num_labels=3)
    text = copy.copy(config)
    for name in (
        "num_hidden_layers",
        "n_layer",
        "num_layers",
        "n_layers",
        "encoder_layers",
        "decoder_layers",
    ):
        if isinstance(getattr(text, name, None), int):
            try:
                setattr(config, name, min(2, getattr(text, name)))
            except (AttributeError, ValueError, NotImplementedError):
                continue
    return config


def built(auto: Any, model_type: str) -> Any:
    """The architecture on the meta device; None where its default config cannot be built, for lack of a
    library or of a value."""
    for make in (small_config, lambda name: CONFIG_MAPPING[name](num_labels=3)):
        try:
            with torch.device("meta"):
                return auto.from_config(make(model_type))
        except (ImportError, TypeError, KeyError, ValueError, AttributeError, IndexError):
            continue
    return None


# Why the others are not supported: a head inside the backbone, a part of the head that PEFT cannot tell from
# another, quantised layers, grouped convolutions.
REFUSED = {"perceiver", "modernvbert", "ibert", "squeezebert"}
TYPES = tuple(MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES)


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_every_architecture_with_a_classifier_is_trained_with_its_head_or_refused_by_name(every):
    heads, refused = {}, {}
    chosen = [name for n, name in enumerate(TYPES) if n % every == 0 or name in REFUSED]
    for model_type in chosen:
        if (model := built(Auto, model_type)) is None:
            continue
        behind = behind_backbone(model)
        try:
            assert behind or model_type == "perceiver"
            with warnings.catch_warnings(action="ignore"):
                found = AdapterModel(attach(model, LoraSettings(targets="all_linear", dropout=0.0)))
        except ModelError as error:
            refused[model_type] = str(error)
            continue
        check_positions(model, 128)  # no sound model is refused for a table that its texts do not use
        if behind:
            heads[model_type] = {s.layer.split(".")[0] for s in found.layout if s.role == "head"}
            assert heads[model_type] == set(behind), model_type
    assert len(heads) >= 110 / every
    assert refused.keys() | {"perceiver"} == REFUSED
    assert all(any(word in text for word in ("PEFT", "lora")) for text in refused.values())


def test_a_classifier_whose_head_is_inside_its_backbone_is_refused_by_name():
    config = {"model_type": "perceiver", "d_model": 32, "d_latents": 32, "num_latents": 4}
    with pytest.raises(ModelError, match="PerceiverForSequenceClassification: no head behind its backbone"):
        build_backbone(Auto, ModelSettings(pretrained=False, config=config), LABELS, seed=0, empty=True)


@pytest.mark.parametrize(
    ("model_type", "room"),
    [
        ("gemma3", None),
        ("modernvbert", None),
        ("roberta", 510),
        ("yoso", 4096),
        ("bart", 1024),
        ("gpt2", 1024),
    ],
)
def test_positions_are_those_of_texts_as_each_architecture_counts_them(model_type, room):
    model = built(Auto, model_type)
    if room is None:
        assert not position_tables(model)
        return
    check_positions(model, room)
    with pytest.raises(ConfigError, match=f"has {room} positions"):
        check_positions(model, room + 1)


@pytest.mark.parametrize(
    ("model_type", "head"), [("clip", "classifier"), ("vit", "classifier"), ("swiftformer", "dist_head")]
)
def test_heads_of_image_classifiers_are_found_as_well(model_type, head):
    assert model_type in MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    assert head in behind_backbone(built(AutoModelForImageClassification, model_type))
