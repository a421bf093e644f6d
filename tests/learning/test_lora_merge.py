"""Products merged into the backbone, the scales that go with them, and ranks within larger ranks."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from lora_cases import CASES, logits, moved, train

from fedsa_lora.errors import ModelError

MERGED = [c for c in CASES if c.settings.get("variant") != "vera"]


@pytest.mark.parametrize("one", MERGED, ids=lambda case: case.name)
def test_merged_products_with_zero_adapters_are_the_adapters(one):
    model = one.model()
    model.write(moved(model))
    state, expected = model.read(), logits(model.module, one)
    factors = {
        (s.layer, s.role): s.name for s in model.layout if s.role in "AB" and "magnitude" not in s.name
    }
    products, zero = {}, dict(state)
    for layer in model.scales:
        A, B = (model.parameter(factors[layer, role]).detach().numpy() for role in "AB")
        products[layer] = B.reshape(len(B), -1) @ A.reshape(len(A), -1)
        for role, value in (("A", A), ("B", B)):
            name = factors[layer, role]
            zero[name] = state[name] - value if name in model.relative else np.zeros_like(value)
    model.write(zero)
    without = logits(model.module, one)
    model.merge(products)
    torch.testing.assert_close(logits(model.module, one), expected, rtol=0, atol=1e-5)
    model.merge({})
    assert torch.equal(logits(model.module, one), without)
    first = next(iter(products))
    model.merge({first: products[first]})
    model.merge({first: products[first]})  # from the first value, not on top of what was merged before
    model.write(state | {n: zero[n] for n in (factors[first, "A"], factors[first, "B"])})
    torch.testing.assert_close(logits(model.module, one), expected, rtol=0, atol=1e-5)


def test_merging_nothing_costs_nothing_and_a_wrong_delta_changes_nothing():
    model = CASES[0].model()
    model.merge({})
    assert not model._frozen
    layer = next(iter(model.scales))
    weights = {n: p.clone() for n, p in model.module.named_parameters()}
    good = np.ones((16, 16), np.float32)
    for deltas, message in (
        ({layer: good, "no.such.layer": good}, r"no\.such\.layer"),
        (
            {layer: good, sorted(model.scales)[-1]: good[:3]},
            r"expected a delta of shape \(16, 16\), got \(3, 16\)",
        ),
    ):
        with pytest.raises(ModelError, match=message):
            model.merge(deltas)
    assert all(torch.equal(p, weights[n]) for n, p in model.module.named_parameters())


def test_scales_are_those_of_the_settings():
    def scales(**settings):
        return set(replace(CASES[0], settings={"r": 4, "alpha": 8} | settings).model().scales.values())

    assert scales() == {2.0}
    assert scales(rslora=True) == {4.0}
    assert scales(variant="vera") == {1.0}
    assert scales(layer_ranks=[2, 16]) == {2.0}  # the rank decides what a layer holds, not its step
    assert scales(layer_ranks=[4, 16], rslora=True) == {4.0, 2.0}
    assert scales(rank_pattern={"layer.0.*": 2}) == {4.0, 2.0}  # PEFT's own: alpha is constant
    assert scales(rank_pattern={"layer.0.*": 2}, alpha_pattern={"layer.0.*": 4}) == {2.0}


@pytest.mark.parametrize("variant", ["lora", "dora", "layer_ranks"])
def test_a_smaller_rank_is_the_largest_with_zero_rows_and_columns(variant):
    """Rank 2 within rank 6: AdamW with weight decay keeps the padding at exact zero (arXiv:2401.06432)."""
    settings = {"variant": "dora"} if variant == "dora" else {}
    large_settings = {"layer_ranks": [6, 6]} if variant == "layer_ranks" else settings | {"r": 6, "alpha": 12}
    base = CASES[0]
    small = replace(base, settings=settings | {"r": 2, "alpha": 4}).model()
    large = replace(base, settings=large_settings).model()
    state, losses = moved(small), []
    padded = {
        s.name: np.pad(state[s.name], [(0, n - m) for n, m in zip(s.shape, state[s.name].shape, strict=True)])
        for s in large.layout
    }
    for model, start in ((small, state), (large, padded)):
        model.write(start)
        losses.append(train(model, base, steps=4, weight_decay=0.1))
    np.testing.assert_allclose(*losses, rtol=1e-5)
    trained, wide = small.read(), large.read()
    for name, value in trained.items():
        inner = tuple(slice(size) for size in value.shape)
        np.testing.assert_allclose(wide[name][inner], value, atol=2e-5)
        outside = wide[name].copy()
        outside[inner] = 0
        assert not outside.any(), name
