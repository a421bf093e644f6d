"""Runs of split learning: the parts of a model in several places compute what the whole model computes."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_methods import rows
from test_resume import assert_same_run, broken
from torch.nn.utils import clip_grad_norm_

from fedsa_lora.client import build
from fedsa_lora.client.model import ClientModel
from fedsa_lora.client.personal import TRAINED
from fedsa_lora.config.compose import load, read_config
from fedsa_lora.errors import ConfigError, ModelError
from fedsa_lora.learning.cut.parts import anatomy_of
from fedsa_lora.learning.training import seed_generators
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.trunk import of_trunk
from fedsa_lora.seeds import torch_seed
from fedsa_lora.server.build import build_trunk, skeleton
from fedsa_lora.tasks.heads import unwrapped
from fedsa_lora.tasks.imported import imported

TINY = (
    "experiment=split/tiny", "federation.rounds=1", "train.steps=4", "train.batch_size=4", "run.report=false",
    "federation.train_examples=[12,12]", "federation.test_examples=6",
)  # fmt: skip
ALONE = ("federation.clients=1", "lora.dropout=0.1", "run.keep_trained=true")
GPT2 = (
    "model.path=", "model.pretrained=false", "model.tokenizer=pkg://fedsa_lora/pretrained/stories260k",
    "+model.config={model_type: gpt2, n_layer: 5, n_embd: 32, n_head: 2, n_positions: 64, vocab_size: 512, "
    "bos_token_id: 1, eos_token_id: 1, initializer_range: 0.15}",
    "lora.targets=default", "lora.target_modules=[c_attn,c_fc,c_proj]", "task.template=alpaca",
)  # fmt: skip
NO_DEPTH = GPT2[3].replace("n_layer: 5, ", "")  # 12, as the class has it
OPT = (
    *GPT2[:3],
    "+model.config={model_type: opt, num_hidden_layers: 5, hidden_size: 32, num_attention_heads: 2, "
    "ffn_dim: 64, word_embed_proj_dim: 32, vocab_size: 512, bos_token_id: 1, eos_token_id: 1}",
    "lora.targets=default", "task.template=alpaca",
)  # fmt: skip
TUNED = ("lora.targets=default", "lora.target_modules=[q_proj,v_proj,lm_head]")  # the head is tied
EXPORTED = ("train.steps=2", "federation.train_examples=[8,12]", "cut.trunk=per_client")
MODELS = {"llama": (), "gpt2": GPT2, "tuned head": TUNED}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run is made once for the same words."""
    made = {}

    def make(*words):
        if words not in made:
            folder = tmp_path_factory.mktemp("cut") / "run"
            run_in_process([*TINY, *words, f"run.dir={folder}"])
            made[words] = folder
        return made[words]

    return make


def trained(path, client):
    """All tensors as a client and its server had them after training and before aggregation."""
    config = read_config(path)
    state = build.store(config, client).load()
    memory = server_memory(path)
    trunk = of_trunk(memory)
    found = dict(trunk.get(client, trunk[""]))
    found |= {n.removeprefix(TRAINED): a for n, a in state.memory.items() if n.startswith(TRAINED)}
    return found | state.tensors


def server_memory(path):
    from fedsa_lora.runs.directory import RunDirectory

    return RunDirectory(path, read_config(path)).last_checkpoint().memory


