"""A config file as overrides: they make the same config, whatever is set in it."""

from pathlib import Path

import pytest

from fedsa_lora.compare.grid import SET, YOURS, Run, read_grid
from fedsa_lora.compare.on_config import on_config
from fedsa_lora.compare.probe import probe_grid
from fedsa_lora.config import yaml_text
from fedsa_lora.config.changes import named
from fedsa_lora.config.compose import load, to_yaml
from fedsa_lora.config.from_file import overrides_of
from fedsa_lora.errors import ConfigError


def written(path: Path, *words: str) -> Path:
    """The config file of a run that these overrides make."""
    path.write_text(
        to_yaml(load([*words, f"run.dir={path.parent}/before", f"run.store={path.parent}/store"]))
    )
    return path


@pytest.fixture
def file(tmp_path) -> Path:
    words = ["codec=topk", "codec.ratio=0.2", "split=importance", "train.lr=0.01"]
    return written(tmp_path / "config.yaml", "experiment=smoke", *words)


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes the text of an option ``mine`` of a group, in a folder ``conf`` of the user's own."""
    monkeypatch.chdir(tmp_path)

    def write(group: str, text: str) -> None:
        Path("conf", group).mkdir(parents=True)
        Path("conf", group, "mine.yaml").write_text(text, encoding="latin-1")

    return write


@pytest.mark.sampled(6)
@pytest.mark.parametrize(
    "words",
    [
        ["experiment=smoke", "train.lr=1e-3", "split=share_b"],
        ["task=banking77", "split=share_ab", "strategy=flora", "federation.ranks=[2,4]", "head=shared"],
        ["experiment=smoke", "lora=none", "split=full", "head=shared", "title=My 'own' \"one\", (1)"],
        ["experiment=smoke", "+model.config.hidden_dropout_prob=0", "attack=backdoor", "regime=few"],
        ["experiment=unlearn/authors", "unlearning=npo", "unlearning.targets=[1,2]"],
        ["experiment=smoke", "federation.ranks={0: 4, 1: 8}", "strategy=flexlora", "split=share_ab"],
        ["task=snips", "split=share_ab", "federation.b_passing=true", "~train.clip_norm"],
        ["experiment=vision/quick", "personalisation=ditto", "partition=pathological", "seed=7"],
    ],
    ids=" ".join,
)
def test_the_overrides_of_a_file_make_its_config_but_for_where_the_run_was(tmp_path, words):
    file = written(tmp_path / "config.yaml", *words)
    found, plain = load(overrides_of([str(file)])), load(words)
    assert found.resolved == plain.resolved
    assert found.experiment == plain.experiment


BELOW = "defaults: [tiny_bert]\nconfig: {hidden_size: 64}\n"  # one of the keys that tiny_bert has in config
SEVERAL = (
    "# @package _global_\ncodec: {_target_: fedsa_lora.exchange.codec.Dense, block: 64}\ntrain: {lr: 0.5}\n"
)


@pytest.mark.parametrize(
    ("word", "text"),
    [("downlink=topk_int8", None), ("model=mine", BELOW), ("codec=mine", SEVERAL)],
    ids=["of another group", "a key below another", "keys of two groups"],
)
def test_an_option_is_found_again_by_all_that_it_and_the_files_it_begins_with_set(own, word, text):
    if text is not None:
        own(word.partition("=")[0], text)
    file = written(Path("config.yaml"), "experiment=smoke", word)
    assert overrides_of([str(file)]) == ["experiment=smoke", word]


@pytest.mark.parametrize("text", ["a: [", "é", "[1, 2]", "defaults: 3", "defaults: [mine]", "defaults: [xx]"])
def test_a_broken_option_is_a_fault_of_no_config_but_one_that_chooses_it(own, file, text):
    words = overrides_of([str(file)])
    own("codec", text)
    assert overrides_of([str(file)]) == words
    with pytest.raises(ConfigError):
        load(overrides_of([str(file), "codec=mine"]))


def test_an_option_that_only_hydra_composes_can_be_chosen_and_its_settings_are_kept(own, file):
    own("codec", "# As of @package, which is a word of Hydra.\ndefaults: [dense]\nblock: 64\n")
    chosen = load(overrides_of([str(file), "codec=mine"])).resolved
    assert chosen == load([*overrides_of([str(file)], without=("codec",)), "codec=mine"]).resolved
    file.write_text(yaml_text.dump(chosen))
    words = overrides_of([str(file)])
    assert "codec.block=64" in words
    assert load(words).resolved == chosen


