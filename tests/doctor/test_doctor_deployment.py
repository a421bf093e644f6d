"""The doctor of a deployment: certificates made for it, ports that are taken, servers of every kind."""

import json
import os
import socket
import ssl
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from ipaddress import ip_address
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from flwr.proto.control_pb2 import ListNodesResponse, ListRunsResponse
from flwr.proto.run_pb2 import Run
from flwr.supercore.version import package_version

from fedsa_lora.cli import EXIT_FAILED, main
from fedsa_lora.doctor.deployment import Deployment, examine_deployment
from fedsa_lora.errors import RunError
from fedsa_lora.launch.connection import Connection
from fedsa_lora.launch.deployed import RunningSuperLink
from fedsa_lora.launch.superlink import SuperLink

NOW = datetime.now(UTC)
PEM = (Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


class Authority:
    """A root certificate, and what it signs, as files in a folder."""

    def __init__(self, folder: Path, name: str = "ca", until: int = 3650) -> None:
        self.folder, self.name = folder, name
        self.key = ec.generate_private_key(ec.SECP384R1())
        self.path = self._make(name, self.key, None, NOW + timedelta(days=until))

    def server(self, name="server", hosts=("localhost", "127.0.0.1"), until=365, begins=-1):
        key = ec.generate_private_key(ec.SECP384R1())
        (self.folder / f"{name}.key").write_bytes(key.private_bytes(*PEM))
        end, begin = NOW + timedelta(days=until), NOW + timedelta(days=begins)
        return self._make(name, key, hosts, end, begin), self.folder / f"{name}.key"

    def _make(self, name, key, hosts, end, begin=NOW - timedelta(days=1)):
        issuer = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self.name)])
        subject = issuer if hosts is None else x509.Name([])
        builder = (
            x509.CertificateBuilder(issuer, subject, key.public_key(), x509.random_serial_number())
            .not_valid_before(min(begin, end - timedelta(days=1)))
            .not_valid_after(end)
            .add_extension(x509.BasicConstraints(ca=hosts is None, path_length=None), critical=True)
        )
        if hosts:
            names = [x509.DNSName(h) if h[-1].isalpha() else x509.IPAddress(ip_address(h)) for h in hosts]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        path = self.folder / f"{name}.crt"
        path.write_bytes(builder.sign(self.key, hashes.SHA384()).public_bytes(Encoding.PEM))
        return path


@pytest.fixture
def authority(tmp_path):
    return Authority(tmp_path)


class Stub:
    """An HTTP server on loopback that describes itself as it is told, perhaps behind TLS."""

    def __init__(
        self,
        title="SuperLink API",
        version=package_version,
        apps=(),
        certificate=None,
        keys=True,
        proxy=False,
    ):
        pages = {"/openapi.json": json.dumps({"info": {"title": title, "version": version}}).encode()}
        runs = ListRunsResponse(run_dict={n: Run(run_id=n, fab_id=app) for n, app in enumerate(apps, 1)})
        pages["/v1/control/list-runs"] = runs.SerializeToString()
        pages["/v1/control/list-nodes"] = ListNodesResponse().SerializeToString()

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.rfile.read(int(self.headers.get("content-length") or 0))
                status = 200 if self.path in pages else 404
                if self.path == "/v1/fleet/get-run" and keys:
                    status = 401
                elif proxy:
                    status = 403
                self.send_response(status)
                self.end_headers()
                self.wfile.write(pages[self.path] if status == 200 else b"<html>")

            do_POST = do_GET

            def log_message(self, *_):
                pass

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        if certificate:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(*certificate)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        self.server.handle_error = lambda *_: None
        self.address = f"127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()


def examined(**asked):
    """Checks by name; each that fails has a remedy, and of those that hold only a warning."""
    checks = examine_deployment(Deployment(**asked))
    for check in checks:
        assert check.found, checks
        warning = check.remedy.startswith(("it expires", "start the SuperLink with", "where nodes connect"))
        assert warning or not check.remedy if check.ok else check.remedy, checks
    assert len({check.name for check in checks}) == len(checks)
    return {check.name: check for check in checks}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_nothing_is_checked_that_was_not_asked_for():
    assert examined() == {}


