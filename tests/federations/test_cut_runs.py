"""Runs of split learning: the parts of a model in several places compute what the whole model computes."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from test_methods import rows
from torch.nn.utils import clip_grad_norm_

from fedsa_lora.client import build
from fedsa_lora.client.model import ClientModel
from fedsa_lora.client.personal import TRAINED
from fedsa_lora.config.compose import read_config
from fedsa_lora.learning.cut.parts import anatomy_of
from fedsa_lora.learning.training import seed_generators
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.trunk import of_trunk
from fedsa_lora.seeds import torch_seed
from fedsa_lora.tasks.heads import unwrapped

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
MODELS = {"llama": (), "gpt2": GPT2}


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


@pytest.mark.parametrize("kind", MODELS)
def test_a_step_over_the_wire_is_that_of_the_whole_model_to_the_bit(run, kind):
    path = run(*ALONE, *MODELS[kind])
    expected, losses = whole(path, "0")
    found = trained(path, "0")
    assert found.keys() == expected.keys()
    assert not [name for name, array in found.items() if not np.array_equal(array, expected[name])]
    assert rows(path)[0]["step_losses"] == losses
    assert any(np.abs(array).max() > 0 for name, array in found.items() if "lora_B" in name)
