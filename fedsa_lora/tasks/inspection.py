"""A look at a task's model and data together, before anything is trained: what would fail in every client, or
train something else than is meant, is an error here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import nn

from fedsa_lora.errors import ConfigError, ModelError
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.backbone import Start, start_of
from fedsa_lora.tasks.checkpoint import grouped
from fedsa_lora.tasks.divided import DividedTask
from fedsa_lora.tasks.model_settings import ModelSettings

SAMPLE = 2  # examples that are sent through the empty model


def inspect_task(task: Any) -> tuple[str, ...]:
    """Remarks on what a task's model starts from, to be shown before a run.

    Raises ConfigError or ModelError where checkpoint, tokenizer, positions and data do not go together. A
    task that is none of ours is taken as it is.
    """
    if not isinstance(task, DividedTask):
        return ()
    model: Any = task.build_model(seed=0, empty=True)
    if not isinstance(getattr(model, "start", None), Start):  # the task's own model
        if not task.partition.own:
            check_batch(task, model)
        return task.inspect()
    start = start_of(model, task.model)
    task.check_model(model, start)
    found = [*remarks(start, model)]
    if task.model.adapter:
        found.append(f"A and B, and the head where it has one, start from the adapter {task.model.adapter}")
    return (*found, *task.inspect())


def remarks(start: Start, model: Any) -> Iterator[str]:
    """Lines on the weights that were read, those that are drawn, and those of the checkpoint that are not
    used."""
    if start.account is None:
        yield "all weights are initialised at random from the seed"
        return
    drawn = [name for name in start.head.modules if not _kept(start, model, name)]
    kept = [name for name in start.head.modules if name not in drawn]
    yield f"{len(start.account.held) - len(start.account.unread)} weights of the checkpoint are loaded"
    if drawn:
        reason = f": {start.reason}" if start.reason else ", not in the checkpoint"
        yield f"initialised at random from the seed: {', '.join(drawn)}{reason}"
    if kept:
        yield f"initialised from the checkpoint: {', '.join(kept)}"
    if start.account.unread:
        yield f"unused weights of the checkpoint: {grouped(start.account.unread)}"
    if start.mean:
        yield "the head reads the mean over tokens (model.pooling)"


def _kept(start: Start, model: Any, module: str) -> bool:
    """Every parameter of a part of the head starts from the checkpoint."""
    names = [name for name, _ in model.named_parameters() if name.startswith(f"{module}.")]
    return set(names) <= start.head.kept


def check_prompts(text_tower: Any, length: int) -> None:
    """Raise ConfigError where the longest prompt has more tokens than the text tower has positions."""
    for name, room in _rooms(text_tower):
        if length > room:
            raise ConfigError(
                f"task.templates: with the longest class a prompt has {length} tokens, and the text tower "
                f"has {room} positions ({name}): shorten it"
            )


def check_tokenizer(tokenizer: Any, settings: ModelSettings, model: Any, trained_pad: int | None) -> None:
    """Raise ModelError where the tokenizer makes ids that the model has no embedding for, and where its
    padding would move the positions of a model that counts them from the one it was trained with."""
    table, path = _word_embeddings(model), settings.tokenizer or settings.path
    highest = max([*tokenizer.get_vocab().values(), *tokenizer.all_special_ids], default=0)
    if table is not None and highest >= table.num_embeddings:
        raise ModelError(
            f"the tokenizer {path!r} makes ids up to {highest}, the model has embeddings for "
            f"{table.num_embeddings}: they do not match; correct model.tokenizer or model.path"
        )
    if trained_pad in (None, tokenizer.pad_token_id):
        return
    for name, positions in position_tables(model).items():
        if positions.padding_idx is not None:
            raise ModelError(
                f"the tokenizer {path!r} pads with id {tokenizer.pad_token_id}, the model counts positions "
                f"from its own padding id {trained_pad} ({name}): set model.tokenizer to the model's"
            )


def check_positions(model: Any, max_length: int) -> None:
    """Raise ConfigError where texts may have more tokens than the model has positions."""
    for name, room in _rooms(model):
        if max_length > room:
            raise ConfigError(
                f"task.max_length is {max_length}, the model has {room} positions ({name}): lower it to "
                f"{room} or less"
            )


def _rooms(model: Any) -> Iterator[tuple[str, int]]:
    """The number of positions that each table of a model has for tokens, with the table's name."""
    stated = getattr(model.config, "max_position_embeddings", None)
    for name, table in position_tables(model).items():
        offset = getattr(table, "offset", 0 if table.padding_idx is None else table.padding_idx + 1)
        room = table.num_embeddings - offset
        # some have rows that no position uses
        yield name, min(room, stated) if isinstance(stated, int) else room


def _word_embeddings(model: Any) -> nn.Embedding | None:
    """The table with a row for each token; None where a model has no such table, as CANINE, which hashes."""
    try:
        found = model.get_input_embeddings()
    except NotImplementedError:
        return None
    return found if isinstance(found, nn.Embedding) else None


def position_tables(model: nn.Module) -> dict[str, nn.Embedding]:
    """The tables of a model with one row for each position of a token, by name; those of its images are not
    among them."""
    names = ("wpe", "embed_positions", "position_embeddings", "position_embedding", "positions_embed")
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in names and "vision" not in name
    }


def check_batch(task: DividedTask, model: Any) -> None:
    """Raise ModelError where the model cannot read the task's own batches, such as images of another size.

    Nothing is computed: the model is on the meta device, and so is the batch.
    """
    client = next(iter(task.split.clients))
    rows = task.split.clients[client].train[:SAMPLE]
    examples = task.encode(task.data.train.inputs.select(rows), task.data.train.labels[rows])
    batch = {n: value.to("meta") for n, value in task.collate(examples, np.arange(len(rows))).items()}
    try:
        task.loss(model, batch)
    except Exception as error:  # of whatever kind an architecture raises
        if isinstance(error, NotImplementedError) or "meta tensors" in str(error):
            return  # it computes by the values, which there are none of
        shapes = listing(f"{name} {tuple(value.shape)}" for name, value in batch.items())
        raise ModelError(
            f"{type(model).__name__} cannot read the batches of this task ({shapes}): {error}"
            f"{task.batch_remedy()}"
        ) from error
