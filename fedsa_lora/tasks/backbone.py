"""Backbones and tokenizers from transformers: from a package, a local folder, the hub or a bare config."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig

from fedsa_lora.errors import ModelError
from fedsa_lora.suggest import listing, nearest
from fedsa_lora.tasks.checkpoint import WEIGHTS, Account, account, quiet, stored_file
from fedsa_lora.tasks.foreign_code import check_tokenizer, check_versions, names_code
from fedsa_lora.tasks.heads import Head, assign_head, behind_backbone, layers_behind_blocks, outputs_by_class
from fedsa_lora.tasks.model_settings import ModelSettings, resolve
from fedsa_lora.tasks.pooling import (
    MARK,
    can_pool,
    mean_pooled,
    trained_with_mean,
    unfolded,
    without_layer,
)

_UNNAMED = "LABEL_{}"  # what transformers calls a class without a name


def build_backbone(
    auto_class: Any,
    settings: ModelSettings,
    labels: Sequence[str],
    *,
    seed: int,
    empty: bool = False,
    pad_token_id: int | None = None,
) -> torch.nn.Module:
    """A float32 model in eval mode whose head has one output per label, and which knows that head
    (``head_of``).

    ``auto_class`` is one of transformers' ``AutoModelFor...`` classes. ``empty`` builds on the meta device
    and reads no weight. Weights that the checkpoint lacks come from ``seed`` and leave the global random
    state as it was. ``pad_token_id`` is that of the tokenizer that pads. Raises ModelError when the path
    cannot be loaded, when a weight of the backbone is not in the checkpoint or has another shape there, and
    when a classifier has no head.
    """
    model, start = _examined(auto_class, settings, labels, pad_token_id)
    if not empty:
        # Weights are drawn on the CPU, so the generators of GPUs are left alone.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = _load_weights(auto_class, settings, start.config)
        if start.folded:
            model = unfolded(model)
    assign_head(model, start.head)
    module: torch.nn.Module = mean_pooled(model) if start.mean else model
    return module.eval()


def start_of(
    auto_class: Any, settings: ModelSettings, labels: Sequence[str], pad_token_id: int | None = None
) -> Start:
    """The start of a model of ``build_backbone``. Raises ModelError as that does, and where there are no
    weights."""
    _, start = _examined(auto_class, settings, labels, pad_token_id)
    if settings.pretrained and start.account is None:
        raise ModelError(
            f"{settings.path}: there are no weights ({' or '.join(WEIGHTS)}): copy them there, or correct "
            "model.path",
            sent="the model has no weights here",
            key="model.path",
        )
    return start


@dataclass(frozen=True)
class Start:
    """Origin of a model's weights. ``config`` is what its checkpoint is loaded with; ``folded``: that
    one was exported with its mean pooling as a layer; ``mean``: its head reads the mean of the tokens.
    ``pad_token_id`` is its own, None where it has none. ``reason``: why the outputs of the checkpoint's own
    head are drawn anew, if they are."""

    config: Any
    head: Head
    account: Account | None
    folded: bool
    mean: bool
    pad_token_id: int | None
    reason: str = ""


def _examined(
    auto_class: Any, settings: ModelSettings, labels: Sequence[str], pad_token_id: int | None
) -> tuple[Any, Start]:
    """The model on the meta device, and what it starts from."""
    config, known = _load_config(settings, labels)
    trained_pad = getattr(config, "pad_token_id", None)
    if pad_token_id is not None:
        config.pad_token_id = pad_token_id
    model = _empty(auto_class, settings, config)
    checkpoint = None
    if settings.pretrained:
        with _explained("model", settings.path):
            checkpoint = account(model, resolve(settings.path), settings.revision)
    folded = bool(getattr(config, MARK, False))
    if folded and "num_hidden_layers" in settings.config:
        raise ModelError(
            f"{settings.path} was exported with mean pooling as its last layer: remove num_hidden_layers "
            "from model.config"
        )
    mean = _pools_mean(settings, model, folded)
    if folded:
        shorter = copy.deepcopy(config)
        without_layer(shorter)
        model = _empty(auto_class, settings, shorter)
    modules = behind_backbone(model)
    if labels and not modules:
        raise ModelError(
            f"{type(model).__name__}: no head behind its backbone ({model.base_model_prefix}) that could be "
            "trained whole and kept by each client: choose a model of another architecture"
        )
    if checkpoint is None:
        return model, Start(config, Head(modules), None, folded, mean, trained_pad)
    if not mean:
        lacking = {name for name in checkpoint.lacking if not Head(modules).holds(name)}
        modules = (*layers_behind_blocks(model, lacking), *modules)
    behind = {n for n, _ in model.named_parameters() if Head(modules).holds(n)}
    unused = {n for n in checkpoint.lacking if mean and n.startswith(f"{model.base_model_prefix}.pooler.")}
    checkpoint.check(frozenset(behind | unused), settings.path, type(model).__name__)
    head, reason = _kept(model, Head(modules), checkpoint, labels, known)
    return model, Start(config, head, checkpoint, folded, mean, trained_pad, reason)


def _empty(auto_class: Any, settings: ModelSettings, config: Any) -> Any:
    with torch.device("meta"), _explained("model", settings.path or f"of type {config.model_type}"):
        return auto_class.from_config(config, dtype=torch.float32, trust_remote_code=False).eval()


def _pools_mean(settings: ModelSettings, model: Any, folded: bool) -> bool:
    if folded and settings.pooling == "model":
        raise ModelError(
            f"{settings.path} was exported with mean pooling as its last layer: expected model.pooling=auto"
        )
    if settings.pooling != "auto":
        return settings.pooling == "mean"
    if folded:
        return True
    known = settings.pretrained and can_pool(model)
    return known and trained_with_mean(resolve(settings.path), settings.revision)


def _kept(
    model: Any, head: Head, checkpoint: Account, labels: Sequence[str], known: Mapping[int, str]
) -> tuple[Head, str]:
    """The head, with what of it starts from the checkpoint; and why its outputs do not, where they are there
    and could."""
    held = {n for n, _ in model.named_parameters() if head.holds(n)} - checkpoint.lacking
    outputs = outputs_by_class(model, head, len(labels))
    reason = ""
    if misfit := [found for found in checkpoint.misfits if found[0] in outputs]:
        reason = f"that of the checkpoint has {misfit[0][1][0]} outputs, the data have {len(labels)} classes"
    names = [str(known.get(number, _UNNAMED.format(number))) for number in range(len(labels))]
    unnamed = [_UNNAMED.format(number) for number in range(len(labels))]
    if outputs & held and names not in (list(labels), unnamed):
        held -= outputs
        reason = f"that of the checkpoint is of the classes {listing(names)}"
        if set(names) == set(labels):
            reason += ": the same in another order, which task.class_names can give"
    return replace(head, kept=frozenset(held)), reason


def load_tokenizer(settings: ModelSettings) -> Any:
    """The tokenizer of ``settings.tokenizer``, else of ``settings.path``, able to pad.

    Raises ModelError where it cannot be loaded or would read files outside of its folder.
    """
    path = settings.tokenizer or settings.path
    with _explained("tokenizer", path):
        place = resolve(path)
        revision = check_tokenizer(place, None if settings.tokenizer else settings.revision)
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    if tokenizer.pad_token is None:
        # Decoders such as GPT-2 have no padding token; the mask hides whatever is used instead.
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"the tokenizer {path!r} has neither a padding token nor one that ends a text: set pad_token in "
            "its tokenizer_config.json, or correct model.tokenizer"
        )
    # Padding on the left moves the positions of a model that counts them; the class knows the right side.
    tokenizer.padding_side = type(tokenizer).padding_side
    return tokenizer


def _load_config(settings: ModelSettings, labels: Sequence[str]) -> tuple[Any, dict[int, str]]:
    """The config with the names of the classes, and those that the checkpoint's own config has."""
    with _explained("model", settings.path or f"of type {settings.config.get('model_type')}"):
        _refuse_adapter(settings)
        config = _stored_config(settings) if settings.path else _bare_config(settings)
    known = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    if labels:
        config.problem_type = "single_label_classification"  # whatever the checkpoint was trained for
    return config, known


