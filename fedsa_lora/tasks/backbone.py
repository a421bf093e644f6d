"""Backbones and tokenizers from transformers: from a package, a local folder, the hub or a bare config."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, BitsAndBytesConfig
from transformers.pytorch_utils import Conv1D

from fedsa_lora.errors import ModelError
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.checkpoint import WEIGHTS, Account, account, quiet, state_dict
from fedsa_lora.tasks.foreign_code import check_tokenizer
from fedsa_lora.tasks.heads import Head, assign_head, behind_backbone, layers_behind_blocks, outputs_by_class
from fedsa_lora.tasks.model_config import explained, load_config
from fedsa_lora.tasks.model_settings import ModelSettings, is_weights, resolve
from fedsa_lora.tasks.pooling import (
    MARK,
    can_pool,
    mean_pooled,
    trained_with_mean,
    unfolded,
    without_layer,
)

_MATRICES = (torch.nn.Linear, torch.nn.Embedding, torch.nn.modules.conv._ConvNd, Conv1D)
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
    """A model in eval mode whose head has one output per label, and which knows that head (``head_of``) and
    its start (``start_of``). The matrices of its backbone are of ``settings.dtype`` from when they are read,
    all else float32.

    ``auto_class`` is one of transformers' ``AutoModelFor...`` classes. ``empty`` builds on the meta device
    and reads no weight. Weights that the checkpoint lacks come from ``seed`` and leave the global random
    state as it was. ``pad_token_id`` is that of the tokenizer that pads. Raises ModelError when the path
    cannot be loaded, when a weight of the backbone is not in the checkpoint or has another shape there, and
    when a classifier has no head.
    """
    model, start = _examined(auto_class, settings, labels, pad_token_id)
    model.start = start
    if not empty:
        return filled(model, type(model), settings, seed=seed)
    return _finished(model, start)


def filled(model: Any, kind: Any, settings: ModelSettings, *, seed: int) -> torch.nn.Module:
    """The weights of a model of ``build_backbone`` that is empty, in one of class ``kind``: its own, or a
    subclass that has fewer layers. Raises ModelError where it cannot be loaded."""
    start: Start = model.start
    # Weights are drawn on the CPU, so the generators of GPUs are left alone.
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        found = _load_weights(model, kind, settings, start)
    if start.folded:
        found = unfolded(found).to(settings.held)
    return _finished(found, start)


def _finished(model: Any, start: Start) -> torch.nn.Module:
    _keep_exact(model, start.head)
    assign_head(model, start.head)
    model.start = start
    module: torch.nn.Module = mean_pooled(model) if start.mean else model
    return module.eval()


def _keep_exact(model: torch.nn.Module, head: Head) -> None:
    """Make float32 of all but the backbone's matrices: of the head, which is trained, and of norms, which add
    up what a dropout may have made float32."""
    for name, module in model.named_modules():
        if not isinstance(module, _MATRICES) or head.holds(name):
            for parameter in module.parameters(recurse=False):
                parameter.data = parameter.data.float()


def start_of(model: Any, settings: ModelSettings) -> Start:
    """The start of a model of ``build_backbone``. Raises ModelError where there are no weights to start
    from."""
    start: Start = model.start
    if settings.pretrained and start.account is None:
        raise ModelError(
            f"{settings.path}: it has no weights ({' or '.join(WEIGHTS)}): copy them there, or correct "
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
    config, known = load_config(settings, labels)
    trained_pad = getattr(config, "pad_token_id", None)
    if pad_token_id is not None:
        config.pad_token_id = pad_token_id
    model = _empty(auto_class, settings, config)
    checkpoint = None
    if settings.pretrained:
        with explained("model", settings.path):
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
    with torch.device("meta"), explained("model", settings.path or f"of type {config.model_type}"):
        return auto_class.from_config(config, dtype=settings.held, trust_remote_code=False).eval()


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

    Raises ModelError where it cannot be loaded or would read files outside its folder.
    """
    path = settings.tokenizer or settings.path
    with explained("tokenizer", path):
        place = resolve(path)
        revision = check_tokenizer(place, None if settings.tokenizer else settings.revision)
        tokenizer = AutoTokenizer.from_pretrained(place, revision=revision, trust_remote_code=False)
    if tokenizer.pad_token is None:
        # Decoders such as GPT-2 have no padding token; the mask hides whatever is used instead.
        tokenizer.pad_token = tokenizer.eos_token
    if tokenizer.pad_token is None:
        raise ModelError(
            f"the tokenizer {path!r} has neither a padding token nor an end-of-text token: set pad_token in "
            "its tokenizer_config.json, or correct model.tokenizer"
        )
    # Padding on the left moves the positions of a model that counts them; the class knows the right side.
    tokenizer.padding_side = type(tokenizer).padding_side
    return tokenizer


def _quantised(settings: ModelSettings, model: Any, head: Head) -> dict[str, Any]:
    """The option by which bitsandbytes quantises linear layers while they are read, but for those of the head
    and the output embeddings."""
    if settings.quantization is None:
        return {}
    outputs = model.get_output_embeddings()
    exact = [name for name, module in model.named_modules() if module is outputs]
    four = settings.quantization == "4bit"
    return {
        "quantization_config": BitsAndBytesConfig(
            load_in_4bit=four,
            load_in_8bit=not four,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=settings.held,
            llm_int8_skip_modules=[*exact, *head.modules],
        )
    }


def _load_weights(model: Any, kind: Any, settings: ModelSettings, start: Start) -> Any:
    """A model of class ``kind`` with the weights of one that is on the meta device."""
    config = start.config
    if not settings.pretrained:
        return kind._from_config(config, dtype=settings.held)
    options = {
        "config": config,
        "dtype": settings.held,
        "ignore_mismatched_sizes": True,  # of the head: any other was refused before
        **_quantised(settings, model, start.head),
    }
    with explained("model", settings.path), quiet():
        place = resolve(settings.path)
        if is_weights(place):
            return kind.from_pretrained(None, state_dict=state_dict(Path(place), config), **options)
        return kind.from_pretrained(place, revision=settings.revision, weights_only=True, **options)
