"""A task of a user's own functions: data in the forms that torch users have, and what is wrong with them."""

import sys

import numpy as np
import pytest
import torch
from datasets import Dataset
from flwr.app import Context, RecordDict
from peft import LoraConfig, PeftModel
from torch import nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from fedsa_lora.client.client import check_measured
from fedsa_lora.config.compose import load
from fedsa_lora.errors import ConfigError, DataError, ModelError, TrainingError
from fedsa_lora.exchange.measure import LARGEST, Measure
from fedsa_lora.exchange.split import Alternate, RoleSplit
from fedsa_lora.flower import _federation, _of_split, client_app, trainer_apps
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.given import adapted
from fedsa_lora.learning.lora import settings_of
from fedsa_lora.learning.settings import LoraSettings
from fedsa_lora.runs.inprocess import InProcessGrid
from fedsa_lora.tasks.named_functions import name_of
from fedsa_lora.tasks.own_model import OwnModelTask

X = torch.arange(24, dtype=torch.float32).reshape(12, 2)
Y = torch.arange(12) % 3
WHOLE = TensorDataset(X, Y)
ROWS = [{"x": x, "label": y.item()} for x, y in WHOLE]
COLUMNS = Dataset.from_dict({"x": X.tolist(), "label": Y.tolist()}).with_format("torch")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 4)
        self.last = nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.fc(x).relu())


def doubled(items):
    x, y = zip(*items, strict=True)
    return {"x": 2 * torch.stack(x), "labels": torch.tensor(y)}


DATA = {
    "tensors": (WHOLE, Subset(WHOLE, [1, 2])),
    "dicts": (ROWS, ROWS[1:3]),
    "columns": (COLUMNS, COLUMNS.select([1, 2])),
    "loaders": (DataLoader(WHOLE, 5, shuffle=True), DataLoader(Subset(WHOLE, [1, 2]))),
    "collated": (
        DataLoader(WHOLE, 5, collate_fn=doubled),
        DataLoader(Subset(WHOLE, [1, 2]), collate_fn=doubled),
    ),
    "alone": WHOLE,
    "regression": (TensorDataset(X, X.sum(1)), TensorDataset(X[:3], X[:3].sum(1))),
}


def data(client, clients):
    assert (client, clients) == (0, 2)
    return DATA[data.kind]


def error(model, batch):
    return nn.functional.mse_loss(model(batch["0"])[:, 0], batch["labels"])


def share_right(outputs, labels):
    return {"right": float((outputs.argmax(1) == labels).mean())}


@pytest.fixture(autouse=True)
def _kind():
    data.kind = "tensors"


def task(*words: str, classes: str = "[a, b, c]") -> OwnModelTask:
    named = [f"task.model_function={name_of(Net)}", f"task.data_function={name_of(data)}", "task.head=[last]"]
    own = ["task=functions", "model=own", "federation.clients=2", f"task.classes={classes}"]
    return load([*own, *named, *words]).task


@pytest.mark.parametrize("kind", ["tensors", "dicts", "columns", "loaders", "collated"])
def test_data_in_any_form_is_the_same_batch(kind):
    data.kind, found = kind, task()
    held = found.load_client("0")
    assert held.train.labels.tolist() == Y.tolist()
    assert held.test.labels.tolist() == [1, 2]
    batch = found.collate(held.train, np.array([3, 1]))
    x = batch["0" if kind in ("tensors", "loaders") else "x"]
    assert torch.equal(x, X[[3, 1]] * (2 if kind == "collated" else 1))
    assert batch["labels"].tolist() == [0, 1]
    assert found.collate(held.test, np.array([0]))["labels"].tolist() == [1]
    model = found.build_model(seed=0)
    assert torch.equal(found.predict(model, batch), model(x))
    assert found.loss(model, batch) == nn.functional.cross_entropy(model(x), batch["labels"])


