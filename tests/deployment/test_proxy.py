"""The proxy in front of the SuperLink: nodes get through, and nobody to start a run or register a node."""

import http.client
import re
import shutil
import ssl
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest
from processes import WAIT_SECONDS, fits, rows, said

import fedsa_lora
from fedsa_lora.deployment.certificates import make_certificates
from fedsa_lora.deployment.loopback import Loopback
from fedsa_lora.launch.connection import Connection
from fedsa_lora.launch.federate import stage_app
from fedsa_lora.launch.superlink import flower_command, free_port

CONFIG = Path(fedsa_lora.__file__).parents[1] / "deploy" / "nginx.conf"
SMOKE = ["experiment=smoke", "federation.clients=2", "evaluation.local_only=false", "evaluation.before=false"]
# /usr/sbin is not on the PATH of every user
NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
Block = list[tuple[str, list]]  # (directive with its words, what is in its braces)


def parsed(text: str) -> Block:
    """The directives of an nginx config, in nested lists."""
    words = re.findall(r"[{};]|[^\s{};]+", re.sub(r"(?m)#.*$", "", text))
    outer: list[Block] = []
    block: Block = []
    directive: list[str] = []
    for word in words:
        if word == "{":
            inner: Block = []
            block.append((" ".join(directive), inner))
            outer.append(block)
            block, directive = inner, []
        elif word == "}":
            block = outer.pop()
        elif word == ";":
            block.append((" ".join(directive), []))
            directive = []
        else:
            directive.append(word)
    assert not outer
    assert not directive
    return block


def inside(block: Block, name: str) -> list[tuple[str, Block]]:
    return [(directive, inner) for directive, inner in block if directive.split()[0] == name]


@pytest.mark.case(33)
def test_the_config_passes_the_endpoints_of_nodes_and_nothing_else():
    text = CONFIG.read_text()
    everything = parsed(text)
    ((_, served),) = inside(everything, "http")
    ((_, server),) = inside(served, "server")
    ((upstream, addresses),) = inside(served, "upstream")
    assert addresses == [("server 127.0.0.1:9091", [])], "the SuperLink can be reached by others"
    locations = dict(inside(server, "location"))
    assert list(locations) == ["location ~ ^/v1/fleet/[a-z-]+\\z", "location /"]
    assert locations["location /"] == [("deny all", [])]
    passed = [directive for directive, _ in locations["location ~ ^/v1/fleet/[a-z-]+\\z"]]
    assert f"proxy_pass https://{upstream.split()[1]}$uri" in passed
    assert {"proxy_ssl_verify on", "proxy_ssl_name localhost", "limit_except POST"} <= set(passed)
    assert text.count("proxy_pass") == 1
    assert not re.search(
        r"(?m)^\s*(include|rewrite|return|try_files|error_page|if|alias|root|stream)\b", text
    )
    assert {"limit_conn addresses 64", "client_max_body_size 32m"} <= {directive for directive, _ in server}
    listening = [directive for directive, _ in inside(server, "listen")]
    assert listening
    assert all(directive.endswith(" ssl") for directive in listening), "without TLS"
    assert {name.split()[0] for name, _ in everything} == {
        "pid",
        "error_log",
        "worker_processes",
        "worker_rlimit_nofile",
        "events",
        "http",
    }


def installed() -> str:
    if NGINX is None:
        pytest.skip("nginx is not installed")
    return NGINX


@pytest.mark.case(33)
def test_nginx_takes_the_config_as_it_is_beside_the_keys(tmp_path):
    make_certificates(tmp_path / "keys")
    shutil.copy(CONFIG, tmp_path)
    words = [installed(), "-t", "-p", str(tmp_path), "-c", CONFIG.name]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class Proxy:
    """The shipped config in front of a federation, on another port of loopback."""

    def __init__(self, federation: Loopback) -> None:
        self.port = free_port()
        text = CONFIG.read_text().replace("127.0.0.1:9091", f"127.0.0.1:{federation.port}")
        text = text.replace("listen 8000 ssl", f"listen 127.0.0.1:{self.port} ssl")
        config = federation.private / "nginx.conf"
        config.write_text(text.replace("listen [::]:8000 ssl;", ""))
        words = ["-p", str(federation.private), "-c", "nginx.conf", "-g", "daemon off;"]
        self.process = federation.start("nginx", [installed(), *words])
        self.connection = Connection(f"127.0.0.1:{self.port}", federation.keys / "ca.crt")
        self.tls = ssl.create_default_context(cafile=federation.keys / "ca.crt")

    def ask(self, method: str, path: str) -> int:
        """The status of an answer; the path is sent as it is."""
        connection = http.client.HTTPSConnection(
            "127.0.0.1", self.port, context=self.tls, timeout=WAIT_SECONDS
        )
        connection.request(method, path, body=b"", headers={"content-type": "application/protobuf"})
        status = connection.getresponse().status
        connection.close()
        return status


