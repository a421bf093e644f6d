"""A client's model in the form that stock PEFT loads."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedsa_lora import assemble
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.arrays import cut, padded
from fedsa_lora.exchange.split import Turn
from fedsa_lora.learning.adapters import AdapterModel, initial_state
from fedsa_lora.personal import OwnModel, Received, beside, others, personal
from fedsa_lora.runs.rundir import RunDirectory
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.backbone import mean_pooled, resolve
from strategies.adaptive import SHARED
from strategies.clustered import held_by
from strategies.downlink import MERGED_A, MERGED_B
from strategies.fedsa import EXAMPLES


class Exporter:
    """Writes the personalised model of any client: what is common, what is its own, and the common start
    of what it never trained."""

    def __init__(self, config: RunConfig, directory: RunDirectory, model: AdapterModel) -> None:
        self.config, self.directory, self.model = config, directory, model
        self._checkpoint = directory.last_checkpoint()
        self._initial = initial_state(model.layout, config.seed, config.head.row_norm)
        self._ranks = config.federation.client_ranks(config.seed)

    @property
    def round(self) -> int:
        """The last that was aggregated."""
        return self._checkpoint.round

    def clients(self) -> list[str]:
        """The clients whose state can be read from here."""
        root = self.config.store_dir
        return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []

    @cached_property
    def merged(self) -> dict[str, NDArray[np.float32]]:
        """By layer, what the run merged into the frozen weights of all clients, (d_out, d_in)."""
        memory = self._checkpoint.memory
        layers = [name.removeprefix(MERGED_A) for name in memory if name.startswith(MERGED_A)]
        return {layer: memory[MERGED_B + layer] @ memory[MERGED_A + layer] for layer in layers}

    def tensors(self, client: str) -> dict[str, NDArray[np.float32]]:
        """Every tensor of the client's personalised model, by name."""
        model = self.own_model(client)
        return padded({**model.common, **model.beside}, self.model.layout)

    def own_model(self, client: str, own: bool = True) -> OwnModel:
        """What makes up the client's own model after the last round; without its ``own``, what a newcomer
        of that name would be given."""
        state = assemble.store(self.config, client).load() if own else None
        if state is None and client not in self.config.task.describe().clients:
            raise RunError(f"no client {client!r} in {self.directory.path}; there are {self.clients()}")
        policy, layout = self.config.split, self.model.layout.limited(self._ranks.get(client))
        pool = layout.select(policy(layout).shared)
        memory = self._checkpoint.memory
        held = {n: a for n, a in self._checkpoint.tensors.items() if n in pool.names}
        if (theirs := held_by(client, memory)) is not None:
            held = pool.unpack(theirs)
        shared = policy.in_round(layout, self._checkpoint.round)
        if SHARED + client in memory:
            asked = zip(pool.names, memory[SHARED + client], strict=True)
            shared = frozenset(name for name, bit in asked if bit)
        received = Received(Turn(shared), pool.pack(cut(held, pool)), {})
        values = personal(policy, layout, received, cut(self._initial, layout), state)
        return OwnModel(values, beside(state), others(held, state, self._share(client), self.round))

    def _share(self, client: str) -> float:
        """The weight that the client has in what is common; 0 where it has none, or is not told it."""
        memory = self._checkpoint.memory
        examples = {name: int(count[0]) for name, count in memory.items() if name.startswith(EXAMPLES)}
        return examples.get(EXAMPLES + client, 0) / max(1, sum(examples.values()))

    def export(self, client: str, folder: Path, merge: bool = False) -> Path:
        """An adapter folder for ``PeftModel.from_pretrained``, or with ``merge`` (and for a model
        without adapters) a whole model for ``AutoModel...from_pretrained``; a model card beside it.

        Raises RunError for an adapter of a run that changed the frozen weights: it would not fit them; and
        for a personalised model that computes what no stock model does.
        """
        if self.config.personalisation.mixes:
            raise RunError(
                "a client of this run mixes two adapters by a gate on each layer's input (personalisation="
                f"{type(self.config.personalisation).__name__}), which no stock model computes: there is "
                "nothing to export; fedsa-lora evaluate measures it from the run directory"
            )
        tensors, merged = self.tensors(client), self.merged
        adapter = self.model.has_adapters and not merge
        if adapter and merged:
            raise RunError(
                "this run merged updates into the frozen weights, which an adapter does not carry: export "
                "the whole model with --merge"
            )
        if adapter:
            # what is relative to the pretrained weights is saved with them
            model = assemble.model(self.config) if self.model.relative else self.model
            model.save_adapter(folder, tensors, self._base())
        else:
            model = assemble.model(self.config)
            model.merge(merged)
            model.write(tensors)
            model.save_merged(folder)
        (folder / "README.md").write_text(self._card(client, adapter), encoding="utf-8")
        return folder

    def _base(self) -> str:
        """Where stock PEFT finds the backbone; one that no checkpoint holds is saved with the run."""
        if self.config.model.pretrained:
            return resolve(self.config.model.path)
        folder = self.directory.path / "backbone"
        if not folder.exists():
            with torch.random.fork_rng():
                AdapterModel(self.config.task.build_model(seed=self.config.seed)).save_merged(folder)
        return str(folder)

    def _card(self, client: str, adapter: bool) -> str:
        labels = self.config.task.client_labels(client)
        auto = self.config.task.auto_class.__name__
        classes = f", num_labels={len(labels)}" if labels else ""
        start = f"{auto}.from_pretrained({f'{self._base()!r}{classes}' if adapter else repr('.')})"
        lines = [f"from transformers import {auto}"]
        if self.config.model.pooling == "mean":
            lines.append(f"from {mean_pooled.__module__} import {mean_pooled.__name__}")
            start = f"{mean_pooled.__name__}({start})"
        if adapter:
            lines = [
                "from peft import PeftModel",
                *lines,
                f"base = {start}",
                "model = PeftModel.from_pretrained(base, '.')",
            ]
        else:
            lines.append(f"model = {start}")
        return CARD.format(
            client=client,
            title=self.config.title,
            split=", ".join(f"{role}: {what}" for role, what in self.config.split.words().items()),
            head=self.config.head.policy,
            base=self._base() if adapter else "merged into this folder",
            labels=LABELS + "\n".join(f"{i}. {label}" for i, label in enumerate(labels)) if labels else "",
            load="\n".join(lines),
        )


LABELS = """Labels of this client, by the number that the model puts out (client-specific where label meanings
are):

"""
CARD = """---
library_name: peft
tags: [federated-learning, lora, fedsa-lora]
---
# Model of client {client}

{title}. Trained with fedsa-lora; {split}, head: {head}. Backbone: `{base}`.

```python
{load}
```

{labels}

Keeping B and the head on the client is data minimisation, not a privacy guarantee: A still
carries signal about the data it was trained on.
"""