def _stored_config(settings: ModelSettings) -> Any:
    """The config at ``settings.path``, by transformers' own class for its type, with the overrides.

    The overrides are handed to the class and not to the loading, which takes places of files by the same
    keywords.
    """
    path, revision = resolve(settings.path), settings.revision
    check_versions(path, revision)
    stored, _ = PreTrainedConfig.get_config_dict(path, revision=revision)
    if kernels := [key for key in names_code(stored) if "implementation" in key]:
        raise ModelError(
            f"{settings.path}: its config.json names code of the hub ({', '.join(kernels)}), which is never "
            "run: remove it there"
        )
    config = AutoConfig.from_pretrained(path, revision=revision, trust_remote_code=False)
    # A model_type beside a path would clash with the one that the path's config states.
    overrides = {key: value for key, value in settings.config.items() if key != "model_type"}
    if overrides:
        _refuse_unknown(overrides, config)
        # some types become another on loading, so the stored name is not always that of the class
        stored |= {"model_type": config.model_type, "name_or_path": path}
        config = type(config).from_dict(stored, **overrides)
    if hasattr(config, "auto_map"):  # nor does an export name the code
        del config.auto_map
    return config


def _bare_config(settings: ModelSettings) -> Any:
    """The config of a model type, with the overrides."""
    overrides = dict(settings.config)
    model_type = str(overrides.pop("model_type"))
    _refuse_unknown(overrides, AutoConfig.for_model(model_type))
    return AutoConfig.for_model(model_type, **overrides)


