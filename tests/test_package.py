"""The package as its user finds it: version, types, and the first words of ``help``."""

import pydoc
import tomllib
from pathlib import Path

import fedsa_lora
import fedsa_lora.client
import strategies

ROOT = Path(fedsa_lora.__file__).parent.parent


def test_the_version_is_that_of_the_project():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert fedsa_lora.__version__ == project["version"]


def test_both_packages_say_that_they_have_types():
    for package in (fedsa_lora, strategies):
        assert (Path(package.__file__).parent / "py.typed").is_file()


def test_help_shows_the_client_and_the_ways_in():
    assert "fedsa_lora.flower" in pydoc.render_doc(fedsa_lora)
    page = pydoc.render_doc(fedsa_lora.client, renderer=pydoc.plaintext)
    assert "class FedSAClient" in page
    for parameter in ("client : str", "bench : Workbench", "store : ClientStore", "forbid : sequence of str"):
        assert parameter in page
