"""The bare loop that the product is measured against: ``python benchmarks/bare_loop.py``.

Forward, backward and AdamW for every client and step in plain PyTorch and PEFT: one resident backbone,
adapters copied in place, tokens as tensors beforehand, in the batches that the product makes, so with no more
padding.
There are no messages, stores, searches or records. Run as a command, it compares the attentions of
transformers and the forms of AdamW of PyTorch, of which the benchmarks take sdpa and fused: in float32 on an
AMD Zen 4 all four come out within 8 % of each other.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.utils import clip_grad_norm_

from fedsa_lora.config.compose import load
from fedsa_lora.learning.lora import attach
from fedsa_lora.learning.training import round_batches
from fedsa_lora.seeds import generator
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.task import Batch, Examples, Task

SMALL = (  # sixteen clients of two layers of width 128, four steps of two examples a round
    "experiment=smoke",
    "federation.clients=16",
    "model.config.hidden_size=128",
    "model.config.intermediate_size=512",
    "model.config.initializer_range=0.09",
    "train.steps=4",
    "train.batch_size=2",
)
QUICKSTART = ("experiment=quickstart",)

Values = list[torch.Tensor]


@dataclass
class Client:
    """A client of the loop: its batches of each round, its test batches, and its B and head."""

    rounds: list[list[Batch]]
    test: list[Batch]
    local: Values


class BareLoop:
    """Federated training of A, with B and the head kept, without a federation.

    ``rounds`` are prepared beforehand; ``train`` may be called once for each. ``attention`` is an
    implementation of transformers, ``optimizer`` a form of AdamW, "fused" or "foreach".
    """

    def __init__(
        self,
        config: RunConfig,
        rounds: int,
        attention: str = "sdpa",
        optimizer: str = "fused",
    ) -> None:
        self.settings, self.optimizer = config.train, {optimizer: True}
        self.model: Any = attach(config.task.build_model(seed=config.seed), config.lora, config.seed)
        self.model.get_base_model().set_attn_implementation(attention)
        if config.head.policy == "frozen":
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_("lora_" in name)
        moving = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        self.shared = [p for name, p in moving.items() if "lora_A" in name]
        self.local = [p for name, p in moving.items() if "lora_A" not in name]
        self.common = _copies(self.shared)
        self.clients = [self._client(config, str(c), rounds) for c in range(config.federation.clients)]

    def _client(self, config: RunConfig, client: str, rounds: int) -> Client:
        data = config.task.load_client(client)
        made = []
        for round_ in range(1, rounds + 1):
            rng = generator(config.seed, "batches", client, round_)
            indices = round_batches(data.train.lengths, config.train, rng)
            made.append(_batches(config.task, data.train, indices))
        order = np.argsort(data.test.lengths, kind="stable")
        size = config.train.eval_batch_size
        chunks = [order[start : start + size] for start in range(0, len(order), size)]
        return Client(made, _batches(config.task, data.test, chunks), _copies(self.local))

    def train(self, round_: int) -> None:
        """Train every client from the common A and its own B, then average A."""
        self.model.train()
        total = [torch.zeros_like(value) for value in self.common]
        for client in self.clients:
            self._install(client)
            self._steps(client.rounds[round_ - 1])
            for value, parameter in zip(total, self.shared, strict=True):
                value.add_(parameter.detach(), alpha=1 / len(self.clients))
            for value, parameter in zip(client.local, self.local, strict=True):
                value.copy_(parameter.detach())
        self.common = total

    @torch.inference_mode()
    def evaluate(self) -> None:
        """The logits of every client's test part from the common A and its own B."""
        self.model.eval()
        for client in self.clients:
            self._install(client)
            for batch in client.test:
                self.model(**batch)

    def _steps(self, batches: Sequence[Batch]) -> None:
        parameters = [*self.shared, *self.local]
        adam = torch.optim.AdamW(
            parameters, lr=self.settings.lr, weight_decay=self.settings.weight_decay, **self.optimizer
        )
        for batch in batches:
            adam.zero_grad(set_to_none=True)
            self.model(**batch).loss.backward()
            if self.settings.clip_norm is not None:
                clip_grad_norm_(parameters, self.settings.clip_norm)
            adam.step()

    @torch.no_grad()
    def _install(self, client: Client) -> None:
        for parameter, value in zip([*self.shared, *self.local], [*self.common, *client.local], strict=True):
            parameter.copy_(value)


def _batches(task: Task, examples: Examples, indices: Sequence[NDArray[np.int64]]) -> list[Batch]:
    return [task.collate(examples, chosen) for chosen in indices]


def _copies(parameters: Sequence[torch.Tensor]) -> Values:
    return [parameter.detach().clone() for parameter in parameters]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print("| size | attention | AdamW | training, CPU-ms a round | evaluation |\n|---|---|---|---|---|")
    for size, overrides in {"small": SMALL, "quickstart": QUICKSTART}.items():
        config = load([*overrides])
        forms = [(a, kind) for a in ("sdpa", "eager") for kind in ("fused", "foreach")]
        loops = {form: BareLoop(config, rounds + 1, *form) for form in forms}
        spent: dict[tuple[str, str], list[tuple[float, float]]] = {form: [] for form in forms}
        for round_ in range(1, rounds + 2):
            for form, loop in loops.items():
                spent[form].append(timed(loop, round_))
        for form, found in spent.items():
            training, evaluation = (1e3 * statistics.median(part) for part in zip(*found[1:], strict=True))
            print(f"| {size} | {form[0]} | {form[1]} | {training:.0f} | {evaluation:.0f} |", flush=True)


def timed(loop: BareLoop, round_: int) -> tuple[float, float]:
    """CPU seconds of a round's training, and of the evaluation after it."""
    started = time.process_time()
    loop.train(round_)
    trained = time.process_time()
    loop.evaluate()
    return trained - started, time.process_time() - trained


if __name__ == "__main__":
    main()
