"""Backbones and tokenizers from transformers: from a package, a local folder, the hub or a bare config."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from fedsa_lora.errors import ConfigError, ModelError

PACKAGE_SCHEME = "pkg://"
_FOREIGN_CODE = (
    "trust_remote_code",
    "auto_map",
    "code_revision",
)  # what lets transformers run a model's own code
_LOCAL_PREFIXES = ("/", "./", "../", "~", ".\\", "..\\")


@dataclass(frozen=True)
class ModelSettings:
    """Which backbone to build.

    ``path`` is ``pkg://package/folder`` (a folder inside an installed package), a local folder
    or a hub id. With ``pretrained`` false only its config is read and every weight is drawn from
    the seed; ``path`` may then be empty and ``config`` must name a ``model_type``. ``config``
    overrides the config's fields. ``tokenizer`` is a path of the same forms, ``path`` by default.
    ``pooling`` is what the head of an encoder reads: ``model`` leaves it as the architecture has it,
    ``mean`` is ``mean_pooled``.
    """

    path: str = ""
    pretrained: bool = True
    revision: str | None = None
    tokenizer: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    pooling: Literal["model", "mean"] = "model"

    def __post_init__(self) -> None:
        if not self.path and self.pretrained:
            raise ConfigError("path is empty: give a folder, pkg://package/folder or a hub id")
        if foreign := [key for key in _FOREIGN_CODE if key in self.config] + [
            key for key, value in self.config.items() if "implementation" in key and "/" in str(value)
        ]:
            raise ConfigError(f"model.config names code to be loaded: remove {', '.join(foreign)}")
        if not self.path and "model_type" not in self.config:
            raise ConfigError(
                "model.config lacks model_type (for example bert or vit), and model.path is empty"
            )


def build_backbone(
    auto_class: Any,
    settings: ModelSettings,
    labels: Sequence[str],
    *,
    seed: int,
    empty: bool = False,
    pad_token_id: int | None = None,
) -> torch.nn.Module:
    """A float32 model in eval mode whose head has one output per label.

    ``auto_class`` is one of transformers' ``AutoModelFor...`` classes. ``empty`` builds on the meta
    device and reads no weight. Weights that the checkpoint lacks come from ``seed`` and leave the
    global random state as it was. ``pad_token_id`` is used where the config has none.
    Raises ModelError when the path cannot be loaded.
    """
    config = _load_config(settings, labels)
    if getattr(config, "pad_token_id", None) is None and pad_token_id is not None:
        config.pad_token_id = pad_token_id
    if empty:
        with torch.device("meta"):
            model = auto_class.from_config(config, dtype=torch.float32)
    else:
        # Weights are drawn on the CPU, so the generators of GPUs are left alone.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = _load_weights(auto_class, settings, config)
    module: torch.nn.Module = model.eval()
    return mean_pooled(module) if settings.pooling == "mean" else module


def mean_pooled(model: Any) -> Any:
    """The same model, whose head reads the mean of the last hidden states over the tokens that the attention
    mask keeps, as sentence encoders were trained (arXiv:1908.10084), in place of the pooler's output.

    Raises ModelError for a model whose head reads no pooler.
    """
    if getattr(model.base_model, "pooler", None) is None:
        raise ModelError(
            f"model.pooling=mean: the head of {type(model).__name__} reads no pooler whose output could be "
            "replaced: expected an encoder such as BERT or ALBERT; set model.pooling=model"
        )
    model.base_model.register_forward_hook(_pool_mean, with_kwargs=True)
    return model


def _pool_mean(module: torch.nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
    states = output.last_hidden_state  # (batch, tokens, width)
    mask = kwargs.get("attention_mask")
    kept = torch.ones_like(states[..., 0]) if mask is None else mask.to(states.dtype)
    output.pooler_output = (states * kept.unsqueeze(-1)).sum(1) / kept.sum(1, keepdim=True).clamp(min=1)
    return output


def load_tokenizer(settings: ModelSettings) -> Any:
    """The tokenizer of ``settings.tokenizer``, else of ``settings.path``, able to pad."""
    path = settings.tokenizer or settings.path
    with _explained("tokenizer", path):
        tokenizer = AutoTokenizer.from_pretrained(
            resolve(path), revision=None if settings.tokenizer else settings.revision
        )
    if tokenizer.pad_token is None:
        # Decoders such as GPT-2 have no padding token; the mask hides whatever is used instead.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def _load_config(settings: ModelSettings, labels: Sequence[str]) -> Any:
    overrides = {
        **settings.config,
        "id2label": dict(enumerate(labels)),
        "label2id": {label: index for index, label in enumerate(labels)},
    }
    with _explained("model", settings.path or f"of type {settings.config.get('model_type')}"):
        if not settings.path:
            return AutoConfig.for_model(**overrides)
        # A model_type beside a path would clash with the one that the path's config states.
        overrides.pop("model_type", None)
        return AutoConfig.from_pretrained(resolve(settings.path), revision=settings.revision, **overrides)


def _load_weights(auto_class: Any, settings: ModelSettings, config: Any) -> Any:
    if not settings.pretrained:
        return auto_class.from_config(config, dtype=torch.float32)
    with _explained("model", settings.path), _quiet():
        return auto_class.from_pretrained(
            resolve(settings.path), revision=settings.revision, config=config, dtype=torch.float32
        )


def resolve(path: str) -> str:
    """The folder of a ``pkg://`` or local path; a hub id is returned as it is.

    Raises ModelError when there is no such package or folder.
    """
    if path.startswith(PACKAGE_SCHEME):
        return str(_package_folder(path))
    local = Path(path).expanduser()
    if local.is_dir():
        return str(local)
    if path.startswith(_LOCAL_PREFIXES) or path.count("/") > 1 or local.exists():
        raise ModelError(
            f"no model at {path!r}: expected a folder with config.json and its weights "
            f"(relative paths start from {Path.cwd()}); correct model.path"
        )
    return path


def _package_folder(path: str) -> Path:
    package, _, inner = path.removeprefix(PACKAGE_SCHEME).partition("/")
    # find_spec does not import the package, which might pull in a whole framework.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise ModelError(f"{path!r}: package {package!r} is not installed; install it or correct model.path")
    folders = [Path(location, inner) for location in spec.submodule_search_locations]
    found = next((folder for folder in folders if folder.is_dir()), None)
    if found is None:
        raise ModelError(f"{path!r}: package {package!r} has no folder {inner!r}; looked at {folders[0]}")
    return found


@contextmanager
def _explained(what: str, path: str) -> Iterator[None]:
    """Turn what transformers raises for a bad path into a ModelError with the remedy."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        raise ModelError(
            f"cannot load the {what} {path!r}: {error}\n"
            "Expected pkg://package/folder, a local folder, or a hub id that is reachable or cached. Without "
            "network, copy the model to a folder and set model.path to it, or point HF_HOME to a cache that "
            "holds it and set HF_HUB_OFFLINE=1."
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar and no table of missing keys: a missing head is expected here."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()
