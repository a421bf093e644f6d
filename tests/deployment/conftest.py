"""A federation of real processes on loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from fedsa_lora.deployment.loopback import Loopback


@pytest.fixture
def federation(tmp_path: Path) -> Iterator[Loopback]:
    with Loopback(tmp_path / "logs") as federation:
        yield federation
