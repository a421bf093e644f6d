"""Every config in conf/ binds; whatever is wrong with one is said at once, by name, before anything runs."""

import re
import shlex
from dataclasses import asdict, replace

import numpy as np
import pytest
import yaml
from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import FedAdam, FedAvg, FedProx
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fedsa_lora.config import compose as config_module
from fedsa_lora.config.changes import changes, changes_of
from fedsa_lora.config.compose import load, read_config, to_yaml
from fedsa_lora.config.options import CONF, PACKAGE, Options
from fedsa_lora.config.paths import places
from fedsa_lora.config.validation import from_resolved
from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.codec import Dense
from fedsa_lora.exchange.split import Alternate
from fedsa_lora.group import ranges
from fedsa_lora.settings import LATER, RunConfig

RANGES = ranges(RunConfig)
NEEDS = {
    "strategy/dp_fixed_clipping": ["federation.weights=uniform", "federation.min_results=1"],
    "task/functions": ["task.model_function=mine:model", "task.data_function=mine:data"],
    "task/trainer": ["task.trainer_function=mine:trainer"],
    "partition/natural": ["task=clinc150"],
    "task/text": ["task.dataset=rows.csv"],
    "task/causal_lm": ["task.dataset=rows.csv"],
    "task/preference": ["task.dataset=rows.csv"],
    "partition/own": ["task.class_names=[a,b]"],
    "cut/u_shape": ["experiment=split/gpt2"],
}
NEEDS |= {
    f"unlearning/{path.stem}": ["experiment=unlearn/authors"] for path in CONF.glob("unlearning/*.yaml")
}
FILES = [path.relative_to(CONF) for path in CONF.glob("*/*.yaml")]
OPTIONS = sorted(str(path.with_suffix("")) for path in FILES if path.parts[0] != "compare")  # which has grids
COMPANIONS = re.compile(r"^#.*?(?:use with|[Ff]or|use) (\w+=\w+)", re.MULTILINE)
HOSTILE = ("os.system", "subprocess.Popen", "builtins.eval", "pathlib.Path", "fedsa_lora.cli.main")
METHODS = (
    "labels", "build_model", "describe", "client_labels", "load_client", "collate", "loss", "predict",
    "evaluate",
)  # fmt: skip
PLUGIN = """
from dataclasses import dataclass
from fedsa_lora.tasks.text import TextTask

@dataclass(frozen=True, kw_only=True)
class ShoutingTask(TextTask):
    volume: int = 11
"""


