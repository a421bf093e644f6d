"""A tiny Flower app, run for real: how it ends is told truly, and nothing of it is left behind."""

import ipaddress
import json
import os
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from flwr.common.config import parse_config_args
from flwr.supercore.utils import simulation_config_from_json
from hypothesis import given
from hypothesis import strategies as st

import fedsa_lora
from fedsa_lora.errors import RunError
from fedsa_lora.launch.connection import toml_string
from fedsa_lora.launch.flower_run import FlowerRun, Outcome, _json_object
from fedsa_lora.launch.size import Simulation
from fedsa_lora.launch.superlink import TOKEN_VARIABLE, SuperLink, _short_temp_dir

TWO_CLIENTS = Simulation(supernodes=2, cpus_per_client=1, cpus=2)
AWKWARD = """a="b c" list=[1,'two'] {x: 1} tab\t back\\slash # no comment\nsecond é ☃ 😀 = $HOME"""

PYPROJECT = """
[project]
name = "tiny"
version = "1.0.0"
license = "Apache-2.0"
dependencies = ["flwr"]
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[tool.flwr.app]
publisher = "tests"
[tool.flwr.app.components]
serverapp = "tiny.server_app:app"
clientapp = "tiny.client_app:app"
[tool.flwr.app.config]
overrides = ""
"""
CLIENT = """
import os, time
from pathlib import Path
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp

class Tiny(NumPyClient):
    def fit(self, parameters, config):
        Path(os.environ["TINY_OUT"], f"client-{os.getpid()}").write_text(f"{os.getcwd()}\\n{__file__}")
        if os.environ["TINY_MODE"] == "client raises":
            raise ValueError("no data for this client")
        if os.environ["TINY_MODE"] == "wait":
            time.sleep(3600)
        return [parameters[0] + 1], 1, {}

app = ClientApp(client_fn=lambda context: Tiny().to_client())
"""
SERVER = """
import json, os
from pathlib import Path
import numpy as np
from flwr.common import ndarrays_to_parameters
from flwr.server import ServerAppComponents, ServerConfig
from flwr.server.strategy import FedAvg
from flwr.serverapp import ServerApp

class Strict(FedAvg):
    def aggregate_fit(self, server_round, results, failures):
        if failures:
            raise RuntimeError(f"{len(failures)} clients failed\\n  first: {failures[0]}")
        return super().aggregate_fit(server_round, results, failures)

def server_fn(context):
    seen = {k: os.environ.get(k) for k in ("OMP_NUM_THREADS", "RAY_ADDRESS", "TINY_MODE")}
    seen["overrides"] = context.run_config["overrides"]
    Path(os.environ["TINY_OUT"], "server.json").write_text(json.dumps(seen))
    print("the server speaks")
    if os.environ["TINY_MODE"] == "server raises":
        raise ValueError("two faults:\\n  - one\\n  - another")
    start = ndarrays_to_parameters([np.zeros(3)])
    strategy = Strict(fraction_evaluate=0.0, initial_parameters=start)
    return ServerAppComponents(strategy=strategy, config=ServerConfig(num_rounds=1))

app = ServerApp(server_fn=server_fn)
"""


SLOW_SUPERLINK = """#!{python}
import socket, sys, time
time.sleep(2)
taken = socket.create_server(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])))
time.sleep(3600)
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    package = tmp_path / "app" / "tiny"
    package.mkdir(parents=True)
    (package.parent / "pyproject.toml").write_text(PYPROJECT)
    (package / "__init__.py").write_text("")
    (package / "client_app.py").write_text(CLIENT)
    (package / "server_app.py").write_text(SERVER)
    return package.parent


def open_run(app: Path, mode: str, name: str = "run", overrides: str = "") -> FlowerRun:
    work = app.parent / name
    work.mkdir()
    return FlowerRun(app, overrides, TWO_CLIENTS, work, {"TINY_OUT": str(work), "TINY_MODE": mode})


def left_of(token: str) -> list[str]:
    """Name what still runs with this token; Ray's renamed workers lose it, and are found by their parents."""
    left = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(TOKEN_VARIABLE) == token:
                left.append(f"{process.pid} {process.name()}")
        except psutil.Error:
            continue
    return left


