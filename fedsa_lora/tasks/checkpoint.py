"""The weights of a checkpoint against those of a model, by names and shapes: no weight is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import huggingface_hub
import torch
from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, OfflineModeIsEnabled
from safetensors import safe_open
from safetensors.torch import load_file
from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
    cached_file,
)
from transformers.utils import logging as transformers_logging

from fedsa_lora.errors import ModelError
from fedsa_lora.models import PUBLISHED
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.model_settings import is_weights
from fedsa_lora.telemetry.journal import show_printable

Shape = tuple[int, ...]
T = TypeVar("T")
for _library in ("transformers", "huggingface_hub"):
    show_printable(_library)
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # PEFT's
WEIGHTS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_NAME, WEIGHTS_INDEX_NAME)


@dataclass(frozen=True)
class Account:
    """The weights of a model (``expected``, by its names) and of its checkpoint (``held``, by the
    checkpoint's names). ``missing`` are lacking there, ``unread`` are not used by the model, ``misfits`` have
    another shape: name, shape in the checkpoint, shape in the model."""

    expected: frozenset[str]
    held: frozenset[str]
    missing: frozenset[str]
    unread: frozenset[str]
    misfits: tuple[tuple[str, Shape, Shape], ...]

    @property
    def lacking(self) -> frozenset[str]:
        """The weights of the model that the checkpoint has not, or in another shape."""
        return self.missing | {name for name, *_ in self.misfits}

    def check(self, lacked: frozenset[str], path: str, model: str) -> None:
        """Raise ModelError unless the checkpoint has every weight of the model but those in ``lacked``."""
        for name, found, wanted in self.misfits:
            if name not in lacked:
                raise ModelError(
                    f"{path}: the checkpoint's {name} is {_shape(found)}, that of the model is "
                    f"{_shape(wanted)}: its config.json, or an override in model.config, belongs to "
                    f"another model",
                    sent="weights of the checkpoint have another shape than those of the model",
                    key="model.config",
                )
        absent = sorted(self.missing - lacked)
        if not absent:
            return
        whole = len(self.expected - lacked)
        raise ModelError(
            f"{path}: the checkpoint lacks {len(absent)} of the {whole} weights of the backbone of {model}, "
            f"such as {absent[0]}. {self._cause()}",
            sent="the checkpoint lacks weights of the model",
            key="model.path",
        )

    def _cause(self) -> str:
        if not self.unread:
            return "It is incomplete, or its config.json is that of a larger model."
        example = min(self.unread)
        if prefix := self._prefix():
            return (
                f"Its keys begin with {prefix!r} (such as {example}), as a wrapped or compiled model leaves "
                "them: remove that prefix from every key and save it again"
            )
        return (
            f"It holds {len(self.unread)} weights that the model does not have, such as {example}: it is a "
            "checkpoint of another architecture, or its config.json is that of another model"
        )

    def _prefix(self) -> str:
        """Prefix of the unread keys that, taken off, makes most of them weights of the model."""
        known = self.expected | {name.partition(".")[2] for name in self.expected}
        parts = min(self.unread).split(".")
        for length in range(1, len(parts)):
            prefix = ".".join(parts[:length]) + "."
            fitting = [k for k in self.unread if k.startswith(prefix) and k.removeprefix(prefix) in known]
            if 2 * len(fitting) > len(self.unread):
                return prefix
        return ""


def account(model: Any, path: str, revision: str | None) -> Account | None:
    """The account of a checkpoint with a model on the meta device; None where there are no weights at
    ``path`` (a folder, a file of weights or a hub id). Names are matched as transformers does on loading."""
    held = shapes(path, revision)
    if held is None:
        return None
    if is_weights(path):
        held = _own_names(held, model.config)
    state = {name: torch.empty(shape, device="meta") for name, shape in held.items()}
    with quiet():
        _, found = type(model).from_pretrained(
            None,
            config=model.config,
            state_dict=state,
            device_map="meta",
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
        )
    return Account(
        expected=frozenset(name for name, _ in model.named_parameters()),
        held=frozenset(held),
        missing=frozenset(found["missing_keys"]),
        unread=frozenset(found["unexpected_keys"]),
        misfits=tuple(sorted((n, tuple(there), tuple(here)) for n, there, here in found["mismatched_keys"])),
    )


def shapes(path: str, revision: str | None) -> dict[str, Shape] | None:
    """Every tensor of a checkpoint by its name; None where there are no weights. Of a hub id whose weights
    are not cached only the headers are fetched, where it has safetensors."""
    if is_weights(path):
        return dict(_tensors(Path(path)))
    found = _shapes(path, revision, fetch=False)
    if found is not None or Path(path).is_dir():
        return found
    try:
        headers = huggingface_hub.get_safetensors_metadata(path, revision=revision)
    except (NotASafetensorsRepoError, HfHubHTTPError, OfflineModeIsEnabled, OSError):
        return _shapes(path, revision, fetch=True)
    files = headers.files_metadata.values()
    return {name: tuple(tensor.shape) for file in files for name, tensor in file.tensors.items()}


def _shapes(path: str, revision: str | None, fetch: bool) -> dict[str, Shape] | None:
    """Names and shapes in the files of a folder, or of a hub id in the cache; with ``fetch`` they are
    downloaded. None where there are none, or where a part of a hub id is not cached."""
    for name in WEIGHTS:
        if file := stored_file(path, name, revision, fetch):
            parts = _parts(file, path, revision, fetch)
            return None if parts is None else {key: shape for part in parts for key, shape in _tensors(part)}
    return None


def stored_file(path: str, name: str, revision: str | None, fetch: bool = False) -> Path | None:
    """A file of a folder, or of a hub id in the cache; with ``fetch`` it is downloaded. Beside a file of
    weights there is none that belongs to it."""
    if is_weights(path):
        return None
    try:
        found = cached_file(
            path,
            name,
            revision=revision,
            local_files_only=not fetch,
            _raise_exceptions_for_gated_repo=False,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
        )
    except OSError:
        return None
    return None if found is None else Path(found)


def weight_files(path: str, revision: str | None) -> list[Path]:
    """The files that hold the tensors of a checkpoint on this machine; none where there are none."""
    if is_weights(path):
        return [Path(path)]
    for name in WEIGHTS:
        if file := stored_file(path, name, revision):
            return _parts(file, path, revision, fetch=False) or []
    return []


def _parts(file: Path, path: str, revision: str | None, fetch: bool) -> list[Path] | None:
    """The files that hold the tensors: those that an index names, else the file itself. None where some of a
    hub id are not cached; ModelError where they are nowhere."""
    if file.suffix != ".json":
        return [file]
    try:
        weights = json.loads(file.read_text(encoding="utf-8"))["weight_map"]
        names = sorted({str(name) for name in weights.values()})
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ModelError(
            f"{file} names no files of weights: it is truncated or corrupted; copy it again",
            sent="the index of the checkpoint is truncated or corrupted",
            key="model.path",
        ) from None
    if outside := [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]:
        raise ModelError(
            f"{file} names {outside[0]}, which is outside its folder: it was modified; copy it again"
        )
    found = [stored_file(path, name, revision, fetch) for name in names]
    absent = [name for name, part in zip(names, found, strict=True) if part is None]
    if absent and not fetch and not Path(path).is_dir():
        return None
    if absent:
        raise ModelError(
            f"{path}: {file.name} names {listing(absent, 3)}, which are not there: copy them too",
            sent="files of the checkpoint are missing",
            key="model.path",
        )
    return [part for part in found if part is not None]


def state_dict(file: Path, config: Any) -> dict[str, torch.Tensor]:
    """The tensors of a file of weights, by the names that they have in a model of that config."""
    if file.suffix == ".safetensors":
        return _own_names(load_file(file), config)
    return _own_names(torch.load(file, map_location="cpu", weights_only=True), config)


def _own_names(state: Mapping[str, T], config: Any) -> dict[str, T]:
    own_name = PUBLISHED.get(config.model_type, str)
    return {own_name(name): value for name, value in state.items()}


def _tensors(file: Path) -> Iterator[tuple[str, Shape]]:
    try:
        if file.suffix == ".safetensors":
            with safe_open(file, "pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118
                    yield name, tuple(tensors.get_slice(name).get_shape())
            return
        for name, tensor in torch.load(file, map_location="meta", weights_only=True).items():
            yield name, tuple(tensor.shape)
    except Exception as error:  # of whatever kind: the file is no checkpoint
        raise ModelError(
            f"{file} cannot be read as weights ({error}): it is truncated or corrupted",
            sent="a file of the checkpoint is truncated or corrupted",
            key="model.path",
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Neither a progress bar nor transformers' table of missing keys, which ``Account`` takes the place
    of."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def grouped(names: Iterable[str]) -> str:
    """Names of weights by their first part: ``cls (5), qa_outputs (2)``."""
    counts: dict[str, int] = {}
    for name in sorted(names):
        first = name.partition(".")[0]
        counts[first] = counts.get(first, 0) + 1
    return listing(f"{first} ({count})" for first, count in counts.items())


def _shape(shape: Shape) -> str:
    return " x ".join(map(str, shape))
