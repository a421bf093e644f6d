"""The towers, the classifier and the layers of a module that get LoRA."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel

from fedsa_lora.clip.config import LoRAConfig
from fedsa_lora.errors import ModelError
from fedsa_lora.learning.targets import ADAPTABLE, LINEAR, choose_in_tower
from fedsa_lora.suggest import listing, nearest

CLASSIFIERS = ("classifier", "head", "classification_head", "fc", "score")  # usual names of a classifier
_READS = {"pixel_values": "vision", "input_ids": "text"}  # the kind of a tower by its first input


def layers_with_lora(module: nn.Module, config: LoRAConfig, classifier: str | None) -> list[str]:
    """The full names of the layers that get LoRA. Raises ModelError where a component has none, where a
    target is nowhere, and where layers cannot be inferred."""
    found: list[str] = []
    for component in config.components:
        if component == "classifier":
            layers = _of_classifier(module, classifier)
        else:
            layers = _of_encoder(module, config, classifier)
        known = sorted({name.rpartition(".")[2] for name in layers})
        if config.target_modules is not None:
            layers = [name for name in layers if _is_named(name, config.target_modules)]
        if not layers:
            wanted = "that could be inferred: set target_modules, for example"
            if config.target_modules is not None:
                wanted = f"that target_modules names, {listing(config.target_modules)}; expected, of "
                wanted += f"{component} and towers={config.towers}, some of"
            raise ModelError(
                f"the {component} of {type(module).__name__} has none of the layers {wanted} "
                f"{listing(known or _ends(module))}"
            )
        found += layers
    for target in config.target_modules or ():
        if not any(_is_named(name, [target]) for name in found):
            known = _ends(module)
            raise ModelError(
                f"target_modules: {target!r} is not a layer of {' or '.join(config.components)} in "
                f"{type(module).__name__}{nearest(target, known)}; expected some of {listing(known)}"
            )
    return found


def towers_of(module: nn.Module) -> dict[str, str]:
    """The kind, vision or text, of each model of transformers that reads images or tokens, by its name in a
    module; the module itself has the name ''. One that holds both kinds is none."""
    found: dict[str, str] = {}
    for name, part in module.named_modules():
        if not isinstance(part, PreTrainedModel) or any(is_below(name, tower) for tower in found):
            continue
        holds_both = hasattr(part.config, "vision_config") and hasattr(part.config, "text_config")
        if not holds_both and part.main_input_name in _READS:
            found[name] = _READS[part.main_input_name]
    return found


def classifier_of(module: nn.Module, named: str | None) -> str | None:
    """The name of the classifier in a module: as it is ``named``, else the child with a usual name; None
    where there is none. Raises ModelError where there is none of that name, or several have usual names."""
    if named is not None:
        known = [name for name, _ in module.named_modules() if name]
        if named not in known:
            raise ModelError(
                f"classifier={named}: {type(module).__name__} has no such part{nearest(named, known)}; "
                f"expected one of {listing(name for name, _ in module.named_children())}"
            )
        return named
    found = [name for name, _ in module.named_children() if name in CLASSIFIERS]
    if len(found) > 1:
        raise ModelError(
            f"{type(module).__name__} has several parts that may be its classifier, {listing(found)}: name "
            "one of them with classifier="
        )
    return found[0] if found else None


def _of_classifier(module: nn.Module, classifier: str | None) -> list[str]:
    if classifier is None:
        raise ModelError(
            f"{type(module).__name__} has no classifier; expected a part called {' or '.join(CLASSIFIERS)}: "
            "name it with classifier=, or set the components to encoder only"
        )
    names = [_joined(classifier, name) for name, _ in module.get_submodule(classifier).named_modules()]
    layers = [name for name in names if isinstance(module.get_submodule(name), LINEAR)]
    if not layers:
        raise ModelError(
            f"the classifier {classifier} of {type(module).__name__} has no linear layer for LoRA"
        )
    return layers


def _of_encoder(module: nn.Module, config: LoRAConfig, classifier: str | None) -> list[str]:
    """The layers that are inferred, or those among which targets are looked for."""
    towers = towers_of(module)
    if not towers and config.target_modules is None:
        raise ModelError(
            f"{type(module).__name__} holds no model of transformers whose layers could be inferred: set "
            f"target_modules, for example from {listing(_ends(module))}"
        )
    # a module of another library has one encoder, all that is not its classifier
    chosen = _chosen(module, towers, config) if towers else [""]
    found: list[str] = []
    for name in chosen:
        tower = module.get_submodule(name)
        inner = choose_in_tower(tower, "all_linear") if config.target_modules is None else _adaptable(tower)
        found += [_joined(name, layer) for layer in inner]
    return [name for name in found if classifier is None or not is_below(name, classifier)]


def _chosen(module: nn.Module, towers: dict[str, str], config: LoRAConfig) -> list[str]:
    kinds = ("vision", "text") if config.towers == "both" else (config.towers,)
    there = set(towers.values())
    for kind in kinds:
        if kind not in there:
            raise ModelError(
                f"towers={config.towers}: {type(module).__name__} has no {kind} tower; set "
                f"towers={' or '.join(sorted(there))}"
            )
    return [name for name, kind in towers.items() if kind in kinds]


def _adaptable(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, ADAPTABLE)]


def _ends(module: nn.Module) -> list[str]:
    return sorted({name.rpartition(".")[2] for name in _adaptable(module)})


def _is_named(layer: str, targets: Iterable[str]) -> bool:
    return any(layer == target or layer.endswith(f".{target}") for target in targets)


def is_below(name: str, outer: str) -> bool:
    """True for a part within an ``outer`` part, or that part itself."""
    return outer in ("", name) or name.startswith(f"{outer}.")


def _joined(outer: str, inner: str) -> str:
    return ".".join(part for part in (outer, inner) if part)
