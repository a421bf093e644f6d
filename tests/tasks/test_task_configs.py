"""Every file of the groups task, model and partition binds to its class and does what it says."""

from pathlib import Path

import pytest
from hydra.utils import get_class
from omegaconf import OmegaConf
from transformers import AutoModelForImageClassification, AutoModelForSequenceClassification

from fedsa_lora.tasks.backbone import ModelSettings, build_backbone, load_tokenizer
from fedsa_lora.tasks.classification import ClassificationTask
from fedsa_lora.tasks.divided import DividedTask
from fedsa_lora.tasks.partition import PartitionSettings

ROOT = Path(__file__).resolve().parent.parent.parent
LOCAL_DATA = ROOT.parent / "shared" / "data"
GLUE = {
    "sst2": (67349, 872),
    "qnli": (4000, 1463),
    "rte": (2490, 277),
    "cola": (8551, 527),
    "mrpc": (3545, 500),
}


def names(group: str) -> list[str]:
    return sorted(path.stem for path in (ROOT / "conf" / group).glob("*.yaml"))


def node(group: str, name: str) -> dict:
    return OmegaConf.to_container(OmegaConf.load(ROOT / "conf" / group / f"{name}.yaml"))


def model(name: str = "tiny_bert") -> ModelSettings:
    return ModelSettings(**node("model", name))


def partition(name: str = "iid", **settings) -> PartitionSettings:
    return PartitionSettings(**node("partition", name), **settings)


def task(name: str, model: ModelSettings, partition: PartitionSettings, **changes) -> ClassificationTask:
    fields = node("task", name) | changes
    return get_class(fields.pop("_target_"))(model=model, partition=partition, **fields)


@pytest.mark.parametrize("group", ["task", "model", "partition"])
def test_every_file_begins_with_a_line_that_says_what_it_is(group):
    assert names(group)
    for path in (ROOT / "conf" / group).glob("*.yaml"):
        lines = [line for line in path.read_text().splitlines() if "@package" not in line]
        first, second = lines[:2]
        assert first.startswith("# "), path
        assert not second.startswith("#"), path


@pytest.mark.parametrize(
    "name", sorted(set(names("task")) - {"text", "causal_lm", "preference", "functions", "trainer"})
)
def test_every_task_binds(name):
    of_images = node("task", name)["_target_"].endswith("ImageTask")
    found = task(name, model("tiny_vit" if of_images else "tiny_bert"), partition())
    assert isinstance(found, DividedTask)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(("name", "classes"), [("snips", 7), ("banking77", 77), ("clinc150", 150)])
@pytest.mark.parametrize("kind", sorted(set(names("partition")) - {"natural", "own"}))
def test_shipped_tasks_divide_under_every_partition(name, classes, kind):
    described = task(name, model(), partition(kind, train_examples=[20, 30])).describe()
    assert len(described.labels) == classes
    assert all(20 <= share.train <= 30 and share.test for share in described.clients.values())


def test_the_natural_partition_of_clinc150_is_its_domains():
    shares = task("clinc150", model(), partition("natural")).describe().clients
    assert [share.train for share in shares.values()] == [1500] * 10


def test_the_banking_domain_has_fifteen_intents():
    described = task("clinc150_banking", model(), partition()).describe()
    assert len(described.labels) == 15
    assert sum(share.train for share in described.clients.values()) == 1500


@pytest.mark.parametrize("kind", sorted(set(names("partition")) - {"natural", "own"}))
def test_digits_with_the_tiny_vision_transformer(kind):
    digits = task("image", model("tiny_vit"), partition(kind))
    batch = digits.collate(digits.load_client("0").train, digits.split.clients["0"].train[:2] * 0)
    assert digits.loss(digits.build_model(seed=0), batch).isfinite()


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", GLUE)
def test_glue_tasks_run_on_local_copies(name):
    folder = LOCAL_DATA / name
    if not folder.is_dir():
        pytest.skip(f"no local copy of {name} at {folder}")
    pair = "text_pair" if node("task", f"glue_{name}").get("text_pair") else None
    local = {"dataset": str(folder), "subset": None, "text": "text", "text_pair": pair}
    glue = task(f"glue_{name}", model(), partition("dirichlet", clients=3), **local)
    described = glue.describe()
    train, test = GLUE[name]
    assert sum(share.train for share in described.clients.values()) == train
    assert sum(share.test for share in described.clients.values()) == test
    examples = glue.encode(glue.data.train.inputs.select(range(4)), glue.data.train.labels[:4])
    assert examples.features["token_type_ids"][0].any() == (pair is not None)
    assert glue.loss(glue.build_model(seed=0), glue.collate(examples, examples.labels * 0)).isfinite()


@pytest.mark.parametrize("name", [name for name in names("model") if name.startswith("tiny")])
def test_tiny_models_need_no_file(name):
    settings = model(name)
    auto_class = AutoModelForSequenceClassification
    if name == "tiny_vit":
        auto_class = AutoModelForImageClassification
    built = build_backbone(auto_class, settings, ("a", "b"), seed=0)
    assert sum(p.numel() for p in built.parameters()) < 1_100_000
    if settings.tokenizer:
        assert load_tokenizer(settings).vocab_size <= built.config.vocab_size


def test_own_text(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("text,label\n" + "".join(f"row {i},{'ab'[i % 2]}\n" for i in range(20)))
    own = task("text", model(), partition(clients=2), dataset=str(path))
    assert own.labels() == ("a", "b")
    assert [share.test for share in own.describe().clients.values()] == [2, 2]
