"""GPT-2 in three parts on the meta device: who holds how much of it, and the bytes of a step."""

import numpy as np
import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from fedsa_lora.exchange.step import Step, StepFormat
from fedsa_lora.learning.adapters import AdapterModel, LoraSettings, attach
from fedsa_lora.learning.cut.parts import Ends, Part, narrow
from fedsa_lora.learning.cut.settings import Cut

CUT = Cut(bottom=2, top=10)
LORA = LoraSettings(r=8, alpha=16, target_modules=["c_attn", "c_fc", "c_proj"])
EMBEDDINGS, HEAD_NORM, BLOCK = (50257 + 1024) * 768, 2 * 768, 7_087_872
BLOCK_A, BLOCK_B = 8 * (3 * 768 + 3072), 8 * (3 * 768 + 768 + 3072 + 768)


def model(part: Part | None = None) -> AdapterModel:
    with torch.device("meta"):
        whole = GPT2LMHeadModel(GPT2Config())
        if part is not None:
            narrow(whole, CUT, part)
        return AdapterModel(attach(whole, LORA))


@pytest.fixture(scope="module")
def counted() -> dict[Part | None, AdapterModel]:
    return {part: model(part) for part in (None, *Part)}


def test_lora_of_the_whole_finds_the_layers_of_gpt2_which_are_no_linear_ones(counted):
    counts = counted[None].counts()
    assert len(counted[None].linear_layers()) == 12 * 4
    assert counts == {"base": 124_439_808, "A": 516_096, "B": 663_552, "head": 0}
    assert counts["A"] + counts["B"] == 1_179_648
    assert round(100 * 1_179_648 / counts["base"], 3) == 0.948


def test_each_part_holds_its_own_and_nothing_of_the_other(counted):
    client, server = (counted[part] for part in Part)
    ends = {"base": EMBEDDINGS + HEAD_NORM + 4 * BLOCK, "A": 4 * BLOCK_A, "B": 4 * BLOCK_B, "head": 0}
    trunk = {"base": 8 * BLOCK, "A": 8 * BLOCK_A, "B": 8 * BLOCK_B, "head": 0}
    assert client.counts() == ends
    assert server.counts() == trunk
    assert {key: ends[key] + trunk[key] for key in ends} == counted[None].counts()
    assert all(CUT.of_client(name) for name, _ in client.module.named_parameters())
    assert not any(CUT.of_client(name) for name, _ in server.module.named_parameters())


def test_the_layout_of_the_whole_is_that_of_both_parts(counted):
    layout = counted[None].layout
    at_client = layout.select(filter(CUT.of_client, layout.names))
    assert at_client == counted[Part.CLIENT].layout
    assert {*layout} - {*at_client} == {*counted[Part.SERVER].layout}


@pytest.mark.parametrize(("form", "itemsize", "scales"), [("fp32", 4, 0), ("bf16", 2, 0), ("int8", 1, 4)])
def test_a_step_costs_four_tensors_of_states_whatever_lora_does(form, itemsize, scales):
    """12.6 MB for 8 texts of 128 tokens in fp32, and headers; int8 has a scale for each token."""
    step_format = StepFormat(form, 768, 8 * 128)
    states = np.random.default_rng(0).standard_normal((8, 128, 768)).astype(np.float32)
    mask = np.ones((8, 128), bool)
    up = [Step(0, {"h1": states}, mask), Step(1, {"g2": states}, last=True, loss=1.0)]
    down = [Step(1, {"h2": states}), Step(2, {"g1": states})]
    rng = np.random.default_rng(1)
    sent = sum(len(each) for step in up + down for each in step_format.write(step, rng).values())
    expected = 4 * 8 * 128 * (768 * itemsize + scales)
    assert form != "fp32" or expected == 12_582_912
    assert 0 <= sent - expected < 1000


def test_labels_are_shifted_and_the_states_that_came_in_have_a_gradient():
    """The loss compares each state with the token after it, also where the top alone computes it."""
    sizes = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_positions": 16, "vocab_size": 31}
    cut = Cut(bottom=1, top=2)
    client = GPT2LMHeadModel(GPT2Config(**sizes))
    narrow(client, cut, Part.CLIENT)
    states = torch.randn(2, 10, 16).requires_grad_()
    ids = torch.arange(20).reshape(2, 10)
    out = Ends(client.eval(), cut).top(states)(input_ids=ids, labels=ids)
    expected = torch.nn.functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)
    out.loss.backward()
    assert states.grad[:, :-1].abs().sum(dim=-1).gt(0).all()
    assert not states.grad[:, -1].any()