def faults_of(overrides: list[str] | str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(overrides)
    return str(caught.value)


@pytest.mark.sampled(2)
@pytest.mark.parametrize(
    "words",
    [
        [],
        ["experiment=smoke", "train.lr=0.5", "train.lr=0.25", "train.lr=0.5", "split=share_b"],
        ["task=text", "task.files={train: a.csv}", "task.files.train=c.csv", "task.files={test: d.csv}"],
        ["split={A: frozen}", "split.A=shared"],
        ["split.A=shared", "split={A: frozen}"],
        ["+model.config.size=1", "model.config.size=2", "~train.lr", "train.lr=0.5"],
        ["seed=7", "name=seed-${seed}", "spilt.A=shared"],
        ["federation.ranks={0: 2, 1: 4}", "federation.train_examples=[1, 2]", "task.where={a: [b]}"],
        ["hydra.verbose=true", "title='a ${name}'"],
    ],
    ids=" ".join,
)
def test_values_set_in_a_copy_of_composed_files_are_what_hydra_makes_of_all_at_once(words):
    composable = config_module._composable(words, Options(), faults := [])
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("run", overrides=[text for text, _ in composable])
    assert faults == []
    for _ in range(2):
        made = config_module._composed(composable, Options(), faults)
        assert made == OmegaConf.to_container(whole, resolve=True)


def test_a_group_that_is_given_by_its_class_has_nothing_of_the_file_that_is_chosen():
    given = "split={_target_: fedsa_lora.exchange.split.Alternate, allow: [A, B], order: [A]}"
    expected = Alternate(allow=("A", "B"), order=("A",))
    assert load([given]).split == load([given, "+model.config.size=1"]).split == expected
    assert load(["split=share_b", given, "split.order=[B]"]).split == replace(expected, order=("B",))
    assert "split.base: no such key" in faults_of([given.replace("order:", "base:")])


def at(config: dict, key: str):
    for part in key.split("."):
        config = config[part]
    return config


def companions(option: str) -> list[str]:
    """What a file's own header says that it goes with."""
    named = COMPANIONS.findall((CONF / f"{option}.yaml").read_text())
    return [word for word in named if f"{word.replace('=', '/')}" in OPTIONS]


@pytest.mark.sampled(3)
@pytest.mark.parametrize("option", OPTIONS)
def test_every_file_of_every_group_composes_and_binds_with_what_its_header_names(option):
    group, name = option.split("/")
    config = load([f"{group}={name}", *companions(option), *NEEDS.get(option, [])])
    again = from_resolved(config.resolved)
    assert again == config


@pytest.mark.sampled(4)
@pytest.mark.parametrize("head", ["local", "shared", "frozen", "soft"])
@pytest.mark.parametrize("split", sorted({o.split("/")[1] for o in OPTIONS if o.startswith("split/")}))
def test_a_split_and_a_head_policy_bind_to_what_their_files_say(split, head):
    bound = load([f"split={split}", f"head={head}", *(["lora=none"] if split == "full" else [])])
    assert bound.split.head == bound.head.share == (0.6 if head == "soft" else head)
    said = bound.resolved["split"]
    assert f"{type(bound.split).__module__}.{type(bound.split).__name__}" == said.pop("_target_")
    for key, value in said.items():
        assert getattr(bound.split, key) == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.sampled(3)
@pytest.mark.parametrize("option", [o for o in OPTIONS if o.startswith(("codec/", "downlink/"))])
def test_a_codec_binds_for_each_way_to_what_its_file_says(option):
    group, name = option.split("/")
    bound = load([option.replace("/", "=")])
    said, codec = bound.resolved[group], getattr(bound, group)
    assert (
        getattr(bound, {"codec": "downlink", "downlink": "codec"}[group])
        == {"codec": None, "downlink": Dense()}[group]
    )
    if name == "whole":
        assert codec is said is None
        return
    assert said.pop("_target_").endswith(f".{type(codec).__name__}")
    assert said == asdict(codec)


@pytest.mark.parametrize(
    ("overrides", "strategy"), [([], FedAvg), (["strategy=fedprox", "strategy.proximal_mu=0.5"], FedProx)]
)
def test_the_inner_strategy_is_the_one_named_with_its_arguments(overrides, strategy):
    config = load([*overrides, "strategy.fraction_fit=0.25"])
    inner = config.strategy.build(initial_parameters=None, unheard_of=1)
    assert type(inner) is strategy
    assert inner.fraction_fit == 0.25


def test_a_strategy_gets_what_the_run_supplies_and_must_be_told_the_rest():
    adam = load(["strategy._target_=flwr.server.strategy.FedAdam", "strategy.eta=0.5"])
    start = ndarrays_to_parameters([np.ones(3, np.float32)])
    inner = adam.strategy.build(initial_parameters=start)
    assert type(inner) is FedAdam
    assert (inner.initial_parameters, inner.eta) == (start, 0.5)
    assert "strategy.proximal_mu: missing" in faults_of(["strategy._target_=flwr.server.strategy.FedProx"])


def test_every_range_is_of_a_key_that_exists():
    resolved = load().resolved
    for key in RANGES:
        assert at(resolved, key) is None or isinstance(at(resolved, key), int | float)


@pytest.mark.parametrize(
    "outside",
    [
        lambda low, high, closed: "nan",
        lambda low, high, closed: low - 1,
        lambda low, high, closed: low - 1 if closed else low,
        lambda low, high, closed: "inf" if high is None else high + 1,
    ],
    ids=["nan", "below", "low", "above"],
)
def test_every_number_out_of_its_range_is_told_at_once(outside):
    values = {key: outside(found.low, found.high, not found.open) for key, found in RANGES.items()}
    said = faults_of([f"{key}={value}" for key, value in values.items()])
    for key, value in values.items():
        assert f"  - {key}: {value} is out of range; expected " in said


@pytest.mark.parametrize(
    "section", ["model", "head", "train", "federation", "evaluation", "run", "split", "task"]
)
@pytest.mark.parametrize("value", [None, "text"])
def test_a_section_that_holds_no_settings_is_told(section, value):
    with pytest.raises(ConfigError, match=f"{section}: expected "):
        from_resolved(load().resolved | {section: value})


@pytest.mark.parametrize(
    ("key", "value"), [("train.momentum", 1.0), ("lora.dropout", 0.95), ("federation.min_results", 0.0)]
)
def test_a_bound_that_is_allowed_is_taken(key, value):
    section, name = key.split(".")
    assert getattr(getattr(load([f"{key}={value}"]), section), name) == value


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("trian.lr=1", "trian: no such key (did you mean 'train'?)"),
        ("train.optimiser=sgd", "train.optimiser: no such key (did you mean 'optimizer'?)"),
        ("train.optimizer=adamq", "train.optimizer=adamq: no such choice (did you mean 'adamw'?)"),
        ("federation.client=3", "federation.client: no such key (did you mean 'clients'?)"),
        ("model.pth=x", "model.pth: no such key (did you mean 'path'?)"),
        ("lora.alfa=3", "lora.alfa: no such key (did you mean 'alpha'?)"),
        ("split.head=shared", "split.head: set the head's policy with head="),
        ("split.C=shared", "split.C: no such key; expected one of A, B, allow, base, head"),
        ("split.allow=[A,C]", "split.allow[1]=C: no such choice; expected one of A, B"),
        ("split=importance split.threshold=heterogenous", "(did you mean 'heterogeneity'?)"),
        ("split._target_=fedsa_lora.exchange.split.RoleSplt", "no such class (did you mean 'RoleSplit'?)"),
        ("codec._target_=fedsa_lora.exchange.selection.Topk", "no such class (did you mean 'TopK'?)"),
        ("codec.values=int7", "codec.values=int7: no such choice"),
        ("codec=topkk", "codec=topkk: no such option (did you mean 'topk'?)"),
        ("strategy=fedexx", "strategy=fedexx: no such option (did you mean 'fedex'?)"),
        ("head.polcy=local", "head.polcy: no such key (did you mean 'policy'?)"),
        ("evaluation.evry=1", "evaluation.evry: no such key (did you mean 'every'?)"),
        ("machine.thread=1", "machine.thread: no such key (did you mean 'threads'?)"),
        ("run.dirr=x", "run.dirr: no such key (did you mean 'dir'?)"),
        ("task.datset=x", "task.datset: no such key (did you mean 'dataset'?)"),
        ("task.seed=5", "task.seed: no such key"),
        ("task.model.path=x", "task.model: no such key"),
        ("strategy.fraction_fitt=1", "no such argument of FedAvg (did you mean 'fraction_fit'?)"),
        ("+new=1", "new: no such key"),
        ("split=share_aa", "split=share_aa: no such option (did you mean 'share_a'?)"),
        ("task=SNIP", "task=SNIP: no such option (did you mean 'snips'?)"),
        ("experiment=quikstart", "experiment=quikstart: no such option (did you mean 'quickstart'?)"),
        ("task=5", "task=5: no such option"),
        ("task=[snips,image]", "no such option"),
        ("lora=null", "lora=null: no such option; expected one of balanced, clip_encoder, "),
        ("task=../run", "task=../run: no such option"),
        ("task._target_=fedsa_lora.tasks.text.TextTak", "no such class (did you mean 'TextTask'?)"),
        ("task._target_=fedsa_lora.tasks.txt.TextTask", "no such class"),
    ],
)  # fmt: skip
def test_an_unknown_name_is_told_with_the_nearest_valid_one(word, said):
    assert said in faults_of(word if " " in word else [word])


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("seed=abc", "seed: expected int, got 'abc'"),
        ("seed=1.5", "seed: expected int, got 1.5"),
        ("seed=true", "seed: expected int, got True"),
        ("name=null", "name: expected str, got None"),
        ("train.lr=fast", "train.lr: expected float, got 'fast'"),
        ("train.lr=true", "train.lr: expected float, got True"),
        ("train.batch_size=8.5", "train.batch_size: expected int, got 8.5"),
        ("train.steps=many", "train.steps: expected int, got 'many'"),
        ("lora.target_modules=query", "lora.target_modules: expected a list, got 'query'"),
        ("lora.target_modules=[query,3]", "lora.target_modules[1]: expected str, got 3"),
        ("federation.train_examples=[a,9]", "federation.train_examples[0]: expected int, got 'a'"),
        ("federation.partitioner=null", "federation.partitioner: expected dict, got None"),
        ("model.config=3", "model.config: expected dict, got 3"),
        ("run.keep_messages=1", "run.keep_messages: expected bool, got 1"),
        ("task.max_length=long", "task.max_length: expected int, got 'long'"),
        ("task.files={train: 5}", "task.files.train: expected str, got 5"),
        ("strategy.fraction_fit=half", "strategy.fraction_fit: expected float, got 'half'"),
        ("split={A: shraed}", "split.A=shraed: no such choice (did you mean 'shared'?)"),
        ("lora.r=4,8", "'lora.r=4,8': a sweep"),
        ("train.lr", "'train.lr': not an override; expected key=value"),
        ("", "'': not an override"),
        ("train.lr=${nope}", "nope"),
    ],
)
def test_a_value_of_another_type_or_form_is_told(word, said):
    assert said in faults_of([word])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["lora=none"], "choose split=full"),
        (["split=full"], "set lora=none"),
        (["split={A: frozen, B: frozen}", "head=frozen"], "nothing to train"),
        (["train.epochs=2"], "either steps or epochs"),
        (["train.steps=null"], "either steps or epochs"),
        (["evaluation.part=validation"], "needs federation.validation_examples of at least 1"),
        (["federation.train_examples=[100,60]"], "[lo, hi] with 1 <= lo <= hi"),
        (["model.path="], "model: path is empty"),
        (["model=tiny_bert", "~model.config.model_type"], "model.config lacks model_type"),
        (["task.dataset="], "give exactly one of them"),
        (["head.degree=0.5"], "head: degree is that of a soft head: give it with policy=soft"),
        (["head=soft", "head.degree=null"], "head: degree is that of a soft head"),
        (
            ["head=soft", "head.degree=1.5"],
            "head.degree: 1.5 is out of range; expected at least 0 and at most 1",
        ),
        (["split=layer_wise", "split.first=2"], "exactly one of first, last, every and layers"),
    ],
)
def test_a_contradiction_is_told_with_the_way_out(words, said):
    assert said in faults_of(words)


