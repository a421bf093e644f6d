"""No key of this checkpoint fits: an error names the prefix to remove, no run has a random backbone."""

from pathlib import Path

from case import SMOKE, TRAINED, fedsa, said
from safetensors.torch import load_file, save_file
from tiny import SMALL, save, texts, wordpiece
from transformers import BertConfig, BertForSequenceClassification

texts()
save(BertForSequenceClassification, BertConfig(vocab_size=30522, num_labels=4, **SMALL), wordpiece())
file = "model/model.safetensors"
save_file({f"module.{key}": value for key, value in load_file(file).items()}, file, {"format": "pt"})
words = (*SMOKE, "task.dataset=data.csv", "model=roberta_base", "model.path=model")
for command in (["--dry-run", *words], [*words, *TRAINED]):
    done = fedsa("run", *command)
    assert done.returncode == 1
    for part in (
        "ModelError",
        "begin with 'module.'",
        "remove that prefix",
        "bert.embeddings.LayerNorm.bias",
    ):
        assert part in said(done), part
assert not Path("run").exists()
