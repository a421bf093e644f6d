"""The Trainer of examples/: its model, data, loss and arguments are those of a federation."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.cli.config_utils import load_and_validate
from played import play
from transformers import Trainer
from vit_app import app

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.client import build
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import ConfigError
from fedsa_lora.learning.trainer_arguments import settings_of_trainer
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.reading import read_run
from fedsa_lora.server.build import skeleton
from fedsa_lora.tasks.named_functions import name_of

PROJECT = Path(__file__).parents[2] / "examples" / "trainer_app"


class Halved(Trainer):
    """A loss of the user's own."""

    def compute_loss(self, model, inputs, **more):
        return super().compute_loss(model, inputs, **more) / 2


def halved(partition: int, partitions: int) -> Trainer:
    trainer = app.trainer(partition, partitions)
    trainer.__class__ = Halved
    return trainer


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    said = {"run.dir": str(tmp_path_factory.mktemp("trainer") / "run"), "num-server-rounds": 1}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("here"))
        return play(app.client, app.server, 4, said, patch)


def test_six_lines_are_around_a_users_own():
    code = (PROJECT / "vit_app" / "app.py").read_text().partition("# What makes a federation of it:\n")[2]
    assert len([line for line in code.splitlines() if line.strip()]) <= 6


def test_flower_accepts_the_project():
    load_and_validate(PROJECT / "pyproject.toml")


def test_its_arguments_are_those_of_local_training(run):
    train = read_config(run).train
    assert (train.lr, train.at_once, train.steps, train.epochs) == (1e-2, 16, 5, None)
    assert (train.schedule, train.optimizer, train.clip_norm) == ("linear", "adamw", 1.0)


def test_it_runs_to_its_report(run):
    found = read_run(run)
    assert found.status["state"] == "completed"
    assert found.summary["proof"]["matches"] == 0
    assert [share["test"] for share in found.partition["clients"].values()] == [90, 89, 89, 89]
    assert (run / "report.html").is_file()


def test_the_loss_is_its_own_on_its_own_batches(run):
    config = read_config(run)
    task, model = config.task, build.model(config)
    examples = task.load_client("1").train
    batch = task.collate(examples, np.arange(6))
    trainer = app.trainer(1, 4)
    expected = trainer.data_collator([trainer.train_dataset[i] for i in range(6)])
    where = [trainer.train_dataset[i]["pixel_values"] for i in range(6)]
    assert batch.keys() == expected.keys() == {"pixel_values", "labels"}
    assert all(torch.equal(batch[name], expected[name]) for name in batch)
    assert torch.equal(batch["pixel_values"], torch.tensor(np.stack(where)))
    with torch.no_grad():
        loss = task.loss(model.module, batch)
        assert loss == trainer.compute_loss(model.module, dict(batch))
        assert loss == model.module(**batch).loss


def test_the_card_of_an_adapter_loads_what_the_client_had(run, monkeypatch):
    config, folder = read_config(run), run / "adapters" / "2"
    monkeypatch.chdir(folder)
    loaded: dict[str, torch.nn.Module] = {}
    exec(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)[0], loaded)
    expected = build.model(config)
    expected.write(Exporter(config, RunDirectory(run, config), skeleton(config)).tensors("2"))
    batch = config.task.collate(config.task.load_client("2").test, np.arange(8))
    with torch.no_grad():
        found = loaded["model"].eval()(**batch).logits
        assert torch.allclose(found, expected.module(**batch).logits, atol=1e-5)


def test_a_subclass_has_its_own_loss(run):
    config = read_config(run)
    own = replace(config.task, trainer_function=name_of(halved), classes=[])
    model = build.model(config).module
    batch = config.task.collate(config.task.load_client("0").train, np.arange(4))
    with torch.no_grad():
        assert torch.allclose(2 * own.loss(model, batch), config.task.loss(model, batch))
        assert own.predict(model, batch).mean() == pytest.approx(own.loss(model, batch).item(), rel=1e-5)


def test_what_a_run_does_not_use_is_refused_with_all_faults():
    trainer = app.trainer(0, 4)
    trainer.args.lr_scheduler_type = "polynomial"
    trainer.args.max_steps, trainer.args.num_train_epochs = -1, 1.5
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters())
    with pytest.raises(ConfigError) as caught:
        settings_of_trainer(trainer)
    for said in ("an optimizer or a scheduler", "lr_scheduler_type=polynomial", "num_train_epochs=1.5"):
        assert said in str(caught.value)
