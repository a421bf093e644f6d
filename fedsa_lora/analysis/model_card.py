"""The model card of an export: what it is, how stock code loads it, and what its outputs mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedsa_lora.models import OWN
from fedsa_lora.settings import RunConfig
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.pooling import is_mean_pooled
from fedsa_lora.tasks.task import Task

CARD = "README.md"
_FOLDER = 'folder = Path(".")  # the folder of this file'
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
    about, labels = config.task.about_client(client), config.task.client_labels(client)
    return Subject(f"Model of client {client}", labels, _CLIENT_LABELS, (about,), _CLIENT_CAUTION)


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
    foreign = _is_foreign(config.task, "encode", "collate", "predict", "client_labels")
    notes = [*subject.about]
    if not foreign or _is_foreign(config.task, "usage"):  # else it may be that of other inputs or outputs
        notes.insert(0, config.task.usage())
    if labels:
        numbered = "\n".join(f"{number}. {label}" for number, label in enumerate(labels))
        notes.append(f"{subject.labels_words}\n\n{numbered}")
    if is_mean_pooled(model):
        notes.append(_MEAN)
    if foreign:
        notes.append(_FOREIGN.format(task=_named(config.task)))
    return _CARD.format(
        tag=_TAG,
        heading=subject.heading,
        title=config.title,
        split=", ".join(_dispositions(config)),
        base="merged into this folder" if base is None else f"`{base}`",
        load="\n".join(_code(config, labels, base, model)),
        notes="\n\n".join(note for note in notes if note),
        caution=subject.caution,
    )


def _dispositions(config: RunConfig) -> list[str]:
    """The treatment of each role that the model has."""
    absent = ("A", "B") if config.lora is None else ()
    return [f"{role}: {what}" for role, what in config.split.words().items() if role not in absent]


def _is_foreign(task: Task, *names: str) -> bool:
    """True where one of a task's methods is not of this package."""
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
    does not name it, left to the reader."""
    folder, weights = _place(base), "model.safetensors" if base is None else f"{base}/model.safetensors"
    preprocessor = config.task.preprocessor_code(folder)
    imports = _imports(base, ("safetensors.torch", "load_model"), *preprocessor.imports)
    if (code := config.task.model_code()) is None:
        made = f"...  # a {_named(model)}, as build_model of {_named(config.task)} makes it"
    else:
        of_user, made = code
        imports.append(of_user)
    lines = [f"model = {made}", f'load_model(model, folder / "{weights}")']
    if base is not None:
        lines.append("model = PeftModel.from_pretrained(model, folder)")
    return [*imports, "", _FOLDER, *lines, *preprocessor.lines]


def _code(config: RunConfig, labels: tuple[str, ...], base: str | None, model: Any) -> list[str]:
    """The code that loads the model, whatever the working directory is."""
    if not hasattr(model, "save_pretrained"):
        return _own_code(config, base, model)
    loader, folder = _loader(config.task, model), _place(base)
    auto, module = loader.__name__, loader.__module__
    library = "transformers" if module.startswith("transformers.") else module
    preprocessor = config.task.preprocessor_code(folder)
    imports = _imports(base, (library, auto), *preprocessor.imports)
    if ours := sorted(OWN & _types(model.config)):
        imports.append(f"import fedsa_lora.models  # registers {listing(ours)} with transformers")
    if base is None:
        lines = [f"model = {auto}.from_pretrained({folder})"]
    else:
        # the backbone is shared by all clients; one that calls the classes otherwise says so here
        own = f", id2label={dict(enumerate(labels))}" if labels != config.task.labels() else ""
        lines = [f"base = {auto}.from_pretrained({folder}{own})"]
        lines.append("model = PeftModel.from_pretrained(base, folder)")
    return [*imports, "", _FOLDER, *lines, *preprocessor.lines]


def _place(base: str | None) -> str:
    """The expression of the folder with the weights and the preprocessor."""
    return "folder" if base is None else f'folder / "{base}"'


def _imports(base: str | None, *names: tuple[str, str]) -> list[str]:
    """A line of imports for each module of ``names``, which are (module, name), and PEFT's for an adapter."""
    found: dict[str, set[str]] = {} if base is None else {"peft": {"PeftModel"}}
    for module, name in names:
        found.setdefault(module, set()).add(name)
    lines = [f"from {module} import {', '.join(sorted(found[module]))}" for module in found]
    return ["from pathlib import Path", "", *lines]


def _types(config: Any) -> set[str]:
    """The types of a model and of the models within it."""
    parts = [config, *(getattr(config, name) for name in config.sub_configs if hasattr(config, name))]
    return {part.model_type for part in parts if part is not None}


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

{notes}

{caution}
"""
