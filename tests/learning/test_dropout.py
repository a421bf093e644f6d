"""Dropout masks: their statistics, that padding does not touch them, and which models they reach."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from fedsa_lora.learning.adapters import LoraSettings, attach
from fedsa_lora.learning.dropout import Site, Sites, Strip
from fedsa_lora.learning.masking import FAMILIES as REACHED
from fedsa_lora.learning.masking import find_sites, masked
from fedsa_lora.tasks.backbone import build_backbone
from fedsa_lora.tasks.model_settings import ModelSettings

BERT = {
    "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 24, "max_position_embeddings": 40, "initializer_range": 0.3,
}  # fmt: skip
LLAMA = {**BERT, "num_key_value_heads": 1, "pad_token_id": 0}
# sites on tokens, on whole examples, and of attention, with LoRA on the default layers
FAMILIES = {
    "bert": (BERT, 1 + 2 * 2 + 4, 1, 2),
    "roberta": (BERT, 1 + 2 * 2 + 4, 2, 2),
    "xlm-roberta": (BERT, 1 + 2 * 2 + 4, 2, 2),
    "camembert": (BERT, 1 + 2 * 2 + 4, 2, 2),
    "distilbert": ({"vocab_size": 60, "dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24,
                    "max_position_embeddings": 40, "initializer_range": 0.3}, 1 + 2 + 4, 1, 2),
    "gpt2": ({"vocab_size": 60, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 40,
              "initializer_range": 0.3, "pad_token_id": 0}, 1 + 2 * 2 + 2, 0, 2),
    "llama": ({**LLAMA, "attention_dropout": 0.1}, 4, 0, 2),
    "vit": ({"image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 16, "num_hidden_layers": 2,
             "num_attention_heads": 2, "intermediate_size": 24, "initializer_range": 0.3,
             "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1}, None, 0, 2),
}  # fmt: skip
LENGTHS = [7, 3, 5]


def model_of(kind: str, **changes) -> nn.Module:
    auto = AutoModelForImageClassification if kind == "vit" else AutoModelForSequenceClassification
    settings = ModelSettings(pretrained=False, config={"model_type": kind, **FAMILIES[kind][0], **changes})
    backbone = build_backbone(auto, settings, ("a", "b", "c"), seed=0)
    return attach(backbone, LoraSettings(r=2, dropout=0.2), 0)


def batch_of(kind: str, *, longer: int = 0, only: int | None = None) -> dict[str, torch.Tensor]:
    """Three examples, or one of them, padded by ``longer`` tokens more than need be."""
    rng = np.random.default_rng(0)
    if kind == "vit":
        batch = {"pixel_values": torch.from_numpy(rng.normal(size=(3, 1, 8, 8)).astype(np.float32))}
    else:
        ids = np.zeros((3, max(LENGTHS) + longer), np.int64)
        for row, length in zip(ids, LENGTHS, strict=True):
            row[:length] = rng.integers(3, 60, length)
        batch = {
            "input_ids": torch.from_numpy(ids),
            "attention_mask": torch.from_numpy((ids > 0).astype(int)),
        }
    batch["labels"] = torch.tensor([0, 1, 2])
    return batch if only is None else {name: tensor[only : only + 1] for name, tensor in batch.items()}


def logits(model: nn.Module, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**batch).logits


def a_strip(*sites: tuple[int, float]) -> Strip:
    return Strip(tuple(Site(nn.Dropout(p), width, p) for width, p in sites))


@pytest.fixture(scope="module")
def sites() -> Sites:
    return Sites(a_strip((300, 0.1), (200, 0.5)), a_strip((64, 0.25)), a_strip((4, 0.1), (4, 0.1)), 0)


def test_as_many_numbers_are_kept_as_the_probability_says_and_the_mean_stays(sites):
    masks = sites.draw(seed=5, number=2, lengths=[90, 40, 70])
    assert masks.tokens.shape == (200, 500)
    assert masks.examples.shape == (3, 64)
    assert [mask.shape for mask in masks.attention] == [(8, 90, 90), (8, 40, 40), (8, 70, 70)]
    for part, p in ((masks.tokens[:, :300], 0.1), (masks.tokens[:, 300:], 0.5), (masks.attention[0], 0.1)):
        deviation = np.sqrt(p * (1 - p) / part.size)
        assert abs(part.mean() - (1 - p)) < 5 * deviation
    exact = 1 - sites.tokens.thresholds / 2**16
    np.testing.assert_allclose(sites.tokens.scales * exact, 1, rtol=1e-6)
    assert abs(exact - np.repeat([0.9, 0.5], [300, 200])).max() <= 2**-17


def test_masks_of_sites_seeds_and_passes_are_independent_and_the_same_ones_equal(sites):
    def tokens(seed, number):
        return sites.draw(seed, number, [200]).tokens

    first = tokens(1, 0)
    assert np.array_equal(first, tokens(1, 0))
    pairs = [
        (first[:, 300:400], first[:, 400:]),  # neighbours in a site
        (first[:, :200], first[:, 300:]),  # two sites
        (first[:, 300:], tokens(1, 1)[:, 300:]),
        (first[:, 300:], tokens(2, 0)[:, 300:]),
    ]
    for one, two in pairs:
        correlation = np.corrcoef(one.ravel(), two.ravel())[0, 1]
        assert abs(correlation) < 5 / np.sqrt(one.size)


def test_every_family_that_is_reached_is_tested_here():
    assert frozenset(FAMILIES) == REACHED


@pytest.mark.parametrize("kind", FAMILIES)
def test_all_dropout_of_these_families_is_drawn(kind):
    model = model_of(kind)
    found = find_sites(model, lambda: model(**batch_of(kind, only=0)))
    _, tokens, examples, attention = FAMILIES[kind]
    if tokens is not None:
        assert len(found.tokens.sites) == tokens
    assert (len(found.examples.sites), len(found.attention.sites)) == (examples, attention)
    torch.manual_seed(0)
    before = torch.get_rng_state()
    with masked(model, found, 3):
        one, two = logits(model, batch_of(kind)), logits(model, batch_of(kind))
    assert torch.equal(torch.get_rng_state(), before), "nothing is left to torch's own generator"
    assert not torch.allclose(one, two)
    with masked(model, found, 3):
        assert torch.equal(logits(model, batch_of(kind)), one)


@pytest.mark.parametrize("kind", FAMILIES)
def test_without_dropout_the_attention_that_takes_masks_is_the_models_own(kind):
    model = model_of(kind, attn_implementation="eager")
    model.eval()
    own = logits(model, batch_of(kind))
    seen = []
    find_sites(model, lambda: seen.append(logits(model, batch_of(kind))))
    torch.testing.assert_close(seen[0], own, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in FAMILIES if kind != "vit"])
def test_padding_does_not_change_the_masks_of_real_tokens(kind):
    model = model_of(kind)
    found = find_sites(model, lambda: model(**batch_of(kind, only=1)))
    answers = []
    for longer in (0, 6):
        with masked(model, found, 7):
            answers.append(logits(model, batch_of(kind, longer=longer)))
    torch.testing.assert_close(*answers, rtol=1e-5, atol=1e-6)


def test_a_model_without_tokens_drops_out_over_whole_examples():
    config = {"model_type": "efficientnet_lite", "num_channels": 1, "channels": [8], "repeats": [1],
              "kernels": [3], "strides": [1], "top_channels": 32, "dropout": 0.5}  # fmt: skip
    settings = ModelSettings(pretrained=False, config=config)
    model = build_backbone(AutoModelForImageClassification, settings, ("a", "b", "c"), seed=0)
    found = find_sites(model, lambda: model(**batch_of("vit", only=0)))
    assert (len(found.tokens.sites), len(found.examples.sites), len(found.attention.sites)) == (0, 1, 0)
    answers = []
    for seed in (3, 3, 4):
        with masked(model, found, seed):
            answers.append(logits(model, batch_of("vit")))
    assert torch.equal(answers[0], answers[1])
    assert not torch.equal(answers[0], answers[2])


def test_after_the_context_and_in_evaluation_the_model_is_as_it_was():
    model = model_of("bert")
    found = find_sites(model, lambda: model(**batch_of("bert", only=0)))
    implementation = model.config._attn_implementation
    model.eval()
    own = logits(model, batch_of("bert"))
    with masked(model, found, 0):
        torch.testing.assert_close(logits(model, batch_of("bert")), own, rtol=1e-5, atol=1e-6)
    assert torch.equal(logits(model, batch_of("bert")), own)
    assert model.config._attn_implementation == implementation
    assert not any("forward" in vars(layer) for layer in model.modules())


def test_dropout_that_is_not_reached_stays_torchs_own():
    class Odd(nn.Module):
        """Drops out where no tokens are told from examples, in a part that is called by itself."""

        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(x)

    model, x = Odd(), torch.ones(2, 3, 4, 50)
    found = find_sites(model, lambda: model(x[:1]))
    apart = find_sites(model, lambda: model.drop(x[0, 0]))
    for sites in (found, apart):
        assert not sites.tokens.sites + sites.examples.sites
        with masked(model, sites, 0):
            torch.manual_seed(1)
            dropped = model(x)
        torch.manual_seed(1)
        assert torch.equal(dropped, nn.functional.dropout(x, 0.5))
