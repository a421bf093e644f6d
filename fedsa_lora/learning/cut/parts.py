"""The parts of a language model that is cut: each process builds its own, of transformers' own blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import nn

from fedsa_lora.errors import ModelError
from fedsa_lora.exchange.step import StepFormat
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.cut.settings import Cut
from fedsa_lora.learning.given import adapted
from fedsa_lora.learning.lora import fits
from fedsa_lora.learning.settings import LoraSettings, TrainSettings
from fedsa_lora.learning.targets import choose, find
from fedsa_lora.tasks.backbone import filled
from fedsa_lora.tasks.heads import unwrapped
from fedsa_lora.tasks.model_settings import ModelSettings
from fedsa_lora.tasks.task import Batch, Task


class Part(StrEnum):
    """The owner of a part."""

    CLIENT = "client"  # bottom and top
    SERVER = "server"  # the trunk


class Through(nn.Module):
    """In the place of a module that another process holds: what comes in goes out."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        return hidden_states


class NoPositions(nn.Module):
    """In the place of position embeddings that were added in another part."""

    def forward(self, position_ids: torch.Tensor) -> torch.Tensor:
        return torch.zeros(1, 1, 1, device=position_ids.device)


@dataclass(frozen=True)
class Anatomy:
    """Names of the children of a language model's base: how ids become states, what stands in the place of
    these behind the bottom, its blocks, and its last norm."""

    embeddings: Mapping[str, Callable[[], nn.Module]]
    blocks: str
    norm: str


ANATOMIES = (
    Anatomy({"wte": Through, "wpe": NoPositions, "drop": Through}, "h", "ln_f"),  # GPT-2
    Anatomy({"embed_tokens": Through}, "layers", "norm"),  # Llama and those like it
)


def anatomy_of(base: Any) -> Anatomy:
    """The anatomy of a language model's base. Raises ModelError for one of another architecture."""
    for anatomy in ANATOMIES:
        if all(hasattr(base, name) for name in (*anatomy.embeddings, anatomy.blocks, anatomy.norm)):
            return anatomy
    raise ModelError(
        f"{type(base).__name__} cannot be cut: its blocks are not found; expected a model like GPT-2 or Llama"
    )


def check_cut(model: Any, cut: Cut) -> None:
    """Raise ModelError where a model, which may be on the meta device, cannot be cut so."""
    base = model.base_model
    if fault := cut.beyond(len(getattr(base, anatomy_of(base).blocks))):
        raise ModelError(fault)


def narrow(model: Any, cut: Cut, part: Part) -> None:
    """Take from a model in place what the other side holds. Layers keep their names and numbers."""
    base = model.base_model
    anatomy = anatomy_of(base)
    blocks = getattr(base, anatomy.blocks)
    for number in range(len(blocks)):
        if (number in cut.trunk_blocks) != (part is Part.SERVER):
            blocks[number] = Through()
    if part is Part.SERVER:
        for name, absent in (*anatomy.embeddings.items(), (anatomy.norm, Through)):
            setattr(base, name, absent())
        outputs = model.get_output_embeddings()
        for name, child in list(model.named_children()):
            if child is outputs:
                setattr(model, name, None)  # an adapter that is meant for it finds nothing
        model.all_tied_weights_keys = {}


def build_part(whole: nn.Module, settings: ModelSettings, cut: Cut, part: Part, *, seed: int) -> nn.Module:
    """One side's part of a model that is ``whole`` on the meta device, in eval mode: no weight of the other
    side is read. Weights that are drawn are those of the whole model. Raises ModelError as ``check_cut``
    does, and where the model cannot be loaded."""
    check_cut(whole, cut)
    return filled(whole, narrowed(type(whole), cut, part), settings, seed=seed)


def adapted_part(
    backbone: nn.Module, lora: LoraSettings | None, seed: int, settings: ModelSettings
) -> AdapterModel:
    """A part with its adapters: of targets and patterns of ranks, which fit the whole model, those that fit
    this part."""
    return adapted(backbone, None if lora is None else _of_part(lora, backbone), seed, settings)


