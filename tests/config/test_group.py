"""Config groups know themselves: what is marked beside a field is found by every file that loops."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import yaml

from fedsa_lora.binding import bind
from fedsa_lora.config.compose import CONF, load
from fedsa_lora.group import (
    CHANGEABLE,
    FILES,
    IDENTITY,
    PATHS,
    READ,
    SERVED,
    TEXT,
    WRITTEN,
    Group,
    Keys,
    at,
    at_least,
    marked,
    marks,
    more_than,
    ranges,
)  # fmt: skip
from fedsa_lora.launch.resuming import _is_changeable
from fedsa_lora.settings import RunConfig

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Noise(Group):
    scale: Annotated[float | None, more_than(0), IDENTITY] = None
    clip: Annotated[int, at_least(1, 9), CHANGEABLE] = 1
    key: Annotated[str, READ] = ""

    @staticmethod
    def contradictions(node: Any) -> Iterator[str]:
        if node.get("clip") == 7:
            yield "7 brings no luck"


@dataclass(frozen=True)
class Run:
    noise: Annotated[Noise | None, CHANGEABLE]
    task: Annotated[Any, Keys(TEXT, "text", "label")]
    kind: Literal["a", "b"] = "a"
    more: dict[str, int] = field(default_factory=dict)


def test_marks_are_found_in_groups_within_groups():
    assert set(marks(Run)) == {
        ("noise", CHANGEABLE), ("noise.scale", more_than(0)), ("noise.scale", IDENTITY), ("noise.key", READ),
        ("noise.clip", at_least(1, 9)), ("noise.clip", CHANGEABLE), ("task.text", TEXT), ("task.label", TEXT),
    }  # fmt: skip
    assert marked(Run, IDENTITY, READ) == ("noise.scale", "noise.key")
    assert ranges(Run) == {"noise.scale": more_than(0), "noise.clip": at_least(1, 9)}
    assert at({"a": {"b": 3}}, "a.b") == 3


def test_an_interval_holds_what_it_says():
    assert [v in at_least(1, 3) for v in (0.999, 1, 2.5, 3, 3.1)] == [False, True, True, True, False]
    assert [v in more_than(0) for v in (0, 1e-300, 1e300)] == [False, True, True]
    for value in (float("nan"), float("inf"), float("-inf")):
        assert value not in at_least(-1e308)
    assert str(at_least(1, 3)) == "at least 1 and at most 3"
    assert str(more_than(0.5)) == "more than 0.5"


def test_a_range_and_a_contradiction_are_faults_beside_the_others():
    faults: list[str] = []
    assert bind(Noise, {"scale": 0, "clip": 7, "kye": 1}, "noise", faults) is None
    assert faults == [
        "noise.kye: no such key (did you mean 'key'?)",
        "noise.scale: 0 is out of range; expected more than 0",
        "noise: 7 brings no luck",
    ]
    assert bind(Noise, {"scale": None, "clip": 9}, "noise", faults := []) == Noise(clip=9)
    assert faults == []


# What may change between the rounds of a run, which files a config names, and which keys are text.
CHANGES = {
    "federation.rounds", "federation.wait_seconds", "federation.min_clients", "federation.round_timeout",
    "federation.min_results", "federation.max_skipped", "federation.retries", "federation.exclude_after",
    "federation.exclude_rounds", "federation.superlink", "federation.root_certificates",
    "federation.clients_per_node", "federation.insecure", "federation.registry",
    "bounds.max_rejections", "unlearning", "evaluation", "machine", "run",
}  # fmt: skip


def test_what_a_run_config_marks_is_what_was_agreed():
    assert set(marked(RunConfig, CHANGEABLE)) == CHANGES
    assert set(marked(RunConfig, WRITTEN)) == {"run.dir", "run.store"}
    assert set(marked(RunConfig, READ)) == {"task.dataset", "model.path", "model.tokenizer", "model.adapter"}
    assert marked(RunConfig, FILES) == ("task.files",)
    assert set(marked(RunConfig, SERVED)) == {"federation.root_certificates", "federation.registry"}
    columns = ("text", "text_pair", "image", "label", "group", "prompt", "answer", "rejected", "messages")
    texts = {f"task.{key}" for key in columns}
    assert set(marked(RunConfig, TEXT)) == {"title", *texts}
    assert READ in PATHS


@pytest.mark.parametrize("key", ["federation.rounds", "machine.threads", "run.dir", "evaluation.every"])
def test_a_key_may_change_by_itself_or_with_its_group(key):
    assert _is_changeable(key)
    assert not _is_changeable(key.rpartition(".")[0] + "x")
    assert not _is_changeable("federation.weights")
    assert not _is_changeable("seed")


# Made before groups were looped over: stores of those runs hold them.
DIGESTS = {
    "experiment=smoke": "ecaaa2839c421557",
    "experiment=smoke split=share_ab strategy=flora federation.ranks=[2,4]": "78a0349435b0411b",
    "experiment=smoke federation.b_passing=true": "9b76df9391b22cd8",
    "experiment=smoke split=importance codec=topk_int8 downlink=int8 head=shared seed=7": "c5761c04a5908959",
    "experiment=smoke personalisation=ditto attack=backdoor partition=dirichlet": "e54c823f65e9b1e1",
    "experiment=smoke clusters=updates clusters.after=1 lora=rslora head=soft": "1060755649609679",
    "task=image model=tiny_vit lora=none split=full head=shared": "41ee023f97bb7546",
    "experiment=quickstart": "16d11748255c8ded",
}


@pytest.mark.parametrize(("words", "digest"), DIGESTS.items())
def test_the_digest_of_an_experiment_is_that_of_the_runs_that_are_stored(words, digest):
    assert load(words).experiment == digest


GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()}
KEY = re.compile(rf"\b({'|'.join(GROUPS)})\.(?!md\b|csv\b|jsonl\b)([a-z]\w*)\b")


@pytest.fixture(scope="module")
def known():
    """The keys of each group; of a task those of every class."""
    found = load().resolved
    for task in CONF.glob("task/*.yaml"):
        found["task"] |= dict.fromkeys(yaml.safe_load(task.read_text()))
    return found


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda path: path.stem)
def test_a_config_file_speaks_of_keys_that_there_are(path, known):
    remarks = [line.partition("#")[2] for line in path.read_text().splitlines()]
    own = yaml.safe_load(path.read_text())
    named = {".".join(found) for line in remarks for found in KEY.findall(line)}
    for key in named:
        group, name = key.split(".")
        assert name in (known.get(group) or {}) or (path.parent.name == group and name in own), key


CENTRAL = [
    "binding.py", "config/compose.py", "group.py", "report/tables.py", "config/validation.py",
    "launch/resuming.py",
]  # fmt: skip
# Bound with values of others, the keys that every run has, and what the plan counts.
NAMED = {
    "name", "title", "description", "seed", "task", "model", "split", "head", "attack", "strategy",
    "federation", "run", "resolved", "codec", "downlink", "train",
}  # fmt: skip


@pytest.mark.parametrize("name", CENTRAL)
def test_what_loops_over_groups_names_none(name):
    others = {f.name for f in fields(RunConfig)} - NAMED
    assert {
        "bounds", "clusters", "cut", "personalisation", "unlearning", "machine", "evaluation", "lora",
    } == others  # fmt: skip
    text = (ROOT / "fedsa_lora" / name).read_text()
    found = re.findall(rf"(?:config\.|\[\")({'|'.join(others)})\b", text)
    assert found == []
