"""Every flag in deploy/ and docs/deployment.md is one that its command has, and every file there parses."""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import yaml

import fedsa_lora
from fedsa_lora.config.compose import load
from fedsa_lora.launch.superlink import flower_command, flower_environment

ROOT = Path(fedsa_lora.__file__).parents[1]
PAGE = ROOT / "docs" / "deployment.md"
FILES = [*sorted((ROOT / "deploy").rglob("*.yaml")), PAGE]
PROGRAMS = {"flower-superlink": 0, "flower-supernode": 0, "flwr": 2, "fedsa-lora": 1}  # words of a subcommand
FLAG = re.compile(r"(?<![\w-])--[a-z][a-z-]*")


def documents(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text()))


def in_yaml(node: Any) -> Iterator[list[str]]:
    """The commands of containers."""
    if isinstance(node, dict):
        if isinstance(node.get("command"), list):
            yield node["command"]
        for value in node.values():
            yield from in_yaml(value)
    elif isinstance(node, list):
        for value in node:
            yield from in_yaml(value)


def in_page(text: str) -> Iterator[list[str]]:
    """The lines of code blocks that call a program of ours or Flower's."""
    for block in re.findall(r"^```\w*\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if any(program in line for program in PROGRAMS):
                yield shlex.split(line.removeprefix("ExecStart="), comments=True)


def called(words: list[str]) -> list[str]:
    """A command from its program on, without a path, ``sudo`` and the like; empty for a line without one."""
    names = [Path(word).name for word in words]
    begin = next((i for i, name in enumerate(names) if name in PROGRAMS), len(words))
    return [*names[begin : begin + 1], *words[begin + 1 :]]


def commands(path: Path) -> list[list[str]]:
    found = in_page(path.read_text()) if path == PAGE else in_yaml(documents(path))
    return [words for words in map(called, found) if words]


@lru_cache
def flags(*words: str) -> frozenset[str]:
    """Those that ``--help`` tells of."""
    if words == ("fedsa-lora", "node"):  # which hands them on
        return flags("flower-supernode")
    env = flower_environment() | {"COLUMNS": "200", "PYTHONPATH": str(ROOT)}
    program, *rest = words
    cli = [sys.executable, "-m", "fedsa_lora.cli"]
    start = cli if program == "fedsa-lora" else [flower_command(program, env)]
    done = subprocess.run([*start, *rest, "--help"], env=env, capture_output=True, text=True, check=True)
    return frozenset(FLAG.findall(done.stdout))


@pytest.mark.sampled(3)
@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_flag_is_one_that_the_command_has(path):
    for words in commands(path):
        program = tuple(words[: 1 + PROGRAMS[words[0]]])
        used = {word.split("=")[0] for word in words[len(program) :] if word.startswith("--")}
        assert used <= flags(*program), f"{words}: {sorted(used - flags(*program))}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_run_is_one_that_can_be_configured(path):
    for words in commands(path):
        if words[:2] == ["fedsa-lora", "run"]:
            assert load([word for word in words[2:] if not word.startswith("--")]).federation.superlink


def test_each_part_is_there_once_the_files_are_read():
    programs = {" ".join(words[:2]) for path in FILES for words in commands(path)}
    assert {"fedsa-lora node", "fedsa-lora run", "fedsa-lora certificates"} <= programs
    assert {"flwr supernode"} <= programs
    assert any(program.startswith("flower-superlink") for program in programs)


def test_a_flag_that_was_removed_would_be_found():
    assert "--fleet-api-address" in flags("flower-superlink"), "deprecated, but there"
    assert "--clientappio-api-address" not in flags("flower-supernode")


def test_every_node_of_the_compose_file_keeps_its_state_on_a_volume_of_its_own():
    (content,) = documents(ROOT / "deploy" / "compose.yaml")
    stores = {}
    for name, service in content["services"].items():
        if service["command"][:2] == ["fedsa-lora", "node"]:
            (stores[name],) = (v.split(":")[0] for v in service["volumes"] if v.endswith(":/store"))
    assert len(stores) >= 2
    assert len(set(stores.values())) == len(stores)
    assert set(stores.values()) | {"runs", "superlink-state"} == set(content["volumes"])
    (gpu,) = documents(ROOT / "deploy" / "compose.gpu.yaml")
    assert gpu["services"].keys() == stores.keys()


def by_kind(path: Path) -> dict[str, Any]:
    return {document["kind"]: document for document in documents(path)}


@pytest.mark.case(33)
def test_in_containers_nodes_reach_the_proxy_with_the_shipped_config_and_never_the_superlink():
    (compose,) = documents(ROOT / "deploy" / "compose.yaml")
    services = compose["services"]
    nodes = {name for name, service in services.items() if service["command"][:2] == ["fedsa-lora", "node"]}
    reached = {name for name in services if "federation" in services[name]["networks"]}
    assert reached == nodes | {"proxy"}
    assert services["superlink"]["networks"] == ["control"]
    assert not any("ports" in service or "network_mode" in service for service in services.values())
    assert "./nginx.conf:/deploy/nginx.conf:ro" in services["proxy"]["volumes"]

    found = by_kind(ROOT / "deploy" / "kubernetes" / "superlink.yaml")
    superlink, proxy = found["StatefulSet"]["spec"]["template"]["spec"]["containers"]
    assert {"--host=127.0.0.1", "--port=9091"} <= set(superlink["command"])
    assert "ports" not in superlink
    assert [port["containerPort"] for port in proxy["ports"]] == [8000]
    assert [port["port"] for port in found["Service"]["spec"]["ports"]] == [8000]
    assert "/etc/nginx/nginx.conf" in proxy["command"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_superlink_authenticates_nodes_and_every_run_checks_their_names(path):
    for words in commands(path):
        if words[0] == "flower-superlink":
            assert "--enable-supernode-auth" in words
        elif words[:2] == ["fedsa-lora", "run"]:
            assert any(word.startswith("federation.registry=") for word in words), words


@pytest.mark.case(33)
def test_the_superlink_of_the_page_listens_to_loopback_alone():
    started = [words for words in commands(PAGE) if words[0] == "flower-superlink"]
    assert len(started) == 2
    for words in started:
        assert words[words.index("--host") + 1] == "127.0.0.1"
