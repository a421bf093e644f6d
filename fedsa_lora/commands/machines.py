"""Commands on machines and deployments: certificates, node, doctor."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.markup import escape
from rich.table import Table

from fedsa_lora.commands.arguments import add_json, positive
from fedsa_lora.commands.screen import EXIT_FAILED, Answer, console

if TYPE_CHECKING:
    from fedsa_lora.commands.arguments import Commands

STYLES = {"OK": "green", "WARN": "yellow", "FAIL": "bold red"}


def add(commands: Commands) -> None:
    """Add the commands of this family."""
    certificates = commands.add_parser("certificates", help="make a federation's certificates and keys")
    certificates.add_argument("folder", type=Path)
    certificates.add_argument(
        "--host", nargs="+", default=[], help="host names and addresses of the SuperLink"
    )
    certificates.add_argument(
        "--node", nargs="+", default=[], help="names of nodes: a key and a registry line for each"
    )
    certificates.add_argument(
        "--renew", action="store_true", help="renew the SuperLink's certificate now, signed by the same root"
    )
    certificates.set_defaults(call=_certificates)
    node = commands.add_parser("node", help="run a SuperNode; takes the arguments of flower-supernode")
    node.set_defaults(call=_node)
    _add_doctor(commands.add_parser("doctor", help="check this machine, and its role in a deployment"))


def _add_doctor(doctor: argparse.ArgumentParser) -> None:
    doctor.add_argument(
        "--superlink", metavar="HOST:PORT", help="check that it can be reached and serves this app"
    )
    doctor.add_argument(
        "--port", type=positive, help="check that it is free here; if not, report who listens"
    )
    doctor.add_argument(
        "--certificate",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="root or server certificate, or (given twice) both: check names, dates, signature",
    )
    doctor.add_argument(
        "--key",
        type=Path,
        metavar="FILE",
        help="private key of the server: check that it matches the certificate",
    )
    doctor.add_argument("--data", type=Path, metavar="PATH", help="check that a client's rows can be read")
    doctor.add_argument(
        "--store", type=Path, metavar="PATH", help="check that a client's state can be written"
    )
    add_json(doctor)
    doctor.set_defaults(call=_doctor)


def _certificates(options: argparse.Namespace) -> int:
    from fedsa_lora.deployment.certificates import make_certificates

    written = make_certificates(options.folder, options.host, options.node, options.renew)
    for path in written:
        console.print(f"written: {escape(str(path))}", soft_wrap=True)
    if not written:
        console.print(f"nothing is missing in {escape(str(options.folder))}", soft_wrap=True)
    return 0


def _node(options: argparse.Namespace) -> int:
    from fedsa_lora.deployment.node import run_node

    return run_node(options.beyond)


def _doctor(options: argparse.Namespace) -> Answer:
    from fedsa_lora.doctor.deployment import Deployment, examine_deployment
    from fedsa_lora.doctor.machine import examine

    table = Table(title="fedsa-lora doctor")
    for column in ("", "check", "result", "what to do"):
        table.add_column(column)
    asked = Deployment(
        superlink=options.superlink,
        port=options.port,
        certificates=options.certificate,
        key=options.key,
        data=options.data,
        store=options.store,
    )
    checks = [*examine(), *examine_deployment(asked)]
    for check in checks:
        mark = f"[{STYLES[check.status]}]{check.status}[/]"
        table.add_row(mark, escape(check.name), escape(check.found), escape(check.remedy))
    console.print(table)
    well = all(check.ok for check in checks)
    found = [asdict(check) | {"status": check.status} for check in checks]
    return Answer(0 if well else EXIT_FAILED, {"ok": well, "checks": found})
