"""Five checks of the module on a small random model, each with its measurements."""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedsa_lora.clip.config import LoRAConfig
from fedsa_lora.clip.example import FederatedCLIP, batch
from fedsa_lora.clip.stored_configs import LoRAConfigManager
from fedsa_lora.clip.stored_models import LoRAModelManager
from fedsa_lora.clip.wrapper import CLIPLoRAWrapper
from fedsa_lora.errors import FedSAError, ModelError
from fedsa_lora.learning.memory import Tally

PLAIN = LoRAConfig(r=4, lora_dropout=0)  # without draws of dropout, so that a check is the same each time
CLOSE = 1e-5  # between merged weights and the adapter
METHODS = ("get_parameters", "set_parameters", "train_step", "evaluate")


@dataclass(frozen=True)
class Check:
    """One check: its title, its measurements, and its result."""

    title: str
    measured: str
    passed: bool


def checks() -> Iterator[Check]:
    """The five checks, one by one."""
    runs: dict[str, Callable[[], tuple[bool, str]]] = {
        "config and presets": presets,
        "a third-party model keeps its interface": interface,
        "only trainable tensors are sent": exchange,
        "save, load and reject": storage,
        "merge, disable, checkpointing": layers,
    }
    for title, run in runs.items():
        try:
            passed, measured = run()
        except FedSAError as error:
            passed, measured = False, str(error)
        yield Check(title, measured, passed)


def presets() -> tuple[bool, str]:
    """Defaults, presets, and settings that are read back as they were written."""
    default = LoRAConfig()
    found = [(c.r, c.lora_alpha) for c in map(LoRAConfig.for_clip_model, (8, 16, 32))]
    head = LoRAConfig.for_classification_head()
    with tempfile.TemporaryDirectory() as folder:
        stored = LoRAConfigManager(folder)
        stored.save_config("head", head)
        same = stored.load_config("head") == head and stored.list_configs() == ["head"]
    plain = (default.r, default.lora_alpha, default.lora_dropout, default.target_modules, default.bias)
    passed = plain == (16, 32, 0.1, None, "none") and found == [(8, 16), (16, 32), (32, 64)] and same
    words = ", ".join(f"{r}/{alpha:g}" for r, alpha in [*found, (head.r, head.lora_alpha)])
    return passed and (head.r, head.lora_alpha) == (8, 16), f"presets {words}; read back: {same}"


def interface() -> tuple[bool, str]:
    """The class, signatures and methods of a third-party model with LoRA, trained by its own step."""
    before = {name: inspect.signature(getattr(FederatedCLIP(), name)) for name in METHODS}
    federated = _adapted().federated_model
    same = {name: inspect.signature(getattr(federated, name)) for name in METHODS} == before
    losses = [federated.train_step(*batch()) for _ in range(10)]
    passed = same and type(federated) is FederatedCLIP and losses[-1] < losses[0]
    return passed, f"signatures kept: {same}; loss {losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps"


def exchange() -> tuple[bool, str]:
    """The number of values exchanged, and that writing the values read is bit-identical."""
    whole = sum(value.size for value in FederatedCLIP().get_parameters({}))
    wrapper = _adapted()
    federated = wrapper.federated_model
    sent = federated.get_parameters({})
    before = {name: value.clone() for name, value in federated.model.state_dict().items()}
    federated.set_parameters(sent)
    identity = all(torch.equal(before[name], v) for name, v in federated.model.state_dict().items())
    federated.set_parameters([value + 1 for value in sent])
    moved = all(
        np.array_equal(after, value + 1)
        for after, value in zip(federated.get_parameters({}), sent, strict=True)
    )
    count = sum(value.size for value in sent)
    passed = identity and moved and count == wrapper.adapter.trainable_parameters < whole
    return passed, f"{count:,} of {whole:,} values are sent; set(get()) is bit-identical: {identity}"


def storage() -> tuple[bool, str]:
    """A saved adapter gives the same outputs, and one of another rank, targets or base is rejected."""
    images, _ = batch()
    wrapper = _adapted()
    wrapper.federated_model.train_step(*batch())
    wrapper.module.eval()
    others = {
        "rank": _adapted(LoRAConfig(r=8)),
        "targets": _adapted(LoRAConfig(r=4, target_modules=["q_proj", "v_proj"])),
        "base": _adapted(seed=1),
    }
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        stored = LoRAModelManager(folder)
        stored.save_model("first", wrapper)
        again = stored.load_model("first", _adapted())
        apart = _apart(again.module.eval()(images), wrapper.module(images))
        refused = [what for what, other in others.items() if what in _refusal(stored, other)]
        size = sum(file.stat().st_size for file in Path(folder, "first").iterdir())
    passed = apart == 0 and refused == list(others)
    return passed, f"{size / 1e3:.0f} kB; outputs differ by {apart:g}; rejected: {', '.join(refused)}"


def layers() -> tuple[bool, str]:
    """Merged, disabled and checkpointed LoRA beside LoRA as it is."""
    images, labels = batch()
    base = FederatedCLIP().model.eval()(images)
    wrapper = _adapted()
    for _ in range(5):
        wrapper.federated_model.train_step(images, labels)
    kept = _peak(wrapper)
    wrapper.enable_gradient_checkpointing()
    again = _peak(wrapper)
    wrapper.disable_gradient_checkpointing()
    wrapper.module.eval()
    with torch.no_grad():
        adapted = wrapper.module(images)
        wrapper.disable_lora_layers()
        disabled = torch.equal(wrapper.module(images), base)
        wrapper.enable_lora_layers()
        enabled = torch.equal(wrapper.module(images), adapted)
        merged = _apart(wrapper.merge_and_unload().model(images), adapted)
    passed = disabled and enabled and merged < CLOSE and again < kept
    return passed, (
        f"merged differs by {merged:.1g}; disabled is bit-identical to the base: {disabled}; peak "
        f"{kept / 1e6:.1f} MB, with checkpoints {again / 1e6:.1f} MB"
    )


def _adapted(config: LoRAConfig | None = None, seed: int = 0) -> CLIPLoRAWrapper:
    wrapper = CLIPLoRAWrapper(FederatedCLIP(seed), config or PLAIN)
    wrapper.apply_lora_to_federated_model()
    return wrapper


def _refusal(stored: LoRAModelManager, other: CLIPLoRAWrapper) -> str:
    try:
        stored.load_model("first", other)
    except ModelError as error:
        return str(error)
    return ""


def _apart(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max())


def _peak(wrapper: CLIPLoRAWrapper) -> int:
    """The most bytes of tensors at a time in a step."""
    with Tally() as tally:
        wrapper.federated_model.train_step(*batch(images=16))
    most: Any = tally.most
    return int(most)
