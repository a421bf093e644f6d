"""The settings of LoRA on a CLIP model. Loads no library that trains."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fedsa_lora.binding import value_of
from fedsa_lora.errors import ConfigError
from fedsa_lora.group import at_least, hints_of, more_than
from fedsa_lora.learning.settings import Towers

Component = Literal["encoder", "classifier"]


@dataclass(frozen=True)
class LoRAConfig:
    """LoRA of PEFT (arXiv:2106.09685): h = W0 x + s B A x with s = lora_alpha / r.

    ``target_modules`` are names of layers or the ends of their names; None infers them: every linear layer
    of the blocks of ``towers`` (of CLIP q_proj, k_proj, v_proj, out_proj, fc1 and fc2), and the 1 x 1
    convolutions of a tower that has no such layer. ``components`` get LoRA: the ``encoder``, which are
    the towers, the ``classifier``, or both. A classifier that gets none is trained whole beside an encoder
    that does. ``bias`` is PEFT's: the biases that are trained as well.
    Raises ConfigError, which lists every fault.
    """

    r: Annotated[int, at_least(1)] = 16
    lora_alpha: Annotated[float, more_than(0)] = 32
    lora_dropout: Annotated[float, at_least(0, 0.95)] = 0.1
    target_modules: list[str] | None = None
    bias: Literal["none", "all", "lora_only"] = "none"
    towers: Towers = "vision"
    components: tuple[Component, ...] = ("encoder",)

    def __post_init__(self) -> None:
        faults: list[str] = []
        kind: Any = type(self)
        for name, hint in hints_of(kind).items():
            value_of(hint, getattr(self, name), name, faults)
        if not faults:
            faults = self._contradictions()
        if faults:
            raise ConfigError(f"LoRAConfig: {'; '.join(faults)}")

    def _contradictions(self) -> list[str]:
        faults = []
        if self.target_modules is not None and not self.target_modules:
            faults.append("target_modules is empty: name layers, or set it to None to infer them")
        if not self.components or len(set(self.components)) < len(self.components):
            faults.append(f"components is {self.components}: expected encoder, classifier or both, each once")
        return faults

    @classmethod
    def for_clip_model(
        cls, r: int = 16, lora_alpha: float | None = None, towers: Towers = "vision"
    ) -> LoRAConfig:
        """LoRA on the encoder. ``lora_alpha`` is 2 r where it is not given: 8/16, 16/32, 32/64."""
        return cls(r=r, lora_alpha=2 * r if lora_alpha is None else lora_alpha, towers=towers)

    @classmethod
    def for_classification_head(cls, r: int = 8, lora_alpha: float = 16) -> LoRAConfig:
        """LoRA on the linear layers of the classifier, and none on the encoder."""
        return cls(r=r, lora_alpha=lora_alpha, components=("classifier",))

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values, with lists in the place of tuples."""
        return {**dataclasses.asdict(self), "components": list(self.components)}