def test_a_sound_set_of_certificates_has_no_fault(authority):
    path, key = authority.server(hosts=("fed.example.org", "127.0.0.1"))
    checks = examined(certificates=[authority.path, path], key=key)
    assert list(checks) == ["certificate ca.crt", "certificate server.crt", "key server.key"]
    assert all(check.ok for check in checks.values())
    assert "fed.example.org, 127.0.0.1" in checks["certificate server.crt"].found


@pytest.mark.parametrize(
    ("options", "remedy"),
    [
        ({"until": -1}, "it has expired: make a new one"),
        ({"until": 5}, "it expires soon: make a new one"),
        ({"begins": 2}, "check the clocks"),
        ({"hosts": ("other.example.org",)}, "127.0.0.1 is not among its names"),
        ({"hosts": ()}, "127.0.0.1 is not among its names"),
    ],
)
def test_a_faulty_certificate_of_a_server_is_told(authority, options, remedy):
    path, _ = authority.server(**options)
    found = examined(certificates=[authority.path, path], superlink=f"127.0.0.1:{free_port()}")
    assert remedy in found["certificate server.crt"].remedy
    assert found["certificate ca.crt"].ok


@pytest.mark.parametrize(
    ("days", "ok", "remedy"),
    [
        (61, True, ""),
        (59, True, "it expires in 58 days: "),
        (15, True, "it expires in 14 days: "),
        (13, False, "it expires soon: make a new one"),
    ],
)
def test_the_end_of_a_certificate_is_told_60_days_ahead(tmp_path, days, ok, remedy):
    """The root's, the server's, and that of the one that a SuperLink shows."""
    authority = Authority(tmp_path, until=days)
    path, key = authority.server(until=days)
    with Stub(certificate=(path, key)) as stub:
        found = examined(superlink=stub.address, certificates=[authority.path, path], key=key)
    ends = [found["certificate ca.crt"], found["certificate server.crt"]]
    ends.append(found[f"certificate at {stub.address}"])
    assert [check.ok for check in ends] == [ok] * 3
    assert [check.remedy[: len(remedy) or None] for check in ends] == [remedy] * 3
    if ok and remedy:
        assert "put a new root beside it" in ends[0].remedy
        assert all("`fedsa-lora certificates`" in check.remedy for check in ends[1:])


def test_each_certificate_of_a_file_is_examined(tmp_path):
    (tmp_path / "other").mkdir()
    old, new = Authority(tmp_path, until=30), Authority(tmp_path / "other")
    both = tmp_path / "roots.crt"
    both.write_bytes(new.path.read_bytes() + old.path.read_bytes())
    server, _ = old.server()
    found = examined(certificates=[both, server])
    assert not found["certificate roots.crt"].remedy
    assert found["certificate roots.crt, number 2"].remedy.startswith("it expires in 29 days")
    assert found["certificate server.crt"].ok


def test_a_warning_is_shown_and_is_no_failure(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("fedsa_lora.doctor.machine.examine", list)
    authority = Authority(tmp_path, until=40)
    assert main(["doctor", "--certificate", str(authority.path)]) == 0
    assert "WARN" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("names", "host", "covered"),
    [
        (("*.example.org",), "a.example.org", True),
        (("*.example.org",), "a.b.example.org", False),
        (("*.example.org",), "example.org", False),
        (("Fed.Example.org",), "fed.example.ORG", True),
        (("localhost",), "127.0.0.1", False),
        (("10.0.0.1",), "10.0.0.1", True),
    ],
)
def test_a_name_covers_what_tls_says_it_does(authority, names, host, covered):
    from fedsa_lora.doctor.certificates import covers

    path, _ = authority.server(hosts=names)
    assert covers(x509.load_pem_x509_certificate(path.read_bytes()), host) == covered


