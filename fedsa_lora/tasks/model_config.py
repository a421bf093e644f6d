"""The config of a backbone, from its folder, the hub or a bare type; nothing that it names is run."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    PreTrainedConfig,
)

import fedsa_lora.models  # noqa: F401  # AutoConfig is to know them
from fedsa_lora.errors import ModelError
from fedsa_lora.suggest import nearest
from fedsa_lora.tasks.checkpoint import ADAPTER_CONFIG, stored_file
from fedsa_lora.tasks.foreign_code import check_versions, names_code
from fedsa_lora.tasks.model_settings import ModelSettings, is_weights, resolve
from fedsa_lora.tasks.towers import TYPES


def load_config(settings: ModelSettings, labels: Sequence[str]) -> tuple[Any, dict[int, str]]:
    """The config with the names of the classes, and those that the checkpoint's own config has."""
    with explained("model", settings.path or f"of type {settings.config.get('model_type')}"):
        _refuse_adapter(settings)
        if settings.path and not is_weights(resolve(settings.path)):
            config = _stored_config(settings)
        else:
            config = _bare_config(settings)
    known = {int(number): str(name) for number, name in (config.id2label or {}).items()}
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    if labels:
        config.problem_type = "single_label_classification"  # whatever the checkpoint was trained for
    return config, known


def check_reads(auto_class: Any, settings: ModelSettings) -> None:
    """Raise ModelError where a task of images has a model of texts, or the reverse, and where a task of
    causal language models has an encoder. ``auto_class``, one of transformers' ``AutoModelFor...``, is the
    task's."""
    config, _ = load_config(settings, ())
    model = f"the model {settings.path or 'of model.config'} is of type {config.model_type}"
    encoder = type(config) in AutoModelForMaskedLM._model_mapping and not getattr(config, "is_decoder", False)
    if auto_class is AutoModelForCausalLM and encoder:
        raise ModelError(
            f"{model}, an encoder, in which a token sees those behind it, and the task is of causal language "
            "models: set model=stories260k, or another that continues texts, as smollm2_135m or llama3_8b",
            sent="the model is an encoder, and the task is of causal language models",
            key="model",
        )
    if type(config) in auto_class._model_mapping:
        return
    if auto_class is AutoModelForImageClassification and hasattr(config, "vocab_size"):
        raise ModelError(
            f"{model}, which reads texts, and the task is of images: set model=vit_small, or another model "
            "of images, such as resnet_small or efficientnet_lite0",
            sent="the model reads texts, and the task is of images",
            key="model",
        )
    if type(config) in AutoModelForImageClassification._model_mapping:
        raise ModelError(
            f"{model}, which reads images, and the task is of texts: set model=minilm, or another model of "
            "texts, such as roberta_base",
            sent="the model reads images, and the task is of texts",
            key="model",
        )


def check_dual_encoder(settings: ModelSettings) -> None:
    """Raise ModelError for a model without a tower for images and one for texts."""
    config, _ = load_config(settings, ())
    if config.model_type not in TYPES:
        raise ModelError(
            f"the model {settings.path or 'of model.config'} is of type {config.model_type}, and task=clip "
            f"compares images with texts: expected one of type {' or '.join(TYPES)}, such as "
            "model=clip_lite0_minilm; for a model of images alone set task=image",
            sent="the task is for a model of images and texts",
            key="model",
        )


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
    """The config of a model type, with the overrides. Raises ModelError where none is named beside a file of
    weights."""
    overrides = dict(settings.config)
    if "model_type" not in overrides:
        raise ModelError(
            f"{settings.path} holds weights only: name the type of the model that they are of, such as "
            "+model.config.model_type=resnet, and its sizes where they are not the usual ones",
            sent="the model is a file of weights, and model.config names no model_type",
            key="model.config",
        )
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
    if path and stored_file(resolve(path), ADAPTER_CONFIG, settings.revision, fetch=True):
        raise ModelError(
            f"{path} holds a PEFT adapter (adapter_config.json): to start from it set model.adapter, and "
            "model.path to a whole model, such as one exported with --merge, or the backbone/ of an export; "
            "where a model lies beside it, move the adapter away"
        )


@contextmanager
def explained(what: str, path: str) -> Iterator[None]:
    """Turn what transformers raises for a bad path into a ModelError with the remedy."""
    try:
        yield
    except (OSError, ValueError, KeyError, RuntimeError, TypeError, ImportError) as error:
        if "trust_remote_code" in str(error):
            raise ModelError(
                f"the {what} {path!r} needs its own code (auto_map in its config.json or "
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