def _of_part(lora: LoraSettings, backbone: nn.Module) -> LoraSettings:
    """The settings less the targets and patterns of layers that the other side has."""
    targets = lora.target_modules
    if targets is not None:
        present = backbone.named_modules()
        names = [f".{name}" for name, module in present if not isinstance(module, Through)]
        targets = [t for t in targets if any(name.endswith(f".{t}") for name in names)]
    found = find(backbone, targets or choose(backbone, lora.targets))
    ranks = {pattern: rank for pattern, rank in (lora.rank_pattern or {}).items() if fits(pattern, found)}
    alphas = {pattern: alpha for pattern, alpha in (lora.alpha_pattern or {}).items() if fits(pattern, found)}
    return replace(lora, target_modules=targets, rank_pattern=ranks, alpha_pattern=alphas)


def check_adapters(model: AdapterModel, cut: Cut) -> None:
    """Raise ModelError where one side of a whole model has no adapter, and so nothing to train."""
    held_by_client = list(map(cut.of_client, model.layout.names))
    for owner, has_some in (("client", any(held_by_client)), ("server", not all(held_by_client))):
        if not has_some:
            raise ModelError(
                f"cut: lora.target_modules choose no layer of the {owner}'s part: name kinds of layers that "
                "each block has, or cut elsewhere"
            )


def step_format(module: nn.Module, cut: Cut, task: Task, settings: TrainSettings) -> StepFormat:
    """The format of the states of a model, and of the longest message that its run can have."""
    width = int(unwrapped(module).config.hidden_size)
    examples = max(settings.at_once, settings.eval_batch_size)
    return StepFormat(cut.dtype, width, examples * int(task.max_length))  # type: ignore[attr-defined]


def narrowed(kind: Any, cut: Cut, part: Part) -> Any:
    """The class of a model, of which one side's part alone is made and loaded."""

    def __init__(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        kind.__init__(self, config, *args, **kwargs)
        narrow(self, cut, part)

    return type(kind.__name__, (kind,), {"__init__": __init__, "__module__": kind.__module__})


@contextmanager
def standing_in(base: Any, modules: Mapping[str, nn.Module]) -> Iterator[None]:
    """Other children of a model in the place of the original ones, while it lasts."""
    own = {name: base._modules[name] for name in modules}
    base._modules.update(modules)
    try:
        yield
    finally:
        base._modules.update(own)


class Ends:
    """Computes the two parts of a client: ``module`` is a model that ``build_part`` made, with adapters."""

    def __init__(self, module: nn.Module, cut: Cut) -> None:
        self.cut = cut
        self.whole: Any = unwrapped(module)
        self.base = self.whole.base_model
        anatomy = anatomy_of(self.base)
        blocks = list(getattr(self.base, anatomy.blocks))
        self._bottom: dict[str, nn.Module] = {
            anatomy.blocks: nn.ModuleList(blocks[: cut.bottom]),
            anatomy.norm: Through(),
        }
        self._top: dict[str, nn.Module] = {anatomy.blocks: nn.ModuleList(blocks[cut.top :])}
        self._top |= {name: absent() for name, absent in anatomy.embeddings.items()}

    def bottom(self, batch: Batch) -> torch.Tensor:
        """h1, (batch, tokens, d): the states behind the first blocks."""
        with standing_in(self.base, self._bottom):
            out = self.base(
                input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            )
        states: torch.Tensor = out.last_hidden_state
        return states

    def top(self, states: torch.Tensor) -> Callable[..., Any]:
        """A model like the whole one, whose last blocks begin at given states (batch, tokens, d)."""

        def model(input_ids: torch.Tensor | None = None, **inputs: Any) -> Any:
            with standing_in(self.base, self._top):
                return self.whole(inputs_embeds=states, **{"use_cache": False, **inputs})

        return model


def trunk_states(module: nn.Module, states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """h2, (batch, tokens, d): the states behind the server's blocks, of those that come in and the mask of
    tokens, (batch, tokens)."""
    base: Any = unwrapped(module).base_model
    out: torch.Tensor = base(inputs_embeds=states, attention_mask=mask, use_cache=False).last_hidden_state
    return out
