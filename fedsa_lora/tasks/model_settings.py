"""The settings of a backbone, and the place of its files. Loads no model and no library that does."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fedsa_lora.errors import ConfigError, ModelError
from fedsa_lora.group import READ, Group
from fedsa_lora.tasks.foreign_code import names_code, no_plain_values
from fedsa_lora.tasks.hub import is_hub_id, is_revision
from fedsa_lora.tasks.imported import CACHE_SCHEME, imported
from fedsa_lora.tasks.shipped import copies

if TYPE_CHECKING:
    import torch

    from fedsa_lora.settings import RunConfig

FLASH = "flash_attention_2"
_DEPTH = ("num_hidden_layers", "n_layer")  # a model's config calls the number of its blocks so
PACKAGE_SCHEME = "pkg://"
WEIGHT_FILES = (".bin", ".pt", ".pth", ".safetensors")  # ends of the names of files that hold a state dict


@dataclass(frozen=True)
class ModelSettings(Group):
    """The choice of a backbone.

    ``path`` is ``pkg://package/folder`` (a folder inside an installed package), ``cache://name`` (a model of
    ``fedsa-lora import``), a local folder or a hub id; code shipped with a model is never run. It may
    also be one file of weights, a state dict, in a package or a folder: ``config`` then names its
    ``model_type``, and sizes that are not the default.
    With ``pretrained`` false only its config is read and every weight is drawn from the seed; ``path`` may
    then be empty and ``config`` must name a ``model_type``. ``config`` overrides fields that the config has,
    such as sizes and dropouts.
    ``revision`` is the branch, tag or commit of a hub id.
    ``tokenizer`` is a path of the same forms, ``path`` by default.
    ``pooling`` is the input of the head of an encoder: ``model`` keeps that of the architecture,
    ``mean`` is ``mean_pooled``; ``auto`` is ``mean`` for a checkpoint that was trained with it, such as a
    sentence encoder, or that was exported from a run with it.
    ``dtype`` is the type of the frozen matrices, from the moment that they are read: bf16 takes 2 bytes
    for each value, fp32 takes 4. What is trained stays float32.
    ``attention`` is computed by an implementation of transformers: ``eager``, ``sdpa``, ``flash_attention_2``
    (a GPU, half precision and the package flash-attn), or with ``auto`` that of the model, but for half
    precision in a simulation on a CPU the faster of the first two, measured once and kept for the run.
    ``adapter`` is a folder of PEFT, or a hub id, as ``fedsa-lora export`` writes one: A, B and a head that it
    has start from it, on server and clients.
    ``quantization`` holds the frozen matrices of the blocks in 8 or 4 bits, by bitsandbytes.
    """

    path: Annotated[str, READ] = ""
    pretrained: bool = True
    revision: str | None = None
    tokenizer: Annotated[str, READ] = ""
    config: dict[str, Any] = field(default_factory=dict)
    pooling: Literal["auto", "model", "mean"] = "auto"
    dtype: Literal["fp32", "bf16"] = "fp32"
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    adapter: Annotated[str, READ] = ""
    quantization: Literal["8bit", "4bit"] | None = None

    def __post_init__(self) -> None:
        if not self.path and self.pretrained:
            raise ConfigError("path is empty: give a folder, pkg://package/folder or a hub id")
        if self.revision is not None and not is_revision(self.revision):
            raise ConfigError(f"revision {self.revision!r}: expected a branch, a tag or a commit of the hub")
        if foreign := names_code(self.config):
            raise ConfigError(f"model.config names code to be loaded: remove {', '.join(foreign)}")
        if odd := no_plain_values(self.config):
            raise ConfigError(
                f"model.config.{odd[0]}: expected a number, true, false, null or a word, or lists and "
                "mappings of them: where a model is loaded from is set by model.path"
            )
        if not self.path and "model_type" not in self.config:
            raise ConfigError(
                "model.config lacks model_type (for example bert or vit), and model.path is empty"
            )

    @property
    def held(self) -> torch.dtype:
        """The type of the frozen weights."""
        import torch

        return {"fp32": torch.float32, "bf16": torch.bfloat16}[self.dtype]

    @property
    def bytes_each(self) -> float:
        """Bytes of memory for a frozen value."""
        quantised = {"8bit": 1.0, "4bit": 0.5}
        return quantised[self.quantization] if self.quantization else float(self.held.itemsize)

    @property
    def depth(self) -> int | None:
        """The number of blocks of a transformer, as ``config``, or a config.json on this machine, states it;
        None where neither does."""
        stated = [self.config]
        if self.path:
            with suppress(ModelError, OSError, ValueError):
                stated.append(json.loads(Path(resolve(self.path), "config.json").read_bytes()))
        found = [one.get(name) for one in stated if isinstance(one, dict) for name in _DEPTH]
        return next((number for number in found if isinstance(number, int)), None)

    def clashes(self, run: RunConfig) -> Iterator[str]:
        if self.dtype == "bf16" and run.train.precision != "bf16":
            yield (
                "model.dtype=bf16: weights held in bf16 are multiplied in it, and train.precision is "
                f"{run.train.precision}; expected train.precision=bf16"
            )
        if self.dtype == "bf16" and run.lora is None:
            yield "model.dtype=bf16: without adapters all weights are trained, in float32; expected fp32"
        of_config = self.config.get("attn_implementation", self.attention)
        if self.attention not in ("auto", of_config):
            yield (
                f"model.attention={self.attention}: model.config.attn_implementation is {of_config}; remove "
                "one of them"
            )
        if self.attention == FLASH and run.train.precision == "fp32":
            yield f"model.attention={FLASH} computes in half precision only; expected train.precision=bf16"

        if self.adapter:
            yield from self._adapter_clashes(run)
        if self.quantization:
            yield from self._quantization_clashes(run)

    def _quantization_clashes(self, run: RunConfig) -> Iterator[str]:
        lora, named = run.lora, f"model.quantization={self.quantization}"
        if self.dtype != "bf16":
            yield f"{named}: what is not quantised is held in bf16; expected model.dtype=bf16"
        if lora is not None and (lora.variant != "lora" or lora.init != "default"):
            yield f"{named} goes with plain LoRA; expected lora.variant=lora and lora.init=default"
        if not self.pretrained:
            yield f"{named} quantises weights when they are read; expected model.pretrained=true"

    def _adapter_clashes(self, run: RunConfig) -> Iterator[str]:
        lora = run.lora
        if lora is None or lora.variant != "lora" or lora.init != "default":
            yield "model.adapter starts plain LoRA; expected lora.variant=lora and lora.init=default"
        if run.federation.ranks is not None:
            yield "model.adapter: clients of lower ranks would cut it; expected federation.ranks=null"
        if not self.pretrained:
            yield (
                "model.adapter: with model.pretrained=false the weights below it are drawn; set model.path "
                "to its base, such as the backbone/ of its export"
            )

    def identity(self, run: RunConfig) -> dict[str, Any]:
        """The digest of the adapter that A and B start from, wherever it lies."""
        if not self.adapter:
            return {}
        from fedsa_lora.tasks.checkpoint import ADAPTER_WEIGHTS, stored_file

        file = stored_file(resolve(self.adapter), ADAPTER_WEIGHTS, None, fetch=True)
        return {"model.adapter": "" if file is None else hashlib.sha256(file.read_bytes()).hexdigest()}

    def describe(self) -> dict[str, str]:
        words = "the model's own; in half precision the faster one, measured once when the run starts"
        lines = {"attention": words if self.attention == "auto" else self.attention}
        if self.dtype != "fp32":
            lines["frozen weights"] = f"held in {self.quantization or self.dtype}"
        return lines


def resolve(path: str) -> str:
    """The folder, or the file of weights, of a ``pkg://``, ``cache://`` or local path; a hub id is returned
    as it is.

    Raises ModelError when there is no such package, folder or file.
    """
    if path.startswith(PACKAGE_SCHEME):
        return str(_in_package(path))
    if path.startswith(CACHE_SCHEME):
        return str(imported(path))
    local = Path(path).expanduser()
    if local.is_dir() or is_weights(local):
        return str(local)
    if local.exists() or not is_hub_id(path):
        raise ModelError(
            f"no model at {path!r}: expected a folder with config.json and its weights (relative paths start "
            f"from {Path.cwd()}), a file of weights ({', '.join(WEIGHT_FILES)}), or a hub id (NAME or "
            "OWNER/NAME); correct model.path",
            sent="there is no such model here",
            key="model.path",
        )
    return path


def is_weights(path: str | Path) -> bool:
    """True for a file of weights without a config beside it."""
    return Path(path).suffix in WEIGHT_FILES and Path(path).is_file()


def _in_package(path: str) -> Path:
    package, _, inner = path.removeprefix(PACKAGE_SCHEME).partition("/")
    # find_spec does not import the package, which might pull in a whole framework.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    # without an __init__.py any folder beside the program would be a package
    if spec is None or spec.origin is None or not spec.submodule_search_locations:
        raise ModelError(
            f"{path!r}: package {package!r} is not installed; install it or correct model.path",
            sent="the package of the model is not installed here",
            key="model.path",
        )
    root = Path(spec.origin).resolve().parent
    folder = Path(root, inner).resolve()
    if not folder.is_relative_to(root):
        raise ModelError(
            f"{path!r} is outside the package {package!r}; correct model.path",
            sent="the folder of the model is outside its package",
            key="model.path",
        )
    if package == "fedsa_lora":  # what runs may be a Flower bundle, which carries no binary files
        whole = (copy for copy in copies(inner) if any(copy.glob("*.safetensors")))
        folder = next(whole, folder)
    if not folder.is_dir() and not is_weights(folder):
        raise ModelError(
            f"{path!r}: package {package!r} has no folder {inner!r}; looked at {folder}",
            sent="the package of the model has no such folder here",
            key="model.path",
        )
    return folder
