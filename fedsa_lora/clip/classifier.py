"""A federated classifier of images on a CLIP model, and LoRA on it in one call."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional
from transformers import AutoModel, CLIPModel, VisionTextDualEncoderModel

from fedsa_lora.clip.config import LoRAConfig
from fedsa_lora.clip.tensors import as_array
from fedsa_lora.clip.wrapper import CLIPLoRAWrapper
from fedsa_lora.errors import ConfigError, DataError, LayoutError, ModelError, TrainingError
from fedsa_lora.seeds import torch_seed
from fedsa_lora.tasks.backbone import build_backbone
from fedsa_lora.tasks.model_settings import ModelSettings

Batch = Mapping[str, torch.Tensor]
LR = 1e-3  # of the optimizer that a classifier makes itself


class CLIPClassifier(nn.Module):
    """A linear classifier on the image embedding of a CLIP model: ``pixel_values`` (images, channels, height,
    width) to logits (images, classes). Its exchange of parameters is that of Flower's NumPyClient.

    A batch has ``pixel_values`` and ``labels`` (images), as an image processor of transformers and a data set
    give them. The classifier starts from draws of the seed.
    """

    def __init__(self, clip: Any, num_classes: int, seed: int = 0) -> None:
        super().__init__()
        if num_classes < 1:
            raise ConfigError(f"num_classes is {num_classes}: expected at least 1")
        self.clip = clip
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(torch_seed(seed, "classifier"))
            self.classifier = nn.Linear(clip.config.projection_dim, num_classes)
        self._optimizer: torch.optim.Optimizer | None = None

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Logits (images, classes)."""
        embedding = self.clip.get_image_features(pixel_values=pixel_values).pooler_output
        logits: torch.Tensor = self.classifier(embedding)
        return logits

    def train_step(self, batch: Batch, optimizer: torch.optim.Optimizer | None = None) -> dict[str, float]:
        """Take one step on a batch and return its mean ``loss`` and ``accuracy`` before it. Without an
        optimizer it is AdamW, which is made at the first step and kept.

        Raises TrainingError for a loss that is not finite, before the step.
        """
        if optimizer is None:
            trained = [value for value in self.parameters() if value.requires_grad]
            optimizer = self._optimizer = self._optimizer or torch.optim.AdamW(trained, lr=LR)
        self.train()
        loss, right = self._measure(batch)
        if not math.isfinite(loss.item()):
            raise TrainingError(
                f"the loss is {loss.item()}: lower the learning rate, or look for pixel values out of range"
            )
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        return {"loss": loss.item(), "accuracy": right / len(batch["labels"])}

    @torch.no_grad()
    def evaluate(self, batches: Iterable[Batch]) -> dict[str, float]:
        """The mean ``loss`` and ``accuracy`` over all images of the batches, and their number
        ``num_examples``. The mode of the model is left as it is. Raises DataError where there is no image."""
        training, total, hits, count = self.training, 0.0, 0, 0
        self.eval()
        for batch in batches:
            loss, right = self._measure(batch)
            total += loss.item() * len(batch["labels"])
            hits += right
            count += len(batch["labels"])
        self.train(training)
        if not count:
            raise DataError("there is no image to evaluate: expected batches with pixel_values and labels")
        return {"loss": total / count, "accuracy": hits / count, "num_examples": count}

    def get_parameters(self, config: Mapping[str, Any] | None = None) -> list[NDArray[Any]]:
        """Every tensor of the state, in its order."""
        return [as_array(value.detach().to("cpu", copy=True)) for value in self.state_dict().values()]

    def set_parameters(self, parameters: Sequence[NDArray[Any]]) -> None:
        """Overwrite every tensor of the state. Raises LayoutError, and writes nothing, unless their number
        and shapes are those of ``get_parameters``."""
        state = self.state_dict()
        if [tuple(value.shape) for value in state.values()] != [value.shape for value in parameters]:
            raise LayoutError(
                f"set_parameters was given {len(parameters)} arrays; expected the {len(state)} tensors of "
                "the model with their shapes, in the order of get_parameters"
            )
        tensors = [torch.as_tensor(value) for value in parameters]
        self.load_state_dict(dict(zip(state, tensors, strict=True)))

    def _measure(self, batch: Batch) -> tuple[torch.Tensor, int]:
        """The mean loss of a batch, and the number of images that are classified right."""
        device = self.classifier.weight.device
        logits, labels = self(batch["pixel_values"].to(device)), batch["labels"].to(device)
        return functional.cross_entropy(logits, labels), int((logits.argmax(1) == labels).sum())


def quick_clip_lora(
    model_name: str,
    num_classes: int,
    lora_r: int = 16,
    lora_alpha: float | None = None,
    target_components: Sequence[str] | None = None,
    *,
    save_only_trainable: bool = True,
    seed: int = 0,
) -> CLIPLoRAWrapper:
    """A pretrained CLIP model with a classifier of ``num_classes`` on its image embedding and LoRA of rank
    ``lora_r`` on its vision tower, as ``LoRAConfig.for_clip_model`` has it.

    ``model_name`` is a hub id, a local folder, ``pkg://package/folder`` or ``cache://name``, of a CLIPModel
    or a VisionTextDualEncoderModel. Raises ModelError where it cannot be loaded or is of another kind, and
    ConfigError for numbers out of range.
    """
    config = LoRAConfig.for_clip_model(r=lora_r, lora_alpha=lora_alpha)
    clip = build_backbone(AutoModel, ModelSettings(path=model_name), (), seed=seed)
    if not isinstance(clip, CLIPModel | VisionTextDualEncoderModel):
        raise ModelError(
            f"{model_name} is a {type(clip).__name__}; expected a CLIPModel or a VisionTextDualEncoderModel, "
            "such as openai/clip-vit-base-patch32"
        )
    wrapper = CLIPLoRAWrapper(
        federated_clip_model=CLIPClassifier(clip, num_classes, seed),
        lora_config=config,
        target_components=target_components,
        save_only_trainable=save_only_trainable,
        base=model_name,
        seed=seed,
    )
    wrapper.apply_lora_to_federated_model()
    return wrapper