def test_settings_of_a_users_own_are_not_named_after_an_option_that_is_hardly_nearer(tmp_path):
    own = [
        "lora.r=4",
        "lora.alpha=8",
        "lora.dropout=0.0",
        "lora.target_modules=[query]",
        "lora.targets=default",
    ]
    words = overrides_of([str(written(tmp_path / "config.yaml", "task=snips", *own))])
    assert not [word for word in words if word.startswith("lora=")]
    assert load(words).resolved == load(["task=snips", *own]).resolved


def test_overrides_after_a_file_apply_and_a_group_that_is_chosen_takes_the_place_of_the_files(file):
    words = overrides_of([str(file), "codec=int8", "split=share_b", "train.lr=2e-3", "train.steps=2"])
    config = load(words)
    node = load(
        ["experiment=smoke", "codec=int8", "split=share_b", "train.lr=2e-3", "train.steps=2"]
    ).resolved
    assert config.resolved == node
    assert words[-2:] == ["train.lr=2e-3", "train.steps=2"]


def test_a_title_that_was_made_of_the_settings_follows_what_is_changed(tmp_path):
    file = written(tmp_path / "config.yaml", "task=banking77")
    assert load(overrides_of([str(file), "task=snips", "federation.clients=4"])).title == "snips, 4 clients"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["{file}", "experiment=smoke"], "experiment=smoke sets what .* sets as well"),
        (["train.lr=1", "{file}"], "expected one config file, and overrides after it"),
        (["{file}", "{file}"], "expected one config file"),
        (["nowhere.yaml"], "no config file at 'nowhere.yaml'"),
        (["{few}"], "lacks .*: expected every setting, .* conf/experiment/NAME.yaml here"),
        (["{experiment}"], "chooses from other files: expected every setting"),
    ],
)
def test_what_is_no_whole_config_is_refused_with_what_to_do(file, words, said):
    places = {"file": file, "few": file.with_name("few.yaml"), "experiment": file.with_name("mine.yaml")}
    places["few"].write_text("train: {lr: 0.1}\n")
    places["experiment"].write_text("defaults: [{override /task: snips}]\nname: mine\n")
    with pytest.raises(ConfigError, match=said):
        overrides_of([word.format(**places) for word in words])


def test_a_run_directory_in_the_place_of_its_config_is_answered_with_the_file(file):
    with pytest.raises(ConfigError, match=r"is a folder; expected its config file: .*/config\.yaml"):
        overrides_of([str(file.parent), "seed=1"])


def test_a_fault_in_a_file_is_reported_as_that_of_an_override(file):
    node = yaml_text.parse(file.read_text())
    node["train"] |= {"lr": -1.0, "epoch": 3}
    file.write_text(yaml_text.dump(node))
    with pytest.raises(ConfigError, match=r"(?s)train.epoch: no such key .*'epochs'.*train.lr: -1.0 is out"):
        load(overrides_of([str(file)]))


def test_a_config_that_is_given_for_a_grid_is_answered_with_the_command(file):
    with pytest.raises(ConfigError, match=f"is the config of a run: expected a grid before it, .* {file}"):
        read_grid(str(file))


def test_advice_and_a_comparison_take_a_file_without_what_they_set_themselves(file):
    words = overrides_of([str(file)], without=("split", "head", "train.lr"))
    assert overrides_of([str(file), "head=frozen"], without=("split", "head"))[-1] == "head=frozen"
    assert words == ["experiment=smoke", "codec=topk", "codec.ratio=0.2"]
    assert len(probe_grid(words).rates) > 1
    on_file = on_config(read_grid("methods"), [str(file)])
    assert {entry.regime for entry in on_file.entries()} == {YOURS}
    configs = {entry.method: load(entry.words) for entry in on_file.entries()[:2]}
    assert {config.train.lr for config in configs.values()} == {0.01}
    assert {type(config.codec).__name__ for config in configs.values()} == {"Dense"}


def test_an_override_of_what_a_grid_sets_itself_is_refused_and_not_ignored():
    grid = read_grid("methods")
    run = Run(grid.entries()[0], 0.1, 0)
    own = grid.overrides(run)[len(run.entry.words) :]
    assert {named(word) for word in own} | {"run.dir"} == SET
    for word in (*own, "run.dir=here"):
        with pytest.raises(ConfigError, match=f"^{named(word)}=.*: a grid sets {named(word)} in each"):
            on_config(grid, ["experiment=smoke", word])
