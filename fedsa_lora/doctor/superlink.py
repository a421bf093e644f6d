"""Finds what listens at the address of a SuperLink: one with our runs, another one, or something else."""

from __future__ import annotations

import socket
import ssl
from collections import Counter
from ipaddress import ip_address
from pathlib import Path

import httpx
from cryptography.x509 import load_der_x509_certificate
from flwr.proto.control_pb2 import ListNodesRequest, ListRunsRequest
from flwr.supercore.address import parse_address
from flwr.supercore.constant import NodeStatus
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.runtime_version_compatibility import RuntimeVersionMetadata
from flwr.supercore.version import package_version

from fedsa_lora.doctor.certificates import lifetime
from fedsa_lora.doctor.machine import Check
from fedsa_lora.launch.connection import wants_key

NAME, SECONDS = "SuperLink", 10.0
TITLE = "SuperLink API"  # of the description that every SuperLink gives of itself
OUR_APP = "fedsa-lora/"
NODE_KEYS, SUBMITTING = "keys of nodes", "who can submit"
PROXY = "put the proxy of deploy/nginx.conf before the SuperLink (docs/deployment.md)"
ELSEWHERE = "choose another port for the SuperLink, or end what listens there"


def superlink_checks(address: str, authority: Path | None) -> list[Check]:
    """Checks that the address can be reached, that its certificate is signed by the ``authority`` (None: no
    TLS), that a SuperLink of our version answers, and whose runs it has; ends at the first failure."""
    parsed = parse_address(address)
    if parsed is None or not parsed[0]:
        return [Check("address", False, address, "give it as HOST:PORT, without http://")]
    try:
        tls = ssl.create_default_context(cafile=authority) if authority else None
    except OSError:
        said = f"{authority} cannot be read, so no certificate can be verified"
        return [Check("address", False, said, "give the root certificate as --certificate")]
    reached = _reach(parsed[0], parsed[1], tls)
    if not reached[0].ok:
        return reached
    if _passes_nodes_alone(address, tls):
        found = "behind a proxy that forwards only requests of nodes, and requires their keys"
        return [
            *reached,
            Check(NAME, True, f"{found}; its version and runs can be checked on its own machine"),
        ]
    there = version_at(address, tls)
    if isinstance(there, Check):
        return [*reached, there]
    checks = [*reached, _same_version(there), _whose(address, tls)]
    if tls is not None:
        checks.append(_node_keys(address, tls))
    if not _is_loopback(parsed[0]):
        found = "runs can be started from here, and a run brings code that all nodes execute"
        checks.append(Check(SUBMITTING, True, found, f"where nodes connect from here: {PROXY}"))
    return checks


def version_at(address: str, tls: ssl.SSLContext | None) -> str | Check:
    """The version of Flower of the SuperLink there; a failed check where there is none.

    A SuperLink describes its API to everyone, with its version. Flower's own client reports only its own
    version, and ends the process when the two do not match."""
    try:
        answer = httpx.get(f"{_base(address, tls)}/openapi.json", verify=tls or False, timeout=SECONDS)
        described = answer.json()["info"]
        if described["title"] == TITLE:
            return str(described["version"])
        found = f"{described['title']!r} answers"
    except (httpx.RemoteProtocolError, httpx.ReadError):
        remedy = f"give --certificate with its root certificate if it has one, else {ELSEWHERE}"
        return Check(NAME, False, "something listens, but not with HTTP; perhaps with TLS", remedy)
    except httpx.HTTPError as error:
        return Check(NAME, False, f"no answer: {error}", "check its log; start it again")
    except (ValueError, KeyError, TypeError):
        found = f"a web server other than a SuperLink answers ({answer.status_code})"
    return Check(NAME, False, found, ELSEWHERE)


def _passes_nodes_alone(address: str, tls: ssl.SSLContext | None) -> bool:
    """True where a proxy refuses the description that every SuperLink gives, and lets a node without a key
    through to be refused by the SuperLink."""
    if tls is None:
        return False
    try:
        described = httpx.get(f"{_base(address, tls)}/openapi.json", verify=tls, timeout=SECONDS)
        return described.status_code == httpx.codes.FORBIDDEN and _wants_keys(address, tls)
    except httpx.HTTPError:
        return False


