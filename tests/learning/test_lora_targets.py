"""Which layers get adapters on which model, what the presets train, and what is refused by name."""

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from fedsa_lora.config.compose import load
from fedsa_lora.errors import ConfigError, ModelError
from fedsa_lora.learning.adapters import AdapterModel, LoraSettings, attach

SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24}
EMBEDDING = ["word_embeddings"]
VISION = ("vit", "clip", "resnet", "convnext")
CONFIGS = {
    "bert": SMALL,
    "roberta": SMALL,
    "electra": SMALL,
    "deberta-v2": SMALL,
    "distilbert": {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 24},
    "gpt2": {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 16},
    "llama": SMALL,
    "vit": SMALL | {"image_size": 32, "patch_size": 16},
    "clip": {"vision_config": SMALL | {"image_size": 32, "patch_size": 16}, "text_config": SMALL},
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
    "convnext": {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
}
QKVO = "self.query self.key self.value attention.output.dense"
LAYERS = {  # by what is meant: the layers of one block
    "bert": ("self.query self.value", QKVO, f"{QKVO} intermediate.dense output.dense"),
    "roberta": ("self.query self.value", QKVO, f"{QKVO} intermediate.dense output.dense"),
    "electra": ("self.query self.value", QKVO, f"{QKVO} intermediate.dense output.dense"),
    "deberta-v2": (
        "query_proj value_proj", "query_proj key_proj value_proj attention.output.dense",
        "query_proj key_proj value_proj attention.output.dense intermediate.dense output.dense",
    ),
    "distilbert": ("q_lin v_lin", "q_lin k_lin v_lin out_lin", "q_lin k_lin v_lin out_lin lin1 lin2"),
    "gpt2": ("c_attn", "c_attn attn.c_proj", "c_attn attn.c_proj c_fc mlp.c_proj"),
    "llama": ("q_proj v_proj", "q_proj k_proj v_proj o_proj",
              "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj"),
    "vit": ("q_proj v_proj", "q_proj k_proj v_proj o_proj", "q_proj k_proj v_proj o_proj fc1 fc2"),
    "clip": ("q_proj v_proj", "q_proj k_proj v_proj out_proj", "q_proj k_proj v_proj out_proj fc1 fc2"),
}  # fmt: skip


def backbone(kind: str, auto=None, **changes):
    if auto is None:
        auto = AutoModelForImageClassification if kind in VISION else AutoModelForSequenceClassification
    with torch.device("meta"):
        return auto.from_config(AutoConfig.for_model(kind, **{"num_labels": 3} | CONFIGS[kind] | changes))


def adapted(kind: str, lora: LoraSettings | None = None, **settings) -> AdapterModel:
    return AdapterModel(attach(backbone(kind), lora or LoraSettings(r=2, **settings)))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("place", [0, 1, 2])
def test_what_is_meant_is_found_in_every_block_and_never_in_the_head(kind, place):
    layers = list(adapted(kind, targets=("default", "attention", "all_linear")[place]).scales)
    expected = LAYERS[kind][place].split()
    assert len(layers) == 3 * len(expected)
    for ending in expected:
        assert sum(layer.endswith(f".{ending}") for layer in layers) >= 3, ending
    assert not any("classifier" in layer or "score" in layer or "pooler" in layer for layer in layers)


def test_a_convolutional_model_has_linear_layers_of_its_own():
    assert len(adapted("convnext", targets="all_linear").scales) == 2 * 2
    with pytest.raises(ModelError, match=r"ResNetForImageClassification .*targets=all_linear.*convolution"):
        adapted("resnet", targets="all_linear")


def test_a_model_without_linear_layers_is_adapted_at_its_convolutions():
    """Neither at the first one, 7 x 7, nor at the head; PEFT's default knows no such architecture."""
    layers = adapted("resnet").scales
    assert layers == adapted("resnet", targets="convolutions").scales
    assert len(layers) == 5  # two of either block, and the shortcut of the second
    assert all(layer.startswith("resnet.encoder.stages.") for layer in layers)
    with pytest.raises(ModelError, match=r"cannot infer LoRA targets for ConvNext.*pwconv1"):
        adapted("convnext")


@pytest.mark.parametrize("kind", ["vit", "convnext", "bert"])
def test_neither_a_first_convolution_nor_a_depthwise_one_is_adapted(kind):
    with pytest.raises(
        ModelError, match=r"no layers for lora\.targets=convolutions: set lora\.target_modules"
    ):
        adapted(kind, targets="convolutions")


@pytest.mark.sampled(4)
@pytest.mark.parametrize(
    "preset", ["fast", "balanced", "high", "dora", "vera", "pissa", "orthogonal", "rslora"]
)
@pytest.mark.parametrize("kind", LAYERS)
def test_every_preset_fits_every_model(preset, kind):
    lora = load([f"lora={preset}"]).lora
    if preset == "pissa":
        lora = LoraSettings(r=4, init=lora.init)  # these models are narrower than its rank
    counts = adapted(kind, lora).counts()
    assert counts["A"] > 0 < counts["B"]


@pytest.mark.parametrize(
    ("preset", "trained"), [("fast", 2_293_760), ("balanced", 24_313_856), ("high", 97_255_424)]
)
def test_the_presets_train_what_was_checked_on_llama(preset, trained):
    big = {
        "hidden_size": 3072, "num_hidden_layers": 28, "num_attention_heads": 24, "num_key_value_heads": 8,
        "intermediate_size": 8192, "vocab_size": 128_256, "head_dim": 128, "tie_word_embeddings": True,
    }  # fmt: skip
    model = AdapterModel(
        attach(backbone("llama", AutoModelForCausalLM, **big), load([f"lora={preset}"]).lora)
    )
    counts = model.counts()
    assert counts["base"] == 3_212_749_824
    assert counts["A"] + counts["B"] == trained


@pytest.mark.parametrize(("targets", "trained"), [("attention", 589_824), ("all_linear", 1_327_104)])
def test_the_vision_tower_of_clip_trains_what_was_checked(targets, trained):
    vision = {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "image_size": 224, "patch_size": 32,
    }  # fmt: skip
    counts = AdapterModel(
        attach(backbone("clip", vision_config=vision), LoraSettings(targets=targets))
    ).counts()
    assert counts["A"] + counts["B"] == trained
    assert counts["A"] == counts["B"]


VIT_B32 = {
    "vision_config": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "image_size": 224, "patch_size": 32,
    },
    "text_config": {
        "hidden_size": 512, "num_hidden_layers": 12, "num_attention_heads": 8, "intermediate_size": 2048,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("targets", "towers", "trained"),
    [
        ("all_linear", "vision", 1_327_104),
        ("all_linear", "text", 884_736),
        ("all_linear", "both", 2_211_840),
        ("all_linear", None, 2_211_840),
        ("attention", "vision", 589_824),
        ("default", "vision", 294_912),
    ],
)
def test_the_towers_of_clip_train_what_was_checked(targets, towers, trained):
    model = backbone("clip", AutoModel, **VIT_B32)
    assert sum(parameter.numel() for parameter in model.parameters()) == 151_277_313
    counts = AdapterModel(attach(model, LoraSettings(r=8, targets=targets, towers=towers))).counts()
    assert counts["A"] == counts["B"] == trained // 2
    assert counts["head"] == 0


@pytest.mark.parametrize(
    ("towers", "convolutions", "linear"), [("vision", 4, 0), ("both", 4, 18), ("text", 0, 18)]
)
def test_a_tower_of_convolutions_has_adapters_on_those_of_one_pixel(towers, convolutions, linear):
    lite = {"channels": [8, 8], "repeats": [1, 1], "kernels": [3, 3], "strides": [1, 1], "top_channels": 8}
    sizes = {
        "vision_config": {"model_type": "efficientnet_lite", **lite},
        "text_config": {"model_type": "bert", **SMALL},
    }
    with torch.device("meta"):
        model = AutoModel.from_config(AutoConfig.for_model("vision-text-dual-encoder", **sizes))
    layers = AdapterModel(attach(model, LoraSettings(targets="all_linear", towers=towers)))._layers()
    kinds = [type(layer.get_base_layer()).__name__ for layer in layers.values()]
    assert (kinds.count("Conv2d"), kinds.count("Linear")) == (convolutions, linear)
    assert all(
        set(layer.get_base_layer().kernel_size) == {1} for name, layer in layers.items() if "vision" in name
    )


def test_towers_of_a_model_that_has_none_are_refused():
    with pytest.raises(ModelError, match=r"lora\.towers=text: Bert.* has no towers"):
        adapted("bert", towers="text")
    with pytest.raises(ConfigError, match="target_modules and towers=text both choose"):
        LoraSettings(target_modules=["q_proj"], towers="text")


def test_ranks_by_layer_are_given_in_the_order_of_the_model():
    ranks = {s.layer: s.shape[0] for s in adapted("vit", layer_ranks=[4, 8, 16]).layout if s.role == "A"}
    assert {layer.split(".")[2]: rank for layer, rank in ranks.items()} == {"0": 4, "1": 8, "2": 16}


def test_more_than_ten_layers_keep_their_own_ranks():
    ranks = list(range(1, 13))
    with torch.device("meta"):
        bert = backbone("bert", num_hidden_layers=12)
    model = AdapterModel(attach(bert, LoraSettings(layer_ranks=ranks)))
    found = {int(s.layer.split(".")[3]): s.shape[0] for s in model.layout if s.role == "A"}
    assert [found[i] for i in range(12)] == ranks


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("bert", {"target_modules": ["query", "no_such"]}, r"\['no_such'\] not found in Bert.*'query'"),
        ("bert", {"target_modules": ["classifier"]}, r"\['classifier'\].*its head gets no adapter"),
        ("bert", {"target_modules": ["attention"]}, r"attention is a BertAttention; expected Linear"),
        ("bert", {"r": 0}, r"lora\.r=0: expected a rank of at least 1"),
        ("bert", {"layer_ranks": [4, 8]}, r"has 2 ranks, but the model has 3 layers.*layer\.0 to .*layer\.2"),
        ("bert", {"rank_pattern": {"layer.9.*": 4}}, r"'layer\.9\.\*' matches none of the adapted layers"),
        ("bert", {"alpha_pattern": {"key": 4.0}}, r"'key' matches none of the adapted layers"),
        ("bert", {"variant": "vera", "target_modules": EMBEDDING}, r"vera.*word_embeddings is a Embedding"),
        ("bert", {"init": "pissa", "target_modules": EMBEDDING}, r"pissa.*word_embeddings is a Embedding"),
        ("bert", {"init": "pissa", "r": 17}, r"rank 17 of .*query exceeds its 16 singular values"),
        ("bert", {"init": "orthogonal", "r": 3}, r"rank 3 of .*query is odd"),
        ("resnet", {"init": "pissa", "target_modules": ["convolution"]}, "pissa.*convolution is a Conv2d"),
        ("convnext", {"target_modules": ["dwconv"]}, "dwconv is a grouped or dilated convolution"),
    ],
)  # fmt: skip
def test_what_does_not_fit_the_model_is_named(kind, settings, message):
    with pytest.raises(ModelError, match=message):
        attach(backbone(kind), LoraSettings(**{"r": 2} | settings))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"variant": "vera", "rslora": True}, "variant=vera.*leave out rslora=True"),
        ({"variant": "vera", "init": "pissa"}, "variant=vera.*leave out init=pissa"),
        ({"variant": "vera", "layer_ranks": [1], "rank_pattern": {"a": 1}}, r"leave out rank_pattern"),
        ({"layer_ranks": [2], "alpha_pattern": {"a": 1.0}}, "leave out rank_pattern and alpha_pattern"),
        ({"layer_ranks": [4, 0]}, r"layer_ranks\[1\]=0; expected a rank of at least 1"),
        ({"rank_pattern": {"query": -1}}, r"rank_pattern\.query=-1; expected"),
        ({"alpha_pattern": {"query": 0.0}}, r"alpha_pattern\.query=0\.0; expected more than 0"),
        ({"rank_pattern": {"(": 1}}, "not a regular expression"),
        ({"target_modules": ["query"], "targets": "attention"}, "both choose the layers"),
    ],
)  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(settings, message):
    with pytest.raises(ConfigError, match=message):
        LoraSettings(**settings)
