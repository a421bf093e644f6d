"""Words of other programs: an error names ours, ours exist, and the documentation has the same."""

import re
from dataclasses import fields, is_dataclass
from pathlib import Path

import pytest

from fedsa_lora.cli import main, parser
from fedsa_lora.config.compose import CONF, load
from fedsa_lora.errors import ConfigError
from fedsa_lora.foreign import ORIGINS, Word, ours
from fedsa_lora.group import held, hints_of
from fedsa_lora.settings import RunConfig

DOCS = Path(__file__).resolve().parents[2] / "docs" / "language_models.md"
WORDS = [word for words in ORIGINS.values() for word in words]
AWAITED = {"task_name"}  # of experiments alone


def keys_of(node: object, above: str = "") -> set[str]:
    if not isinstance(node, dict):
        return {above}
    return {above}.union(*(keys_of(value, f"{above}.{key}".lstrip(".")) for key, value in node.items()))


def is_there(words: str, keys: set[str]) -> bool:
    """A key, a group, a group's option, or a command."""
    if words.startswith("fedsa-lora "):
        (commands,) = (action for action in parser()._actions if action.dest == "command")
        return words.split()[1] in commands.choices
    key, _, value = words.partition("=")
    if not (CONF / key).is_dir():
        return key in keys
    return not value or (CONF / key / f"{value}.yaml").is_file()


def test_every_word_of_ours_exists():
    keys = keys_of(load(["codec=topk", "split=importance", "partition=dirichlet"]).resolved)
    keys |= keys_of(load(["task=clip"]).resolved)
    for name, hint in hints_of(RunConfig).items():
        if is_dataclass(kind := held(hint)):
            keys |= {f"{name}.{field.name}" for field in fields(kind)}
    given = {ours for word in WORDS for ours in word.ours.split(", ") if ours}
    missing = {words for words in given if not is_there(words, keys)}
    assert {words.partition("=")[0] for words in missing} == AWAITED
    assert all(word.ours or word.note for word in WORDS)


def test_no_word_stands_twice():
    theirs = [word.theirs.casefold() for word in WORDS]
    assert len(theirs) == len({*theirs})


ANSWERS = {
    "trainer=NPO": "trainer=NPO: no such key; use unlearning=npo",
    "model.model_args.pretrained_model_name_or_path=x": "pretrained_model_name_or_path=x: no such key; use",
    "model.model_args.torch_dtype=bfloat16": "use model.dtype=bf16",
    "model.model_args.attn_implementation=sdpa": "use model.attention",
    "lora_model_path=adapter": "use model.adapter",
    "model.lora_config.r=16": "model.lora_config.r=16: no such key; use lora.r",
    "model.lora_config.bias=none": "no equivalent: biases stay",
    "lora.lora_alpha=3": "use lora.alpha",
    "train.gradient_accumulation_steps=4": "use train.accumulate",
    "args.dataloader_num_workers=4": "no equivalent: examples are in memory",
    "train.bf16=true": "train.bf16=true: no such key; use train.precision=bf16",
    "task_task_name=mine": "use task_name",
    "data.anything=1": "data: no such key; use task",
    "model=Llama-3.2-3B-Instruct": "use model=llama32_3b",
    "adaptive_split.strategy=importance_based": "use split=importance",
    "model.type=clip_lora": "use task=clip, lora=clip_encoder (both)",
    "lora.target_components=[encoder]": "use lora.towers, task.classifier",
}


def test_a_key_of_another_program_is_answered_with_ours():
    with pytest.raises(ConfigError) as error:
        load(list(ANSWERS))
    lines = str(error.value).splitlines()[1:]
    for given, expected in ANSWERS.items():
        group = given.partition("=")[0].split(".")[0]
        assert [line for line in lines if line.startswith(f"  - {group}") and expected in line], given


def test_every_foreign_key_of_a_group_is_told_at_once_and_typing_errors_are_as_they_were():
    with pytest.raises(ConfigError) as error:
        load(["model.model_args={torch_dtype: bfloat16, attn_implementation: sdpa, x: 1}", "trian.lr=1"])
    assert str(error.value).count("no such key") == 3
    assert "trian: no such key (did you mean 'train'?)" in str(error.value)


def test_flags_of_another_program_are_answered_with_ours(capsys):
    words = ["run", "--alg", "fedlora", "--dataset=fmnist", "--lora_r", "8", "--local-ep", "10", "--gpu", "0"]
    with pytest.raises(SystemExit):
        main([*words, "--config-name=unlearn-lora.yaml", "--what"])
    lines = capsys.readouterr().err.splitlines()
    for line in (
        "--alg: use experiment=vision/fedlora",
        "--dataset=fmnist: use task=fashion_mnist",
        "--lora_r: use lora.r",
        "--local-ep: use train.epochs (with train.steps=null)",
        "--gpu: use machine.device=cuda:0",
    ):
        assert f"  {line}" in lines
    assert any(line.startswith("  --config-name=unlearn-lora.yaml: use experiment") for line in lines)
    assert not any(line.startswith("  --what") for line in lines)


def test_a_word_stands_for_every_key_that_ends_in_it():
    assert ours("trainer.args.learning_rate") == ours("learning_rate") == "use train.lr"
    assert ours("trainer", "FederatedUnlearningTrainer").startswith("use unlearning (npo")
    assert ours("rate") == ours("learning_rate.x") == ""


def row(word: Word) -> str:
    here = " or ".join(f"`{words}`" for words in word.ours.split(", ")) if word.ours else "none"
    return f"| `{word.theirs}` | {here} | {word.note} |"


def test_the_table_of_the_documentation_has_these_words():
    expected = []
    for origin, words in ORIGINS.items():
        expected += [f"### {origin}", "", "| theirs | here | |", "|---|---|---|", *map(row, words), ""]
    section = re.search(r"\n## Option names of other programs\n.*?(?=\n## |\Z)", DOCS.read_text(), re.DOTALL)
    assert section is not None
    tables = section[0][section[0].index("### ") :]
    assert tables.strip() == "\n".join(expected).strip()