def listening(processes: list[psutil.Process]) -> dict[str, set[str]]:
    """By the name of a process, the addresses at which it takes connections or datagrams."""
    found: dict[str, set[str]] = {}
    for process in processes:
        try:
            sockets = [
                s for s in process.net_connections("inet") if s.status in ("LISTEN", "NONE") and s.laddr
            ]
            found.setdefault(process.name(), set()).update(s.laddr.ip for s in sockets)
        except psutil.Error:  # it ended meanwhile
            continue
    return {name: addresses for name, addresses in found.items() if addresses}


def is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    return (getattr(ip, "ipv4_mapped", None) or ip).is_loopback


def wait_for(condition: object, seconds: float = 900.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)


@pytest.mark.slow
def test_completed_run_gets_its_overrides_unchanged_and_leaves_nothing(
    app: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    polls: list[float] = []
    began = time.monotonic()
    with open_run(app, "ok", overrides=AWKWARD) as run:
        private, descendants = run.superlink.private, run.superlink.processes()
        outcome = run.follow(lambda: polls.append(time.monotonic()), timeout=1200)
        seconds = time.monotonic() - began
        descendants += run.superlink.processes()
    assert outcome == Outcome("completed", "")
    seen = json.loads((app.parent / "run" / "server.json").read_text())
    assert seen == {"overrides": AWKWARD, "OMP_NUM_THREADS": "1", "RAY_ADDRESS": None, "TINY_MODE": "ok"}
    assert len(polls) > 3, "it was asked again and again"
    assert "the server speaks" in run.log.read_text()
    for client in (app.parent / "run").glob("client-*"):  # the bundle, not the working tree
        assert str(app) not in client.read_text()
    assert left_of(run.superlink.token) == []
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in descendants)
    assert private is not None
    assert not private.exists()
    print(f"{seconds:.1f} s from the command to the end")


@pytest.mark.slow
def test_rejected_app_gives_the_reason(tmp_path: Path) -> None:
    run = FlowerRun(tmp_path / "nowhere", "", TWO_CLIENTS, tmp_path / "run")
    with pytest.raises(RunError, match=r"rejected the app in .*nowhere: .*pyproject\.toml"), run:
        pass
    assert left_of(run.superlink.token) == []
    with pytest.raises(RunError, match="not open"):
        run.status()


def test_a_superlink_that_cannot_start_gives_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "flower-superlink"
    script.write_text("#!/bin/sh\necho\necho no memory\necho\n")
    script.chmod(0o755)
    link = SuperLink(tmp_path / "superlink.log", {})
    monkeypatch.setattr(link, "command", lambda name: str(tmp_path / name))
    with pytest.raises(RunError, match=r"did not start: no memory; see .*superlink\.log"):
        link.start()
    link.close()
    link.close()
    assert link.private is not None
    assert not link.private.exists()


def test_a_command_that_is_not_installed_is_named(tmp_path: Path) -> None:
    link = SuperLink(tmp_path / "superlink.log", {})
    link.env = {"PATH": str(tmp_path)}
    with pytest.raises(RunError, match=r"`flwr` is not next to .*: install"):
        link.command("flwr")


@pytest.mark.slow
def test_a_port_taken_by_another_is_tried_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    from fedsa_lora.launch import superlink as module

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        ports = iter([taken.getsockname()[1], module.free_port()])
        monkeypatch.setattr(module, "free_port", lambda: next(ports))
        link = SuperLink(tmp_path / "superlink.log", {})
        try:
            link.start()
            assert link.port != taken.getsockname()[1]
        finally:
            link.close()
    assert left_of(link.token) == []


@pytest.mark.slow
def test_a_superlink_that_is_slow_to_start_is_waited_for_and_the_screen_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fedsa_lora.launch import superlink as module

    monkeypatch.setattr(module, "SLOW_SECONDS", 0.2)
    script = tmp_path / "flower-superlink"
    script.write_text(SLOW_SUPERLINK.format(python=sys.executable))
    script.chmod(0o755)
    link = SuperLink(tmp_path / "superlink.log", {})
    monkeypatch.setattr(link, "command", lambda name: str(tmp_path / name))
    try:
        assert link.start() == link.private
    finally:
        link.close()
    assert "waiting for the SuperLink to listen, for" in caplog.text


