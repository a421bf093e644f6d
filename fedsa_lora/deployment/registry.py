"""The registry of a federation: which client's node has which public key, as lines of OpenSSH's format."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_public_key
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from fedsa_lora.errors import ConfigError
from fedsa_lora.files import write_atomically
from fedsa_lora.store import client_fault

KIND = "ecdsa-sha2-nistp384"
EXPECTED = f"expected {KIND} KEY NAME, as in the NAME.pub that `fedsa-lora certificates` writes"


def read_registry(path: Path) -> dict[bytes, str]:
    """The client of each public key, the key as Flower has it: PEM, SubjectPublicKeyInfo.

    Empty lines and those that begin with # are passed over. Raises ConfigError with every fault and its line:
    what is no key of this kind, a name that is no client id, two keys of one name, two names of one key; and
    for a file that cannot be read or holds no key.
    """
    entries, faults = _parsed(path)
    faults += _repeated(entries)
    if not entries and not faults:
        faults = ["holds no key, so it would refuse every node; add one with `fedsa-lora certificates`"]
    if faults:
        raise ConfigError(f"the registry {path} cannot be used: {'; '.join(faults)}")
    return {key: name for _, key, name in entries}


def add_to_registry(path: Path, keys: Mapping[str, bytes]) -> bool:
    """Give clients these public keys, lines of OpenSSH's format, in place of those that they had. Other lines
    stay as they are. Returns whether the file had to be written. Raises ConfigError for a registry with
    faults, and for a key that is another client's."""
    lines = path.read_text().rstrip("\n").split("\n") if path.exists() else []
    if any(_is_entry(line) for line in lines):
        read_registry(path)
    wanted = {name: f"{b' '.join(key.split()[:2]).decode()} {name}" for name, key in keys.items()}
    kept = [line for line in lines if not (_is_entry(line) and line.split()[2] in wanted)]
    known = {line for line in lines if _is_entry(line)}
    if set(wanted.values()) <= known:
        return False
    for name, line in wanted.items():
        if taken := [other for other in kept if _is_entry(other) and other.split()[1] == line.split()[1]]:
            raise ConfigError(f"the key of {name} is that of {taken[0].split()[2]} in {path}: make a new one")
    content = "\n".join([*kept, *wanted.values()]) + "\n"
    write_atomically(path, content.encode())
    return True


def _parsed(path: Path) -> tuple[list[tuple[int, bytes, str]], list[str]]:
    """(number, key, name) of each line that has no fault, and the faults of the others."""
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except OSError as error:
        reason = error.strerror or str(error)
        return [], [
            f"{reason}; expected a file of the SuperLink's machine, as `fedsa-lora certificates` writes"
        ]
    except UnicodeDecodeError:
        return [], [f"it is not a text file; {EXPECTED} in each line"]
    entries, faults = [], []
    for number, line in enumerate(lines, 1):
        if not _is_entry(line):
            continue
        try:
            entries.append((number, *_entry(line)))
        except ValueError as error:
            faults.append(f"line {number}: {error}")
    return entries, faults


def _is_entry(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


def _entry(line: str) -> tuple[bytes, str]:
    """The key and the name of a line. Raises ValueError for one that has not exactly these."""
    words = line.split()
    if len(words) != 3 or words[0] != KIND:
        raise ValueError(EXPECTED)
    if fault := client_fault(words[2]):
        raise ValueError(fault)
    try:
        key = load_ssh_public_key(f"{words[0]} {words[1]}".encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError(f"the key of {words[2]} cannot be read; {EXPECTED}") from None
    assert isinstance(key, ec.EllipticCurvePublicKey)  # by KIND
    return public_key_to_bytes(key), words[2]


def _repeated(entries: list[tuple[int, bytes, str]]) -> Iterator[str]:
    """A fault for each key and each name that a line before has as well."""
    keys: dict[bytes, int] = {}
    names: dict[str, int] = {}
    for number, key, name in entries:
        if name in names:
            yield f"line {number}: {name} has a key in line {names[name]} already; remove one of them"
        if key in keys:
            yield f"line {number}: {name} has the key of line {keys[key]}; give each node its own key"
        names.setdefault(name, number)
        keys.setdefault(key, number)
