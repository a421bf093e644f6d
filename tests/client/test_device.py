"""The device that clients train on, where CUDA shows some GPUs and where it shows none."""

import re

import pytest
import torch

from fedsa_lora.client.device import ALONE, VISIBLE, device, shown_alone
from fedsa_lora.config.compose import load
from fedsa_lora.errors import ConfigError


@pytest.fixture
def gpus(monkeypatch):
    """Has torch see so many GPUs."""
    monkeypatch.delenv(VISIBLE, raising=False)
    monkeypatch.delenv(ALONE, raising=False)

    def show(count: int) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)

    return show


def trained_on(wanted: str) -> str:
    return str(device(load(["experiment=smoke", f"machine.device={wanted}"])))


@pytest.mark.parametrize(
    ("count", "wanted", "found"),
    [
        (0, "auto", "cpu"), (0, "cpu", "cpu"), (2, "auto", "cuda"), (2, "cpu", "cpu"), (2, "cuda", "cuda"),
        (2, "cuda:0", "cuda:0"), (2, "cuda:1", "cuda:1"),
    ],
)  # fmt: skip
def test_a_device_is_taken_by_its_name(gpus, count, wanted, found):
    gpus(count)
    assert trained_on(wanted) == found


@pytest.mark.parametrize(
    ("count", "wanted", "reason"),
    [
        (0, "cuda:0", "machine.device=cuda:0, but torch sees no CUDA device: set machine.device=cpu"),
        (1, "cuda:3", "machine.device=cuda:3, but torch sees 1 CUDA device(s): cuda:0; name one of them"),
        (2, "cuda:2", "machine.device=cuda:2, but torch sees 2 CUDA device(s): cuda:0, cuda:1;"),
    ],
)
def test_a_gpu_that_is_not_there_is_named_beside_those_that_are(gpus, count, wanted, reason):
    gpus(count)
    with pytest.raises(ConfigError, match=re.escape(reason)):
        trained_on(wanted)


@pytest.mark.parametrize("wanted", ["gpu", "cuda:", "cuda:x", "cuda:-1", "CUDA"])
def test_what_is_no_name_of_a_device_is_a_fault_with_the_names_there_are(wanted):
    with pytest.raises(
        ConfigError, match=f"device={wanted}: expected auto, cpu, cuda, or one GPU such as cuda:0"
    ):
        load(["experiment=smoke", f"machine.device={wanted}"])


def test_one_gpu_shown_alone_is_the_first_one_to_the_process_that_sees_it(gpus, monkeypatch):
    gpus(2)
    environment = shown_alone(torch.device("cuda:1"))
    assert environment[VISIBLE] == "1"
    gpus(1)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert trained_on("cuda:1") == "cuda"
    with pytest.raises(ConfigError, match="torch sees 1"):
        trained_on("cuda:2")


def test_of_gpus_of_which_some_are_hidden_the_number_is_among_those_that_are_shown(monkeypatch):
    monkeypatch.setenv(VISIBLE, "3,GPU-5a")
    assert shown_alone(torch.device("cuda:0"))[VISIBLE] == "3"
    assert shown_alone(torch.device("cuda:1"))[VISIBLE] == "GPU-5a"
    assert shown_alone(torch.device("cuda")) == shown_alone(torch.device("cpu")) == {}
