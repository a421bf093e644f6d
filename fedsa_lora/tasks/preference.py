"""Preferences: of two answers to a prompt, a language model learns which is the better one."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.measure import ENTROPY, SHARE, Measure
from fedsa_lora.suggest import listing
from fedsa_lora.tasks.causal_lm import CausalLMTask
from fedsa_lora.tasks.rows import Columns
from fedsa_lora.tasks.task import Batch, Examples
from fedsa_lora.tasks.token_losses import answer_losses

if TYPE_CHECKING:
    import datasets
    import torch

OF_PREFERENCES = (
    Measure("preference_accuracy", SHARE, format="percent"),
    Measure("loss", ENTROPY, higher_is_better=False),
)
REJECTED, REFERENCE = "rejected_", "reference"  # features of examples


@dataclass(frozen=True, kw_only=True)
class PreferenceTask(CausalLMTask):
    """Prompts with two answers each: ``answer`` is the column of those that are chosen, ``rejected`` that of
    the others.

    Direct preference optimisation (DPO, arXiv:2305.18290) makes the mean of -log sigmoid(beta m) smaller,
    where m = (R - S of the chosen answer) - (R - S of the rejected one) is the margin of an example; S is
    the summed loss of an answer in nats, R that of the model as the run began. ``preference_accuracy`` is
    the share of examples with a margin above 0, of which one of exactly 0 counts half.
    Raises ConfigError for settings that cannot be.
    """

    answer: str = "chosen"
    rejected: str = "rejected"
    beta: float = 0.1
    measured: list[str] = field(default_factory=lambda: ["preference_accuracy", "loss"])

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text or self.messages or self.packed:
            raise ConfigError(
                "two answers to a prompt are compared: expected text=null, messages=null and packed=false"
            )
        if not self.beta > 0:
            raise ConfigError(f"beta is {self.beta:g}: expected more than 0")

    def _check_measured(self) -> None:
        known = [measure.name for measure in OF_PREFERENCES]
        if not self.measured or sorted({*self.measured} & {*known}) != sorted(self.measured):
            raise ConfigError(f"measured is {self.measured}: expected {listing(known)}, each at most once")

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Those that are ``measured``, the primary one first."""
        known = {measure.name: measure for measure in OF_PREFERENCES}
        return tuple(known[name] for name in self.measured)

    @property
    def columns(self) -> Columns:
        named = {"prompt": self.prompt, "answer": self.answer, "rejected": self.rejected}
        return Columns(named, None, self.group, self.where)

    def encode(self, inputs: datasets.Dataset, labels: NDArray[np.int64]) -> Examples:
        """``input_ids`` and ``labels`` of the chosen answers, see ``CausalLMTask``, and of the others. The
        length of an example is that of both."""
        chosen = super().encode(inputs, labels)
        others = inputs.remove_columns("answer").rename_column("rejected", "answer")
        rejected = super().encode(others, labels)
        features = {REJECTED + name: rows for name, rows in rejected.features.items()}
        lengths = chosen.lengths + rejected.lengths
        return replace(chosen, features={**chosen.features, **features}, lengths=lengths)

    def referred(self, examples: Examples, predictions: NDArray[np.float32]) -> Examples:
        """The examples with R of both answers, (n, 2), as the model predicted it when the run began."""
        return replace(examples, features={**examples.features, REFERENCE: predictions[:, :2]})

    def collate(self, examples: Examples, indices: NDArray[np.int64]) -> Batch:
        """A batch of ``CausalLMTask`` of twice as many rows, those of the chosen answers first, and R of both
        (batch, 2), 0 where examples do not have it yet."""
        import torch

        own = examples.at(indices)
        chosen, rejected = (
            {name: own.features[kind + name] for name in ("input_ids", "labels")} for kind in ("", REJECTED)
        )
        both = Examples.joined([replace(own, features=chosen), replace(own, features=rejected)])
        reference = own.features.get(REFERENCE, np.zeros((len(own), 2), np.float32))
        return {
            **super().collate(both, np.arange(len(both))),
            REFERENCE: torch.from_numpy(np.asarray(reference)),
        }

    def loss(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """The mean of -log sigmoid(beta m) over a batch, a scalar."""
        from torch.nn.functional import logsigmoid

        chosen, rejected = (batch[REFERENCE] - _of_both(model, batch)).unbind(dim=1)
        return -logsigmoid(self.beta * (chosen - rejected)).mean()

    def terms(self, examples: Examples, indices: NDArray[np.int64]) -> int:
        """Examples, which the loss is the mean of."""
        return len(indices)

    def predict(self, model: torch.nn.Module, batch: Batch) -> torch.Tensor:
        """S of the chosen and of the rejected answer, and R of both, (batch, 4)."""
        import torch

        return torch.cat([_of_both(model, batch), batch[REFERENCE]], dim=1)

    def evaluate(self, predictions: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
        """``preference_accuracy`` and ``loss``."""
        losses, reference = np.split(predictions.astype(np.float64), 2, axis=1)
        margins = -np.diff(reference - losses, axis=1)[:, 0]
        right = (margins > 0) + 0.5 * (margins == 0)
        return {
            "preference_accuracy": float(right.mean()),
            "loss": float(np.logaddexp(0, -self.beta * margins).mean()),
        }


def _of_both(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    """S of the chosen and of the rejected answer of each example, (batch, 2)."""
    losses, _ = answer_losses(model, batch)
    return losses.view(2, -1).T
