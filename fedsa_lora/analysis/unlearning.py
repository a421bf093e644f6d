"""Measures of what a federation has forgotten: in the target's model, in those of the others, and in what all
share. In simulation only: they need every client's state and the facts at once."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.analysis.forgotten import (
    Known,
    Losses,
    forget_quality,
    log_truth_ratio,
    min_k,
    nll,
    privleak,
    separation,
    utility,
)
from fedsa_lora.analysis.mean_model import mean_model
from fedsa_lora.analysis.relearning import relearned
from fedsa_lora.client import build
from fedsa_lora.client.model import ClientModel
from fedsa_lora.client.workbench import Workbench
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.arrays import NamedArrays, cut
from fedsa_lora.files import write_atomically
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.learning.forgetting import read_tokens
from fedsa_lora.learning.settings import TrainSettings
from fedsa_lora.learning.training import in_order
from fedsa_lora.learning.unlearning import Retrain
from fedsa_lora.report.page import write_report
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.reading import REPORT, UNLEARNING
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.generation import recall
from fedsa_lora.tasks.task import Batch, Examples
from fedsa_lora.tasks.tofu import FORGET, RETAIN, Phrased, TofuTask

Reader: TypeAlias = "Callable[[AdapterModel, Any, Examples, TrainSettings], NDArray[np.float32]]"


def evaluate_unlearning(run_dir: Path, retrained: Path | None = None) -> dict[str, Any]:
    """Measure what a run has forgotten, beside the run of ``retrained`` where one is named, and write
    ``unlearning.json`` into its directory, and its report again.

    Raises RunError for a run without facts to forget, one whose clients' state is not here, and a reference
    that is of other data.
    """
    config = read_config(run_dir)
    views = Views(run_dir, config)
    reference = None if retrained is None else _reference(views, retrained)
    found = views.found()
    if reference is not None:
        found["retrained"] = reference.of_targets()
        found["against_retrained"] = views.against(reference)
        found["relearning"]["retrained"] = views.relearned(reference.shared)
    write_atomically(run_dir / UNLEARNING, (json.dumps(found, indent=1) + "\n").encode())
    if (run_dir / REPORT).exists():
        write_report(run_dir)
    return found


def _reference(views: Views, retrained: Path) -> Views:
    """The models of a reference. Raises RunError for a run that is none, before anything is measured."""
    config = read_config(retrained)
    if config.experiment != views.config.experiment or not isinstance(config.unlearning, Retrain):
        raise RunError(
            f"{retrained} is not a reference for {views.run_dir}: expected a run of the same model, split, "
            f"data "
            "and seed with unlearning=retrain, of as many rounds as this one learned and recovered"
        )
    return Views(retrained, config, views.bench)


@dataclass(frozen=True)
class Views:
    """The models of a run, and what each knows; ``resident`` is a workbench to use instead of a new one."""

    run_dir: Path
    config: RunConfig
    resident: Workbench | None = None

    @cached_property
    def task(self) -> TofuTask:
        task = self.config.task
        if not isinstance(task, TofuTask):
            raise RunError(
                f"{self.run_dir}: its task has no facts to forget; expected a run of task=tofu or authors"
            )
        return task

    @cached_property
    def bench(self) -> Workbench:
        return self.resident or build.workbench(self.config)

    @cached_property
    def exporter(self) -> Exporter:
        exporter = Exporter(self.config, RunDirectory(self.run_dir.resolve(), self.config), self.bench.model)
        if missing := sorted(set(self.task.describe().clients) - set(exporter.clients())):
            raise RunError(
                f"{self.config.store_dir} lacks the state of client {missing[0]}: unlearning can be "
                f"measured only where a simulation ran"
            )
        return exporter

    @property
    def targets(self) -> list[str]:
        return sorted(map(str, self.task.targets))

    @property
    def others(self) -> list[str]:
        return [client for client in self.exporter.clients() if client not in self.targets]

    @cached_property
    def forget(self) -> Phrased:
        return self.task.phrased(self.task.forget_split)

    @cached_property
    def retain(self) -> Phrased:
        return self.task.phrased(self.task.retain_split)

    @cached_property
    def shared(self) -> NamedArrays:
        """Values that all clients hold, with the common start of what is local: with ``share_a`` B = 0."""
        common = self.exporter.own_model(self.targets[0], own=False).common
        initial = cut(self.bench.initial, layout := self.bench.layout(self.targets[0]))
        return {spec.name: initial[spec.name] if spec.role == "B" else common[spec.name] for spec in layout}

    @cached_property
    def forgotten(self) -> dict[str, Known]:
        """Knowledge of each target's own model of what it was to forget."""
        return {
            client: self.known(self.own(client), self._phrases(client, FORGET)) for client in self.targets
        }

    @cached_property
    def aucs(self) -> dict[str, float | None]:
        """Separation of that from facts that nobody learned, by target."""
        return {client: self._auc(client) for client in self.targets}

    def own(self, client: str) -> NamedArrays:
        """A client's own model."""
        return self.exporter.own_model(client).common

    def found(self) -> dict[str, Any]:
        """All measures that need no reference."""
        shared = {"without_b": self.forget_nll(self.shared)}
        if self.config.split.by_role and self.config.split.words()["B"] == "local":
            shared["mean_b"] = self.forget_nll(mean_model(self.exporter).tensors)
        return {
            "method": type(self.config.unlearning).__name__,
            "facts": {"forget": len(self.forget.answers), "retain": len(self.retain.answers)},
            "targets": self.of_targets(),
            "others": {client: self.of_client(client) for client in self.others},
            "shared": shared,
            "relearning": {
                "this": self.relearned(self.shared),
                "initial": self.relearned({}),
            },
        }

    def of_targets(self) -> dict[str, dict[str, Any]]:
        """Knowledge of each target's own model: of facts to forget, of facts that it keeps, and besides."""
        return {client: self._of_target(client) for client in self.targets}

    def of_client(self, client: str) -> dict[str, float | None]:
        """The losses by token of a client's own model: on what was to be forgotten, on those that it keeps,
        and on texts that nobody learned."""
        values = self.own(client)
        facts = self._own_facts(client, RETAIN)
        return {
            "forget_nll": self.forget_nll(values),
            "retain_nll": float(nll(self.losses(values, facts)).mean()) if len(facts) else None,
            "utility_nll": self.utility_nll(values),
        }

    def forget_nll(self, values: NamedArrays) -> float:
        """The mean loss by token of the answers that are to be forgotten."""
        return float(nll(self.losses(values, self.forget.answers)).mean())

    def utility_nll(self, values: NamedArrays) -> float | None:
        """The mean loss by token of texts that nobody learned; None where the task names none."""
        if self.task.utility is None:
            return None
        return float(np.nanmean(self.losses(values, self.task.plain(self.task.utility))))

    def losses(self, values: NamedArrays, examples: Examples) -> Losses:
        """The loss of each token of the answers under given values, (n, longest)."""
        return self._read(values, examples, read_tokens)

    def known(self, values: NamedArrays, facts: Phrased) -> Known:
        """Knowledge of facts under given values."""
        wrong = [self.losses(values, each) for each in facts.wrong]
        truth = log_truth_ratio(self.losses(values, facts.paraphrases), wrong)
        return Known(nll(self.losses(values, facts.answers)), truth)

    def against(self, reference: Views) -> dict[str, dict[str, float | None]]:
        """Each target's model beside the retrained one of the same client."""
        return {client: self._against(reference, client) for client in self.targets}

    def relearned(self, start: NamedArrays) -> dict[str, dict[str, float]]:
        """The return of the first target's facts when B alone is trained again from a start."""
        client = self.targets[0]
        served = ClientModel(client, self.bench, build.store(self.config, client))
        return relearned(served, self._own_facts(client, FORGET), start, self.exporter.merged)

    def _of_target(self, client: str) -> dict[str, Any]:
        values = self.own(client)
        numbers: dict[str, dict[str, float]] = {}
        facts = {"forget": self._phrases(client, FORGET), "retain": self._phrases(client, RETAIN)}
        known = {"forget": self.forgotten[client], "retain": self.known(values, facts["retain"])}
        for name, phrased in facts.items():
            numbers[name] = known[name].numbers() | {"rouge_l_recall": self._rouge(values, phrased)}
        kept = numbers["retain"]
        return {
            **numbers,
            "utility_nll": self.utility_nll(values),
            "model_utility": utility([kept["probability"], kept["rouge_l_recall"], kept["truth_retain"]]),
            "membership_auc": self.aucs[client],
        }

    def _against(self, reference: Views, client: str) -> dict[str, float | None]:
        mine, its = self.forgotten[client], reference.forgotten[client]
        mine_auc, its_auc = self.aucs[client], reference.aucs[client]
        return {
            "forget_quality_p": forget_quality(mine.log_truth, its.log_truth),
            "forget_nll_distance": float(mine.nll.mean() - its.nll.mean()),
            "log_truth_ratio_distance": float(np.median(mine.log_truth) - np.median(its.log_truth)),
            "privleak": None if mine_auc is None or its_auc is None else privleak(mine_auc, its_auc),
        }

    def _auc(self, client: str) -> float | None:
        """The separation of what a target forgot from facts that nobody learned, by Min-K %."""
        if self.task.holdout_split is None:
            return None
        values = self.own(client)
        held_out = self.losses(values, self.task.answers(self.task.holdout_split))
        forgotten = self.losses(values, self._phrases(client, FORGET).answers)
        return separation(min_k(forgotten), min_k(held_out))

    def _own_facts(self, client: str, kind: int) -> Examples:
        train = self.task.load_client(client).train
        return train.at(np.flatnonzero(train.labels == kind))

    def _phrases(self, client: str, kind: int) -> Phrased:
        """The facts of a kind that a client learned, in all words; those of the whole split where there are
        not such words for each of them."""
        phrased = self.retain if kind == RETAIN else self.forget
        kinds = self.task.data.train.labels
        every = np.flatnonzero(kinds == kind)
        if len(every) != len(phrased.answers):
            return phrased
        own = self.task.split.clients[client].train
        return phrased.at(np.searchsorted(every, own[kinds[own] == kind]))

    def _rouge(self, values: NamedArrays, facts: Phrased) -> float:
        """The mean ROUGE-L recall of what the model writes, of the answers."""
        return float(self._read(values, facts.answers, read_recall).mean())

    def _read(self, values: NamedArrays, examples: Examples, read: Reader) -> Losses:
        """The result of a reading of examples under given values."""
        served = ClientModel(self.targets[0], self.bench, build.store(self.config, self.targets[0]))
        still = served.local(0, frozenset(), values, merged=self.exporter.merged).still
        return self.bench.outcome(still(asked=(examples,), read=read)).answers[0].astype(np.float64)


def read_recall(
    model: AdapterModel, task: Any, examples: Examples, settings: TrainSettings
) -> NDArray[np.float32]:
    """ROUGE-L recall of what the model writes of each answer, (n,)."""

    def recalls(module: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return torch.tensor(
            [recall(*pair) for pair in zip(task.write(module, batch), task.wanted(batch), strict=True)]
        )

    return in_order(model, task, examples, settings, recalls)