def test_what_a_client_has_no_test_set_for_is_taken_from_its_train_set():
    data.kind = "alone"
    held = task("federation.test_fraction=0.25", "federation.validation_examples=2").load_client("0")
    assert (len(held.train), len(held.validation), len(held.test)) == (7, 2, 3)
    rows = [row for part in (held.train, held.validation, held.test) for row in part.features["place"][:, 2]]
    assert sorted(rows) == list(range(12))


def test_without_classes_the_loss_is_measured():
    data.kind, found = "regression", task(f"task.loss_function={name_of(error)}", classes="[]")
    (measure,) = found.measures
    test = found.load_client("0").test
    model, batch = found.build_model(seed=0), found.collate(test, np.arange(3))
    predicted = found.predict(model, batch).numpy()
    assert predicted.shape == (3,)
    assert found.evaluate(predicted, test.labels) == {measure.name: pytest.approx(error(model, batch).item())}


def test_a_users_measure_is_declared_with_its_function():
    declared = "task.measured=[{name: right, range: [0, 1], format: percent}]"
    found = task(declared, f"task.evaluate_function={name_of(share_right)}")
    assert [measure.name for measure in found.measures] == ["right"]
    assert found.measures[0].range == (0, 1)
    assert found.evaluate(np.eye(3, dtype=np.float32), np.array([0, 1, 1])) == {"right": pytest.approx(2 / 3)}
    with pytest.raises(ConfigError, match="give both, or neither"):
        task(declared)


def test_the_head_starts_as_the_model_has_it_and_the_server_knows_its_shape():
    found = task()
    model = found.build_model(seed=3)
    with torch.random.fork_rng():
        assert torch.equal(found.build_model(seed=3).last.weight, model.last.weight)
    trained = adapted(model, LoraSettings(target_modules=["fc"], r=2), 3, found.model)
    server = adapted(
        found.build_model(seed=3, empty=True), LoraSettings(target_modules=["fc"], r=2), 3, found.model
    )
    assert server.layout == trained.layout
    assert {spec.role for spec in server.layout} == {"A", "B", "head"}
    start = model.last.weight.detach().clone()
    trained.write(server.initial(3))
    assert isinstance(trained, AdapterModel)
    assert torch.equal(trained.parameter("last.weight.difference"), start)


WRONG = {
    "a label beyond the classes": (
        DataError,
        "has the label 2: expected whole numbers from 0 to 1",
        "[a, b]",
        "tensors",
    ),
    "no class at all": (DataError, "has the label -1", "[a, b]", "regression"),
    "not return a data set": (DataError, "int is not a data set", "[a]", "number"),
    "tensors": (DataError, r"two tensors are not data sets; return TensorDataset\(X, y\)", "[a]", "pair"),
    "three sets": (
        DataError,
        "test_own_model:data returns a tuple of 3: expected a train set",
        "[a]",
        "three",
    ),
    "an error of the function": (DataError, "KeyError: 'missing'", "[a]", "missing"),
}


@pytest.mark.parametrize(("kind", "said", "classes", "given"), WRONG.values(), ids=WRONG)
def test_data_of_no_use_are_named(kind, said, classes, given, monkeypatch):
    for name, value in {"number": 3, "pair": (X, Y), "three": (WHOLE, WHOLE, WHOLE)}.items():
        monkeypatch.setitem(DATA, name, value)
    data.kind = given
    with pytest.raises(kind, match=said):
        task(classes=classes).load_client("0")


def test_a_head_and_a_model_that_are_not_there_are_named():
    with pytest.raises(ModelError, match="Net has no module latter; expected some of fc, last"):
        task("task.head=[latter]").build_model(seed=0)
    with pytest.raises(ModelError, match="returns a dict"):
        task(f"task.model_function={name_of(dict_of_nothing)}").build_model(seed=0)


class Deep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.net = nn.Linear(2, 4), Net()


