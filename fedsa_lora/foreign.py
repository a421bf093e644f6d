"""Keys of other programs and their names here: for errors, and the table of the documentation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from fedsa_lora.suggest import cut


class Word(NamedTuple):
    """A key or flag of another program, also with a value (``trainer=NPO``), and ``ours``: a key or whole
    overrides; empty where there is none, for the reason in ``note``."""

    theirs: str
    ours: str
    note: str = ""

    def __str__(self) -> str:
        if not self.ours:
            return f"no equivalent: {self.note}"
        return f"use {self.ours}" + (f" ({self.note})" if self.note else "")


TRAINER = (
    Word("per_device_train_batch_size", "train.batch_size", "examples of one pass"),
    Word("per_device_eval_batch_size", "train.eval_batch_size"),
    Word("auto_find_batch_size", "train.batch_size=auto", "by the free memory, decided once for a run"),
    Word("gradient_accumulation_steps", "train.accumulate", "passes that make a step"),
    Word("gradient_checkpointing", "train.gradient_checkpointing"),
    Word("num_train_epochs", "train.epochs", "of each round; with train.steps=null"),
    Word("max_steps", "train.steps", "of each round"),
    Word("learning_rate", "train.lr"),
    Word("lr_scheduler_type", "train.schedule", "constant, linear or cosine, within a round"),
    Word("warmup_ratio", "train.warmup"),
    Word("weight_decay", "train.weight_decay"),
    Word("max_grad_norm", "train.clip_norm"),
    Word("optim", "train.optimizer", "adamw or sgd"),
    Word("bf16", "train.precision=bf16"),
    Word("fp16", "train.precision=fp16"),
    Word("dataloader_num_workers", "", "examples are in memory before a round begins, no worker is needed"),
    Word("output_dir", "run.dir"),
    Word("overwrite_output_dir", "", "a run directory is used once: choose another run.dir"),
    Word("resume_from_checkpoint", "fedsa-lora resume RUN"),
    Word("eval_steps", "evaluation.every", "rounds"),
    Word("eval_strategy", "evaluation.every", "rounds"),
    Word("save_steps", "", "the state after each round is kept"),
    Word("save_strategy", "", "the state after each round is kept"),
    Word("logging_steps", "", "every round is logged, see docs/monitoring.md"),
    Word("report_to", "", "runs are recorded in run.dir, see docs/monitoring.md"),
    Word("seed", "seed"),
)
PEFT = (
    Word("use_lora=false", "lora=none", "the whole model is trained"),
    Word("use_lora", "lora=default", "or another of the group; none trains the whole model"),
    Word("lora_config.r", "lora.r"),
    Word("lora_r", "lora.r"),
    Word("lora_rank", "lora.r"),
    Word("lora_alpha", "lora.alpha"),
    Word("lora_dropout", "lora.dropout"),
    Word("target_modules", "lora.target_modules"),
    Word("lora_config.bias", "", "biases stay as they were pretrained"),
    Word("lora_bias", "", "biases stay as they were pretrained"),
    Word("task_type", "", "the task gives it: task=text, causal_lm, image"),
    Word("modules_to_save", "head=local", "or shared, or frozen"),
    Word("use_rslora", "lora.rslora"),
    Word("use_dora", "lora.variant=dora"),
    Word("init_lora_weights", "lora.init", "default, pissa or orthogonal"),
    Word("rank_pattern", "lora.rank_pattern"),
    Word("alpha_pattern", "lora.alpha_pattern"),
    Word("lora_ranks", "lora.layer_ranks"),
)
MODEL = (
    Word("pretrained_model_name_or_path", "model.path"),
    Word("model_name_or_path", "model.path"),
    Word("tokenizer_args", "model.tokenizer", "a path; by default that of the model"),
    Word("attn_implementation", "model.attention"),
    Word("torch_dtype=bfloat16", "model.dtype=bf16", "of frozen weights; train.precision trains"),
    Word("torch_dtype", "model.dtype", "fp32 or bf16, of frozen weights; train.precision trains"),
    Word("load_in_4bit", "model.quantization=4bit"),
    Word("load_in_8bit", "model.quantization=8bit"),
    Word("lora_model_path", "model.adapter", "a folder of PEFT"),
    Word("model_args", "model.path, model.dtype, model.attention"),
    Word("model=Llama-3.2-3B-Instruct", "model=llama32_3b", "model.path names another of its kind"),
    Word("model=Llama-3.1-8B-Instruct", "model=llama3_8b", "model.path names another of its kind"),
)
UNLEARNING = (
    Word("--config-name", "experiment", "the config is always conf/run.yaml, and an experiment changes it"),
    Word("--config-path", "experiment", "the config is always conf/run.yaml, and an experiment changes it"),
    Word("--multirun", "fedsa-lora compare", "a grid of runs"),
    Word("task_task_name", "task_name"),
    Word("trainer=GradAscent", "unlearning=grad_ascent"),
    Word("trainer=GradDiff", "unlearning=grad_diff"),
    Word("trainer=NPO", "unlearning=npo"),
    Word("trainer=SimNPO", "unlearning=simnpo"),
    Word("trainer=DPO", "unlearning=dpo"),
    Word("trainer=RMU", "unlearning=rmu"),
    Word("trainer=finetune", "unlearning=none"),
    Word("trainer", "unlearning", "npo or another method; its settings and those of training: train"),
    Word("data", "task", "the experiment names its splits"),
    Word("collator", "", "the task pads its batches"),
    Word("eval", "evaluation", "fedsa-lora evaluate RUN --unlearning afterwards"),
    Word("paths", "run.dir"),
    Word("mode", "", "what runs follows from the experiment"),
    Word(
        "retain_logs_path",
        "",
        "the reference is a separate run: unlearning=retrain",
    ),
)
FEDERATION = (
    Word("--alg=fedlora", "experiment=vision/fedlora"),
    Word("--alg=fedavg", "experiment=vision/fedavg", "every weight is trained and averaged"),
    Word("--alg", "experiment"),
    Word("--model=vit", "model=vit_small"),
    Word("--model", "model"),
    Word("--dataset=cifar", "task=cifar10"),
    Word("--dataset=fmnist", "task=fashion_mnist"),
    Word("--dataset", "task"),
    Word("--epochs", "federation.rounds", "of the server"),
    Word("--num_users", "federation.clients"),
    Word("--frac", "strategy.fraction_fit"),
    Word("--local_ep", "train.epochs", "with train.steps=null"),
    Word("--local_bs", "train.batch_size"),
    Word("--optimizer", "train.optimizer"),
    Word("--momentum", "train.momentum"),
    Word("--lr", "train.lr"),
    Word("--lora_train_mlp_head=1", "head=local", "or shared"),
    Word("--lora_train_mlp_head=0", "head=frozen"),
    Word("--iid", "partition=iid"),
    Word("--dirichlet_alpha", "federation.partitioner.alpha", "with partition=dirichlet"),
    Word("--gpu=0", "machine.device=cuda:0"),
    Word("--gpu", "machine.device", "cuda:0 for the first GPU"),
    Word("--seed", "seed"),
    Word("num_clients", "federation.clients"),
    Word("num_rounds", "federation.rounds"),
    Word("num_server_rounds", "federation.rounds"),
    Word("local_epochs", "train.epochs", "with train.steps=null"),
    Word("fraction_fit", "strategy.fraction_fit"),
    Word("adaptive_split.strategy=fixed", "split=share_a"),
    Word("adaptive_split.strategy=importance_based", "split=importance"),
    Word("adaptive_split.strategy=layer_wise", "split=layer_wise"),
    Word("adaptive_split.strategy", "split"),
    Word("adaptive_split.enable", "split", "importance, layer_wise or least_variance"),
    Word("adaptive_split.threshold", "split.threshold"),
    Word("compression_ratio", "codec.ratio", "with codec=topk or randomk"),
)
SPLIT = (
    Word("end_layer", "cut.bottom", "the first block that is the server's"),
    Word("start_layer", "cut.top", "the first block of the client's last part"),
    Word("cut_layer", "cut.bottom, cut.top", "a language model is cut twice"),
    Word("split_layer", "cut.bottom, cut.top", "a language model is cut twice"),
    Word("cut.steps", "train.steps", "of each round, at whose end A is shared"),
    Word("cut.head", "lora.target_modules", "with the output embeddings among them, to tune them"),
)
CLIP = (
    Word("model.type=clip_lora", "task=clip, lora=clip_encoder", "both"),
    Word("target_components", "lora.towers, task.classifier", "LoRA on towers; linear trains a classifier"),
    Word("num_classes", "task.class_names", "null: those of the data"),
    Word("save_only_trainable", "split", "a group; frozen weights are never sent"),
)
ORIGINS: Mapping[str, tuple[Word, ...]] = {
    "Trainer of transformers": TRAINER,
    "PEFT": PEFT,
    "Models": MODEL,
    "OpenUnlearning": UNLEARNING,
    "Federations": FEDERATION,
    "Split learning": SPLIT,
    "CLIP": CLIP,
}


def ours(key: str, value: object = None) -> str:
    """Our word for a key of another program, such as ``model.model_args.torch_dtype``, with or without its
    value, as an error puts it; empty where none is known. A word stands for every key that ends in it."""
    parts = key.split(".")
    for start in range(len(parts)):
        name = ".".join(parts[start:])
        if word := _WORDS.get(_plain(f"{name}={value}")) or _WORDS.get(_plain(name)):
            return str(word)
    return ""


def ours_within(key: str, value: object) -> list[str]:
    """A fault for each key of another program below a key, or else for the key itself."""
    found: list[str] = []
    if isinstance(value, Mapping):
        for name, below in value.items():
            found += ours_within(f"{key}.{name}", below)
        value = None
    if not found and (words := ours(key, value)):
        text = str(value).lower() if isinstance(value, bool) else str(value)
        shown = key if value is None else f"{key}={cut(text)}"
        found.append(f"{shown}: no such key; {words}")
    return found


def ours_of_option(group: str, option: object) -> str:
    """Our option for one of another program, such as ``model=Llama-3.2-3B-Instruct``; empty where none is
    known."""
    word = _WORDS.get(_plain(f"{group}={option}"))
    return str(word) if word else ""


def ours_of_flags(given: Sequence[str], flags: Sequence[str]) -> Iterator[str]:
    """A line for each of the ``flags`` of another program among the words of a command, with the value that
    follows it."""
    for at, flag in enumerate(given):
        if flag not in flags or not flag.startswith("--"):
            continue
        name, sign, value = flag.partition("=")
        if not sign:
            value = "".join(given[at + 1 : at + 2])
        word = _WORDS.get(_plain(f"{name}={value}")) or _WORDS.get(_plain(name))
        if words := str(word) if word else ours(name.lstrip("-"), value):
            yield f"{flag}: {words}"


def _plain(word: str) -> str:
    """A word as it is looked up: in small letters, with underscores."""
    return word.casefold().replace("-", "_")


_WORDS = {_plain(word.theirs): word for words in ORIGINS.values() for word in words}
