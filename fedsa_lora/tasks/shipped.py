"""The data sets and models that come with the package, and the folder of each."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from urllib.parse import urlparse
from urllib.request import url2pathname

from fedsa_lora.errors import DataError

SHIPPED = ("banking77", "clinc150", "shakespeare", "snips")
DATA_VARIABLE = "FEDSA_LORA_DATA"


def shipped_folder(name: str) -> Path:
    """The folder with the parquet files of a shipped set.

    The running copy of the package may be a Flower bundle, which carries no binary files; the
    installed copy is then found along ``sys.path`` or through the distribution's metadata.
    """
    configured = os.environ.get(DATA_VARIABLE)
    own = [Path(configured).expanduser()] if configured else []
    folders = [root / name for root in dict.fromkeys([*own, *copies("data")])]
    for folder in folders:
        if any(folder.glob("*.parquet")):
            return folder
    looked = "\n".join(f"  {folder}" for folder in folders)
    raise DataError(
        f"the shipped data set {name!r} was not found. Looked in\n{looked}\nInstall fedsa-lora in this "
        f"environment, or set {DATA_VARIABLE} to a folder that holds {name}/train.parquet.",
        sent="the shipped data set of the run is not installed",
        key="task.dataset",
    )


def copies(inner: str) -> Iterator[Path]:
    """A folder of the package as each of its copies would have it: the running one, those along ``sys.path``,
    the installed one, and the checkout that was installed from."""
    yield Path(__file__).resolve().parent.parent / inner
    for entry in sys.path:
        yield Path(entry or ".").resolve() / "fedsa_lora" / inner
    try:
        installed = distribution("fedsa-lora")
    except PackageNotFoundError:
        return
    yield Path(str(installed.locate_file("fedsa_lora"))) / inner
    origin = urlparse(json.loads(installed.read_text("direct_url.json") or "{}").get("url", ""))
    if origin.scheme == "file":
        yield Path(url2pathname(origin.path)) / "fedsa_lora" / inner
