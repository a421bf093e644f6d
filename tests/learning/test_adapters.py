"""AdapterModel: names, roles, in-place state, and what stock PEFT makes of it."""

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from fedsa_lora.errors import LayoutError, ModelError
from fedsa_lora.learning.adapters import AdapterModel, LoraSettings, attach, initial_state, plain_name
from fedsa_lora.tasks.backbone import ModelSettings, build_backbone

BERT = {
    "vocab_size": 50,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}


def backbone(kind: str = "bert", **changes):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, num_labels=3, **BERT | changes)
    return AutoModelForSequenceClassification.from_config(config).eval()


def adapted(lora: LoraSettings | None = None, **changes) -> AdapterModel:
    return AdapterModel(attach(backbone(**changes), lora or LoraSettings(r=2, dropout=0.0)))


def random_state(model: AdapterModel, seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {s.name: rng.normal(0, 0.1, s.shape).astype(np.float32) for s in model.layout}


BATCH = {"input_ids": torch.tensor([[1, 2, 3, 4]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}


def test_roles_follow_the_names_of_peft():
    roles = {spec.name: spec.role for spec in adapted().layout}
    prefix = "bert.encoder.layer.0.attention.self.query"
    assert roles[f"{prefix}.lora_A.weight"] == "A"
    assert roles[f"{prefix}.lora_B.weight"] == "B"
    assert roles["classifier.weight"] == roles["classifier.bias"] == "head"
    assert set(roles.values()) == {"A", "B", "head"}
    assert len(roles) == 2 * 2 * 2 + 2


@pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "electra"])
def test_targets_are_inferred_per_architecture(kind):
    changes = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24} if kind == "distilbert" else {}
    model = adapted(kind=kind, **changes)
    assert model.layout.count("A") == model.layout.count("B") == 2 * 2 * 2 * 16


def test_a_decoder_with_conv1d_projections_has_the_same_roles():
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16, num_labels=3)
    model = AdapterModel(attach(GPT2ForSequenceClassification(config), LoraSettings(r=2)))
    shapes = {spec.role: spec.shape for spec in model.layout}
    assert shapes["A"] == (2, 16)
    assert shapes["B"] == (48, 2)


def test_an_unknown_target_is_named():
    with pytest.raises(ModelError, match="no_such_layer"):
        attach(backbone(), LoraSettings(target_modules=["no_such_layer"]))


def test_state_round_trips_to_the_bit():
    model = adapted()
    state = random_state(model, 1)
    model.write(state)
    read = model.read()
    assert all(np.array_equal(read[name], state[name]) for name in model.layout.names)


def test_what_is_read_is_a_copy():
    model = adapted()
    before = model.read()
    model.write(random_state(model, 2))
    assert not np.array_equal(before["classifier.weight"], model.read()["classifier.weight"])


@pytest.mark.parametrize("fault", ["missing", "extra", "shape", "dtype"])
def test_a_state_that_is_not_complete_and_exact_is_refused_and_changes_nothing(fault):
    model = adapted()
    state, before = random_state(model, 3), model.read()
    if fault == "missing":
        del state["classifier.bias"]
    elif fault == "extra":
        state["other"] = np.zeros(1, np.float32)
    elif fault == "shape":
        state["classifier.bias"] = np.zeros(1, np.float32)
    else:
        state["classifier.bias"] = state["classifier.bias"].astype(np.float64)
    with pytest.raises(LayoutError):
        model.write(state)
    assert all(np.array_equal(model.read()[n], before[n]) for n in before)


def test_gradients_go_to_the_trained_tensors_and_to_no_other():
    model = adapted()
    chosen = frozenset(s.name for s in model.layout if s.role == "A")
    model.write(random_state(model, 4))
    model.set_trainable(chosen)
    model.module(**BATCH, labels=torch.tensor([1])).loss.backward()
    with_gradient = {n for n, p in model.module.named_parameters() if p.grad is not None}
    assert {plain_name(n) for n in with_gradient} == chosen


def test_the_whole_model_is_exchanged_as_its_difference_from_the_pretrained():
    plain = backbone()
    model = AdapterModel(attach(backbone(), None))
    assert {s.name for s in model.layout} == {n for n, _ in plain.named_parameters()}
    start = initial_state(model.layout, 0)
    assert not any(start[s.name].any() for s in model.layout if s.role == "base")
    model.write(start)
    for name, parameter in plain.named_parameters():
        if not name.startswith("classifier"):
            assert torch.equal(model.parameter(name), parameter), name


def test_counts_are_those_of_the_checked_models():
    counts = adapted().counts()
    assert counts["base"] == sum(p.numel() for n, p in backbone().named_parameters() if "classifier" not in n)
    assert counts["A"] == counts["B"] == 2 * 2 * 2 * 16
    assert counts["head"] == 3 * 16 + 3


