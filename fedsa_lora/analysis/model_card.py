"""The model card of an export: what it is, how stock code loads it, and what its outputs mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsa_lora.models import OWN
from fedsa_lora.settings import RunConfig
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.clip import ClipTask
from fedsa_lora.tasks.digits import DIGITS
from fedsa_lora.tasks.image import ImageTask
from fedsa_lora.tasks.images import MODES
from fedsa_lora.tasks.own_model import OwnModelTask
from fedsa_lora.tasks.pooling import is_mean_pooled
from fedsa_lora.tasks.task import Task
from fedsa_lora.tasks.text import TextData

CARD = "README.md"
_TAG = "tags: [federated-learning, lora, fedsa-lora]"


def is_card(path: Path) -> bool:
    """A model card that ``model_card`` wrote."""
    return path.is_file() and _TAG in path.read_text(encoding="utf-8", errors="replace")


@dataclass(frozen=True)
class Subject:
    """The model that a card is of: a ``heading``, the names of its outputs with the words before them, a
    sentence each for what else a reader must know of it, and for what it may reveal of the data."""

    heading: str
    labels: tuple[str, ...]
    labels_words: str
    about: tuple[str, ...]
    caution: str


def of_client(config: RunConfig, client: str) -> Subject:
    """A client's own model."""
    task = config.task
    about: tuple[str, ...] = ()
    if isinstance(task, ImageTask) and (shift := task.shift_of(client)):
        about = (_SHIFTED.format(shift=shift),)
    labels = task.client_labels(client)
    return Subject(f"Model of client {client}", labels, _CLIENT_LABELS, about, _CLIENT_CAUTION)


def of_everyone(config: RunConfig, round_: int, reach: str) -> Subject:
    """The model that all clients held after a round; ``reach`` is a sentence on how good it is."""
    about = [f"The global model after round {round_}, the same for every client: no part of it is local."]
    if config.personalisation.adapts:
        about.append("Each client fine-tunes it on its own data before use; this is the model before that.")
    elif config.personalisation.beside:
        about.append("Each client uses a personal model that it trains in addition to this one.")
    if config.federation.ranks is not None:
        about.append("Clients with adapters of a lower rank hold it truncated to their rank.")
    return Subject("Global model", config.task.labels(), _LABELS, (*about, reach), _CAUTION)


def of_mean(config: RunConfig, averaged: str, clients: int, reach: str) -> Subject:
    """The mean of the clients' models: ``averaged`` names what is not common to all."""
    about = _MEAN_MODEL.format(averaged=averaged, clients=clients)
    return Subject("Approximate global model", config.task.labels(), _LABELS, (about, reach), _MEAN_CAUTION)


def model_card(config: RunConfig, subject: Subject, base: str | None, model: Any) -> str:
    """The card of a model: of an adapter over the backbone at ``base``, as seen from its folder, or of a
    whole model. ``model`` is the run's, without adapters and possibly without weights."""
    labels = subject.labels
    notes = [*subject.about]
    if labels:
        numbered = "\n".join(f"{number}. {label}" for number, label in enumerate(labels))
        notes.append(f"{subject.labels_words}\n\n{numbered}")
    if is_mean_pooled(model):
        notes.append(_MEAN)
    ours = not _written_elsewhere(config.task)
    if not ours:
        notes.append(_FOREIGN.format(task=_named(config.task)))
    return _CARD.format(
        tag=_TAG,
        heading=subject.heading,
        title=config.title,
        split=", ".join(_dispositions(config)),
        base="merged into this folder" if base is None else f"`{base}`",
        load="\n".join(_code(config, labels, base, model)),
        use=_use(config) if labels and ours else "",
        notes="\n\n".join(notes),
        caution=subject.caution,
    )


def _dispositions(config: RunConfig) -> list[str]:
    """The treatment of each role that the model has."""
    absent = ("A", "B") if config.lora is None else ()
    return [f"{role}: {what}" for role, what in config.split.words().items() if role not in absent]


def _use(config: RunConfig) -> str:
    """The code that classifies, with the form of what it is given."""
    if isinstance(config.task, TextData):
        return _USE
    if not isinstance(config.task, ImageTask):
        return ""
    mode = MODES[config.task.read_by_model.channels]
    if isinstance(config.task, ClipTask):
        return _CLIP_USE.format(mode=mode, templates=config.task.templates, names=list(config.task.labels()))
    return _IMAGE_USE.format(mode=mode) + (_DIGITS_USE if config.task.dataset == DIGITS else "")


def _written_elsewhere(task: Task) -> bool:
    """True for a task that encodes inputs or reads outputs by code that is not of this package."""
    names = ("encode", "collate", "predict", "client_labels")
    methods = [getattr(type(task), name) for name in names if hasattr(type(task), name)]
    return any(not method.__module__.startswith("fedsa_lora.") for method in methods)


def _named(thing: object) -> str:
    """The class of something by its full name."""
    return f"{type(thing).__module__}.{type(thing).__qualname__}"


def _loader(task: Task, model: Any) -> type[Any]:
    """The class whose ``from_pretrained`` loads a model of transformers: the task's, where that one would
    choose the class of the model, else this class itself."""
    auto: Any = getattr(task, "auto_class", None)
    chosen: Any = () if auto is None else auto._model_mapping.get(type(model.config), ())
    if type(model) in (chosen if isinstance(chosen, tuple) else (chosen,)):
        loader: type[Any] = auto
        return loader
    return type(model)