@pytest.mark.case(25)
@pytest.mark.parametrize("place", ["task", "strategy", "split", "codec", "downlink", "personalisation"])
@pytest.mark.parametrize("target", HOSTILE)
def test_a_config_cannot_name_any_class_it_likes(place, target):
    words = ["downlink=dense", f"++{place}._target_={target}"]
    assert f"{place}._target_: '{target}' is not allowed" in faults_of(words)


@pytest.mark.case(25)
@pytest.mark.parametrize(
    ("place", "target"),
    [
        ("task", "fedsa_lora.tasks.sources.Path"),
        ("task", "fedsa_lora.tasks.sources.tempfile.TemporaryDirectory"),
        ("task", "fedsa_lora.tasks.text.AutoModelForSequenceClassification"),
        ("task", "fedsa_lora.tasks.classification.ClassificationTask"),
        ("task", "fedsa_lora.tasks.task.ClientData"),
        ("task", "fedsa_lora.tasks.sources.read_split"),
        ("task", "fedsa_lora.tasks."),
        ("split", "fedsa_lora.exchange.split.SplitPolicy"),
        ("split", "fedsa_lora.exchange.split.AdapterSplit"),
        ("split", "fedsa_lora.exchange.codec.Dense"),
        ("split", "fedsa_lora.exchange.adaptive.ConfigError"),
        ("codec", "fedsa_lora.exchange.codec.Codec"),
        ("codec", "fedsa_lora.exchange.split.Alternate"),
        ("codec", "fedsa_lora.exchange.codec.Fraction"),
        ("strategy", "strategies.FedSA"),
        ("strategy", "strategies.AdaptiveFedSA"),
        ("strategy", "strategies.rules.exact.FactorRule"),
        ("strategy", "strategies.round.roster.ThreadPoolExecutor"),
        ("strategy", "strategies.Roster"),
        ("strategy", "strategies.fedsa.RunError"),
        ("strategy", "flwr.server.strategy.Strategy"),
        ("strategy", "flwr.server.strategy.fedavg.ClientProxy"),
    ],
)
def test_what_an_allowed_module_merely_imports_or_is_no_task_or_strategy_is_refused(place, target):
    assert f"{place}._target_" in faults_of([f"++{place}._target_={target}"])