def _wants_keys(address: str, tls: ssl.SSLContext) -> bool:
    return wants_key(httpx.Client(base_url=_base(address, tls), verify=tls, timeout=SECONDS))


def _node_keys(address: str, tls: ssl.SSLContext) -> Check:
    try:
        if _wants_keys(address, tls):
            return Check(NODE_KEYS, True, "a node without a registered key is refused")
    except httpx.HTTPError as error:
        return Check(NODE_KEYS, False, f"no answer: {error}", "check the SuperLink's log; start it again")
    found = "every node is admitted, so client names are not verified"
    return Check(NODE_KEYS, True, found, "start the SuperLink with --enable-supernode-auth")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _base(address: str, tls: ssl.SSLContext | None) -> str:
    return f"{'https' if tls else 'http'}://{address}"


def _reach(host: str, port: int, tls: ssl.SSLContext | None) -> list[Check]:
    """A connection, with TLS where there is a certificate, and the time that the one shown there has left."""
    try:
        with socket.create_connection((host, port), SECONDS) as plain:
            if tls is None:
                return [Check("address", True, f"{host}:{port} listens; without TLS")]
            with tls.wrap_socket(plain, server_hostname=host) as secure:
                found = f"{host}:{port} listens; {secure.version()}, its certificate is accepted"
                shown = load_der_x509_certificate(secure.getpeercert(binary_form=True) or b"")
                return [Check("address", True, found), lifetime(f"certificate at {host}:{port}", shown)]
    except OSError as error:
        return [_not_reached(f"{host}:{port}", error)]


def _not_reached(place: str, error: OSError) -> Check:
    name = "address"
    if isinstance(error, ssl.SSLCertVerificationError):
        remedy = "give the root certificate of this SuperLink, and a name that its certificate has"
        said = f"{place} presents a certificate that is rejected: {error.verify_message}"
        return Check(name, False, f"{said}; perhaps it is the SuperLink of another federation", remedy)
    if isinstance(error, ssl.SSLError):
        remedy = "start the SuperLink with its certificate, or leave --certificate out"
        return Check(name, False, f"{place} listens, but without TLS ({error.reason})", remedy)
    remedy = "start the SuperLink there, correct the address, or open the firewall for it"
    return Check(name, False, f"{place}: {error.strerror or error}", remedy)


def _same_version(there: str) -> Check:
    """By Flower's own rule."""
    here = RuntimeVersionMetadata.from_local_component("here")
    clash = here.check_compatibility(RuntimeVersionMetadata("flwr", there, "SuperLink"))
    remedy = "" if clash is None else f"install flwr=={package_version} there, or {there} here"
    return Check("Flower on both sides", clash is None, f"here {package_version}, there {there}", remedy)


def _whose(address: str, tls: ssl.SSLContext | None) -> Check:
    """Reports whose runs a SuperLink has: one with other apps only was probably not started for ours."""
    client = ControlHttpClient(_base(address, tls), verify=tls or False, timeout=SECONDS)
    try:
        runs = client.ListRuns(ListRunsRequest()).run_dict.values()
        nodes = client.ListNodes(ListNodesRequest()).nodes_info
    except httpx.HTTPStatusError as error:
        return Check(NAME, True, f"lists its runs to its accounts only ({error.response.status_code})")
    except httpx.HTTPError as error:
        return Check(NAME, False, f"does not answer: {error}", "check its log; start it again")
    finally:
        client.close()
    apps = Counter(run.fab_id for run in runs)
    online = sum(node.status == NodeStatus.ONLINE for node in nodes)
    told = ", ".join(f"{count} of {app}" for app, count in sorted(apps.items())) or "none"
    found = f"runs: {told}; {online} of {len(nodes)} SuperNodes online"
    foreign = bool(apps) and not any(app.startswith(OUR_APP) for app in apps)
    remedy = f"it serves other apps only: if it is not yours, {ELSEWHERE}" if foreign else ""
    return Check(NAME, not foreign, found, remedy)
