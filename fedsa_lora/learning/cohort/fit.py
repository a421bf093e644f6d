"""Jobs that can be done in one pass, and what stands against the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import nn

from fedsa_lora.errors import ModelError
from fedsa_lora.exchange.arrays import digest
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.job import Job
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.learning.training import Objective, predict
from fedsa_lora.tasks.causal_lm import CausalLMTask
from fedsa_lora.tasks.classification import ClassificationTask
from fedsa_lora.tasks.divided import DividedTask
from fedsa_lora.tasks.heads import unwrapped
from fedsa_lora.tasks.image import ImageTask
from fedsa_lora.tasks.task import Task
from fedsa_lora.tasks.text import TextTask


@dataclass(frozen=True)
class Reading:
    """A model type's reading of flat tokens: its head reads the ``last`` token of a sequence, or the first;
    it counts positions ``from_pad``, from the number after that of the padding token; of ``images`` no token
    is flat."""

    last: bool = False
    from_pad: bool = False
    images: bool = False


READINGS = {
    "bert": Reading(),
    "distilbert": Reading(),
    "roberta": Reading(from_pad=True),
    "gpt2": Reading(last=True),
    "llama": Reading(last=True),
    "vit": Reading(images=True),
}
_LOSSES = (DividedTask.loss, CausalLMTask.loss)
_COLLATES = (TextTask.collate, CausalLMTask.collate, ImageTask.collate)


def why_not(job: Job, model: AdapterModel, task: Task) -> str | None:
    """The reason that a job is done alone; None for one that others can be done with in one pass."""
    return why_not_any(model, task) or why_not_job(job, task)


def why_not_any(model: AdapterModel, task: Task) -> str | None:
    """The reason that every job of a model and a task is done alone, if there is one."""
    return _why_not_model(model) or _why_not_task(task)


def why_not_job(job: Job, task: Task) -> str | None:
    """The reason that this one is, where the model and the task have none."""
    if job.extension is not None:
        return "the method has its own parameters"
    if job.batches and job.objective is not Objective:
        return "the method has its own objective"
    if job.asked and job.read is not predict:
        return "the method has its own predictions"
    if reason := why_not_settings(job.settings):
        return reason
    if job.asked and not task.classifies:
        return f"{type(task).__name__} predicts something else than logits of classes"
    return None


def why_not_settings(settings: TrainSettings) -> str | None:
    """The reason that every job with these settings is, if there is one."""
    if settings.precision == "fp16":
        return "fp16 uses loss scaling"
    if settings.accumulate > 1:
        return "a step is computed in several passes (train.accumulate)"
    if settings.gradient_checkpointing:
        return "activations are recomputed (train.gradient_checkpointing)"
    return None


def alike(job: Job) -> Any:
    """Equal for jobs that may have a pass in common: they train the same tensors over the same weights."""
    return job.trained, job.settings.optimizer, job.settings.precision, digest(job.merged)


def spread(model: AdapterModel) -> int:
    """Tokens that the model makes of one of ``Examples.lengths``: of an image its patches and one more."""
    config = unwrapped(model.module).config
    patches: int = (config.image_size // config.patch_size) ** 2 if READINGS[config.model_type].images else 0
    return patches + 1


def _why_not_model(model: AdapterModel) -> str | None:
    base = unwrapped(model.module)
    kind = getattr(getattr(base, "config", None), "model_type", None)
    if kind not in READINGS:
        of = f"models of type {kind} have" if kind else f"{type(base).__name__} has"
        return f"{of} no fused pass over several clients"
    if not model.has_adapters:
        return "the whole model is trained"
    try:
        factors = model.factors()
    except ModelError:
        return "an adapter is not plain LoRA on a linear layer"
    drops = any(module.p > 0 for module in model.module.modules() if isinstance(module, nn.Dropout))
    if drops and model.device.type not in ("cpu", "meta"):  # a plan, whose model is on meta, asks for a CPU
        return "a GPU draws dropout differently"
    if READINGS[kind].images and getattr(base.config, "attention_probs_dropout_prob", 0) > 0:
        return "attention dropout is used on images"
    found = {id(factor.weight) for pair in factors.values() for factor in pair}
    for module in base.modules():
        if isinstance(module, nn.Linear):
            found |= {id(parameter) for parameter in module.parameters()}
    lacking = [name for name in model.layout.names if id(model.parameter(name)) not in found]
    return f"{lacking[0]} is not part of a linear layer" if lacking else None


def _why_not_task(task: Any) -> str | None:
    kind = type(task)
    if isinstance(task, DividedTask) and task.model.quantization:
        return "quantised weights have their own kernels"
    if getattr(kind, "loss", None) not in _LOSSES or kind.collate not in _COLLATES:
        return f"{kind.__name__} has its own loss or batches"
    if task.classifies:
        if kind.predict is not ClassificationTask.predict:
            return f"{kind.__name__} has its own predictions"
        if len(task.labels()) < 2:
            return "there are fewer than two classes"
    if kind.collate is TextTask.collate and task.tokenizer.padding_side == "left":
        return "the tokenizer pads on the left, which moves the positions of tokens"
    return None
