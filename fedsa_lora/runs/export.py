"""A client's model in the form that stock PEFT loads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedsa_lora import assemble
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.arrays import NamedArrays
from fedsa_lora.learning.adapters import AdapterModel, initial_state
from fedsa_lora.runs.rundir import RunDirectory
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.backbone import resolve


class Exporter:
    """Writes the personalised model of any client: the shared tensors, its own, and the common start
    of those it never trained."""

    def __init__(self, config: RunConfig, directory: RunDirectory, model: AdapterModel) -> None:
        self.config, self.directory, self.model = config, directory, model
        self._shared = directory.shared_tensors()
        self._initial = initial_state(model.layout, config.seed, config.head.row_norm)

    def clients(self) -> list[str]:
        """The clients whose state can be read from here."""
        root = self.config.store_dir
        return sorted(p.name for p in root.iterdir() if p.is_dir()) if root.is_dir() else []

    def tensors(self, client: str) -> dict[str, NDArray[np.float32]]:
        """Every tensor of the client's personalised model, by name."""
        state = assemble.store(self.config, client).load()
        if state is None and client not in self.config.task.describe().clients:
            raise RunError(f"no client {client!r} in {self.directory.path}; there are {self.clients()}")
        private: NamedArrays = {} if state is None else state.tensors
        return {**self._initial, **self._shared, **private}

    def export(self, client: str, folder: Path, merge: bool = False) -> Path:
        """An adapter folder for ``PeftModel.from_pretrained``, or with ``merge`` (and for a model
        without adapters) a whole model for ``AutoModel...from_pretrained``; a model card beside it.
        """
        tensors = self.tensors(client)
        adapter = self.model.has_adapters and not merge
        if adapter:
            self.model.save_adapter(folder, tensors, self._base())
        else:
            model = assemble.workbench(self.config).model
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
        load = (
            "from peft import PeftModel\n"
            f"base = {auto}.from_pretrained({self._base()!r}, num_labels={len(labels)})\n"
            "model = PeftModel.from_pretrained(base, '.')"
            if adapter
            else f"model = {auto}.from_pretrained('.')"
        )
        return CARD.format(
            client=client,
            title=self.config.title,
            split=", ".join(f"{role}: {what}" for role, what in self.config.resolved["split"].items()),
            head=self.config.head.policy,
            base=self._base() if adapter else "merged into this folder",
            labels="\n".join(f"{i}. {label}" for i, label in enumerate(labels)),
            load=load,
            auto=auto,
        )


CARD = """---
library_name: peft
tags: [federated-learning, lora, fedsa-lora]
---
# Model of client {client}

{title}. Trained with fedsa-lora; {split}, head: {head}. Backbone: `{base}`.

```python
from transformers import {auto}
{load}
```

Labels of this client, by the number that the model puts out (client-specific where label meanings are):

{labels}

Keeping B and the head on the client is data minimisation, not a privacy guarantee: A still
carries signal about the data it was trained on.
"""