def test_the_upload_of_the_papers_setting_is_that_of_the_paper():
    """roberta-large, r 8, query and value: 393,216 values of A, and as many of B (arXiv:2410.01463)."""
    config = AutoConfig.for_model(
        "roberta", num_labels=2, hidden_size=1024, num_hidden_layers=24, num_attention_heads=16,
        intermediate_size=4096, vocab_size=50265, max_position_embeddings=514, type_vocab_size=1,
    )  # fmt: skip
    with torch.device("meta"):
        large = AutoModelForSequenceClassification.from_config(config)
    counts = AdapterModel(attach(large, LoraSettings())).counts()
    assert counts["A"] == counts["B"] == 393_216
    assert counts["base"] == 354_310_144  # without the pooler, which a classifier does not use


def test_the_common_start_depends_on_seed_and_name_alone():
    model = adapted()
    one, two = initial_state(model.layout, 5), initial_state(adapted().layout, 5)
    assert all(np.array_equal(one[n], two[n]) for n in one)
    part = initial_state(model.layout.select(list(model.layout.names)[:3]), 5)
    assert all(np.array_equal(part[n], one[n]) for n in part)
    other = initial_state(model.layout, 6)
    for spec in model.layout:
        same = np.array_equal(one[spec.name], other[spec.name])
        assert same == (spec.role == "B" or spec.name.endswith("bias"))


def test_the_start_of_a_is_kaiming_uniform_and_b_is_zero():
    state = initial_state(adapted(LoraSettings(r=16)).layout, 0)
    for name, array in state.items():
        if "lora_B" in name:
            assert not array.any()
        if "lora_A" in name:
            bound = 1 / np.sqrt(array.shape[1])
            assert abs(array).max() <= bound
            assert array.std() == pytest.approx(bound / np.sqrt(3), rel=0.15)


def test_row_norm_sets_the_norm_of_every_head_row():
    state = initial_state(adapted().layout, 0, head_row_norm=3.0)
    np.testing.assert_allclose(np.linalg.norm(state["classifier.weight"], axis=1), 3.0, rtol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_a_saved_adapter_gives_stock_peft_the_same_logits(tmp_path, rslora):
    settings = LoraSettings(r=4, alpha=16, rslora=rslora)
    model = adapted(settings)
    state = random_state(model, 7)
    model.write(state)
    model.module.eval()
    expected = model.module(**BATCH).logits
    torch.manual_seed(0)
    with torch.device("meta"):
        empty = AutoModelForSequenceClassification.from_config(backbone().config)
    AdapterModel(attach(empty, settings)).save_adapter(tmp_path, state, base="nowhere")
    stock = PeftModel.from_pretrained(backbone(), str(tmp_path)).eval()
    torch.testing.assert_close(stock(**BATCH).logits, expected, rtol=0, atol=1e-6)


def test_a_merged_model_gives_the_same_logits(tmp_path):
    model = adapted()
    model.write(random_state(model, 8))
    model.module.eval()
    expected = model.module(**BATCH).logits
    model.save_merged(tmp_path)
    merged = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(merged(**BATCH).logits, expected, rtol=0, atol=1e-5)


def test_an_adapter_on_a_weight_that_two_layers_use_is_not_merged(tmp_path):
    config = {"model_type": "bart", "vocab_size": 60, "d_model": 16, "encoder_layers": 1, "decoder_layers": 1}
    config |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 16}
    config |= {"decoder_ffn_dim": 16, "max_position_embeddings": 32}
    tied = build_backbone(
        AutoModelForSequenceClassification, ModelSettings(pretrained=False, config=config), ("a", "b"), seed=0
    )
    model = AdapterModel(attach(tied, LoraSettings(target_modules=["embed_tokens", "q_proj"])))
    with pytest.raises(
        ModelError, match=r"embed_tokens shares its weight with another layer.*without --merge"
    ):
        model.save_merged(tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_running_statistics_stay_what_they_were_without_adapters_too():
    config = {"model_type": "resnet", "num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16]}
    config |= {"depths": [1, 1], "layer_type": "basic"}
    backbone = build_backbone(
        AutoModelForImageClassification, ModelSettings(pretrained=False, config=config), ("a", "b"), seed=0
    )
    model = AdapterModel(backbone)
    before = {name: value.clone() for name, value in model.module.named_buffers()}
    assert any("running_mean" in name for name in before)
    model.module.train()
    model.module(pixel_values=torch.randn(4, 1, 16, 16), labels=torch.tensor([0, 1, 0, 1])).loss.backward()
    assert all(torch.equal(value, before[name]) for name, value in model.module.named_buffers())
