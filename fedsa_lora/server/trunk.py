"""The server's part of a model that is cut: the trunk, which computes for one client after another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedsa_lora.errors import TrainingError, WireError
from fedsa_lora.exchange.arrays import Arrays, NamedArrays
from fedsa_lora.exchange.step import KEY, UP, Step, StepFormat
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.cut.parts import trunk_states
from fedsa_lora.learning.cut.settings import Cut
from fedsa_lora.learning.cut.trained import Trained
from fedsa_lora.learning.job import as_array
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.learning.training import seed_generators
from fedsa_lora.runs.trunk import as_memory, of_trunk
from fedsa_lora.seeds import generator, torch_seed


@dataclass
class Exchange:
    """A client's exchange: its tensors of the trunk, and the graphs whose gradients are still to come."""

    trained: Trained
    graphs: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)  # h1 and h2
    number: int = 0  # of the message that is awaited
    micro: int = 0  # of the step
    losses: list[float] = field(default_factory=list)  # of each step
    whole: bool = True  # the last step is


class Trunk:
    """The LoRA tensors of the trunk, for all clients (``cut.trunk=shared``) or for each, and the exchanges
    that are under way. ``model`` is the server's part with adapters, ``initial`` the start of its tensors and
    ``names`` those that are trained; ``elsewhere`` are those that clients train.

    A client that is lost takes its exchange with it: its graphs are dropped when the next round begins.
    """

    def __init__(
        self,
        model: AdapterModel,
        cut: Cut,
        step_format: StepFormat,
        settings: TrainSettings,
        seed: int,
        initial: NamedArrays,
        names: frozenset[str],
        elsewhere: frozenset[str],
    ) -> None:
        self.model, self.cut, self.format = model, cut, step_format
        self.settings, self.seed, self.names = settings, seed, names
        self.elsewhere, self._steps = elsewhere, settings.steps or 0
        self._values: dict[str, NamedArrays] = {"": initial}  # by client; "": of those that have none
        self._open: dict[str, Exchange] = {}
        self._trained: dict[str, Arrays] = {}  # after a whole round, by client
        self._round, self._training = 0, True
        self.up: Counter[str] = Counter()  # bytes of the present phase, by what they are
        self.down: Counter[str] = Counter()
        self.losses: dict[str, list[float]] = {}

    def begin(self, round_: int, *, training: bool) -> None:
        """A round or an evaluation begins: what was open is dropped."""
        self._round, self._training = round_, training
        self._open, self._trained, self.losses = {}, {}, {}
        self.up, self.down = Counter(), Counter()

    def answer(self, client: str, entries: Mapping[str, Any]) -> dict[str, str | bytes] | None:
        """The message that follows a client's answer; None where that ends the exchange. Raises WireError for
        an answer that cannot be one."""
        exchange = self._open.get(client)
        if exchange is None:
            exchange = self._open[client] = self._exchange(client)
        step = self.format.read(entries, UP)
        if step.number != exchange.number and step.tensors:
            raise WireError(f"answers message {step.number}, expected {exchange.number}")
        self._step(exchange, step)
        if not step.tensors:
            self._close(client, exchange)
            return None
        self.up.update(sizes(entries, "headers_up"))
        down = self._answer(client, exchange, step)
        exchange.number += 1
        rng = generator(self.seed, "cut", client, self._round, exchange.number, "down")
        answer = self.format.write(down, rng)
        self.down.update(sizes(answer, "headers_down"))
        return answer

    def learn(self, examples: Mapping[str, int]) -> None:
        """The end of a round: the mean over clients, by their numbers of examples, or to each its own."""
        trained = {client: self._trained[client] for client in sorted(examples) if client in self._trained}
        if self.cut.trunk == "per_client":
            self._values |= trained
        elif trained:
            weights = np.array([examples[client] for client in trained], np.float64)
            weights /= weights.sum()
            self._values[""] = {
                name: np.tensordot(weights, [arrays[name] for arrays in trained.values()], 1).astype(
                    np.float32
                )
                for name in self.model.layout.names
            }

    def state(self) -> dict[str, NDArray[Any]]:
        """All that ``restore`` resumes from."""
        return as_memory(self._values)

    def restore(self, memory: NamedArrays) -> None:
        """Resume from a checkpoint."""
        self._values = {"": self._values[""]} | of_trunk(memory)

    def _exchange(self, client: str) -> Exchange:
        values = self._values.get(client, self._values[""])
        names = self.names if self._training else frozenset()
        return Exchange(Trained(self.model, values, names, self.settings, self._steps, self.elsewhere))

    def _close(self, client: str, exchange: Exchange) -> None:
        """The end of a client's exchange. Raises WireError for tensors that its gradients made NaN."""
        del self._open[client]
        try:
            self._trained[client] = exchange.trained.values()
        except TrainingError as error:
            raise WireError(f"its gradients made the trunk unusable: {error}") from None
        self.losses[client] = exchange.losses

    def _step(self, exchange: Exchange, step: Step) -> None:
        """Take the step that the client has taken."""
        if not step.stepped:
            return
        if not exchange.whole or not exchange.losses:
            raise WireError("has taken a step before its gradients were all there")
        exchange.trained.step(step.norms)

    def _answer(self, client: str, exchange: Exchange, step: Step) -> Step:
        """g1 for g2, and h2 for h1."""
        tensors: dict[str, NDArray[np.float32]] = {}
        with exchange.trained.lent(training=self._training):
            if "g2" in step.tensors:
                tensors["g1"] = self._backward(exchange, step)
            if "h1" in step.tensors:
                tensors["h2"] = self._forward(client, exchange, step)
        if not step.last:
            return Step(step.number + 1, tensors)
        exchange.micro, exchange.whole = 0, True
        return Step(step.number + 1, tensors, norms=exchange.trained.norms())

    def _forward(self, client: str, exchange: Exchange, step: Step) -> NDArray[np.float32]:
        assert step.mask is not None
        if exchange.graphs or (self._training and exchange.trained.steps >= self._steps):
            raise WireError("sends more states than the steps of a round have")
        device = self.model.device
        states = torch.from_numpy(step.tensors["h1"]).to(device).requires_grad_(self._training)
        mask = torch.from_numpy(step.mask.astype(np.int64)).to(device)
        if self._training:
            key = (client, self._round, exchange.trained.steps, exchange.micro, "trunk")
            seed_generators(torch_seed(self.seed, "cut dropout", *key), device)
        with torch.set_grad_enabled(self._training):
            behind = trunk_states(self.model.module, states, mask)
        if self._training:
            if exchange.whole:
                exchange.losses.append(0.0)
            exchange.micro, exchange.whole = exchange.micro + 1, False
            exchange.graphs.append((states, behind))
        return as_array(behind)

    def _backward(self, exchange: Exchange, step: Step) -> NDArray[np.float32]:
        if not exchange.graphs:
            raise WireError("sends a gradient of states that it was not sent")
        states, behind = exchange.graphs.pop(0)
        gradient = step.tensors["g2"]
        if gradient.shape != tuple(behind.shape):
            raise WireError(f"sends a gradient of shape {gradient.shape}, expected {tuple(behind.shape)}")
        exchange.losses[-1] += step.loss or 0.0
        behind.backward(torch.from_numpy(gradient).to(behind.device))  # type: ignore[no-untyped-call]
        assert states.grad is not None
        return as_array(states.grad)


def sizes(entries: Mapping[str, Any], header: str) -> dict[str, int]:
    """The bytes of a message by the name of what they are, of its ``header`` by that word."""
    names = {
        KEY: header,
        **{key: key.removeprefix(f"{KEY}/") for key in entries if key.startswith(f"{KEY}/")},
    }
    return {name: len(entries[key]) for key, name in names.items()}
