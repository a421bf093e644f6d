"""The model card of an export: what it is, how stock code loads it, and what its outputs mean."""

from __future__ import annotations

from pathlib import Path

from fedsa_lora.models import PUBLISHED
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.model_config import load_config
from fedsa_lora.tasks.text import TextData

CARD = "README.md"
_TAG = "tags: [federated-learning, lora, fedsa-lora]"


def is_card(path: Path) -> bool:
    """A model card that ``model_card`` wrote."""
    return path.is_file() and _TAG in path.read_text(encoding="utf-8", errors="replace")


def model_card(config: RunConfig, client: str, base: str | None, mean: bool) -> str:
    """The card of a client's model: of an adapter over the backbone at ``base``, as seen from its folder, or
    of a whole model. ``mean``: it computes mean pooling."""
    labels = config.task.client_labels(client)
    notes = []
    if labels:
        notes.append(_LABELS + "\n".join(f"{number}. {label}" for number, label in enumerate(labels)))
    if mean:
        notes.append(_MEAN)
    return _CARD.format(
        tag=_TAG,
        client=client,
        title=config.title,
        split=", ".join(f"{role}: {what}" for role, what in config.split.words().items()),
        base="merged into this folder" if base is None else f"`{base}`",
        load="\n".join(_code(config, labels, base)),
        use=_USE if labels and isinstance(config.task, TextData) else "",
        notes="\n\n".join(notes),
    )


def _code(config: RunConfig, labels: tuple[str, ...], base: str | None) -> list[str]:
    """The code that loads the model, whatever the working directory is."""
    auto = config.task.auto_class.__name__
    imports = [f"from transformers import {auto}"]
    if isinstance(config.task, TextData):
        imports = [f"from transformers import {auto}, AutoTokenizer"]
    folder = "folder" if base is None else f'folder / "{base}"'
    model_type = load_config(config.model, ())[0].model_type
    if model_type in PUBLISHED:
        imports.append(f"import fedsa_lora.models  # transformers is to know {model_type}")
    lines = ["", 'folder = Path(".")  # where this file lies']
    if base is None:
        lines.append(f"model = {auto}.from_pretrained(folder)")
    else:
        imports.insert(0, "from peft import PeftModel")
        # the backbone is shared by all clients; one that calls the classes otherwise says so here
        own = f", id2label={dict(enumerate(labels))}" if labels != config.task.labels() else ""
        lines.append(f"base = {auto}.from_pretrained({folder}{own})")
        lines.append("model = PeftModel.from_pretrained(base, folder)")
    if isinstance(config.task, TextData):
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained({folder})")
        lines.append(f"max_length = {config.task.max_length}  # tokens: longer texts were cut in the run")
    return ["from pathlib import Path", "", *imports, *lines]


_USE = """    inputs = tokenizer(
        texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt"
    )
    classes = model(**inputs).logits.argmax(1)

"""
_LABELS = """Labels of this client, by the number that the model puts out (client-specific where label
meanings are):

"""
_MEAN = """The head reads the mean of the tokens, which the last layer of this model computes with values that
float16 cannot hold: load it in float32 or bfloat16. In float16 every output is NaN."""
_CARD = """---
library_name: peft
{tag}
---
# Model of client {client}

{title}. Trained with fedsa-lora; {split}. Backbone: {base}.

```python
{load}
```

{use}{notes}

Keeping B and the head on the client is data minimisation, not a privacy guarantee: A still
carries signal about the data it was trained on.
"""
