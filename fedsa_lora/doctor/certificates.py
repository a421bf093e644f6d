"""Checks of certificates and keys before a SuperLink or a SuperNode is started with them."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from fedsa_lora.deployment.certificates import RENEWAL
from fedsa_lora.doctor.machine import Check

SOON = timedelta(days=14)  # is a fault
AHEAD = RENEWAL  # is a warning
MAKE_ANEW = "make a new one"


def certificate_checks(paths: Sequence[Path], key: Path | None, host: str | None) -> list[Check]:
    """Checks that each certificate (a file may have several) is valid, that a server's names the ``host`` and
    is signed by a root among them, and that the ``key`` matches the server's."""
    known: dict[str, x509.Certificate] = {}
    checks = []
    for path in paths:
        try:
            for number, certificate in enumerate(x509.load_pem_x509_certificates(path.read_bytes()), 1):
                known[_name(path) if number == 1 else f"{_name(path)}, number {number}"] = certificate
        except (OSError, ValueError) as error:
            said = f"{path} cannot be read as a certificate: {_reason(error)}"
            checks.append(Check(_name(path), False, said, "give a certificate in PEM format"))
    roots = [certificate for certificate in known.values() if is_root(certificate)]
    checks += [_certificate(name, certificate, roots, host) for name, certificate in known.items()]
    if key is not None:
        checks.append(_key(key, [found for found in known.values() if not is_root(found)] or roots))
    return checks


def root_among(paths: Sequence[Path]) -> Path | None:
    """The first root certificate, or the first certificate at all: what a connection is verified with."""
    for path in paths:
        try:
            if is_root(x509.load_pem_x509_certificates(path.read_bytes())[0]):
                return path
        except (OSError, ValueError):
            continue
    return paths[0] if paths else None


def is_root(certificate: x509.Certificate) -> bool:
    """True for a certificate that others are signed with."""
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


def names(certificate: x509.Certificate) -> list[str]:
    """The host names and addresses that a certificate is for; its common name does not count any more."""
    try:
        found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    addresses = [str(address) for address in found.get_values_for_type(x509.IPAddress)]
    return [*found.get_values_for_type(x509.DNSName), *addresses]


def covers(certificate: x509.Certificate, host: str) -> bool:
    """True where a host is among the names, as it is or by a ``*`` in place of its first part."""
    try:
        return str(ipaddress.ip_address(host)) in names(certificate)
    except ValueError:
        any_host = f"*.{host.partition('.')[2]}"
        return any(name.lower() in (host.lower(), any_host.lower()) for name in names(certificate))


def lifetime(name: str, certificate: x509.Certificate) -> Check:
    """The time that a certificate has left: a fault from 14 days before its end on, a warning from 60."""
    until, now = certificate.not_valid_after_utc, datetime.now(UTC)
    root, told = is_root(certificate), ", ".join(names(certificate)) or "no name"
    found = f"{'root' if root else 'for ' + told}, valid until {until:%Y-%m-%d}"
    if until < now + SOON:
        return Check(
            name, False, found, f"it {'has expired' if until < now else 'expires soon'}: {MAKE_ANEW}"
        )
    if until < now + AHEAD:
        how = "put a new root beside it on every node" if root else "run `fedsa-lora certificates` again"
        return Check(
            name, True, found, f"it expires in {(until - now).days} days: {how} (docs/deployment.md)"
        )
    return Check(name, True, found)


def _certificate(
    name: str, certificate: x509.Certificate, roots: Sequence[x509.Certificate], host: str | None
) -> Check:
    root, age = is_root(certificate), lifetime(name, certificate)
    faults = [] if age.ok else [age.remedy]
    if certificate.not_valid_before_utc > datetime.now(UTC):
        faults.append(
            f"it is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC: check the clocks"
        )
    if not root and host is not None and not covers(certificate, host):
        faults.append(f"{host} is not among its names: {MAKE_ANEW} that includes it")
    if not root and roots and not any(_signed(certificate, other) for other in roots):
        faults.append("none of the given root certificates signed it: give the one that did")
    return Check(name, not faults, age.found, "; ".join(faults) or age.remedy)


def _signed(certificate: x509.Certificate, root: x509.Certificate) -> bool:
    try:
        certificate.verify_directly_issued_by(root)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _key(path: Path, certificates: Sequence[x509.Certificate]) -> Check:
    name = f"key {path.name}"
    try:
        public = load_pem_private_key(path.read_bytes(), None).public_key()
    except (OSError, ValueError, TypeError) as error:
        return Check(
            name, False, f"cannot be read: {_reason(error)}", "give a private key in PEM, not encrypted"
        )
    format_ = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    fits = [c for c in certificates if c.public_key().public_bytes(*format_) == public.public_bytes(*format_)]
    if not certificates:
        return Check(name, False, "no certificate to compare it with", "give --certificate as well")
    found = "matches the certificate" if fits else "belongs to another certificate"
    return Check(name, bool(fits), found, "" if fits else "give the key of this certificate")


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).partition("\n")[0].partition(". ")[0]


def _name(path: Path) -> str:
    return f"certificate {path.name}"
