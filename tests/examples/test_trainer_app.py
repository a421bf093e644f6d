"""The Trainer of examples/: its model, data, loss and arguments are those of a federation."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from flwr.cli.config_utils import load_and_validate
from played import play
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback
from vit_app import app

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.client import build
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.measure import CLASSES, Measure
from fedsa_lora.flower import trainer_apps
from fedsa_lora.learning.trainer_arguments import left_out, settings_of_trainer
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.reading import read_jsonl, read_run
from fedsa_lora.server.build import skeleton
from fedsa_lora.tasks.named_functions import name_of
from fedsa_lora.tasks.trainers import measures_of

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


class OwnOptimizer(Trainer):
    def create_optimizer(self, model=None):
        return torch.optim.SGD(self.model.parameters())


def refused(trainer: Trainer, kind: type[Trainer]) -> str:
    trainer.__class__ = kind
    with pytest.raises(ConfigError) as caught:
        settings_of_trainer(trainer)
    return str(caught.value)


def test_what_a_run_does_not_use_is_refused_with_all_faults():
    trainer = app.trainer(0, 4)
    trainer.args.lr_scheduler_type = "polynomial"
    trainer.args.max_steps, trainer.args.num_train_epochs = -1, 1.5
    trainer.optimizer = torch.optim.SGD(trainer.model.parameters())
    assert "an optimizer" in refused(app.trainer(0, 4), OwnOptimizer)
    with pytest.raises(ConfigError) as caught:
        settings_of_trainer(trainer)
    for said in ("an optimizer or a scheduler", "lr_scheduler_type=polynomial", "num_train_epochs=1.5"):
        assert said in str(caught.value)


def among_two(found):
    """Shares of the examples whose class is the first choice, and one of the first two."""
    ranks = np.argsort(-found.predictions, axis=1)
    right = ranks[:, :2] == found.label_ids[:, None]
    return {"miss_loss": 1 - right[:, 0].mean(), "top_two": right.sum(1).mean(), "by_row": right}


def computing(partition: int, partitions: int) -> Trainer:
    trainer = app.trainer(partition, partitions)
    trainer.compute_metrics = among_two
    trainer.args.metric_for_best_model, trainer.args.greater_is_better = "eval_top_two", True
    trainer.add_callback(EarlyStoppingCallback())
    return trainer


def test_its_metrics_are_the_measures_of_the_run_and_what_is_not_called_is_logged(
    tmp_path, monkeypatch, caplog
):
    apps = trainer_apps(computing, app.lora, clients=2)
    said = {"run.dir": str(tmp_path / "run"), "num-server-rounds": 1, "run.report": False}
    run = play(apps.client, apps.server, 2, said | {"evaluation.local_only": False}, monkeypatch)
    assert "its callbacks are not called: EarlyStoppingCallback" in caplog.text
    config, found = read_config(run), read_run(run)
    assert [measure.name for measure in config.task.measures] == ["top_two", "miss_loss"]
    assert [measure.higher_is_better for measure in config.task.measures] == [True, False]
    assert found.primary.name == "top_two"
    model = build.model(config)
    model.write(Exporter(config, RunDirectory(run, config), skeleton(config)).tensors("1"))
    stock = computing(1, 2)
    stock.model.load_state_dict(model.module.merge_and_unload().state_dict())
    expected = stock.evaluate()
    (row,) = [r for r in read_jsonl(run / "clients.jsonl") if (r["client"], r["phase"]) == ("1", "evaluate")]
    for name in ("top_two", "miss_loss"):
        assert row[name] == pytest.approx(expected[f"eval_{name}"])


def test_of_a_trainers_metrics_those_that_we_know_are_ours_and_an_evaluation_of_the_users_own_goes_first():
    trainer = app.trainer(0, 4)
    assert measures_of(trainer, (), False) == ((), "")
    trainer.compute_metrics = lambda found: {"f1": 0.5, "accuracy": float(len(found.label_ids) == 8)}
    others, reason = measures_of(trainer, (), False)
    assert (others[0].name, others[1], reason) == ("f1", CLASSES[0], "")
    trainer.compute_metrics = lambda found: {"accuracy": 84.6}
    assert measures_of(trainer, (), False)[0][0].range[1] > 84.6
    declared = (Measure("f1", (0.0, 1.0)),)
    assert measures_of(trainer, declared, False) == (declared, "")
    assert measures_of(trainer, declared, True) == (declared, "evaluate measures in its place")


def test_metrics_that_cannot_be_computed_are_named_with_the_reason():
    trainer, declared = app.trainer(0, 4), (Measure("f1", (0.0, 1.0)),)
    with pytest.raises(ConfigError, match="nothing returns them"):
        measures_of(trainer, declared, False)
    trainer.compute_metrics = lambda found: found.no_such
    with pytest.raises(ConfigError, match=r"raises AttributeError for its first 8 .* declare by `measures`"):
        measures_of(trainer, (), False)
    trainer.args.include_for_metrics = ["loss"]
    assert "no batches, inputs or losses" in measures_of(trainer, (), False)[1]
    trainer.args.include_for_metrics = []
    trainer.eval_dataset = [{**row, "labels": float(row["labels"])} for row in trainer.eval_dataset]
    assert "the data have others" in measures_of(trainer, (), False)[1]
    with pytest.raises(ConfigError, match=r"nothing returns them.*the data have others"):
        measures_of(trainer, declared, False)


def test_what_is_left_out_is_named_and_nothing_of_a_plain_trainer():
    trainer = app.trainer(0, 4)
    assert left_out(trainer) == []

    class Noted(TrainerCallback):
        pass

    class Stepping(Trainer):
        def training_step(self, *given, **more):
            return super().training_step(*given, **more)

    trainer.add_callback(Noted)
    trainer.__class__, trainer.args.adam_beta2 = Stepping, 0.9
    for line, name in zip(left_out(trainer), ("Noted", "training_step", "adam_beta2"), strict=True):
        assert line.endswith(f": {name}")