def test_a_certificate_of_another_root_and_a_key_of_another_certificate_are_told(authority, tmp_path):
    (tmp_path / "other").mkdir()
    path, key = Authority(tmp_path / "other").server()
    ours, _ = authority.server("ours")
    found = examined(certificates=[authority.path, path, ours], key=key)
    assert "none of the given root certificates signed it" in found["certificate server.crt"].remedy
    assert found["certificate ours.crt"].ok
    assert found["key server.key"].ok
    assert "another certificate" in examined(certificates=[ours], key=key)["key server.key"].found


def test_what_is_no_certificate_or_key_is_told(authority, tmp_path):
    (tmp_path / "text").write_text("hello")
    found = examined(certificates=[tmp_path / "text", tmp_path / "none"], key=tmp_path / "text")
    assert not any(check.ok for check in found.values())
    assert "No such file" in found["certificate none"].found
    assert not examined(certificates=[authority.path], key=tmp_path / "gone")["key gone"].ok


def test_a_free_port_is_free_and_who_has_a_taken_one_is_told():
    port = free_port()
    assert examined(port=port)[f"port {port}"].ok
    with Stub() as stub:
        port = stub.server.server_port
        found = examined(port=port)[f"port {port}"].found
        assert f"(process {os.getpid()}): a SuperLink of Flower {package_version} answers" in found
    with Stub(title="Bakery") as stub:
        port = stub.server.server_port
        assert "'Bakery' answers" in examined(port=port)[f"port {port}"].found


def test_a_superlink_of_our_version_is_found():
    with Stub(apps=["fedsa-lora/fedsa-lora", "other/app"]) as stub:
        found = examined(superlink=stub.address)
    assert list(found) == ["address", "Flower on both sides", "SuperLink"]
    assert all(check.ok for check in found.values())
    assert "1 of fedsa-lora/fedsa-lora, 1 of other/app" in found["SuperLink"].found


@pytest.mark.parametrize(
    ("there", "ok"), [("1.40.0", False), ("2.41.0", False), (f"{package_version}.post1", True)]
)
def test_another_version_is_told(there, ok):
    with Stub(version=there) as stub:
        found = examined(superlink=stub.address)["Flower on both sides"]
    assert found.ok == ok
    assert found.found == f"here {package_version}, there {there}"


def test_a_superlink_with_others_runs_alone_is_foreign():
    with Stub(apps=["other/app"]) as stub:
        found = examined(superlink=stub.address)["SuperLink"]
    assert not found.ok
    assert "it serves other apps only" in found.remedy


@pytest.mark.parametrize("address", ["localhost", "http://localhost:1", ":9092", "localhost:99999999", "a:b"])
def test_an_address_that_is_none_is_told(address):
    assert "HOST:PORT" in examined(superlink=address)["address"].remedy


def test_an_address_at_which_nothing_listens_is_told():
    assert "refused" in examined(superlink=f"127.0.0.1:{free_port()}")["address"].found


def test_a_superlink_behind_tls_is_reached_with_its_root_alone(authority, tmp_path):
    (tmp_path / "other").mkdir()
    other = Authority(tmp_path / "other")
    with Stub(certificate=authority.server()) as stub:
        assert all(
            check.ok for check in examined(superlink=stub.address, certificates=[authority.path]).values()
        )
        refused = examined(superlink=stub.address, certificates=[other.path])["address"]
        assert "rejected" in refused.found
        assert "the SuperLink of another federation" in refused.found
        plain = examined(superlink=stub.address)["SuperLink"]
        assert "perhaps with TLS" in plain.found
        (tmp_path / "bad.crt").write_text("bad")
        bad = examined(superlink=stub.address, certificates=[tmp_path / "bad.crt"])
        assert "cannot be read" in bad["address"].found


def test_a_superlink_that_lets_every_node_in_is_told(authority):
    certificate = authority.server()
    for keys in (True, False):
        with Stub(certificate=certificate, keys=keys) as stub:
            found = examined(superlink=stub.address, certificates=[authority.path])["keys of nodes"]
        assert found.ok
        assert ("--enable-supernode-auth" in found.remedy) is not keys


