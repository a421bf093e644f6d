"""Every variant of LoRA: which tensors there are and leave, and what stock PEFT loads."""

import numpy as np
import pytest
import torch
from lora_cases import CASES, Case, logits, moved, names_of, train
from peft import PeftModel

from fedsa_lora.errors import ModelError
from fedsa_lora.exchange.arrays import digest
from fedsa_lora.learning.adapters import initial_state


@pytest.fixture(params=CASES, ids=lambda case: case.name)
def one(request) -> Case:
    return request.param


def test_what_may_leave_is_counted_and_no_layer_has_one_side_alone(one):
    model = one.model()
    assert model.layout.count("A") == model.counts()["A"] == one.A
    assert model.layout.count("B") == model.counts()["B"] == one.B
    assert {s.role for s in model.layout} == {"A", "B", "head"}
    A, B = ({s.layer for s in model.layout if s.role == role} for role in "AB")
    assert A == B == set(model.scales)
    relative = {name for name in model.layout.names if any(part in name for part in one.relative)}
    assert model.relative == relative
    packed = model.layout.select(names_of(model, "A")).pack(
        {n: model.read()[n] for n in names_of(model, "A")}
    )
    assert packed.nbytes == 4 * one.A


def test_the_server_without_weights_knows_the_layout_and_the_start(one):
    real, empty = one.model(), one.skeleton()
    assert empty.layout == real.layout
    assert empty.layout.digest == real.layout.digest
    assert empty.relative == real.relative
    assert empty.scales == real.scales
    assert next(empty.module.parameters()).is_meta


def test_at_the_common_start_the_model_is_the_pretrained_one(one):
    model, plain = one.model(), one.backbone()
    state = initial_state(model.layout, 0)
    model.write(state)
    with torch.no_grad():
        for name, parameter in plain.named_parameters():
            if name in state:
                parameter.copy_(torch.from_numpy(state[name]))
    torch.testing.assert_close(logits(model.module, one), logits(plain, one), rtol=0, atol=5e-6)


def test_what_is_written_is_read_to_the_bit_also_after_training(one):
    model = one.model()
    for state in (initial_state(model.layout, 0), moved(model)):
        model.write(state)
        assert digest(model.read()) == digest(state)
    train(model, one)
    after = model.read()
    model.write(initial_state(model.layout, 0))
    model.write(after)
    assert digest(model.read()) == digest(after)


def test_training_moves_both_sides_and_nothing_of_the_backbone(one):
    model = one.model()
    model.write(moved(model))
    before = model.read()
    frozen = {n: p.clone() for n, p in model.module.state_dict().items()}
    train(model, one)
    after = model.read()
    assert all(not np.array_equal(before[n], after[n]) for n in names_of(model, "A") + names_of(model, "B"))
    trained = {n for n, p in model.module.named_parameters() if p.requires_grad}
    changed = {n for n, p in model.module.state_dict().items() if not torch.equal(p, frozen[n])}
    assert changed == trained
    assert not any("base_layer" in name or "vera_A" in name for name in changed)


def test_what_a_client_sends_is_made_of_its_own_alone(one):
    """The resident model serves others between; A is what a fresh model would give, and holds no B."""
    resident, sent = one.model(), []
    for model in (resident, one.model()):
        if model is resident:
            model.write(moved(model, seed=9))
            train(model, one, steps=2)
        model.write(moved(model))
        train(model, one, steps=2)
        sent.append({name: model.read()[name] for name in names_of(model, "A")})
    assert digest(sent[0]) == digest(sent[1])
    packed = resident.layout.select(sent[0]).pack(sent[0]).tobytes()
    for name in names_of(resident, "B"):
        assert resident.read()[name].ravel()[:2].tobytes() not in packed


def test_stock_peft_gives_the_same_logits_with_what_is_saved(one, tmp_path):
    model = one.model()
    state = moved(model)
    model.write(state)
    expected = logits(model.module, one)
    model.save_adapter(tmp_path, state, base="nowhere")
    stock = PeftModel.from_pretrained(one.backbone(), str(tmp_path))
    torch.testing.assert_close(logits(stock, one), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(model.module, one), expected, rtol=0, atol=0)
    start = initial_state(model.layout, 0)
    model.write(start | {name: state[name] for name in names_of(model, "head")})
    assert abs(logits(model.module, one) - expected).max() > 1e-3, "the adapters must matter in this test"


def test_a_model_without_weights_saves_what_does_not_depend_on_them(one, tmp_path):
    model, empty = one.model(), one.skeleton()
    state = moved(model)
    if one.relative:
        with pytest.raises(ModelError, match="relative"):
            empty.save_adapter(tmp_path, state, base="nowhere")
        return
    model.write(state)
    empty.save_adapter(tmp_path, state, base="nowhere")
    stock = PeftModel.from_pretrained(one.backbone(), str(tmp_path))
    torch.testing.assert_close(logits(stock, one), logits(model.module, one), rtol=0, atol=1e-5)


def test_a_merged_model_is_loaded_by_transformers_alone(one, tmp_path):
    model = one.model()
    model.write(moved(model))
    expected = logits(model.module, one)
    model.save_merged(tmp_path)
    merged = type(one.backbone()).from_pretrained(tmp_path)
    torch.testing.assert_close(logits(merged, one), expected, rtol=0, atol=1e-5)
