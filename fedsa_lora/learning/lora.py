"""The adapters that can be attached: LoRA, its variants and their starts, through PEFT."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

import torch
from peft import LoraConfig, TaskType, VeraConfig, get_peft_model
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers.pytorch_utils import Conv1D

from fedsa_lora.errors import ModelError
from fedsa_lora.learning.settings import LoraSettings
from fedsa_lora.learning.targets import check_kinds, choose, find, ranks_by_block
from fedsa_lora.seeds import torch_seed
from fedsa_lora.tasks.heads import head_of
from fedsa_lora.tasks.pooling import is_mean_pooled

ADAPTER = "default"  # PEFT's name of the one adapter
VERA_D = 0.1  # where VeRA's d starts
_STARTS: dict[Any, str] = {True: "default", "pissa": "pissa", "orthogonal": "orthogonal"}
_TAKEN = {  # of a user's LoraConfig; the last ones follow from the model
    "r", "lora_alpha", "lora_dropout", "target_modules", "use_rslora", "use_dora", "init_lora_weights",
    "rank_pattern", "alpha_pattern", "modules_to_save", "task_type", "inference_mode", "fan_in_fan_out",
    "base_model_name_or_path", "revision",
}  # fmt: skip


def attach(model: nn.Module, lora: LoraSettings | None, seed: int = 0) -> nn.Module:
    """The model with adapters and a trainable copy of its head; as it is without ``lora``.

    On the meta device names and shapes are those of the real model, and nothing is computed.
    ``seed``: that of the run, equal on every client: VeRA's frozen projections and the orthogonal
    start are drawn from it. Raises ModelError naming the layer or setting that does not fit the model.
    """
    if lora is None:
        return model
    if lora.r < 1:
        raise ModelError(f"lora.r={lora.r}: expected a rank of at least 1")
    targets = lora.target_modules or choose(model, lora.targets, lora.towers)
    found = find(model, targets)
    if is_mean_pooled(model):
        targets = list(found)  # each by its whole name: neither the pooler nor the layer that an export adds
    plain = lora.variant != "vera" and lora.init == "default"
    what = "lora" if plain else f"lora.variant={lora.variant}, lora.init={lora.init}"
    check_kinds(found, what, linear_only=not plain)
    common = {
        "r": lora.r,
        "target_modules": targets,
        "modules_to_save": list(head_of(model).modules),
        "task_type": TaskType.SEQ_CLS if type(model).__name__.endswith("SequenceClassification") else None,
        "fan_in_fan_out": any(isinstance(module, Conv1D) for module in found.values()),
    }
    config = _vera(lora, common, seed) if lora.variant == "vera" else _lora(lora, common, found)
    try:
        adapted: nn.Module = get_peft_model(model, config)
    except (ValueError, TypeError) as error:
        raise ModelError(
            f"{what} with targets {targets} does not fit {type(model).__name__}: {error}"
        ) from None
    _check_head(adapted)
    if lora.init != "default":
        _start(adapted, lora.init, seed)
    return adapted


def settings_of(config: Any) -> tuple[dict[str, Any], list[str]]:
    """The settings of a user's LoraConfig by their keys in ``LoraSettings``, and the modules that it trains
    whole. Raises ModelError for what is no LoraConfig, and one that lists what it sets beside those.

    A pattern as ``target_modules`` is no list of names, and is refused as well.
    """
    if not isinstance(config, LoraConfig):
        raise ModelError(f"lora: expected a LoraConfig of PEFT, got {type(config).__name__}")
    usual, start = vars(LoraConfig()), config.init_lora_weights
    other = [key for key, value in vars(config).items() if key not in _TAKEN and value != usual[key]]
    named, saved = config.target_modules, config.modules_to_save or []
    if start not in _STARTS:
        other.append(f"init_lora_weights={start}")
    faults = [f"cannot be used with {', '.join(other)}; remove it"] if other else []
    if not isinstance(named, list | set | tuple) or not named:
        faults.append(f"target_modules is {named!r}; name target_modules as a list of layer names")
    elif twice := sorted(set(named) & set(saved)):
        faults.append(
            f"target_modules and modules_to_save both name {', '.join(twice)}; name each in one of them"
        )
    if isinstance(saved, str):
        faults.append(f"modules_to_save is {saved!r}; name modules_to_save as a list")
    if faults:
        raise ModelError(f"LoraConfig: {'; '.join(faults)}")
    settings = {
        "r": config.r,
        "alpha": config.lora_alpha,
        "dropout": config.lora_dropout,
        "target_modules": sorted(named),
        "rslora": config.use_rslora,
        "variant": "dora" if config.use_dora else "lora",
        "init": _STARTS[start],
        "rank_pattern": dict(config.rank_pattern) or None,
        "alpha_pattern": dict(config.alpha_pattern) or None,
    }
    return settings, sorted(saved)


def _check_head(adapted: Any) -> None:
    """Raise ModelError where PEFT, which goes by the end of a name, would train more than the head whole."""
    marked = ".modules_to_save"
    found = {n.removesuffix(marked) for n, _ in adapted.named_modules() if n.endswith(marked)}
    wanted = {f"base_model.model.{name}" for name in head_of(adapted).modules}
    if other := sorted(found - wanted):
        raise ModelError(
            f"a part of the head of {type(adapted.get_base_model()).__name__} has a name that {other[0]} "
            "ends with as well, and PEFT cannot distinguish them: choose a model of another architecture"
        )


def _vera(lora: LoraSettings, common: dict[str, Any], seed: int) -> VeraConfig:
    key = torch_seed(seed, "vera")
    return VeraConfig(**common, vera_dropout=lora.dropout, d_initial=VERA_D, projection_prng_key=key)


def _lora(lora: LoraSettings, common: dict[str, Any], found: dict[str, nn.Module]) -> LoraConfig:
    ranks, alphas = dict(lora.rank_pattern or {}), dict(lora.alpha_pattern or {})
    if lora.layer_ranks is not None:
        blocks = ranks_by_block(found, lora.layer_ranks)
        ranks = {rf"{re.escape(name)}\..*": rank for name, rank in blocks.items()}
        if not lora.rslora:
            alphas = {key: lora.alpha * rank / lora.r for key, rank in ranks.items()}
    for key in [*ranks, *alphas]:
        if not fits(key, found):
            raise ModelError(
                f"lora pattern {key!r} matches none of the adapted layers, for example {next(iter(found))}"
            )
    return LoraConfig(
        **common,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        use_dora=lora.variant == "dora",
        rank_pattern=ranks,
        alpha_pattern=alphas,
    )


def fits(pattern: str, names: Iterable[str]) -> bool:
    """True where a pattern of ranks or alphas fits the end of one of these names, as PEFT has it."""
    return any(re.match(rf"(.*\.)?({pattern})$", name) for name in names)


@torch.no_grad()
def _start(adapted: Any, init: str, seed: int) -> None:
    """Give every A and B the start ``init``, and say so in the adapter's config.

    It is done here rather than by PEFT at once, because the meta device has no weights to decompose,
    and the start must be the same on every client.
    """
    for name, layer in adapted.named_modules():
        if not isinstance(layer, LoraLayer):
            continue
        rank, most = layer.r[ADAPTER], min(layer.in_features, layer.out_features)
        if init == "pissa" and rank > most:
            raise ModelError(f"lora.init=pissa: rank {rank} of {name} exceeds its {most} singular values")
        if init == "orthogonal" and rank % 2:
            raise ModelError(f"lora.init=orthogonal: rank {rank} of {name} is odd; expected an even rank")
        if layer.get_base_layer().weight.is_meta:
            continue
        if init == "pissa":
            layer.pissa_init(ADAPTER, "pissa")
            _canonical_signs(layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight)
        else:
            with torch.random.fork_rng(devices=[]):
                torch.default_generator.manual_seed(torch_seed(seed, "orthogonal", name))
                layer.orthogonal_init(ADAPTER)
            layer._move_adapter_to_device_of_base_layer(ADAPTER)
            layer.lora_A[ADAPTER].float()  # PEFT makes them as the frozen weights are held
            layer.lora_B[ADAPTER].float()
    adapted.peft_config[ADAPTER].init_lora_weights = init


def _canonical_signs(A: torch.Tensor, B: torch.Tensor) -> None:
    """Make the largest entry of each row of A (r, d_in) positive, and turn B (d_out, r) with it.

    Singular vectors are unique up to their sign (and up to rotation where values are equal), and
    libraries differ in it. The product, and with it the residual backbone, stays as it is.
    """
    largest = A.gather(1, A.abs().argmax(dim=1, keepdim=True))
    signs = torch.where(largest < 0, -1.0, 1.0)
    A.mul_(signs)
    B.mul_(signs.T)