@pytest.mark.case(32)
def test_a_run_whose_names_are_bound_to_keys_is_refused_where_the_superlink_asks_for_none(
    authority, tmp_path
):
    certificate = authority.server()
    for by_key, keys, good in ((True, True, True), (True, False, False), (False, False, True)):
        with Stub(certificate=certificate, keys=keys) as stub:
            connection = Connection(stub.address, authority.path, by_key=by_key)
            superlink = RunningSuperLink(connection, tmp_path / "log")
            if good:
                superlink.start()
            else:
                with pytest.raises(RunError, match="admits nodes without a registered key"):
                    superlink.start()
            superlink.close()


@pytest.mark.case(33)
def test_whether_a_run_can_be_started_from_here_is_told(authority):
    with Stub(certificate=authority.server(), proxy=True) as stub:
        found = examined(superlink=stub.address, certificates=[authority.path])
    assert "behind a proxy that forwards only requests of nodes" in found["SuperLink"].found
    assert all(check.ok and not check.remedy.startswith("where") for check in found.values())
    with Stub() as stub:
        assert "who can submit" not in examined(superlink=stub.address), "it is the SuperLink's own machine"
        found = examined(superlink=f"0.0.0.0:{stub.server.server_port}")["who can submit"]
    assert found.ok
    assert "deploy/nginx.conf" in found.remedy
    with Stub(certificate=authority.server(), proxy=True, keys=False) as stub:
        found = examined(superlink=stub.address, certificates=[authority.path])["SuperLink"]
    assert "a web server other than a SuperLink answers (403)" in found.found


def test_a_certificate_for_another_host_and_one_where_there_is_no_tls_are_told(authority):
    with Stub(certificate=authority.server(hosts=("fed.example.org",))) as stub:
        found = examined(superlink=stub.address, certificates=[authority.path])["address"]
        assert "127.0.0.1" in found.found
        assert not found.ok
    with Stub() as stub:
        found = examined(superlink=stub.address, certificates=[authority.path])["address"]
        assert "without TLS" in found.found


def test_data_are_read_and_their_columns_named(tmp_path):
    (tmp_path / "rows.csv").write_text("text,label\nhello,1\nbye,0\n")
    assert examined(data=tmp_path / "rows.csv")["data"].found == "2 rows of text, label"
    (tmp_path / "rows.csv").write_text("text;label\na;x\nb;y\n")
    assert "rows.csv: its fields are separated by ';'" in examined(data=tmp_path / "rows.csv")["data"].found
    (tmp_path / "rows.csv").write_text('{"half": ')
    for bad in (tmp_path / "rows.csv", tmp_path / "none.csv", tmp_path, tmp_path / "none"):
        assert not examined(data=bad)["data"].ok


def test_a_store_is_writable_or_not_and_nothing_is_left_in_it(tmp_path):
    assert examined(store=tmp_path / "new" / "store")["store"].ok
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").touch()
    for bad in (tmp_path / "file", Path("/proc/here")):
        assert not examined(store=bad)["store"].ok


def test_the_command_takes_every_option_and_fails_where_one_check_does(
    tmp_path, authority, capsys, monkeypatch
):
    monkeypatch.setattr("fedsa_lora.doctor.machine.examine", list)
    path, key = authority.server()
    words = ["--certificate", str(authority.path), "--certificate", str(path), "--key", str(key)]
    words += ["--store", str(tmp_path), "--port", str(free_port())]
    assert main(["doctor", *words]) == 0
    assert main(["doctor", *words, "--superlink", f"127.0.0.1:{free_port()}"]) == EXIT_FAILED
    assert "address" in capsys.readouterr().out


@pytest.mark.faults
def test_a_real_superlink_is_known_by_its_version_and_as_who_has_the_port(tmp_path):
    superlink = SuperLink(tmp_path / "log", {})
    superlink.start()
    try:
        found = examined(superlink=f"127.0.0.1:{superlink.port}", port=superlink.port)
    finally:
        superlink.close()
    assert found["Flower on both sides"].found == f"here {package_version}, there {package_version}"
    assert found["SuperLink"].ok
    taken = found[f"port {superlink.port}"]
    assert not taken.ok
    assert "flower-superlink" in taken.found
