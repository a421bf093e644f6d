"""Classification of images by a dual encoder, from the names of the classes or by a linear head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from fedsa_lora.errors import ConfigError, ModelError
from fedsa_lora.tasks.defaults import Code
from fedsa_lora.tasks.image import ImageTask
from fedsa_lora.tasks.images import MODES

if TYPE_CHECKING:
    import torch

    from fedsa_lora.tasks.backbone import Start

PLACE = "{}"  # of the class in a template
_NUMBERED = (
    "class names are numbers, as in {prompt!r}: unless the images show numerals, give names in "
    "task.class_names"
)
_USAGE = """    from torch.nn.functional import normalize

    names = {names}
    prompts = [t.replace("{{}}", name.replace("_", " ")) for t in {templates} for name in names]
    texts = tokenizer(prompts, padding=True, return_tensors="pt")
    texts = normalize(model.get_text_features(**texts).pooler_output, dim=-1)
    texts = normalize(texts.unflatten(0, (-1, len(names))).mean(0), dim=-1)
    pictures = [picture.convert("{mode}") for picture in pictures]  # PIL images
    inputs = processor(pictures, return_tensors="pt")
    images = normalize(model.get_image_features(**inputs).pooler_output, dim=-1)
    classes = (images @ texts.T).argmax(1)"""


def filled_in(templates: Sequence[str], classes: Sequence[str]) -> list[str]:
    """Each class in each template, in the place of its ``{}``: those of the first template before those of
    the second. Underscores of a class's name are read as blanks."""
    return [template.replace(PLACE, name.replace("_", " ")) for template in templates for name in classes]


@dataclass(frozen=True, kw_only=True)
class ClipTask(ImageTask):
    """Images with a class each, for CLIP or another model with a tower for images and one for texts.

    With ``classifier=prompts`` a class is known by its name, put into each of the ``templates`` in the place
    of ``{}``, and there is no head; with ``linear`` a layer on an image's embedding is trained, which starts
    from these embeddings of the classes. All else is ``ImageTask``'s.
    """

    builds_head: ClassVar[bool] = False

    classifier: Literal["prompts", "linear"] = "prompts"
    templates: list[str] = field(default_factory=lambda: ["a photo of a {}."])

    def __post_init__(self) -> None:
        super().__post_init__()
        odd = [template for template in self.templates if template.count(PLACE) != 1]
        if odd or not self.templates:
            raise ConfigError(
                f"task.templates: {odd[0]!r} has not one {PLACE} for the class"
                if odd
                else f"task.templates is empty: expected texts with one {PLACE} for the class, such as "
                f"'a photo of a {PLACE}.'"
            )
        if self.classifier == "prompts" and self.partition.label_meaning != "common":
            raise ConfigError(
                "federation.label_meaning: with task.classifier=prompts a class is defined by its name, "
                "for every client; expected common, or task.classifier=linear"
            )

    def inspect(self) -> tuple[str, ...]:
        """Remarks on what the model is given, and on classes whose names say nothing."""
        notes = super().inspect()
        numbers = [name for name in self.labels() if name.isdecimal()]
        if self.classifier == "linear" or not numbers:
            return notes
        return (*notes, _NUMBERED.format(prompt=self.templates[0].replace(PLACE, numbers[0])))

    def check_model(self, model: torch.nn.Module, start: Start) -> None:
        """Raise ModelError or ConfigError where tokenizer, prompts or images do not go with the model."""
        from fedsa_lora.tasks.inspection import check_prompts, check_tokenizer
        from fedsa_lora.tasks.towers import tower

        texts = tower(model, "text")
        check_tokenizer(self.tokenizer, self.model, texts, None)
        check_prompts(texts, self.prompts["input_ids"].shape[1])
        super().check_model(model, start)

    def save_preprocessor(self, folder: Path) -> None:
        """Write the tokenizer of the text tower, and the preprocessor config of the images."""
        self.tokenizer.save_pretrained(str(folder))
        super().save_preprocessor(folder)

    def preprocessor_code(self, folder: str) -> Code:
        """Code that loads the tokenizer and the image processor."""
        images = super().preprocessor_code(folder)
        line = f"tokenizer = AutoTokenizer.from_pretrained({folder})"
        return Code((*images.imports, ("transformers", "AutoTokenizer")), (line, *images.lines))

    def usage(self) -> str:
        """The code that classifies images by the names of the classes."""
        mode = MODES[self.read_by_model.channels]
        return _USAGE.format(mode=mode, templates=self.templates, names=list(self.labels()))

    @property
    def auto_class(self) -> Any:
        """The class of transformers that builds the model."""
        from transformers import AutoModel

        return AutoModel

    def build_model(self, *, seed: int, empty: bool = False) -> torch.nn.Module:
        """The dual encoder, which answers images with logits of classes; on the meta device and without
        weights when ``empty``."""
        from fedsa_lora.tasks.backbone import build_backbone
        from fedsa_lora.tasks.model_config import check_dual_encoder
        from fedsa_lora.tasks.prompts import classifying

        check_dual_encoder(self.model)
        model = build_backbone(self.auto_class, self.model, (), seed=seed, empty=empty)
        linear = self.classifier == "linear"
        found: torch.nn.Module = classifying(model, self.prompts, len(self.labels()), linear=linear)
        return found

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer of the text tower."""
        from fedsa_lora.tasks.backbone import load_tokenizer

        return load_tokenizer(self.model)

    @cached_property
    def prompts(self) -> dict[str, torch.Tensor]:
        """The tokens of every class in every template. Raises ConfigError for one that is too long, and
        ModelError where two classes have the same."""
        texts = filled_in(self.templates, self.labels())
        tokens: dict[str, torch.Tensor] = dict(self.tokenizer(texts, padding=True, return_tensors="pt"))
        if alike := _alike(
            self.labels(), tokens["input_ids"].reshape(len(self.templates), len(self.labels()), -1)
        ):
            raise ModelError(
                f"the prompts of {' and '.join(map(repr, alike))} are the same tokens: the tokenizer "
                f"{self.model.tokenizer or self.model.path!r} does not know these words, or its files are "
                "missing there; copy them, or set model.tokenizer",
                sent="the tokenizer does not distinguish the classes",
                key="model.tokenizer",
            )
        length, most = tokens["input_ids"].shape[1], self.tokenizer.model_max_length
        if length > most:
            raise ConfigError(
                f"task.templates: with the longest class a prompt has {length} tokens, and the model reads "
                f"at most {most}: shorten it",
                sent="a prompt is longer than the model reads",
                key="task.templates",
            )
        return tokens


def _alike(classes: Sequence[str], tokens: torch.Tensor) -> tuple[str, ...]:
    """The first classes whose tokens (templates, classes, length) are the same in every template, if there
    are such."""
    seen: dict[bytes, str] = {}
    for number, name in enumerate(classes):
        other = seen.setdefault(tokens[:, number].numpy().tobytes(), name)
        if other != name:
            return other, name
    return ()
