"""Settings of local training from a Trainer of transformers and its TrainingArguments."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

from transformers import Trainer, TrainingArguments
from transformers.trainer_callback import DefaultFlowCallback, PrinterCallback, ProgressCallback

from fedsa_lora.errors import ConfigError

_OF_EVERY_TRAINER = (DefaultFlowCallback, PrinterCallback, ProgressCallback)
_NOT_CALLED = ("train", "training_step", "evaluate", "evaluation_loop", "prediction_step", "log")
_OF_OPTIMIZERS = ("create_optimizer", "create_scheduler", "create_optimizer_and_scheduler")
_NOT_USED = (  # arguments by which a training would be another
    "adam_beta1", "adam_beta2", "adam_epsilon", "optim_args", "lr_scheduler_kwargs", "neftune_noise_alpha",
)  # fmt: skip
_SCHEDULES = ("constant", "linear", "cosine")
_OPTIMIZERS = {"adamw": "adamw", "sgd": "sgd"}  # by the first word of TrainingArguments.optim


def settings_of_trainer(trainer: Any) -> dict[str, Any]:
    """The keys of ``TrainSettings`` that a Trainer's arguments decide, for the training of one round. Raises
    ConfigError that lists what is used by no run."""
    args, faults = trainer.args, []
    optimizer = str(getattr(args.optim, "value", args.optim)).partition("_")[0]
    schedule = str(getattr(args.lr_scheduler_type, "value", args.lr_scheduler_type))
    schedule = "constant" if schedule == "constant_with_warmup" else schedule
    given = (trainer.optimizer, trainer.lr_scheduler, trainer.optimizer_cls_and_kwargs)
    if any(part is not None for part in given) or _overridden(trainer, _OF_OPTIMIZERS):
        faults.append("an optimizer or a scheduler from elsewhere: expected those of the arguments")
    if optimizer not in _OPTIMIZERS:
        faults.append(f"optim={optimizer}: expected adamw or sgd")
    if schedule not in _SCHEDULES:
        faults.append(f"lr_scheduler_type={schedule}: expected one of {', '.join(_SCHEDULES)}")
    if args.max_steps <= 0 and int(args.num_train_epochs) != args.num_train_epochs:
        faults.append(f"num_train_epochs={args.num_train_epochs}: expected a whole number")
    if args.warmup_steps >= 1 and args.max_steps <= 0:
        faults.append(f"warmup_steps={args.warmup_steps}: expected a share below 1, or max_steps")
    if faults:
        raise ConfigError(f"the Trainer cannot be used: {'; '.join(faults)}")
    by_steps = args.max_steps > 0
    warmup = args.warmup_steps / args.max_steps if args.warmup_steps >= 1 else args.warmup_steps
    return {
        "optimizer": _OPTIMIZERS[optimizer],
        "lr": args.learning_rate,
        "steps": args.max_steps if by_steps else None,
        "epochs": None if by_steps else int(args.num_train_epochs),
        "batch_size": args.per_device_train_batch_size,
        "eval_batch_size": args.per_device_eval_batch_size,
        "accumulate": args.gradient_accumulation_steps,
        "weight_decay": args.weight_decay,
        "schedule": schedule,
        "warmup": min(1.0, warmup),
        "clip_norm": args.max_grad_norm or None,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "fp32",
        "gradient_checkpointing": args.gradient_checkpointing,
    }


def left_out(trainer: Any) -> list[str]:
    """Lists what a run does not call or use of a Trainer, a line each."""
    own = [entry for entry in trainer.callback_handler.callbacks if type(entry) not in _OF_EVERY_TRAINER]
    callbacks = sorted({type(entry).__name__ for entry in own} - {"NotebookProgressCallback"})
    usual = {known.name: known.default for known in fields(TrainingArguments)}
    arguments = [name for name in _NOT_USED if getattr(trainer.args, name) != usual[name]]
    found = []
    if callbacks:
        found.append(f"its callbacks are not called: {', '.join(callbacks)}")
    if methods := _overridden(trainer, _NOT_CALLED):
        found.append(f"these methods are not called, as the loop is that of the run: {', '.join(methods)}")
    if arguments:
        found.append(f"these arguments are not used: {', '.join(arguments)}")
    return found


def _overridden(trainer: Any, names: tuple[str, ...]) -> list[str]:
    """Those of a Trainer's methods that are not transformers' own."""
    return [name for name in names if getattr(type(trainer), name) is not getattr(Trainer, name)]
