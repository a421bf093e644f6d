"""EfficientNet-Lite as a model of transformers: EfficientNet (arXiv:1905.11946) with ReLU6, without squeeze
and excitation, as published in github.com/tensorflow/tpu, models/official/efficientnet/lite."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)

_EXPANSION = 6  # of the channels within a block; 1 in the first stage
_EPS = 1e-3  # of the batch norms, as in the published training


class EfficientNetLiteConfig(PreTrainedConfig):  # type: ignore[misc]
    """The sizes of a network, by default those of Lite0.

    ``channels``, ``repeats``, ``kernels`` and ``strides`` have a number for each stage of blocks.
    ``image_mean`` and ``image_std`` are of pixels from 0 to 1, in every channel: (level - 127) / 128 is read.
    A network of convolutions reads images of any size, and ``image_size`` is the one that it is given.
    """

    model_type = "efficientnet_lite"
    attribute_map: ClassVar[dict[str, str]] = {"hidden_size": "top_channels"}

    num_channels: int = 3
    image_size: int = 224
    image_mean: float = 127 / 255
    image_std: float = 128 / 255
    stem_channels: int = 32
    channels: list[int] | tuple[int, ...] = (16, 24, 40, 80, 112, 192, 320)
    repeats: list[int] | tuple[int, ...] = (1, 2, 2, 3, 3, 4, 1)
    kernels: list[int] | tuple[int, ...] = (3, 3, 5, 3, 5, 5, 3)
    strides: list[int] | tuple[int, ...] = (1, 2, 2, 2, 1, 2, 1)
    top_channels: int = 1280
    dropout: float = 0.2


class SamePadding(nn.Module):
    """Zeros around an image as TensorFlow's "same" puts them: the output has side ceil(side / stride), and of
    an odd number of zeros the larger part is below and to the right."""

    def __init__(self, kernel: int, stride: int) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Images (batch, channels, height, width), padded."""
        height, width = (self._zeros(side) for side in images.shape[-2:])
        return nn.functional.pad(images, (width // 2, width - width // 2, height // 2, height - height // 2))

    def _zeros(self, side: int) -> int:
        outputs = -(-side // self.stride)
        return max((outputs - 1) * self.stride + self.kernel - side, 0)


class EfficientNetLiteBlock(nn.Module):
    """An inverted bottleneck: a 1 x 1 convolution that expands, a depthwise one, and a 1 x 1 one that
    projects. Where shapes allow it the input is added to the output."""

    def __init__(self, inputs: int, outputs: int, expansion: int, kernel: int, stride: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.expands, self.adds = expansion > 1, inputs == outputs and stride == 1
        if self.expands:
            self.expand_conv = nn.Conv2d(inputs, width, 1, bias=False)
            self.bn0 = nn.BatchNorm2d(width, eps=_EPS)
        self.padding = SamePadding(kernel, stride)
        self.depthwise_conv = nn.Conv2d(width, width, kernel, stride, groups=width, bias=False)
        self.bn1 = nn.BatchNorm2d(width, eps=_EPS)
        self.project_conv = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs, eps=_EPS)

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        """States (batch, channels, height, width)."""
        inner = states
        if self.expands:
            inner = nn.functional.relu6(self.bn0(self.expand_conv(inner)))
        inner = nn.functional.relu6(self.bn1(self.depthwise_conv(self.padding(inner))))
        inner = self.bn2(self.project_conv(inner))
        outputs: torch.Tensor = states + inner if self.adds else inner
        return outputs


class EfficientNetLitePreTrainedModel(PreTrainedModel):  # type: ignore[misc]
    """The start of weights that no checkpoint has: He et al. (arXiv:1502.01852) for convolutions, by their
    inputs, so that frozen random layers pass the signal on."""

    config_class = EfficientNetLiteConfig
    base_model_prefix = "efficientnet_lite"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    _no_split_modules = ("EfficientNetLiteBlock",)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")


class EfficientNetLiteModel(EfficientNetLitePreTrainedModel):
    """The network without its classifier."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.padding = SamePadding(3, 2)
        self.conv_stem = nn.Conv2d(config.num_channels, config.stem_channels, 3, 2, bias=False)
        self.bn0 = nn.BatchNorm2d(config.stem_channels, eps=_EPS)
        self.blocks = nn.ModuleList(_blocks(config))
        self.conv_head = nn.Conv2d(config.channels[-1], config.top_channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(config.top_channels, eps=_EPS)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor, **_: Any) -> BaseModelOutputWithPoolingAndNoAttention:
        """States (batch, top_channels, height, width) of normalised images, and their mean over places."""
        states = nn.functional.relu6(self.bn0(self.conv_stem(self.padding(pixel_values))))
        for block in self.blocks:
            states = block(states)
        states = nn.functional.relu6(self.bn1(self.conv_head(states)))
        return BaseModelOutputWithPoolingAndNoAttention(
            last_hidden_state=states, pooler_output=states.mean(dim=(2, 3))
        )


class EfficientNetLiteForImageClassification(EfficientNetLitePreTrainedModel):
    """The network with a linear classifier."""

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        self.efficientnet_lite = EfficientNetLiteModel(config)
        self.dropout = nn.Dropout(config.dropout)
        self.classifier = nn.Linear(config.top_channels, config.num_labels)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None, **_: Any
    ) -> ImageClassifierOutputWithNoAttention:
        """Logits (batch, classes), and the loss where there are labels (batch,)."""
        pooled = self.efficientnet_lite(pixel_values).pooler_output
        logits = self.classifier(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


def own_name(published: str) -> str:
    """The name that a weight has here, by the one in the files of efficientnet-lite-pytorch, such as
    ``_blocks.3._expand_conv.weight`` and ``_fc.bias``."""
    name = ".".join(part.removeprefix("_") for part in published.split("."))
    if name.startswith("fc."):
        return name.replace("fc.", "classifier.", 1)
    return f"{EfficientNetLitePreTrainedModel.base_model_prefix}.{name}"


def _blocks(config: EfficientNetLiteConfig) -> list[EfficientNetLiteBlock]:
    """The blocks of all stages; the first of a stage changes channels and size."""
    blocks, inputs = [], config.stem_channels
    stages = zip(config.channels, config.repeats, config.kernels, config.strides, strict=True)
    for stage, (outputs, repeats, kernel, stride) in enumerate(stages):
        for place in range(repeats):
            expansion = _EXPANSION if stage else 1
            blocks.append(EfficientNetLiteBlock(inputs, outputs, expansion, kernel, 1 if place else stride))
            inputs = outputs
    return blocks


AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig)
AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel)
AutoModelForImageClassification.register(EfficientNetLiteConfig, EfficientNetLiteForImageClassification)