def whole(path, client):
    """The tensors and losses of a plain PyTorch loop on the whole model, whose generator is seeded where it
    enters a part of another process."""
    config = read_config(path)
    bench = build.workbench(config.whole)
    served = ClientModel(client, bench, build.store(config, client))
    names = config.split(bench.model.layout).trained
    local = served.local(1, names, bench.initial)
    job, model, base = local.job(), bench.model, unwrapped(bench.model.module).base_model
    model.write(job.values)
    model.set_trainable(names)
    model.set_mode(training=True)
    parameters = [model.parameter(spec.name) for spec in model.layout]
    optimizer = torch.optim.AdamW(parameters, lr=config.train.lr, weight_decay=0.0)
    at = SimpleNamespace(step=0)

    def reseed(part):
        def hook(*args):
            seed_generators(torch_seed(config.seed, "cut dropout", client, 1, at.step, 0, part), model.device)

        return hook

    blocks = getattr(base, anatomy_of(base).blocks)
    places = {"bottom": base, "trunk": blocks[config.cut.bottom], "top": blocks[config.cut.top]}
    hooks = [module.register_forward_pre_hook(reseed(part)) for part, module in places.items()]
    losses = []
    for at.step, indices in enumerate(job.batches):
        optimizer.zero_grad()
        loss = bench.task.loss(model.module, bench.task.collate(job.examples, indices))
        loss.backward()
        clip_grad_norm_([model.parameter(name) for name in sorted(names)], config.train.clip_norm)
        optimizer.step()
        losses.append(loss.item())
    for hook in hooks:
        hook.remove()
    return model.read(), losses


@pytest.mark.parametrize("kind", ["llama", "gpt2", pytest.param("tuned head", marks=pytest.mark.slow)])
def test_a_step_over_the_wire_is_that_of_the_whole_model_to_the_bit(run, kind):
    path = run(*ALONE, *MODELS[kind])
    expected, losses = whole(path, "0")
    found = trained(path, "0")
    assert found.keys() == expected.keys()
    assert not [name for name, array in found.items() if not np.array_equal(array, expected[name])]
    assert rows(path)[0]["step_losses"] == losses
    assert any(np.abs(array).max() > 0 for name, array in found.items() if "lora_B" in name)


@pytest.mark.slow
def test_a_real_model_learns_as_in_one_piece(tmp_path):
    try:
        imported("cache://smollm2_135m")
    except ModelError as error:
        pytest.skip(str(error))
    path = tmp_path / "run"
    words = ("federation.clients=1", "federation.rounds=1", "run.keep_trained=true", "run.report=false")
    run_in_process(["experiment=split/smollm2", *words, f"run.dir={path}"])
    expected, losses = whole(path, "0")
    found, seen = trained(path, "0"), rows(path)[0]["step_losses"]
    assert max(np.abs(found[name] - array).max() for name, array in expected.items()) <= 1e-4
    assert seen == pytest.approx(losses, abs=1e-4)
    assert np.mean(seen[-5:]) < np.mean(seen[:5]) - 0.3


