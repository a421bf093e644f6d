"""Federations of image models: all weights against a loop by hand, and what never leaves a client."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForImageClassification

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.client import build
from fedsa_lora.config.compose import read_config
from fedsa_lora.learning.adapters import initial_state
from fedsa_lora.learning.training import predict, round_batches
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.seeds import generator
from fedsa_lora.server.build import skeleton
from fedsa_lora.settings import RunConfig
from fedsa_lora.store import DirectoryStore

VIT = ("model=tiny_vit", "model.config.num_hidden_layers=1", "model.config.hidden_size=32")
SIZES = {
    "resnet": {"num_channels": 1, "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
               "layer_type": "basic"},
    "efficientnet_lite": {"num_channels": 1, "stem_channels": 8, "channels": [8, 16], "repeats": [1, 1],
                          "kernels": [3, 5], "strides": [1, 2], "top_channels": 32, "image_size": 8},
}  # fmt: skip
RESNET = ("model=resnet_small", *(f"model.config.{key}={value}" for key, value in SIZES["resnet"].items()))
SMALL = (
    "task=image", "federation.clients=3", "federation.rounds=2", "train.batch_size=8", "train.steps=2",
    "evaluation.local_only=false", "evaluation.before=false", "evaluation.every=0", "run.report=false",
)  # fmt: skip


def run(folder: Path, *words: str) -> RunConfig:
    return read_config(run_in_process([*SMALL, *words, f"run.dir={folder}"]))


def shared(config: RunConfig) -> dict[str, np.ndarray]:
    state = DirectoryStore(config.run_dir, "checkpoints", config.name).load()
    assert state is not None
    return state.tensors


class FedAvg:
    """Federated averaging as in arXiv:1602.05629, by hand: in float32, but for the mean, and with weights as
    differences from those that all begin with, as they are sent."""

    def __init__(self, config: RunConfig) -> None:
        self.config, self.task = config, config.task
        torch.manual_seed(config.seed)
        architecture = AutoConfig.for_model(**config.model.config, num_labels=len(self.task.labels()))
        self.model = AutoModelForImageClassification.from_config(architecture)
        named = dict(self.model.named_parameters())
        head = initial_state(skeleton(config).layout, config.seed)
        with torch.no_grad():
            for name, value in named.items():
                if name.startswith("classifier"):
                    value.copy_(torch.from_numpy(head[name]))
        self.start = {name: value.detach().numpy().copy() for name, value in named.items()}
        # a head is exchanged as it is, since everybody knows its start
        self.origin = {
            name: value * (not name.startswith("classifier")) for name, value in self.start.items()
        }
        self.common = {name: self.start[name] - self.origin[name] for name in named}

    def round(self, number: int) -> None:
        clients = sorted(self.task.describe().clients)
        data = {client: self.task.load_client(client).train for client in clients}
        total = sum(len(examples) for examples in data.values())
        means = {name: np.zeros(value.shape) for name, value in self.common.items()}
        for client in clients:
            for name, value in self.trained(client, number).items():
                change = (value - self.origin[name]) - self.common[name]
                means[name] += len(data[client]) / total * change.astype(np.float64)
        self.common = {n: value + means[n].astype(np.float32) for n, value in self.common.items()}

    def trained(self, client: str, number: int) -> dict[str, np.ndarray]:
        """The weights of a client after its steps of plain SGD. Batch norms use what they began with."""
        settings, examples = self.config.train, self.task.load_client(client).train
        named = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, value in named.items():
                value.copy_(torch.from_numpy(self.common[name] + self.origin[name]))
        optimizer = torch.optim.SGD(named.values(), lr=settings.lr)
        self.model.train()
        for module in self.model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        batches = round_batches(
            examples.lengths, settings, generator(self.config.seed, "batches", client, number)
        )
        for indices in batches:
            optimizer.zero_grad()
            self.model(**self.task.collate(examples, indices)).loss.backward()
            optimizer.step()
        return {name: value.detach().numpy().copy() for name, value in named.items()}


@pytest.mark.sampled(2)
@pytest.mark.parametrize("model", [RESNET, VIT], ids=["resnet", "vit"])
def test_full_training_of_an_image_model_is_fedavg_to_the_bit(tmp_path, model):
    config = run(
        tmp_path / "run", *model, "lora=none", "split=full", "head=shared", "head.count_weighted=false",
        "train=sgd", "train.lr=0.05", "train.steps=2", "train.batch_size=8",
    )  # fmt: skip
    by_hand = FedAvg(config)
    begin = by_hand.common
    for number in (1, 2):
        by_hand.round(number)
    found = shared(config)
    assert found.keys() == by_hand.common.keys()
    for name, value in found.items():
        assert np.array_equal(value, by_hand.common[name]), name
    assert any(not np.array_equal(value, begin[name]) for name, value in found.items())


@pytest.mark.slow
def test_a_cohort_of_convolutional_models_has_the_bits_of_one_at_a_time(tmp_path):
    alone, cohort = (run(tmp_path / str(n), *RESNET, f"machine.cohort={n}") for n in (1, 3))
    found = shared(cohort)
    assert found
    assert all(np.array_equal(value, found[name]) for name, value in shared(alone).items())


@pytest.mark.parametrize("kind", ["efficientnet_lite", pytest.param("resnet", marks=pytest.mark.slow)])
def test_the_card_of_an_export_has_the_lines_that_load_it(tmp_path, monkeypatch, kind):
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, **SIZES[kind]))
    model.save_pretrained(tmp_path / "model")
    config = run(tmp_path / "run", "model=vit_base", f"model.path={tmp_path / 'model'}")
    exporter = Exporter(config, RunDirectory(config.run_dir, config), skeleton(config))
    data = config.task.load_client("0").test
    ours = build.model(config)
    ours.write(exporter.tensors("0"))
    expected = predict(ours, config.task, data, config.train)
    pixels = config.task.collate(data, np.arange(len(data)))["pixel_values"]
    for merge in (False, True):
        folder = exporter.export("0", tmp_path / f"export-{merge}", merge=merge)
        code = (folder / "README.md").read_text().split("```python\n")[1].split("```")[0]
        assert ("import fedsa_lora.models" in code) == (kind == "efficientnet_lite")
        monkeypatch.chdir(folder)
        names: dict = {}
        exec(code, names)
        with torch.no_grad():
            logits = names["model"].eval()(pixel_values=pixels).logits.numpy()
        np.testing.assert_allclose(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("words", [(), ("lora=none", "split=full", "head=shared")], ids=["lora", "full"])
def test_running_statistics_never_change_and_never_travel(tmp_path, monkeypatch, kind, words):
    torch.manual_seed(0)
    model = AutoModelForImageClassification.from_config(AutoConfig.for_model(kind, **SIZES[kind]))
    statistics = {n: value for n, value in model.named_buffers() if value.is_floating_point()}
    assert {name.rpartition(".")[2] for name in statistics} == {"running_mean", "running_var"}
    for name, value in statistics.items():
        value.copy_(torch.rand(value.shape) + 0.5 * ("var" in name))
    model.save_pretrained(tmp_path / "model")
    benches = []

    def workbench(*given):
        benches.append(bench(*given))
        return benches[-1]

    bench = build.workbench
    monkeypatch.setattr(build, "workbench", workbench)
    config = run(
        tmp_path / "run",
        "model=vit_base",
        f"model.path={tmp_path / 'model'}",
        "run.keep_messages=true",
        *words,
    )
    (resident,) = benches
    held = {name.replace("base_model.model.", ""): b for name, b in resident.model.module.named_buffers()}
    assert len(statistics) > 6
    assert all(torch.equal(held[name], value) for name, value in statistics.items())
    assert not any("running" in name for name in resident.model.layout.names)
    messages = [path.read_bytes() for path in config.run_dir.glob("clients/*/messages/*")]
    assert len(messages) == 3 * (1 + 2 + 1)  # properties, two rounds, one evaluation
    for name, value in statistics.items():
        assert not any(value[:4].numpy().tobytes() in message for message in messages), name