def _refuse_unknown(overrides: Mapping[str, Any], config: Any) -> None:
    """Raise ModelError for an override of a field that configs of this type do not have."""
    known = {*config.to_dict(), *config.attribute_map, "attn_implementation"}
    for key in overrides:
        if key not in known or key.startswith("_"):
            raise ModelError(
                f"model.config.{key}: no such field of a model of type {config.model_type}"
                f"{nearest(key, sorted(known))}; remove it, or correct its name"
            )


def _refuse_adapter(settings: ModelSettings) -> None:
    """Raise ModelError for a PEFT adapter, which transformers would load without a word, with the model that
    the adapter names, wherever that lies."""
    path = settings.path
    if path and stored_file(resolve(path), "adapter_config.json", settings.revision, fetch=True):
        raise ModelError(
            f"{path} holds a PEFT adapter (adapter_config.json): give a whole model, such as one exported "
            "with --merge, or the backbone/ of an export; where a model lies beside it, move the adapter away"
        )


def _load_weights(auto_class: Any, settings: ModelSettings, config: Any) -> Any:
    if not settings.pretrained:
        return auto_class.from_config(config, dtype=torch.float32, trust_remote_code=False)
    with _explained("model", settings.path), quiet():
        return auto_class.from_pretrained(
            resolve(settings.path),
            revision=settings.revision,
            config=config,
            dtype=torch.float32,
            trust_remote_code=False,
            weights_only=True,
            ignore_mismatched_sizes=True,  # of the head: any other was refused before
        )


@contextmanager
def _explained(what: str, path: str) -> Iterator[None]:
    """Turn what transformers raises for a bad path into a ModelError with the remedy."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"the {what} {path!r} needs code of its own (auto_map in its config.json or "
                "tokenizer_config.json), which is never run: choose one whose type transformers knows"
            ) from error
        raise ModelError(
            f"cannot load the {what} {path!r}: {error}\n"
            "Expected pkg://package/folder, a local folder, or a hub id that is reachable or cached. Without "
            "network, copy the model to a folder and set model.path to it, or point HF_HOME to a cache that "
            "holds it and set HF_HUB_OFFLINE=1.",
            sent="the model or its tokenizer cannot be loaded here",
            key="model.path",
        ) from error