@pytest.mark.parametrize("micro_batches", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_micro_batches_make_the_step_of_one_batch(run, micro_batches):
    words = ("train.optimizer=sgd", "train.lr=0.5", "run.keep_trained=true")
    one, several = run(*words), run(*words, f"cut.micro_batches={micro_batches}")
    for client in "012":
        expected, found = trained(one, client), trained(several, client)
        assert max(np.abs(found[name] - array).max() for name, array in expected.items()) < 1e-6
    for a, b in zip(rows(one)[0]["step_losses"], rows(several)[0]["step_losses"], strict=True):
        assert a == pytest.approx(b, abs=1e-6)


def test_bytes_of_a_step_are_those_of_its_states(run):
    path = run("run.keep_trained=true", "cut.micro_batches=2", "train.optimizer=sgd", "train.lr=0.5")
    config = read_config(path)
    bench = build.workbench(config)
    tokens = 0
    for client in "012":
        job = (
            ClientModel(client, bench, build.store(config, client)).local(1, frozenset(), bench.initial).job()
        )
        for batch in job.batches:
            parts = np.array_split(batch, 2)
            tokens += sum(int(job.examples.lengths[part].max()) * len(part) for part in parts)
    sent = rows(path)[0]["fit_step_bytes"]
    assert sent["h1"] == sent["h2"] == sent["g1"] == sent["g2"] == 4 * tokens * 64


@pytest.mark.slow
def test_held_out_loss_falls(run):
    first, second = rows(run("federation.rounds=2", "train.steps=8", "federation.train_examples=[200,200]"))
    assert second["perplexity"] < first["perplexity"] < 104  # that of the model as it comes


def test_each_side_holds_its_own_weights_alone():
    config = load(TINY)
    client, empty = build.model(config).module, skeleton(config)
    server = build_trunk(config, empty).model.module
    whole_model = dict(build.model(config.whole).module.named_parameters())
    mine, its = dict(client.named_parameters()), dict(server.named_parameters())
    assert not mine.keys() & its.keys()
    assert mine.keys() | its.keys() == whole_model.keys()
    assert not any(map(config.cut.of_client, its))
    for name, parameter in {**mine, **its}.items():
        assert "lora_" in name or torch.equal(parameter, whole_model[name])


@pytest.mark.parametrize(
    "patterns",
    [
        (r"lora.rank_pattern={layers\.0\..*: 4}",),  # of the client, as a refusal has it
        (r"lora.rank_pattern={layers\.2\..*: 2}", r"lora.alpha_pattern={layers\.2\..*: 3}"),  # of the server
        (r"lora.rank_pattern={q_proj: 2, layers\.4\.self_attn\.v_proj: 1}",),
    ],
)
def test_ranks_by_block_are_those_of_the_whole_model_in_each_part(patterns):
    config = load([*TINY, *patterns])
    empty = skeleton(config)
    client, server = build.model(config), build_trunk(config, skeleton(config)).model
    assert {*client.layout} | {*server.layout} == {*empty.layout} != {*skeleton(load(TINY)).layout}
    assert client.scales | server.scales == empty.scales


def test_ranks_of_a_layer_that_no_part_has_are_refused():
    with pytest.raises(ModelError, match="matches none of the adapted layers"):
        skeleton(load([*TINY, r"lora.rank_pattern={layers\.9\..*: 4}"]))


def test_each_process_makes_the_whole_model_once_and_without_its_weights(monkeypatch):
    config, made = load(TINY), []
    build_model = type(config.task).build_model

    def counted(task, *, seed, empty=False):
        made.append(empty)
        return build_model(task, seed=seed, empty=empty)

    monkeypatch.setattr(type(config.task), "build_model", counted)
    build.workbench(config)
    assert made == [True]
    build_trunk(config, skeleton(config))
    assert made == [True, True]


def test_a_server_whose_clients_answer_at_once_never_pauses(tmp_path, monkeypatch):
    from strategies.round import collection

    pauses = []
    monkeypatch.setattr(collection, "time", SimpleNamespace(monotonic=time.monotonic, sleep=pauses.append))
    run_in_process([*TINY, "train.steps=1", f"run.dir={tmp_path / 'run'}"])
    assert pauses == []


@pytest.mark.slow
def test_any_process_of_a_client_can_answer_the_next_message(run, tmp_path, monkeypatch):
    from fedsa_lora.client.session import Session

    words = ("cut.micro_batches=2", "lora.dropout=0.1")
    with monkeypatch.context() as patch:
        patch.setattr(Session, "is_at", lambda session, kept: False)
        run_in_process([*TINY, *words, f"run.dir={tmp_path / 'run'}"])
    assert_same_run(tmp_path / "run", run(*words))


@pytest.mark.slow
def test_a_message_that_comes_twice_has_the_same_answer_and_changes_nothing(run, tmp_path, monkeypatch):
    from fedsa_lora.runs.inprocess import InProcessGrid

    once = InProcessGrid._serve

    def twice(grid, message):
        first, second = once(grid, message), once(grid, message)
        assert first.content == second.content or message.metadata.message_type != "train"
        return second

    words = ("cut.micro_batches=2", "lora.dropout=0.1")
    with monkeypatch.context() as patch:
        patch.setattr(InProcessGrid, "_serve", twice)
        run_in_process([*TINY, *words, f"run.dir={tmp_path / 'run'}"])
    assert_same_run(tmp_path / "run", run(*words))


@pytest.mark.slow
@pytest.mark.parametrize("trunk", ["shared", "per_client"])
def test_a_run_that_is_resumed_has_the_bits_of_one_that_was_not_interrupted(
    run, tmp_path, monkeypatch, trunk
):
    words = ("federation.rounds=2", f"cut.trunk={trunk}", "train.steps=2")
    broken(monkeypatch, [*TINY, *words, f"run.dir={tmp_path / 'run'}"], "aggregate_fit", 2)
    run_in_process([*TINY, *words, f"run.dir={tmp_path / 'run'}", "run.resume=true"])
    assert_same_run(tmp_path / "run", run(*words))


def test_the_trunk_is_the_mean_over_clients_or_one_for_each(run):
    words = ("train.steps=2", "federation.train_examples=[8,12]")
    shared, each = run(*words), run(*words, "cut.trunk=per_client")
    examples = {row["client"]: row["examples"] for row in fits(shared)}
    mean, own = of_trunk(server_memory(shared))[""], of_trunk(server_memory(each))
    assert set(own) == {"", *examples}
    assert len({*examples.values()}) > 1
    for name, array in mean.items():
        expected = sum(n * own[client][name].astype(np.float64) for client, n in examples.items())
        np.testing.assert_allclose(array, expected / sum(examples.values()), rtol=1e-6, atol=1e-9)
        assert not np.array_equal(own["0"][name], own["1"][name]) or "lora" not in name


def fits(path):
    found = [json.loads(line) for line in (path / "clients.jsonl").read_text().splitlines()]
    return [row for row in found if row["phase"] == "fit"]


def test_a_run_put_together_again_is_measured_as_its_parts_were(run, tmp_path):
    from fedsa_lora.analysis.reevaluate import reevaluate

    path = run(*EXPORTED)
    for found in reevaluate(path):
        assert found.value == pytest.approx(found.recorded, rel=1e-6)
    config = read_config(path)
    exporter = exporter_of(path)
    merged = stock(exporter.export("1", tmp_path / "merged", merge=True))
    adapter = exporter.export("1", tmp_path / "adapter")
    assert (adapter / "adapter_config.json").exists()
    bench = build.workbench(config.whole)
    data = bench.task.load_client("1")
    batch = bench.task.collate(data.test, np.arange(4))
    bench.model.write(exporter.tensors("1"))
    with torch.no_grad():
        expected = bench.model.module(**batch).logits
        assert (merged(**batch).logits - expected).abs().max() < 1e-4


def exporter_of(path):
    from fedsa_lora.analysis.export import Exporter
    from fedsa_lora.runs.directory import RunDirectory

    config = read_config(path)
    return Exporter(config, RunDirectory(path, config), skeleton(config))


def test_the_adapter_of_all_parts_is_merged_and_unmerged_by_peft(run, tmp_path):
    """Merged it gives the weights of the merged export, unmerged the base, each to the rounding of a sum."""
    from peft import PeftModel
    from peft.tuners.lora import LoraLayer

    exporter = exporter_of(run(*EXPORTED))
    folder = exporter.export("1", tmp_path / "adapter")
    whole = dict(stock(exporter.export("1", tmp_path / "merged", merge=True)).named_parameters())
    model = PeftModel.from_pretrained(stock(folder / "backbone"), folder)
    named = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, LoraLayer)]
    layers = {name.removeprefix("base_model.model."): layer.get_base_layer().weight for name, layer in named}
    assert {int(name.split(".")[2]) for name in layers} == {0, 1, 2, 3, 4}, "of both sides"
    base = {name: weight.detach().clone() for name, weight in layers.items()}
    model.merge_adapter()
    for name, weight in layers.items():
        torch.testing.assert_close(weight, whole[f"{name}.weight"], rtol=0, atol=1e-6)
        assert (weight - base[name]).abs().max() > 1e-5, f"nothing was merged into {name}"
    model.unmerge_adapter()
    for name, weight in layers.items():
        torch.testing.assert_close(weight, base[name], rtol=0, atol=1e-6)


