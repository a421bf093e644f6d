"""The settings of adapters and of local training. Loads no library that trains."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

from fedsa_lora.errors import ConfigError
from fedsa_lora.group import Group, at_least, more_than

if TYPE_CHECKING:
    import torch

    from fedsa_lora.settings import RunConfig

AUTO = "auto"
LARGEST_BATCH = 64  # of those that memory decides: with more, a few local steps see a small client many times
OWN_MEMORY = "memory differs between nodes, but all must take the same steps: expected a number"
Intent = Literal["default", "attention", "all_linear", "convolutions"]
Towers = Literal["vision", "text", "both"]


@dataclass(frozen=True)
class LoraSettings(Group):
    """LoRA of PEFT: h = W0 x + s B A x with s = alpha / r (rsLoRA: alpha / sqrt(r)).

    ``variant``: lora (arXiv:2106.09685); dora, with a trained norm per output (arXiv:2402.09353);
    vera, h = W0 x + b * B (d * A x) with A and B random, frozen and the same for all layers, without
    alpha (arXiv:2310.11454). ``init``: default, A Kaiming and B zero; pissa, the first r singular
    components of W0, which keeps the rest (arXiv:2404.02948); orthogonal, both random with B A = 0.

    ``target_modules`` names layers; without it ``targets`` chooses them by kind (see ``choose``), in a dual
    encoder in the given ``towers``.
    ``rank_pattern`` and ``alpha_pattern`` are PEFT's: by regular expression on the end of a name.
    ``layer_ranks`` gives a rank to each transformer layer in order, and every layer the same scale
    alpha / r, so that its rank changes its capacity and not its step size; with rsLoRA,
    where the scale is to follow the rank, alpha / sqrt(rank).
    Raises ConfigError for values that contradict each other.
    """

    r: Annotated[int, at_least(1)] = 8
    alpha: Annotated[float, more_than(0)] = 16.0
    dropout: Annotated[float, at_least(0, 0.95)] = 0.05
    target_modules: list[str] | None = None
    rslora: bool = False
    variant: Literal["lora", "dora", "vera"] = "lora"
    init: Literal["default", "pissa", "orthogonal"] = "default"
    targets: Intent = "default"
    towers: Towers | None = None
    rank_pattern: dict[str, int] | None = None
    alpha_pattern: dict[str, float] | None = None
    layer_ranks: list[int] | None = None

    def __post_init__(self) -> None:
        faults = [*_contradictions(self), *_pattern_faults(self)]
        if faults:
            raise ConfigError("; ".join(faults))


def _contradictions(lora: LoraSettings) -> list[str]:
    faults = []
    if lora.variant == "vera":
        others = ("rslora", "rank_pattern", "alpha_pattern", "layer_ranks")
        set_ = [f"{name}={getattr(lora, name)}" for name in others if getattr(lora, name)]
        set_ += [f"init={lora.init}"] if lora.init != "default" else []
        if set_:
            faults.append(
                f"variant=vera has one rank, no alpha and its own initialisation; leave out {', '.join(set_)}"
            )
    if lora.layer_ranks is not None and (lora.rank_pattern or lora.alpha_pattern):
        faults.append("layer_ranks sets ranks and alphas: leave out rank_pattern and alpha_pattern")
    if lora.target_modules and lora.targets != "default":
        faults.append(f"target_modules and targets={lora.targets} both choose the layers; give one of them")
    if lora.target_modules and lora.towers:
        faults.append(f"target_modules and towers={lora.towers} both choose the layers; give one of them")
    return faults


def _pattern_faults(lora: LoraSettings) -> list[str]:
    ranks = {f"layer_ranks[{i}]": rank for i, rank in enumerate(lora.layer_ranks or [])}
    ranks |= {f"rank_pattern.{key}": rank for key, rank in (lora.rank_pattern or {}).items()}
    faults = [f"{key}={rank}; expected a rank of at least 1" for key, rank in ranks.items() if rank < 1]
    for key, alpha in (lora.alpha_pattern or {}).items():
        if not alpha > 0:
            faults.append(f"alpha_pattern.{key}={alpha}; expected more than 0")
    for key in [*(lora.rank_pattern or {}), *(lora.alpha_pattern or {})]:
        try:
            re.compile(key)
        except re.error as error:
            faults.append(f"pattern {key!r} is not a regular expression: {error}")
    return faults


@dataclass(frozen=True)
class TrainSettings(Group):
    """Local training of one round: ``steps`` optimizer steps, or ``epochs`` over the data. The update
    that a client sends is clipped to the L2 norm ``max_update_norm``, if there is one.

    ``batch_size`` examples are computed in one pass, and ``accumulate`` passes make a step, as with
    transformers' Trainer: a step is over ``batch_size * accumulate`` examples, and its gradient is that of
    their mean loss. ``batch_size=auto`` is as many as the free memory holds, see ``describe``.
    ``gradient_checkpointing``: a layer keeps only its input and is computed again for its gradient
    (arXiv:1604.06174), which takes less memory and more time.
    """

    optimizer: Literal["adamw", "sgd"] = "adamw"
    lr: Annotated[float, more_than(0)] = 1e-3
    head_lr: Annotated[float | None, more_than(0)] = None
    steps: Annotated[int | None, at_least(1)] = 5
    epochs: Annotated[int | None, at_least(1)] = None
    batch_size: Annotated[int | str, at_least(1)] = 8
    accumulate: Annotated[int, at_least(1)] = 1
    weight_decay: Annotated[float, at_least(0)] = 0.0
    momentum: Annotated[float, at_least(0, 1)] = 0.0
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup: Annotated[float, at_least(0, 1)] = 0.0
    clip_norm: Annotated[float | None, more_than(0)] = 1.0
    max_update_norm: Annotated[float | None, more_than(0)] = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    gradient_checkpointing: bool = False
    eval_batch_size: Annotated[int, at_least(1)] = 64

    @staticmethod
    def contradictions(node: Mapping[str, Any]) -> Iterator[str]:
        if (node.get("steps") is None) == (node.get("epochs") is None):
            yield "give either steps or epochs, and set the other to null"
        size = node.get("batch_size")
        if isinstance(size, str) and size != AUTO:
            yield f"batch_size={size}: expected a number of examples, or {AUTO}"

    def clashes(self, run: RunConfig) -> Iterator[str]:
        if self.batch_size == AUTO and run.federation.superlink is not None:
            yield f"train.batch_size={AUTO}: {OWN_MEMORY}"

    def describe(self) -> dict[str, str]:
        lines = {}
        if self.batch_size == AUTO:
            lines["batch size"] = (
                f"the largest power of two up to {LARGEST_BATCH} that the free memory holds, decided once "
                f"when the run starts"
            )
        if self.accumulate > 1:
            lines["accumulate"] = f"{self.accumulate} passes of {self.batch_size} examples make a step"
        if self.gradient_checkpointing:
            lines["checkpointing"] = "activations are recomputed in the backward pass, to save memory"
        return lines

    def check_deployed(self) -> None:
        if self.batch_size == AUTO:
            raise ConfigError(
                f"train.batch_size={AUTO}: {OWN_MEMORY}",
                sent="the batch size is decided in simulation only",
                key="train.batch_size",
            )

    @property
    def at_once(self) -> int:
        """The examples of one pass. Raises ConfigError where it is not decided yet."""
        if isinstance(self.batch_size, str):
            raise ConfigError(f"train.batch_size={self.batch_size} is not decided yet: expected a number")
        return self.batch_size

    @property
    def dtype(self) -> torch.dtype:
        """The type of the numbers that are multiplied; what is trained stays float32."""
        import torch

        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]
