"""A client's model as stock PEFT and transformers load it, with the answers that it gave in the run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME

from fedsa_lora.analysis.model_card import CARD, Subject, is_card, model_card, of_client
from fedsa_lora.client import build
from fedsa_lora.client.model import ClientModel
from fedsa_lora.client.personal import OwnModel, Received, beside, others, personal
from fedsa_lora.client.workbench import Workbench
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.arrays import NamedArrays, cut, padded
from fedsa_lora.files import recover, replaced, writing
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.stock import refuse_unstocked, save_backbone
from fedsa_lora.runs.clients import stored, unknown
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.trunk import of_trunk
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.heads import unwrapped
from strategies.checkpoint import Checkpoint

BACKBONE = "backbone"  # beside an adapter, and once in a run
TO_BACKBONE = f"../../{BACKBONE}"  # from adapters/CLIENT of a run


class Exporter:
    """Writes the personalised model of any client: the common values, its own, and the common start
    of what it never trained."""

    def __init__(self, config: RunConfig, directory: RunDirectory, model: AdapterModel) -> None:
        self.config, self.directory, self.model = config.whole, directory, model
        state = directory.last_checkpoint()
        self._layout, self._trunk = config.at_client(model.layout), of_trunk(state.memory)
        pool = self._layout.select(config.split(self._layout).shared)
        vector = pool.pack(state.tensors)
        self.checkpoint = Checkpoint(config.split, pool, state.round, vector, state.memory)
        self.initial = {**model.initial(config.seed, config.head.row_norm), **self._trunk.get("", {})}
        self._ranks = config.federation.client_ranks(config.seed)

    @property
    def round(self) -> int:
        """The last that was aggregated."""
        return self.checkpoint.round

    def clients(self) -> list[str]:
        """The clients whose state can be read from here."""
        return stored(self.config)

    @cached_property
    def merged(self) -> dict[str, NDArray[np.float32]]:
        """By layer, what the run merged into the frozen weights of all clients, (d_out, d_in)."""
        return self.checkpoint.merged()

    def tensors(self, client: str) -> dict[str, NDArray[np.float32]]:
        """Every tensor of the client's personalised model, by name; trained on with the client's data where
        the run used it so."""
        model = self.own_model(client)
        if self.config.personalisation.adapts:
            served = ClientModel(client, self.bench, build.store(self.config, client))
            outcome = self.bench.outcome(served.own(self.round, model, self.merged))
            return outcome.values
        return padded({**model.common, **model.beside}, self.model.layout)

    @cached_property
    def bench(self) -> Workbench:
        """The trainer of exports and their measurements."""
        return build.workbench(self.config)

    def own_model(self, client: str, own: bool = True) -> OwnModel:
        """The tensors of the client's own model after the last round; without its ``own``, what a newcomer
        of that name would be given."""
        state = build.store(self.config, client).load() if own else None
        if state is None and client not in self.config.task.describe().clients:
            raise unknown(self.config, client)
        policy, rank = self.config.split, self._ranks.get(client)
        layout = self._layout.limited(rank)
        received = Received(self.checkpoint.turn(client), self.checkpoint.held(client, rank), {})
        held = personal(policy, layout, received, cut(self.initial, layout), state)
        values = {**self.initial, **held, **self._trunk.get(client, {})}
        common = layout.select(policy(layout).shared).unpack(received.common)
        weight = self.checkpoint.weight(client)
        return OwnModel(values, beside(state), others(common, state, weight, self.round))

    def export(self, client: str, folder: Path, merge: bool = False) -> Path:
        """Write a client's personalised model as ``write`` does. Raises RunError as well for a personalised
        model that computes what no stock model does."""
        self.refuse(self.model.has_adapters and not merge)
        return self.write(self.tensors(client), self._of_client(client), folder, merge)

    def write(self, tensors: NamedArrays, subject: Subject, folder: Path, merge: bool = False) -> Path:
        """An adapter with its ``backbone/`` beside it for ``PeftModel.from_pretrained``, or with ``merge``
        (and for a model without adapters) a whole model for ``AutoModel...from_pretrained``; tokenizer and
        model card with either. An export that is there already is replaced.

        Raises RunError for an adapter of a run that changed the frozen weights: it would not fit them; and
        for a folder with other files in it.
        """
        adapter = self.model.has_adapters and not merge
        self.refuse(adapter)
        with writing(folder):
            folder.parent.mkdir(parents=True, exist_ok=True)
        with _replaced(folder) as new:
            if adapter:
                self._save_adapter(tensors, subject, new, BACKBONE)
                if (ours := self.directory.path / BACKBONE).is_dir():
                    shutil.copytree(ours, new / BACKBONE, copy_function=_linked)
                else:
                    self._save_backbone(new / BACKBONE)
            else:
                self._save_merged(tensors, subject, new)
        return folder

    def export_all(self) -> None:
        """An adapter of every client in ``adapters/``, over one ``backbone/`` of the run."""
        if clients := self.clients():
            with _replaced(self.directory.path / BACKBONE, {CONFIG_NAME, SAFE_WEIGHTS_NAME}) as new:
                self._save_backbone(new)
        adapters = self.directory.path / "adapters"
        for client in clients:
            self.directory.check()
            with writing(adapters):
                adapters.mkdir(exist_ok=True)
            with _replaced(adapters / client) as new:
                self._save_adapter(self.tensors(client), self._of_client(client), new, TO_BACKBONE)

    def refuse(self, adapter: bool) -> None:
        """Raise RunError or ModelError where clients' models cannot be exported, as an ``adapter`` or
        whole."""
        if self.config.personalisation.mixes:
            raise RunError(
                "a client of this run mixes two adapters by a gate on each layer's input (personalisation="
                f"{type(self.config.personalisation).__name__}), which no stock model computes: there is "
                "nothing to export; fedsa-lora evaluate measures it from the run directory"
            )
        if adapter and self.merged:
            raise RunError(
                "this run merged updates into the frozen weights, which an adapter does not contain: export "
                "the whole model with --merge"
            )
        refuse_unstocked(self.model.module)

    def _of_client(self, client: str) -> Subject:
        return of_client(self.config, client)

    def _save_adapter(self, tensors: NamedArrays, subject: Subject, folder: Path, base: str) -> None:
        # what is relative to the pretrained weights is saved with them
        model = self._started if self.model.relative else self.model
        model.save_adapter(folder, tensors, base)
        self._save_card(subject, folder, base)

    def _save_backbone(self, folder: Path) -> None:
        with torch.random.fork_rng(devices=[]):
            save_backbone(self.config.task.build_model(seed=self.config.seed), folder)
        self.config.task.save_preprocessor(folder)

    def _save_merged(self, tensors: NamedArrays, subject: Subject, folder: Path) -> None:
        model = self._with_weights()
        model.merge(self.merged)
        model.write(tensors)
        labels = subject.labels
        config: Any = getattr(unwrapped(model.module), "config", None)
        if hasattr(config, "id2label"):
            config.id2label, config.label2id = dict(enumerate(labels)), {n: i for i, n in enumerate(labels)}
        model.save_merged(folder)
        self.config.task.save_preprocessor(folder)
        self._save_card(subject, folder, None)

    @cached_property
    def _started(self) -> AdapterModel:
        """The model as it was at the start of the run, once for all clients. Not to be written to."""
        return self._with_weights()

    def _with_weights(self) -> AdapterModel:
        """The model with its backbone, on the CPU: nothing is trained."""
        machine = replace(self.config.machine, device="cpu")
        return build.model(replace(self.config, machine=machine))

    def _save_card(self, subject: Subject, folder: Path, base: str | None) -> None:
        text = model_card(self.config, subject, base, unwrapped(self.model.module))
        (folder / CARD).write_text(text, encoding="utf-8")


@contextmanager
def _replaced(folder: Path, known: frozenset[str] | set[str] = frozenset()) -> Iterator[Path]:
    """A new folder that takes the place of ``folder``, as ``replaced`` has it.

    Raises RunError as well where that folder holds something else than an export: a model card of ours, or
    one of the ``known`` files.
    """
    recover(folder)
    ours = not folder.exists() or not any(folder.iterdir()) or is_card(folder / CARD)
    if not ours and not any((folder / name).is_file() for name in known):
        raise RunError(
            f"{folder} holds files that are not an export: choose another folder, or move them away"
        )
    with replaced(folder) as new:
        yield new


def _linked(source: str, target: str) -> None:
    """Weights under two names, where the file system can: they are large and do not change."""
    try:
        if source.endswith(".safetensors"):
            os.link(source, target)
            return
    except OSError:
        pass  # no links here, or another file system
    shutil.copy2(source, target)