def stock(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder).eval()


def test_ids_of_texts_are_searched_for_in_what_leaves(monkeypatch, tmp_path):
    from fedsa_lora.client.session import Session
    from fedsa_lora.errors import RunError
    from fedsa_lora.exchange.step import Step

    honest = Session._up

    def with_ids(session, batch, **fields):
        step = honest(session, batch, **fields)
        ids = batch["labels"].numpy().astype("<i4")
        states = step.tensors["h1"]
        states[:, :, 0] = ids.view(np.float32)
        flat = states.ravel()
        flat[: ids[0].size] = ids[0].view(np.float32)
        return Step(step.number, {**step.tensors, "h1": states}, step.mask)

    monkeypatch.setattr(Session, "_up", with_ids)
    with pytest.raises(RunError, match="contains token ids of this client's texts and was not sent"):
        run_in_process([*TINY, "lora.dropout=0", f"run.dir={tmp_path / 'run'}"])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("cut.bottom=4",), "bottom below top"),
        (("task.packed=true",), "task.packed=false"),
        (("task.measured=[rouge_l]", "task.text=null"), "no single part can write an answer"),
        (("personalisation=ditto",), "personalisation=none"),
        (("evaluation.local_only=true",), "evaluation.local_only=false"),
        (("train.accumulate=2",), "train.accumulate=1"),
        (("train.steps=null", "train.epochs=1"), "expected train.steps"),
        (("federation.clients_per_node=3",), "clients_per_node=1"),
        (("lora=dora",), "lora.variant=lora"),
        (("split=importance",), "neither adapts"),
        (("strategy=fedprox",), "strategy=fedavg"),
        (("split=share_ab", "strategy=flora"), "another that averages"),
        (("split=local_only",), "shares nothing"),
        (("split=soft",), "neither adapts nor mixes"),
        (("lora.layer_ranks=[2,2,4,4,8]",), r"lora.layer_ranks=null.*\{layers\\.0\\..\*: 4\}"),
        (("cut.micro_batches=8",), "no more parts"),
        (("cut.top=5",), "has 5 blocks.*expected cut.top=2 to 4"),
        (("cut.top=9", "train.accumulate=2"), "(?s)has 5 blocks.*train.accumulate=1"),
        (("cut.bottom=4", "cut.top=5"), "expected cut.bottom=1 to 3, and cut.top above it and below 5"),
        ((*GPT2[:3], "cut.top=5", GPT2[3]), "has 5 blocks"),
        (("+model.config.num_hidden_layers=2",), "has 2 blocks.*expected one of at least 3, or cut=none"),
        (("experiment=smoke", "cut=u_shape"), "expected task=causal_lm"),
    ],
)
def test_what_cannot_be_cut_is_refused_with_a_way_out(words, told):
    asked = [word for word in TINY if not word.startswith("experiment") or "experiment" not in words[0]]
    with pytest.raises(ConfigError, match=told):
        load([*(asked if "experiment" not in words[0] else ()), *words])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ((*GPT2[:3], NO_DEPTH, "cut.top=12"), "has 12 blocks.*expected cut.top=2 to 11"),
        (OPT, "like GPT-2 or Llama"),
        (("lora.targets=default", "lora.target_modules=[layers.2.mlp.up_proj]"), "the client's part"),
        (("lora.targets=default", "lora.target_modules=[layers.0.mlp.up_proj]"), "the server's part"),
    ],
)
def test_a_model_that_cannot_be_cut_so_is_refused_before_a_run(words, told):
    from fedsa_lora.launch.plan import make_plan

    with pytest.raises((ModelError, ConfigError), match=told):
        make_plan(load([*TINY, *words, "run.dir=/tmp/nowhere-at-all"]))
