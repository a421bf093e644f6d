"""A run as pandas frames, for notebooks: they only read what the run wrote."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from fedsa_lora import predictions
from fedsa_lora.analysis.asymmetry import compare, trained_factors
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import RunError
from fedsa_lora.runs import measures
from fedsa_lora.runs.outcomes import client_outcomes
from fedsa_lora.runs.reading import Row, RunRecord, read_run
from fedsa_lora.runs.summary import training_bytes
from fedsa_lora.settings import RunConfig


def load_run(path: str | Path) -> Run:
    """Everything that a run directory records. Raises RunError or ConfigError for one that is none."""
    directory = Path(path).expanduser()
    return Run(read_run(directory), read_config(directory))


@dataclass(frozen=True)
class Run:
    """A run as it was recorded: ``record`` as it was written, and frames that are made when first asked for.

    Accuracies are fractions of 1, other measures as the task has them, sizes bytes, times seconds.
    """

    record: RunRecord
    settings: RunConfig

    def __repr__(self) -> str:
        """That of the record, in one line."""
        return repr(self.record).replace(type(self.record).__name__, type(self).__name__, 1)

    @property
    def config(self) -> dict[str, Any]:
        """Every setting, resolved."""
        return self.settings.resolved

    @property
    def summary(self) -> Row:
        """The measures of the whole run, as in ``summary.json``."""
        return self.record.summary

    @cached_property
    def rounds(self) -> pd.DataFrame:
        """One row for each round; ``training_bytes`` are those of all training messages so far."""
        fits = [row for row in self.record.clients if row["phase"] == "fit"]
        frame = pd.DataFrame(self.record.rounds)
        return frame.assign(training_bytes=training_bytes(self.record.rounds, fits))

    @cached_property
    def clients(self) -> pd.DataFrame:
        """One row for each round, phase (fit, evaluate) and client. ``examples`` are those that the phase was
        about; ``measured`` those that the row's measures are of, by which to weigh them: 0 of a client
        without any."""
        return pd.DataFrame(self.record.clients)

    @cached_property
    def outcomes(self) -> pd.DataFrame:
        """One row for each client, by id: sizes, references, the primary measure, gain, harm and bytes;
        what was not measured of a client is missing."""
        rows = [asdict(outcome) for outcome in client_outcomes(self.record)]
        return pd.DataFrame(rows).set_index("client").astype({"harmed": "boolean"})  # which can be missing

    @cached_property
    def predictions(self) -> pd.DataFrame:
        """One row for each held-out example of each client at its last evaluation, with the true names of
        classes, whatever a client calls them. Empty where the clients' folders are not here."""
        columns = ["client", "round", "example", "label", "predicted", "correct", "probability"]
        frames = [self._predictions_of(client) for client in self.outcomes.index]
        kept = [frame for frame in frames if frame is not None]
        return pd.concat(kept, ignore_index=True)[columns] if kept else pd.DataFrame(columns=columns)

    def confusion(self, client: str | None = None) -> pd.DataFrame:
        """Counts of examples by true class (row) and predicted class (column), of one client or of all."""
        names = self.record.partition["labels"]
        rows = self.predictions
        if client is not None:
            rows = rows[rows["client"] == client]
            if rows.empty:
                known = self.predictions["client"].unique().tolist()
                raise RunError(f"no predictions of client {client!r}; available: {known}")
        labels, predicted = (pd.Categorical(rows[what], names).codes for what in ("label", "predicted"))
        counts = measures.confusion(labels.astype(np.int64), predicted.astype(np.int64), len(names))
        return pd.DataFrame(counts, index=names, columns=names)

    def similarity(self, other: Run | None = None) -> pd.DataFrame:
        """Similarity of the A and the B of different clients, by round and layer, before aggregation.

        Of each pair of clients of this run, or with ``other`` of each client of this run and each of that:
        a run of another seed is the control, without which the cosine of A only shows the common start.
        ``cosine`` is of what the clients trained, ``cosine_learned`` of its difference from their start,
        ``overlap`` of the row spaces of A and the column spaces of B (1: the same; ``chance``: that of random
        ones). Rounds are those of which both sides' clients kept a generation (``run.keep_generations``).
        What is shared must have been kept as it was trained: raises RunError without
        ``run.keep_trained=true``.
        """
        theirs = None if other is None else trained_factors(other.settings)
        return pd.DataFrame(compare(trained_factors(self.settings), theirs))

    def _predictions_of(self, client: str) -> pd.DataFrame | None:
        found = predictions.read(self.settings.store_dir / client)
        if found is None:
            return None
        names = np.array(found.names)
        return pd.DataFrame(
            {
                "client": client,
                "round": found.round,
                "example": np.arange(len(found.labels)),
                "label": names[found.labels],
                "predicted": names[found.predicted],
                "correct": found.labels == found.predicted,
                "probability": found.probability,
            }
        )