def test_modules_of_the_head_that_lie_in_one_another_are_named():
    words = [f"task.model_function={name_of(Deep)}", "task.head=[net, last]"]
    with pytest.raises(ModelError, match=r"net\.last is within another module of the head"):
        task(*words).build_model(seed=0)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["head=frozen"], r"modules_to_save.* lists last, but head=frozen would not train it"),
        (["head.row_norm=2"], r"head\.row_norm: the head starts as the user's model has it"),
        (["task.head=[]", "head=shared"], r"head=shared: the model has no head; .*modules_to_save"),
        (["task.head=[]", "head=soft"], r"head=soft: the model has no head"),
    ],
)
def test_a_policy_that_does_not_fit_the_modules_that_are_trained_whole_is_a_clash(words, told):
    with pytest.raises(ConfigError, match=told):
        task(*words)


def test_without_modules_to_train_whole_the_head_is_nobodys():
    assert task("task.head=[]", "head=frozen").head == []


def dict_of_nothing() -> dict[str, int]:
    return {}


def test_functions_are_found_where_they_are_allowed(monkeypatch):
    words = ["task.model_function=sys:exit", "task.head=[]"]
    with pytest.raises(ConfigError, match="'sys:exit' is not allowed here"):
        task(*words).build_model(seed=0)
    monkeypatch.setenv("FEDSA_LORA_PLUGINS", "own_functions")
    monkeypatch.setitem(sys.modules, "own_functions", sys.modules[__name__])
    assert isinstance(task("task.model_function=own_functions:Net").build_model(seed=0), nn.Module)
    with pytest.raises(ConfigError, match="AttributeError"):
        task("task.model_function=own_functions:Nett").build_model(seed=0)
    with pytest.raises(ConfigError, match="expected MODULE:FUNCTION"):
        task("task.model_function=own_functions.Net")


def test_clients_of_a_deployment_have_their_own_data_and_the_server_none():
    deployed = ["federation=deployment", "federation.superlink=127.0.0.1:1", "federation.insecure=true"]
    found = task(*deployed, "partition=own", "federation.clients=2")
    data.kind = "never asked"
    assert found.describe().clients == {}


def test_a_lora_config_is_ours_or_refused():
    given = LoraConfig(r=4, lora_alpha=6, target_modules={"b", "a"}, modules_to_save=["out"], use_rslora=True)
    settings, head = settings_of(given)
    expected = LoraSettings(r=4, alpha=6, dropout=0.0, target_modules=["a", "b"], rslora=True)
    assert (LoraSettings(**settings), head) == (expected, ["out"])
    told = (
        "bias, init_lora_weights=gaussian; remove it; target_modules is 'all-linear'; name target_modules as"
    )
    with pytest.raises(ModelError, match=told):
        settings_of(LoraConfig(target_modules="all-linear", bias="all", init_lora_weights="gaussian"))
    with pytest.raises(ModelError, match=r"LoraConfig: target_modules is None; .* as a list of layer names"):
        settings_of(LoraConfig())
    with pytest.raises(ModelError, match="both name out; name each in one of them"):
        settings_of(LoraConfig(target_modules=["body", "out"], modules_to_save=["out"]))
    with pytest.raises(ModelError, match="modules_to_save is 'out'; name modules_to_save as a list"):
        settings_of(LoraConfig(target_modules=["body"], modules_to_save="out"))
    with pytest.raises(ModelError, match="expected a LoraConfig of PEFT, got dict"):
        settings_of({"r": 4})


def given_app(**changed):
    """The arguments of an app, of which some are others."""
    lora = LoraConfig(r=2, target_modules=["fc"], modules_to_save=["last"])
    return {"model": Net, "data": data, "lora": lora, "clients": 2} | changed


def nothing(partition, partitions):
    return None


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"model": Net()}, "class without arguments, got an instance of Net; pass Net$"),
        ({"data": 5}, r"^data: expected a function of \(partition, partitions\), got an instance of int$"),
    ],
)
def test_an_argument_that_is_no_function_is_named(changed, told):
    with pytest.raises(ConfigError, match=told):
        client_app(**given_app(**changed))


