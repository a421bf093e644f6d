"""The connection to a SuperLink: its address, and the check of its certificate."""

from __future__ import annotations

import json
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from fedsa_lora.errors import ConfigError

if TYPE_CHECKING:
    import httpx
    from flwr.supercore.control import ControlHttpClient

NODES_ENDPOINT = "/v1/fleet/get-run"
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[^\s:/\[\]]+):\d{1,5}")


@dataclass(frozen=True)
class Connection:
    """``address`` is HOST:PORT. Without ``root_certificates``, a PEM file, the system's are trusted;
    ``insecure`` is plain HTTP. ``by_key``: clients are known by the keys of their nodes, so the SuperLink
    must ask for them. Raises ConfigError with every fault."""

    address: str
    root_certificates: Path | None = None
    insecure: bool = False
    by_key: bool = False

    def __post_init__(self) -> None:
        faults = []
        if not _ADDRESS.fullmatch(self.address):
            faults.append(f"{self.address!r} is not an address of a SuperLink: expected HOST:PORT")
        if self.insecure and self.root_certificates is not None:
            faults.append("root certificates are given for a connection without TLS: remove one of the two")
        if self.root_certificates is not None and not self.root_certificates.is_file():
            faults.append(f"no root certificates at {self.root_certificates}: correct the path")
        if faults:
            raise ConfigError("; ".join(faults))

    def client(self) -> ControlHttpClient:
        """A client of the Control API; the caller closes it."""
        # Late: the guard of a SuperLink comes by here, and must be there at once.
        from flwr.supercore.control import ControlHttpClient
        from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

        certificates = self.root_certificates
        return ControlHttpClient.from_server_address(
            self.address,
            insecure=self.insecure,
            root_certificates=None if certificates is None else certificates.read_bytes(),
            interceptors=[RuntimeVersionHttpInterceptor(component_name="flwr CLI")],
        )

    def asks_for_keys(self) -> bool:
        """True where the SuperLink refuses a node without a key, which it does where it authenticates nodes.
        Raises httpx.HTTPError when it does not answer."""
        import httpx

        certificates = self.root_certificates
        trusted = ssl.create_default_context(cafile=certificates)
        return wants_key(httpx.Client(base_url=f"https://{self.address}", verify=trusted))

    def toml(self, name: str) -> str:
        """The connection as the default one of Flower's ``config.toml``."""
        lines = ["[superlink]", f'default = "{name}"', f"[superlink.{name}]"]
        lines.append(f"address = {toml_string(self.address)}")
        if self.insecure:
            lines.append("insecure = true")
        if self.root_certificates is not None:
            lines.append(f"root-certificates = {toml_string(str(self.root_certificates.resolve()))}")
        return "\n".join(lines) + "\n"


def wants_key(client: httpx.Client) -> bool:
    """True where a SuperLink refuses what a node asks without a key. Raises httpx.HTTPError when it does not
    answer."""
    with client:
        answer = client.post(NODES_ENDPOINT, headers={"content-type": "application/protobuf"})
    return answer.status_code == 401


def toml_string(text: str) -> str:
    """Quote `text` for TOML: as JSON does, but for DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