@pytest.mark.slow
def test_a_submission_is_waited_for_as_long_as_it_lives_and_the_superlink_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from fedsa_lora.launch import superlink as module

    monkeypatch.setattr(module, "SLOW_SECONDS", 0.2)
    run = FlowerRun(tmp_path, "", TWO_CLIENTS, tmp_path)
    run.superlink.env = dict(os.environ)
    slow = [sys.executable, "-c", "import time; time.sleep(2); print('done')"]
    assert run._answer(slow, tmp_path) == ("done\n", "")
    assert "waiting for `flwr run` to submit the app, for" in caplog.text
    monkeypatch.setattr(run.superlink, "exit_code", lambda: 1)
    with pytest.raises(RunError, match="ended with exit code 1 before the app was submitted"):
        run._answer([sys.executable, "-c", "import time; time.sleep(3600)"], tmp_path)


@pytest.mark.slow
def test_failed_server_tells_its_whole_message(app: Path) -> None:
    with open_run(app, "server raises") as run:
        outcome = run.follow(timeout=1200)
    assert outcome == Outcome("failed", "ValueError: two faults:\n  - one\n  - another")
    assert "in server_fn" in run.log.read_text()


@pytest.mark.slow
def test_tracebacks_of_clients_are_in_the_log(app: Path) -> None:
    with open_run(app, "client raises") as run:
        outcome = run.follow(timeout=1200)
    assert outcome.state == "failed"
    assert outcome.details.startswith("RuntimeError: 2 clients failed")
    assert "ValueError: no data for this client" in run.log.read_text()


@pytest.mark.slow
def test_two_at_once_do_not_meet(app: Path) -> None:
    def go(name: str) -> Outcome:
        with open_run(app, "ok", name, overrides=name) as run:
            return run.follow(timeout=2400)

    with ThreadPoolExecutor(2) as pool:
        assert [o.state for o in pool.map(go, ["one", "two"])] == ["completed", "completed"]
    for name in ("one", "two"):
        assert json.loads((app.parent / name / "server.json").read_text())["overrides"] == name


@pytest.mark.slow
def test_death_of_the_superlink_is_noticed(app: Path) -> None:
    with open_run(app, "wait") as run:
        wait_for(lambda: list((app.parent / "run").glob("client-*")))
        assert run.superlink._process is not None
        run.superlink._process.kill()
        outcome = run.follow(timeout=600)
        workers = run.superlink.processes()
    assert outcome.state == "failed"
    assert "SuperLink ended with exit code -9" in outcome.details
    assert left_of(run.superlink.token) == []
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in workers)


@pytest.mark.slow
def test_a_gpu_that_is_not_there_is_named(app: Path) -> None:
    (app.parent / "run").mkdir()
    env = {"TINY_OUT": str(app.parent / "run"), "TINY_MODE": "ok", "CUDA_VISIBLE_DEVICES": ""}
    with FlowerRun(app, "", Simulation(2, gpus_per_client=1.0, cpus=2), app.parent / "run", env) as run:
        outcome = run.follow(timeout=1200)
    assert outcome.state == "failed"
    assert "`num_gpus`" in outcome.details


@pytest.mark.slow
def test_nothing_of_a_simulation_listens_beyond_loopback(app: Path) -> None:
    with open_run(app, "wait") as run:
        wait_for(lambda: len(list((app.parent / "run").glob("client-*"))) == 2)
        found = listening(run.superlink.processes())
    assert {name for name in found if name.startswith(("gcs_server", "raylet", "ray::", "flwr-sim"))}, found
    assert len(found) >= 4, found
    assert all(is_loopback(ip) for addresses in found.values() for ip in addresses), found


