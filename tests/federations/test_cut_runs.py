"""Runs of split learning: the parts of a model in several places compute what the whole model computes."""

import json
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from cut_cases import MODELS, TINY
from test_methods import rows
from test_resume import assert_same_run, broken
from torch.nn.utils import clip_grad_norm_

from fedsa_lora.client import build
from fedsa_lora.client.model import ClientModel
from fedsa_lora.client.personal import TRAINED
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import ModelError
from fedsa_lora.learning.cut.parts import anatomy_of
from fedsa_lora.learning.training import seed_generators
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.trunk import of_trunk
from fedsa_lora.seeds import torch_seed
from fedsa_lora.tasks.heads import unwrapped
from fedsa_lora.tasks.imported import imported

ALONE = ("federation.clients=1", "lora.dropout=0.1", "run.keep_trained=true")


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
    summary = json.loads((path / "summary.json").read_text())
    assert summary["step_bytes"]["h1"] > 0
    assert summary["bytes_up_share_ab"] is None, "an upload with B as well would be no comparison"


@pytest.mark.slow
def test_held_out_loss_falls(run):
    first, second = rows(run("federation.rounds=2", "train.steps=8", "federation.train_examples=[200,200]"))
    assert second["perplexity"] < first["perplexity"] < 104  # that of the model as it comes


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