@pytest.fixture
def proxy(federation: Loopback) -> Iterator[Proxy]:
    installed()
    federation.superlink()
    proxy = Proxy(federation)
    deadline = time.monotonic() + WAIT_SECONDS
    while time.monotonic() < deadline:
        try:
            proxy.ask("POST", "/")
            break
        except OSError:
            assert proxy.process.poll() is None, said(federation, "nginx")
            time.sleep(0.2)
    yield proxy
    federation.kill(proxy.process)


@pytest.mark.faults
@pytest.mark.case(33)
def test_a_run_goes_through_the_proxy_and_submitting_registering_and_the_server_s_own_calls_do_not(
    federation, proxy, tmp_path
):
    assert proxy.ask("POST", "/v1/fleet/get-run") == 401, "no keys are checked"
    direct = federation.connection
    described = httpx.get(f"https://{direct.address}/openapi.json", verify=proxy.tls).json()["paths"]
    others = [path for path in described if not path.startswith("/v1/fleet/")]
    assert {"/v1/control/start-run", "/v1/control/register-node", "/v1/runtime/get-nodes"} <= set(others)
    tricks = [
        "/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run", "//v1/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run", "/v1/fleet/%252e%252e/control/start-run",
        "/v1//control/start-run",
        "/V1/control/start-run", "/v1/fleet/;/../../control/start-run", "/openapi.json", "/docs", "/",
        "/v1/fleet/",
        "/v1/control/start-run?x=/v1/fleet/get-run", "/v1/fleet/get-run%00/../../control/start-run",
    ]  # fmt: skip
    for path in [*others, *tricks]:
        for method in ("GET", "POST", "PUT"):
            assert proxy.ask(method, path) in (400, 403), (method, path)

    client = proxy.connection.client()
    for ask in (lambda: client.ListRuns(ListRunsRequest()), lambda: client.ListNodes(ListNodesRequest())):
        with pytest.raises(httpx.HTTPStatusError) as caught:
            ask()
        assert caught.value.response.status_code == 403
    client.close()
    make_certificates(federation.keys, nodes=["intruder"])
    (federation.private / "outside").mkdir()
    (federation.private / "outside" / "config.toml").write_text(proxy.connection.toml("hub"))
    outside = federation.env | {"FLWR_HOME": str(federation.private / "outside")}
    app = stage_app(tmp_path / "app")
    flwr = flower_command("flwr", federation.env)
    for words in (
        ["supernode", "register", str(federation.keys / "intruder.pub"), "hub"],
        ["run", str(app), "hub"],
        ["list", "hub"],
    ):
        done = subprocess.run(
            [flwr, *words], env=outside, capture_output=True, text=True, timeout=WAIT_SECONDS
        )
        assert done.returncode != 0, done.stdout
    there = ["federation=deployment", f"federation.superlink={proxy.connection.address}"]
    there.append(f"federation.root_certificates={proxy.connection.root_certificates}")
    refused = federation.submit("run", *SMOKE, *there, f"run.dir={tmp_path / 'refused'}")
    assert refused.wait(WAIT_SECONDS) != 0
    assert "no SuperLink answers at" in said(federation, "submit")
    inner = direct.client()
    assert list(inner.ListRuns(ListRunsRequest()).run_dict) == []
    assert list(inner.ListNodes(ListNodesRequest()).nodes_info) == []
    inner.close()

    for name in ("0", "1"):
        federation.register(name)
        federation.node(name, connection=proxy.connection)
    run_dir = tmp_path / "run"
    run = federation.submit("run", *SMOKE, *federation.words, "federation.rounds=2", f"run.dir={run_dir}")
    assert run.wait(WAIT_SECONDS) == 0, said(federation, "submit")
    assert [row["fit_clients"] for row in rows(run_dir)] == [2, 2]
    assert {client for client, _ in fits(run_dir)} == {"0", "1"}
