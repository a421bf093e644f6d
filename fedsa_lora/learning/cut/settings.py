"""Settings of split learning: where a language model is cut, and what its parts send each other."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal, get_args

from fedsa_lora.errors import ConfigError
from fedsa_lora.group import Group

if TYPE_CHECKING:
    from fedsa_lora.learning.adapters import AdapterModel
    from fedsa_lora.settings import RunConfig
    from fedsa_lora.tasks.causal_lm import CausalLMTask

PartName = Literal["bottom", "trunk", "top"]
PARTS: tuple[PartName, ...] = get_args(PartName)
EMBEDDINGS = ("embed_tokens", "wte", "wpe")
BLOCK = re.compile(r"(?:^|\.)(?:h|layers)\.(\d+)\.")  # of a transformer, in the names of its tensors


@dataclass(frozen=True)
class Cut(Group):
    """A language model in three parts (U-shaped split learning, arXiv:1812.00564): a client holds the
    embeddings and the first ``bottom`` blocks, and the blocks from ``top`` with the norm and the head; the
    server holds the blocks between them, the trunk.

    The batch of a step goes through the parts in ``micro_batches``: a step takes one message more than it has
    of them. ``dtype`` is the number format of activations and their gradients on the wire, int8 with a scale
    for each token. ``trunk``: the server trains the LoRA of the trunk anew for each client and takes the mean
    at the end of a round (``shared``), or each client has its own there (``per_client``). Raises
    ConfigError for numbers that leave a part without a block.
    """

    why_alone: ClassVar[str] = "each takes its steps with the server"
    bottom: int = 2
    top: int = 10
    micro_batches: int = 1
    dtype: Literal["fp32", "bf16", "int8"] = "fp32"
    trunk: Literal["shared", "per_client"] = "shared"

    def __post_init__(self) -> None:
        if not 1 <= self.bottom < self.top:
            raise ConfigError(
                f"bottom={self.bottom} and top={self.top}: expected bottom below top, for a block of the "
                "server's, and at least 1 before it"
            )
        if self.micro_batches < 1:
            raise ConfigError(f"micro_batches={self.micro_batches}: expected at least 1")

    @property
    def trunk_blocks(self) -> range:
        """The blocks that the server holds, of which the first of the model is 0."""
        return range(self.bottom, self.top)

    def part_of(self, name: str) -> PartName:
        """The part of a tensor, by its name in the whole model. Tied output embeddings are those of the
        bottom."""
        found = BLOCK.search(f"{name}.")
        if found is None:
            return "bottom" if any(part in EMBEDDINGS for part in name.split(".")) else "top"
        if int(found[1]) < self.bottom:
            return "bottom"
        return "trunk" if int(found[1]) < self.top else "top"

    def of_client(self, name: str) -> bool:
        """True of a tensor that a client holds, by its name in the whole model."""
        return self.part_of(name) != "trunk"

    def beyond(self, depth: int) -> str:
        """The fault of a cut that leaves no block of a model of this depth for its last part; empty where
        there is one."""
        if self.top < depth:
            return ""
        expected = f"expected cut.top={self.bottom + 1} to {depth - 1}"
        if depth < len(PARTS):
            expected = f"expected one of at least {len(PARTS)}, or cut=none"
        elif self.bottom > depth - 2:
            expected = f"expected cut.bottom=1 to {depth - 2}, and cut.top above it and below {depth}"
        return (
            f"cut.top={self.top}: the model has {depth} blocks, of which the client's last part needs one; "
            f"{expected}"
        )

    def clashes(self, run: RunConfig) -> Iterator[str]:
        from fedsa_lora.tasks.causal_lm import CausalLMTask
        from fedsa_lora.tasks.task import Referring

        if isinstance(run.task, Referring):
            yield "cut: no single part can be compared with the initial model; expected task=causal_lm"
        elif isinstance(run.task, CausalLMTask):
            yield from self._task_clashes(run.task)
        else:
            yield "cut: only causal language models are cut; expected task=causal_lm, or cut=none"
        if run.lora is None or run.lora.variant != "lora" or run.lora.init != "default":
            yield "cut: each part has plain LoRA; expected lora.variant=lora and lora.init=default"
        if run.model.quantization is not None or run.model.adapter:
            yield "cut: expected model.quantization=null and model.adapter=null"
        depth = run.model.depth  # None: given by the plan, which makes the model without its weights
        if depth is not None and (fault := self.beyond(depth)):
            yield fault
        yield from self._training_clashes(run)
        yield from self._federation_clashes(run)

    def _task_clashes(self, task: CausalLMTask) -> Iterator[str]:
        if task.packed:
            yield "cut: attention is computed in rows with padding; expected task.packed=false"
        if unknown := [m.name for m in task.measures if m.name not in ("perplexity", "loss")]:
            yield (
                f"cut: no single part can write an answer, which {unknown[0]} requires; expected "
                "task.measured=[perplexity,loss]"
            )

    def _training_clashes(self, run: RunConfig) -> Iterator[str]:
        if run.lora is not None and run.lora.layer_ranks is not None:
            yield (
                "cut: no part has all blocks; expected lora.layer_ranks=null, and for ranks by block "
                r"lora.rank_pattern, such as {layers\.0\..*: 4}"
            )
        if isinstance(run.train.batch_size, int) and self.micro_batches > run.train.batch_size:
            yield (
                f"cut.micro_batches={self.micro_batches}: a step has train.batch_size={run.train.batch_size} "
                "examples; expected no more parts than that"
            )
        if run.train.accumulate > 1 or run.train.gradient_checkpointing or run.train.precision != "fp32":
            yield (
                "cut: expected train.accumulate=1 (cut.micro_batches divides a step), "
                "train.gradient_checkpointing=false and train.precision=fp32"
            )
        if run.train.steps is None:
            yield "cut: the server counts the steps of a round; expected train.steps, not train.epochs"
        if run.train.batch_size == "auto":
            yield "cut: expected a number for train.batch_size"

    def _federation_clashes(self, run: RunConfig) -> Iterator[str]:
        if not run.personalisation.plain or run.unlearning.chosen:
            yield "cut: a client's step needs the server; expected personalisation=none and unlearning=none"
        words = run.split.words()
        if run.split.adaptive or any("%" in word for word in words.values()):
            yield "cut: expected a split that neither adapts nor mixes, such as split=share_a"
        elif not {"shared"} & {words["A"], words["B"]}:
            yield "cut: this split shares nothing of the clients' parts; expected split=share_a, or cut=none"
        if run.strategy.needs_factors:
            yield (
                f"cut: {run.strategy.name} may merge updates into frozen weights, of which each side has a "
                "part; expected strategy=fedavg or another that averages"
            )
        if run.evaluation.local_only or run.evaluation.before:
            yield (
                "cut: a client has no whole model to train alone or to measure before aggregation; expected "
                "evaluation.local_only=false and evaluation.before=false"
            )
        if run.strategy.proximal:
            yield "cut: the trunk has no proximal term; expected strategy=fedavg"
        if run.clusters is not None:
            yield "cut: all clients share one trunk or have their own; expected clusters=none"
        if run.federation.clients_per_node > 1 or run.federation.b_passing:
            yield "cut: expected federation.clients_per_node=1 and federation.b_passing=false"
        if (run.machine.cohort or 1) > 1:
            yield "cut: each client takes its steps by itself; expected machine.cohort=null"

    def describe(self) -> dict[str, str]:
        parts = f"blocks before {self.bottom} and from {self.top} at the client, the rest at the server"
        batches = f", {self.micro_batches} micro-batches a step" if self.micro_batches > 1 else ""
        return {"cut": f"{parts}; {self.dtype} on the wire{batches}; the trunk's LoRA is {self.trunk}"}

    def describe_model(self, model: AdapterModel) -> dict[str, str]:
        """The parameters of each part."""
        lines = {}
        for part in PARTS:
            counts = model.counts(lambda name, part=part: self.part_of(name) == part)  # type: ignore[misc]
            lora, total = counts["A"] + counts["B"], sum(counts.values())
            lines[f"{part} ({'server' if part == 'trunk' else 'client'})"] = (
                f"{total:,} in all, {lora + counts['head']:,} trainable, LoRA {lora:,} (A {counts['A']:,}), "
                f"{counts['base']:,} frozen"
            )
        return lines
