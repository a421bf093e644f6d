"""The tokens that a causal language model learns, and their losses: of training, measures and unlearning."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from fedsa_lora.tasks.task import Batch

IGNORED = -100  # a token without a loss, as transformers has it


def token_losses(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The loss of each token but the first of a batch in nats, 0 where it has none, and which have one;
    (batch, longest - 1) each."""
    from torch.nn.functional import cross_entropy

    labels = batch["labels"][:, 1:]
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    losses = cross_entropy(logits.float().mT, labels, ignore_index=IGNORED, reduction="none")
    return losses, labels != IGNORED


def answer_losses(model: torch.nn.Module, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss of each example of a batch in nats, and the number of its tokens that have one;
    (batch,) each."""
    losses, answered = token_losses(model, batch)
    return losses.sum(dim=1), answered.sum(dim=1)


def last_answers(batch: Batch) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The tokens of each example of a batch up to its last answer, and those of that answer."""
    found = []
    for ids, labels in zip(batch["input_ids"], batch["labels"], strict=True):
        end = int((labels != IGNORED).nonzero()[-1]) + 1
        begin = int((labels[:end] == IGNORED).nonzero()[-1]) + 1
        found.append((ids[:begin], ids[begin:end]))
    return found