def test_a_plug_in_is_allowed_by_its_machine_and_not_by_a_config(tmp_path, monkeypatch):
    (tmp_path / "my_shouting_task.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["++task._target_=my_shouting_task.ShoutingTask", "++task.volume=12"]
    assert "FEDSA_LORA_PLUGINS" in faults_of(words)
    monkeypatch.setenv("FEDSA_LORA_PLUGINS", "unrelated, my_shouting_task")
    config = load(words)
    assert type(config.task).__name__ == "ShoutingTask"
    assert config.task.volume == 12
    assert "task.volume: expected int, got 'loud'" in faults_of([*words, "++task.volume=loud"])
    assert "is not allowed" in faults_of(["++task._target_=os.system"])


def test_a_task_that_derives_from_none_of_ours_is_told_of_the_defaults(tmp_path, monkeypatch):
    (tmp_path / "my_bare_task.py").write_text(
        "from fedsa_lora.tasks.text import TextTask\n"
        "from dataclasses import dataclass\n\n@dataclass\nclass Bare:\n"
        + "".join(f"    {name} = TextTask.{name}\n" for name in METHODS)
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FEDSA_LORA_PLUGINS", "my_bare_task")
    said = faults_of(["++task._target_=my_bare_task.Bare"])
    assert "Bare is not a task; expected a dataclass that derives from TaskDefaults" in said


@pytest.mark.case(37)
@pytest.mark.parametrize("allowed", ["my_shouting", "my_shouting_task.Shou", "my", "."])
def test_a_plug_in_is_a_whole_package_and_not_the_beginning_of_its_name(tmp_path, monkeypatch, allowed):
    (tmp_path / "my_shouting_task.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FEDSA_LORA_PLUGINS", allowed)
    assert "is not allowed" in faults_of(["++task._target_=my_shouting_task.ShoutingTask"])


@pytest.mark.case(37)
def test_what_a_plug_in_imports_from_elsewhere_is_not_the_plug_ins(tmp_path, monkeypatch):
    (tmp_path / "my_imports.py").write_text("from subprocess import Popen\nimport os\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("FEDSA_LORA_PLUGINS", "my_imports.")
    assert "one of subprocess" in faults_of(["++task._target_=my_imports.Popen"])
    for target in ("my_imports.os.system", "my_imports.os", "fedsa_lora.tasks.sources.os.system"):
        assert "task._target_" in faults_of([f"++task._target_={target}"])


def test_all_faults_are_told_at_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    wrong = {
        "trian.lr=1": "trian: no such key",
        "split=share_c": "split=share_c: no such option",
        "strategy._target_=os.system": "'os.system' is not allowed",
        "lora.r=0": "lora.r: 0 is out of range",
        "train.lr=-1": "train.lr: -1 is out of range",
        "train.batch_size=many": "train: batch_size=many: expected a number of examples, or auto",
        "train.epochs=3": "either steps or epochs",
        "federation.clients=0": "federation.clients: 0 is out of range",
        "machine.threads=x,y": "a sweep",
        "seed=first": "seed: expected int",
        "a==b": "'a==b': not an override",
        "model.path=./no/model": "no model at './no/model'",
        "task.dataset=no/rows.csv": "no data at 'no/rows.csv'",
    }
    said = faults_of(["task=text", *wrong])
    for word, fault in wrong.items():
        assert fault in said, word
    listed = said.splitlines()[1:]
    assert said.startswith(f"the configuration has {len(listed)} faults:\n")
    assert len(set(listed)) == len(listed)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_file_is_told_with_other_faults_when_the_task_binds_as_well(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said = faults_of(["task=text", "task.dataset=rows.csv", "model.path=./m", "train.lr=0"])
    for fault in ("train.lr: 0 is out of range", "no model at './m'", "no data at 'rows.csv'"):
        assert said.count(fault) == 1
    assert "has 3 faults" in said


def test_one_fault_is_one():
    assert faults_of("train.lr=-1").splitlines() == [
        "the configuration has 1 fault:",
        "  - train.lr: -1 is out of range; expected more than 0",
    ]


def test_overrides_may_be_one_string_as_flwr_run_passes_them(tmp_path):
    place = tmp_path / "my runs (1)" / "x"
    config = load(f"""split=share_b 'title="Two words"' 'run.dir="{place}"'""")
    assert config.split.B == "shared"
    assert config.title == "Two words"
    assert config.run_dir == place
    assert load(["split=share_b"]).resolved == load("split=share_b").resolved
    assert "No closing quotation" in faults_of("title='open")


@pytest.mark.parametrize("order", [1, -1])
def test_a_regime_has_the_last_word_over_an_experiment(order):
    config = load(["experiment=quickstart", "regime=dirichlet_01", "task=banking77"][::order])
    assert config.federation.partitioner["_target_"].endswith("DirichletPartitioner")
    assert config.federation.partitioner["alpha"] == 0.1
    assert config.federation.label_meaning == "common"
    assert config.evaluation.local_only_lr == load(["experiment=quickstart"]).evaluation.local_only_lr
    plain = load(["experiment=smoke"]).resolved
    assert load(["regime=null", "experiment=smoke"]).resolved | {"title": plain["title"]} == plain


@pytest.mark.parametrize("words", [["cut=none"], ["lora=none", "split=full", "cut=none"]], ids=" ".join)
def test_a_group_that_is_left_out_is_so_whatever_an_experiment_says_of_it(words):
    for order in (1, -1):
        config = load(["experiment=split/tiny", *words][::order])
        assert config.cut is None
        assert (config.lora is None) == ("lora=none" in words)


def test_a_key_of_a_group_that_is_left_out_is_a_fault():
    with pytest.raises(ConfigError, match=r"cut=none leaves the group out, and cut.bottom sets a key of it"):
        load(["experiment=split/tiny", "cut=none", "cut.bottom=1"])


def test_no_experiment_can_be_chosen_by_name():
    assert load(["experiment=null", "name=mine"]).resolved == load(["name=mine"]).resolved


def test_a_run_is_where_it_is_told_to_be_else_at_the_default(tmp_path):
    assert load(default_dir=str(tmp_path)).run_dir == tmp_path
    told = load([f"run.dir={tmp_path}/told"], default_dir=str(tmp_path))
    assert told.run_dir == tmp_path / "told"
    assert told.store_dir == tmp_path / "told" / "clients"
    assert load([f"run.store={tmp_path}/store"]).store_dir == tmp_path / "store"


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "words",
    [
        ["experiment=quickstart"],
        ["train.lr=1e-7", "seed=123456789", "strategy=fedprox"],
        ["split=importance", "split.threshold=heterogeneity", "codec=topk_int8", "downlink=int8"],
        ["split=soft", "head=soft", "codec=threshold", "codec.threshold=1e-8"],
        ["split=share_ab", "strategy=flora", "federation.ranks={0: 4, 1: 8}"],
        ["split=layer_wise", "split.last=null", "split.layers=[0,2]"],
        ["lora=none", "split=full", "head=shared", "task=image", "model=tiny_vit"],
        [r"description='a \${b} [c] # d'", "title='yes: no'", "name='007'"],
    ],
)
def test_a_config_that_was_written_reads_back_equal(tmp_path, words):
    config = load([*words, f"run.dir={tmp_path}"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert read_config(tmp_path) == config
    assert read_config(tmp_path).resolved == config.resolved


def test_a_run_that_was_recorded_before_a_group_was_there_is_what_it_was(tmp_path):
    config = load(["experiment=smoke", f"run.dir={tmp_path}"])
    node = {key: value for key, value in config.resolved.items() if key not in LATER}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(node))
    assert read_config(tmp_path) == config


def test_a_run_directory_that_was_moved_is_read_where_it_is(tmp_path):
    config = load([f"run.dir={tmp_path}/before"])
    (tmp_path / "after").mkdir()
    (tmp_path / "after" / "config.yaml").write_text(to_yaml(config))
    moved = read_config(tmp_path / "after")
    assert moved.run_dir == tmp_path / "after"
    assert moved.store_dir == tmp_path / "after" / "clients"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "not a run directory"),
        (b"", "holds no settings: it was truncated"),
        (b"- a\n- b\n", "holds no settings"),
        (b"a: [", "cannot be read"),
        (b"\xff\xfe\x00", "cannot be read"),
        (b"title: x\nseed: 0\n", "strategy: missing"),
    ],
)
def test_what_is_no_config_of_a_run_is_refused(tmp_path, content, said):
    if content is not None:
        (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=said):
        read_config(tmp_path)


def test_conf_lies_beside_or_in_the_package():
    assert (CONF / "run.yaml").is_file()
    assert CONF.parent in (PACKAGE, PACKAGE.parent)
    assert (PACKAGE / "cli.py").is_file()


def test_a_title_is_the_experiments_or_of_the_data_and_holds_no_overrides(tmp_path):
    plain = load(["experiment=quickstart"]).title
    assert load(["experiment=quickstart", "task=banking77"]).title == plain
    assert load([]).title == "snips, 10 clients"
    assert load(["task=clinc150_banking", "federation.clients=3"]).title == "clinc150_banking, 3 clients"
    assert load(["task=gsm8k", "model=llama3_8b"]).title == "gsm8k, 10 clients"
    assert load(["task=text", "task.dataset=owner/name"]).title == "name, 10 clients"
    (tmp_path / "tickets.csv").write_text("text,label\na,b\n")
    assert load(["task=text", f"task.dataset={tmp_path}/tickets.csv"]).title == "tickets.csv, 10 clients"


def test_changes_are_what_a_run_is_not_where_it_is_made_and_the_last_word_counts():
    words = ["experiment=smoke", "seed=3", "run.dir=/x", "machine.threads=2", "title=T", "split=share_b"]
    words += [
        "train.lr=1",
        "+model.config.dropout=0",
        '++task.dataset="/a b.csv"',
        "train.lr=2",
        "~lora.alpha",
    ]
    assert changes(words) == {
        "split": "share_b", "model.config.dropout": "0", "task.dataset": "/a b.csv", "train.lr": "2",
        "lora.alpha": "removed",
    }  # fmt: skip
    assert changes_of(f"fedsa-lora run {shlex.join(words)}") == changes(words)


@pytest.mark.parametrize("name", ["with space", "a,b", "(x)", "[y]", 'quo"te', "back\\slash", "ünï=1"])
def test_a_run_directory_of_any_name_reaches_the_app_unchanged(tmp_path, name):
    config = load(["experiment=smoke"], default_dir=str(tmp_path / name))
    assert load(shlex.join(["experiment=smoke", *places(config)])).run_dir == tmp_path / name


ODD = [
    "my tickets (1).csv", "it's.csv", "über 50%.csv", "a=b.csv", "a,b.csv", "[1].csv", "{a}.csv", "a#b.csv",
    "choice(1).csv", 'a "b" (c).csv', "a&b;c!.csv",
]  # fmt: skip


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", ODD)
def test_a_file_of_any_name_is_given_as_it_is_and_reaches_the_app(tmp_path, monkeypatch, name):
    (tmp_path / name).write_text("text,label\na,b\n")
    (tmp_path / "models (1)").mkdir()
    monkeypatch.chdir(tmp_path)
    for given in (name, f"./{name}", str(tmp_path / name)):
        words = ["experiment=smoke", "task=text", f"task.dataset={given}", "run.dir=out (1)"]
        config = load(words)
        assert config.task.dataset == str(tmp_path / name)
        assert config.run_dir == tmp_path / "out (1)"
        assert load(shlex.join([*words, *places(config)])).task.dataset == str(tmp_path / name)
    config = load(["experiment=smoke", "task=text", f"+task.files.train={name}", "task.label=queue (all)"])
    assert config.task.files == {"train": str(tmp_path / name)}
    assert config.task.label == "queue (all)"


def test_a_file_of_such_a_name_that_is_not_there_is_one_fault(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in (*ODD, '"a.csv'):
        said = faults_of(["experiment=smoke", "task=text", f"task.dataset={name}", "seed=-1"])
        assert "has 2 faults" in said, said
        assert "no data at " in said
        assert "not an override" not in said


def test_a_value_that_is_no_text_is_not_taken_as_it_is():
    assert "'train.lr=(1)': not an override" in faults_of(["train.lr=(1)"])
    assert "'lora.r=1,2': a sweep" in faults_of(["lora.r=1,2"])
    assert "between quotation marks" in faults_of(["task=text", "task.files={train: a (1).csv}"])
    assert load(["task=text", 'task.files={train: "a (1).csv"}']).task.files == {"train": "a (1).csv"}


def test_relative_paths_are_those_of_the_user_and_mean_the_same_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.csv").write_text("text,label\na,b\n")
    (tmp_path / "snips").mkdir()
    words = ["experiment=smoke", "task=text", "task.dataset=rows.csv", "run.store=kept", "run.dir=out"]
    files = ["experiment=smoke", "task=text", "task.files={train: rows.csv}"]
    here, by_split, shipped = load(words), load(files), load(["experiment=smoke"])
    monkeypatch.chdir("/")
    there = load([*words, *places(here)])
    assert there.task.dataset == str(tmp_path / "rows.csv")
    assert (there.run_dir, there.store_dir) == (tmp_path / "out", tmp_path / "kept")
    assert load([*files, *places(by_split)]).task.files == {"train": str(tmp_path / "rows.csv")}
    assert shipped.task.dataset == "snips", "a folder of that name does not hide the shipped set"
    assert shipped.model.tokenizer.startswith("pkg://")