def _own_code(config: RunConfig, base: str | None, model: Any) -> list[str]:
    """The code that loads a model of a user's own: the function that makes it is called, or where the task
    makes it, left to the reader."""
    imports = ["from safetensors.torch import load_model"]
    weights = "model.safetensors" if base is None else f"{base}/model.safetensors"
    if isinstance(config.task, OwnModelTask):
        of_user, made = config.task.model_code()
        imports.append(of_user)
    else:
        made = f"...  # a {_named(model)}, as build_model of {_named(config.task)} makes it"
    lines = ["", 'folder = Path(".")  # the folder of this file', f"model = {made}"]
    lines.append(f'load_model(model, folder / "{weights}")')
    if base is not None:
        imports.insert(0, "from peft import PeftModel")
        lines.append("model = PeftModel.from_pretrained(model, folder)")
    return ["from pathlib import Path", "", *imports, *lines]


def _code(config: RunConfig, labels: tuple[str, ...], base: str | None, model: Any) -> list[str]:
    """The code that loads the model, whatever the working directory is."""
    if not hasattr(model, "save_pretrained"):
        return _own_code(config, base, model)
    loader = _loader(config.task, model)
    auto, module = loader.__name__, loader.__module__
    imports = [f"from {'transformers' if module.startswith('transformers.') else module} import {auto}"]
    if isinstance(config.task, TextData):
        imports = [f"from transformers import {auto}, AutoTokenizer"]
    elif isinstance(config.task, ClipTask):
        imports = [f"from transformers import AutoImageProcessor, {auto}, AutoTokenizer"]
    elif isinstance(config.task, ImageTask):
        imports = [f"from transformers import AutoImageProcessor, {auto}"]
    folder = "folder" if base is None else f'folder / "{base}"'
    if ours := sorted(OWN & _types(model.config)):
        imports.append(f"import fedsa_lora.models  # registers {listing(ours)} with transformers")
    lines = ["", 'folder = Path(".")  # the folder of this file']
    if base is None:
        lines.append(f"model = {auto}.from_pretrained(folder)")
    else:
        imports.insert(0, "from peft import PeftModel")
        # the backbone is shared by all clients; one that calls the classes otherwise says so here
        own = f", id2label={dict(enumerate(labels))}" if labels != config.task.labels() else ""
        lines.append(f"base = {auto}.from_pretrained({folder}{own})")
        lines.append("model = PeftModel.from_pretrained(base, folder)")
    if isinstance(config.task, TextData | ClipTask):
        lines.append(f"tokenizer = AutoTokenizer.from_pretrained({folder})")
    if isinstance(config.task, TextData):
        lines.append(
            f"max_length = {config.task.max_length}  # tokens: longer texts were truncated in the run"
        )
    elif isinstance(config.task, ImageTask):
        lines.append(f"processor = AutoImageProcessor.from_pretrained({folder})")
    return ["from pathlib import Path", "", *imports, *lines]


def _types(config: Any) -> set[str]:
    """The types of a model and of the models within it."""
    parts = [config, *(getattr(config, name) for name in config.sub_configs if hasattr(config, name))]
    return {part.model_type for part in parts if part is not None}


_USE = """    inputs = tokenizer(
        texts, truncation=True, max_length=max_length, padding=True, return_tensors="pt"
    )
    classes = model(**inputs).logits.argmax(1)

"""
_IMAGE_USE = """    pictures = [picture.convert("{mode}") for picture in pictures]  # PIL images
    inputs = processor(pictures, return_tensors="pt")
    classes = model(**inputs).logits.argmax(1)

"""
_CLIP_USE = """    from torch.nn.functional import normalize

    names = {names}
    prompts = [t.replace("{{}}", name.replace("_", " ")) for t in {templates} for name in names]
    texts = tokenizer(prompts, padding=True, return_tensors="pt")
    texts = normalize(model.get_text_features(**texts).pooler_output, dim=-1)
    texts = normalize(texts.unflatten(0, (-1, len(names))).mean(0), dim=-1)
    pictures = [picture.convert("{mode}") for picture in pictures]  # PIL images
    inputs = processor(pictures, return_tensors="pt")
    images = normalize(model.get_image_features(**inputs).pooler_output, dim=-1)
    classes = (images @ texts.T).argmax(1)

"""
_DIGITS_USE = """In the run the digits' pixels are from 0 to 16: scale them to 0 to 255 for the processor.

"""
_SHIFTED = """In the run every image of this client, for training and for testing, was shifted:
{shift} (kind, and level from -1 to 1). The model is for images like these."""
_CLIENT_LABELS = """Labels of this client, by the index of the model's output (client-specific where labels
are permuted by client):"""
_LABELS = "Labels, by the index of the model's output:"
_MEAN_MODEL = """This is an approximation. Each client has its own version of {averaged}; this model has their
mean over {clients} clients, and the shared part. No client trained or used this model, and no round of the
run measured it."""
_CAUTION = """Sharing trained parameters instead of data is data minimisation, not a privacy
guarantee: they still carry information about the training data."""
_MEAN_CAUTION = """This model holds the mean of parameters that the clients kept local in the run, and with
few clients a mean reveals much about each: distribute it only where all of them agree."""
_CLIENT_CAUTION = """\
Keeping local tensors on the client is data minimisation, not a privacy guarantee: what is shared
still carries information about the training data."""
_MEAN = """The head reads the mean of the tokens, which the last layer of this model computes with values that
float16 cannot hold: load it in float32 or bfloat16. In float16 every output is NaN."""
_FOREIGN = """Inputs are prepared, and outputs interpreted, by the task `{task}` of the run, which is not part
of fedsa-lora: see its `encode`, `collate` and `predict`."""
_CARD = """---
library_name: peft
{tag}
---
# {heading}

{title}. Trained with fedsa-lora; {split}. Backbone: {base}.

```python
{load}
```

{use}{notes}

{caution}
"""