def test_a_trainer_function_that_returns_none_is_named():
    apps = trainer_apps(nothing, LoraConfig(target_modules=["fc"]), clients=2)
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    with pytest.raises(ConfigError, match="test_own_model:nothing returns NoneType; expected a Trainer"):
        apps.server(InProcessGrid(2, {}, app=apps.client), context)


def test_an_infinite_end_of_a_range_is_the_largest_number():
    measure = Measure("mse", (0, float("inf")), higher_is_better=False)
    functions = {"model": Net, "data": data, "evaluate": share_right}
    lora = LoraConfig(r=2, target_modules=["fc"], modules_to_save=["last"])
    given = _federation("functions", functions, lora, "share_a", 2, (), [measure], ())
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={})
    config = load(str(given._configured(context).run_config["overrides"]))
    assert config.task.measures == (Measure("mse", (0.0, LARGEST), higher_is_better=False),)


def not_a_number(outputs, labels):
    return {"right": float("nan"), "own_loss": float("inf")}


def test_a_measure_that_is_no_number_is_of_the_function_that_returned_it():
    declared = "task.measured=[{name: right, range: [0, 1]}, {name: own_loss, range: [0, 1]}]"
    found = task(declared, f"task.evaluate_function={name_of(not_a_number)}")
    numbers = found.evaluate(np.eye(3, dtype=np.float32), Y.numpy())
    for key in ("right", "right_before", "global_right"):
        with pytest.raises(TrainingError, match=f"{key} is nan: the function that measures right"):
            check_measured({key: numbers["right"]}, found)
    with pytest.raises(TrainingError, match=r"own_loss is inf: lower train\.lr"):
        check_measured({"own_loss": numbers["own_loss"]}, found)


def test_two_classes_of_one_name_are_refused():
    with pytest.raises(ConfigError, match="classes names b more than once"):
        task(classes="[a, b, b]")


class Normed(Net):
    def __init__(self) -> None:
        super().__init__()
        self.bn = nn.BatchNorm1d(2)
        self.bn.running_mean += 0.5

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.bn(x))


def test_stock_peft_loads_a_batch_norm_that_was_trained_whole(tmp_path):
    found = task(f"task.model_function={name_of(Normed)}", "task.head=[last, bn]")
    trained = adapted(found.build_model(seed=3), LoraSettings(target_modules=["fc"], r=2), 3, found.model)
    values = {name: value + 0.25 for name, value in trained.initial(3).items()}
    trained.write(values)
    trained.save_adapter(tmp_path, values, "")
    stock = PeftModel.from_pretrained(found.build_model(seed=3), tmp_path).eval()
    assert torch.allclose(stock(X), trained.module(X))


def test_the_measures_of_an_app_are_those_of_its_task():
    declared = (Measure("right", (0.0, 1.0), format="percent"), Measure("wrong", (0.0, 1.0), False))
    functions = {"model": Net, "data": data, "loss": None, "evaluate": share_right}
    lora = LoraConfig(r=2, target_modules=["fc"], modules_to_save=["last"])
    given = _federation("functions", functions, lora, "share_a", 2, ["a", "b", "c"], declared, ["codec=int8"])
    context = Context(run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config={"seed": 7})
    config = load(str(given._configured(context).run_config["overrides"]))
    assert config.task.measures == declared
    assert (config.task.labels(), config.task.head, config.seed) == (("a", "b", "c"), ["last"], 7)
    assert (config.codec.values, config.lora.r, config.head.policy) == ("int8", 2, "local")
    assert config.task.evaluate_function == f"{__name__}:share_right"


@pytest.mark.parametrize(
    "split",
    [
        RoleSplit(A="shared", B="local"),
        RoleSplit(A="shared", B="shared", allow=("A", "B"), head="shared"),
        RoleSplit(A="shared", B=0.5, allow=("A", "B"), head=0.25),
        Alternate(allow=("A", "B"), order=("A", "B"), head="frozen"),
    ],
)
def test_a_split_is_the_one_that_was_given(split):
    assert load([*_of_split(split)]).split == split