@pytest.mark.slow
def test_timeout_stops(app: Path) -> None:
    with open_run(app, "wait") as run:
        assert run.follow(timeout=3) == Outcome("stopped", "not finished within 3 s")
        assert run.status()[0] in ("starting", "running")
    assert left_of(run.superlink.token) == []


LAUNCHER = """
import sys
from pathlib import Path
from fedsa_lora.launch.flower_run import FlowerRun
from fedsa_lora.launch.size import Simulation
app, work = Path(sys.argv[1]), Path(sys.argv[2])
with FlowerRun(app, "", Simulation(2, cpus=2), work, {"TINY_OUT": str(work), "TINY_MODE": "wait"}) as run:
    (work / "token").write_text(f"{run.superlink.token} {run.superlink.private}")
    run.follow()
"""


@pytest.fixture
def launcher(app: Path) -> Iterator[subprocess.Popen[bytes]]:
    work = app.parent / "run"
    work.mkdir()
    env = os.environ | {"PYTHONPATH": str(Path(fedsa_lora.__file__).parents[1])}
    with subprocess.Popen([sys.executable, "-c", LAUNCHER, str(app), str(work)], env=env) as process:
        wait_for(lambda: list(work.glob("client-*")) or process.poll() is not None)
        yield process
        process.kill()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, -signal.SIGINT), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_signal_leaves_no_process(
    app: Path, launcher: subprocess.Popen[bytes], number: signal.Signals, code: int
) -> None:
    token, private = (app.parent / "run" / "token").read_text().split()
    assert left_of(token)
    workers = [p for p in psutil.process_iter() if "ray::" in p.name() and _cwd(p) == private]
    assert workers
    began = time.monotonic()
    launcher.send_signal(number)
    assert launcher.wait(timeout=600) == code
    print(f"{number.name}: ended in {time.monotonic() - began:.1f} s")
    if number == signal.SIGKILL:  # only the guard is left to clean up
        wait_for(lambda: not Path(private).exists())
    assert left_of(token) == []
    assert not Path(private).exists()
    assert not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in workers)


def _cwd(process: psutil.Process) -> str:
    try:
        return str(process.cwd())
    except psutil.Error:
        return ""


def test_simulation_speaks_flowers_language() -> None:
    text = Simulation(10, cpus_per_client=2, gpus_per_client=0.25, cpus=4, gpus=1).federation_config()
    values = {key.replace("-", "_"): value for key, value in parse_config_args([text]).items()}
    config = simulation_config_from_json(values)  # raises on an unknown field or a wrong type
    assert (config.num_supernodes, config.client_resources_num_cpus, config.init_args_num_cpus) == (10, 2, 4)
    assert (config.client_resources_num_gpus, config.init_args_num_gpus) == (0.25, 1)
    assert "init-args" not in Simulation(3).federation_config()


@pytest.mark.parametrize(
    ("arguments", "fault"),
    [
        ({"supernodes": 0}, "supernodes is 0"),
        ({"supernodes": 2, "cpus_per_client": 0.5}, "cpus_per_client is 0.5, expected a whole number"),
        ({"supernodes": 2, "cpus_per_client": 4, "cpus": 2}, "cpus is 2, less than the 4"),
        ({"supernodes": 2, "gpus_per_client": 0.5, "gpus": 0}, "gpus is 0, less than the 0.5"),
        ({"supernodes": 2, "gpus_per_client": -1.0}, "gpus_per_client is -1.0"),
    ],
)
def test_impossible_simulations_are_refused(arguments: dict[str, int], fault: str) -> None:
    with pytest.raises(RunError, match=fault):
        Simulation(**arguments)


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_any_overrides_survive_toml(text: str) -> None:
    assert tomllib.loads(f"overrides = {toml_string(text)}") == {"overrides": text}


def test_json_object_among_other_lines() -> None:
    assert _json_object('note\n{"success": true}\n') == {"success": True}
    assert _json_object("Traceback") == {}


def test_private_folder_is_short_enough_for_rays_sockets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 60)))
    folder = _short_temp_dir()
    folder.rmdir()
    session = "/ray/session_2026-01-01_00-00-00_000000_4194304/sockets/plasma_store"
    assert len(str(folder) + session) <= 103
