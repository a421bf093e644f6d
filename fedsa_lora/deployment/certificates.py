"""Certificates and keys of a federation: an authority, the SuperLink's certificate, a key for each node."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from fedsa_lora.deployment.registry import add_to_registry
from fedsa_lora.errors import ConfigError
from fedsa_lora.files import write_atomically
from fedsa_lora.store import client_fault

REGISTRY = "registry"  # the file with the public key of each node
RESERVED = ("ca", "server", REGISTRY)  # names of files that are no node's
LOOPBACK = ("localhost", "127.0.0.1")
ROOT_DAYS = 3650  # nodes have a copy of it, so it is changed seldom
SERVER_DAYS = 825  # more is refused by some systems
RENEWAL = timedelta(days=60)  # before the end: time to renew what machines in other hands trust


def make_certificates(
    folder: Path, hosts: Sequence[str] = (), nodes: Sequence[str] = (), renew: bool = False
) -> list[Path]:
    """Write what is missing of ``ca.crt``, ``ca.key``, ``server.crt``, ``server.key`` and, for each node,
    ``NAME.key``, ``NAME.pub`` and its line in ``registry``; returns what was written.

    ``hosts`` are the names and addresses under which nodes reach the SuperLink; loopback is always among
    them. What is there is kept, so that nodes can be added later; only the SuperLink's certificate is
    renewed, by the same root, with a new key and the names that it had: when asked to ``renew`` it, when it
    lacks one of ``hosts``, and when it ends within 60 days and ``ca.key`` is there. All keys are EC P-384,
    those of nodes in OpenSSH's format, as Flower reads them; no one else can read a private one. A node whose
    ``NAME.pub`` is there keeps its key, wherever the private one is; that of a node in ``nodes`` is put into
    the registry, in place of another of that name. Raises ConfigError for a node's name that is no plain
    file name, or the authority's or the SuperLink's, and where a part of the root is missing that is needed.
    """
    if wrong := [name for name in nodes if client_fault(name) or name in RESERVED]:
        raise ConfigError(
            f"{', '.join(map(repr, wrong))}: expected a node's name of letters, digits, '.', '_' and '-', "
            f"and none of {', '.join(RESERVED)}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    written: list[Path] = []
    if not (folder / "ca.crt").exists():
        written += _make_authority(folder)
    known = _server_names(folder)
    if renew or _is_incomplete(folder, hosts, known) or _is_due(folder):
        written += _make_server(folder, [*LOOPBACK, *known, *hosts])
    for name in nodes:
        if not (folder / f"{name}.pub").exists():
            written += _make_node(folder, name)
    keys = {name: (folder / f"{name}.pub").read_bytes() for name in nodes}
    if add_to_registry(folder / REGISTRY, keys):
        written.append(folder / REGISTRY)
    return written


def _is_incomplete(folder: Path, hosts: Sequence[str], known: Sequence[str]) -> bool:
    """True where the SuperLink has no certificate with its key, or one that lacks a host."""
    missing = not (folder / "server.crt").exists() or not (folder / "server.key").exists()
    return missing or not {str(_general_name(host).value) for host in hosts} <= set(known)


def _is_due(folder: Path) -> bool:
    """True where the SuperLink's certificate ends soon, and can be renewed: one that ends with the root, or
    whose root has its key elsewhere, is left as it is."""
    if not (folder / "ca.key").exists():
        return False
    until = _certificate_in(folder / "server.crt").not_valid_after_utc
    soon = until < datetime.now(UTC) + RENEWAL
    return soon and until < _certificate_in(folder / "ca.crt").not_valid_after_utc


def _server_names(folder: Path) -> list[str]:
    """The names and addresses that the SuperLink's certificate has, as text."""
    if not (folder / "server.crt").exists():
        return []
    try:
        names = _certificate_in(folder / "server.crt").extensions.get_extension_for_class(
            x509.SubjectAlternativeName
        )
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names.value]


def _make_authority(folder: Path) -> list[Path]:
    if (folder / "ca.key").exists():
        raise ConfigError(
            f"{folder} has a ca.key without its ca.crt: put the certificate there, or make a new root in "
            "another folder"
        )
    key = ec.generate_private_key(ec.SECP384R1())
    name = _name("fedsa-lora authority")
    certificate = (
        _certificate(name, name, key.public_key(), key.public_key(), _after(ROOT_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA384())
    )
    return [
        _write_private(folder / "ca.key", _pem(key)),
        _write(folder / "ca.crt", certificate.public_bytes(serialization.Encoding.PEM)),
    ]


def _make_server(folder: Path, hosts: Sequence[str]) -> list[Path]:
    if not (folder / "ca.key").exists():
        raise ConfigError(
            f"{folder} has no ca.key, with which the SuperLink's certificate is signed: copy it there for "
            f"the time of this command"
        )
    authority, signer = _certificate_in(folder / "ca.crt"), _private_key_in(folder / "ca.key")
    if authority.public_key() != signer.public_key():
        raise ConfigError(f"{folder / 'ca.key'} does not match ca.crt beside it: put the matching key there")
    until = min(_after(SERVER_DAYS), authority.not_valid_after_utc)
    key = ec.generate_private_key(ec.SECP384R1())
    names = x509.SubjectAlternativeName([_general_name(host) for host in dict.fromkeys(hosts)])
    certificate = (
        _certificate(_name("SuperLink"), authority.subject, key.public_key(), signer.public_key(), until)
        .add_extension(names, critical=False)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .sign(signer, hashes.SHA384())
    )
    return [
        _write_private(folder / "server.key", _pem(key)),
        _write(folder / "server.crt", certificate.public_bytes(serialization.Encoding.PEM)),
    ]


def _make_node(folder: Path, name: str) -> list[Path]:
    """A node's key, or the public part of the one that is there."""
    private, public, written = folder / f"{name}.key", folder / f"{name}.pub", []
    if private.exists():
        key = _node_key_in(private)
    else:
        key = ec.generate_private_key(ec.SECP384R1())
        content = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
        )
        written.append(_write_private(private, content))
    line = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return [*written, _write(public, line + b" " + name.encode() + b"\n")]


def _certificate(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    until: datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - timedelta(hours=1))  # clocks differ
        .not_valid_after(until)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _after(days: int) -> datetime:
    return datetime.now(UTC) + timedelta(days=days)


def _certificate_in(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{path} is not a certificate in PEM format: put the right one there") from error


def _private_key_in(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a private key in PEM format: put the right one there") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not an EC key, as `fedsa-lora certificates` makes them")
    return key


def _node_key_in(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{path} is not a private key in OpenSSH's format: put the right one there"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not an EC key, as `fedsa-lora certificates` makes them")
    return key


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
    return write_atomically(path, content)


def _write_private(path: Path, content: bytes) -> Path:
    """A file that only its owner can read, at no time others."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(content)
    os.replace(temporary, path)
    return path
