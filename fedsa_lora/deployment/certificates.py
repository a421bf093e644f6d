"""Certificates and keys of a federation: an authority, the SuperLink's certificate, a key for each node."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedsa_lora.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
LOOPBACK = ("localhost", "127.0.0.1")
DAYS = 825


def make_certificates(folder: Path, hosts: Sequence[str] = (), nodes: Sequence[str] = ()) -> list[Path]:
    """Write what is missing of ``ca.crt``, ``ca.key``, ``server.crt``, ``server.key`` and, for each node,
    ``NAME.key`` and ``NAME.pub``; returns what was written.

    ``hosts`` are the names and addresses under which nodes reach the SuperLink; loopback is always among
    them. What is there is kept, so that nodes can be added later. All keys are EC P-384, those of nodes in
    OpenSSH's format, as Flower reads them; no one else can read a private one. Raises ConfigError for a
    node's name that is no plain file name, or the authority's or the SuperLink's.
    """
    if wrong := [name for name in nodes if not _NAME.fullmatch(name) or name in ("ca", "server")]:
        raise ConfigError(
            f"{', '.join(map(repr, wrong))}: expected a node's name of letters, digits, '.', '_' and '-', "
            "and neither ca nor server"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    if not (folder / "ca.crt").exists():
        written += _make_authority(folder)
    if not (folder / "server.crt").exists():
        written += _make_server(folder, [*LOOPBACK, *hosts])
    for name in nodes:
        if not (folder / f"{name}.key").exists():
            written += _make_node(folder, name)
    return written


def _make_authority(folder: Path) -> list[Path]:
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name("fedsa-lora authority")
    certificate = (
        _certificate(name, name, key.public_key(), key.public_key())
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    return [
        _write_private(folder / "ca.key", _pem(key)),
        _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM)),
    ]


def _make_server(folder: Path, hosts: Sequence[str]) -> list[Path]:
    authority = x509.load_pem_x509_certificate((folder / "ca.crt").read_bytes())
    signer = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), password=None)
    assert isinstance(signer, ec.EllipticCurvePrivateKey)
    key = ec.generate_private_key(ec.SECP384R1())
    names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)])
    certificate = (
        _certificate(_name("SuperLink"), authority.subject, key.public_key(), signer.public_key())
        .add_extension(names, critical=False)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .sign(signer, hashes.SHA384())
    )
    return [
        _write_private(folder / "server.key", _pem(key)),
        _write(folder / "server.crt", certificate.public_bytes(serialization.Encoding.PEM)),
    ]


def _make_node(folder: Path, name: str) -> list[Path]:
    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return [
        _write_private(folder / f"{name}.key", private),
        _write(folder / f"{name}.pub", public + b" " + name.encode() + b"\n"),
    ]


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
) -> x509.CertificateBuilder:
    now = datetime.now(UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))  # clocks differ
        .not_valid_after(now + timedelta(days=DAYS))
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, common)])


def _general_name(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _write(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def _write_private(path: Path, content: bytes) -> Path:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    return path
