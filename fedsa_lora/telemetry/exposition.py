"""Metrics as Prometheus reads them: its text exposition format, version 0.0.4, in a file.

The file is for the textfile collector of node_exporter, or for any web server.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fedsa_lora.errors import RunError
from fedsa_lora.files import write_atomically
from fedsa_lora.telemetry.journal import log

METRICS = "metrics.prom"  # in a run directory; in a client's own folder
PREFIX = "fedsa_lora_"
Labels = Mapping[str, str]


@dataclass(frozen=True)
class Metric:
    """A family of samples: a value by labels, None where it is not known. The name ends in the unit, and in
    ``_total`` for a counter."""

    name: str
    kind: Literal["counter", "gauge"]
    meaning: str
    samples: Iterable[tuple[Labels, float | None]]


def exposition(metrics: Iterable[Metric], common: Labels) -> str:
    """The text of metrics whose samples all have the ``common`` labels as well. A family without a known
    value is left out: Prometheus then sees no sample instead of a made-up one."""
    lines = []
    for metric in metrics:
        known = [(labels, value) for labels, value in metric.samples if value is not None]
        if known:
            name = PREFIX + metric.name
            lines += [f"# HELP {name} {_escaped(metric.meaning)}", f"# TYPE {name} {metric.kind}"]
            lines += [f"{name}{_braces({**common, **labels})} {_number(value)}" for labels, value in known]
    return "".join(f"{line}\n" for line in lines)


def publish(path: Path, metrics: Iterable[Metric], common: Labels) -> None:
    """Replace a file by the metrics of now. One that cannot be written is no reason to end a round."""
    try:
        write_atomically(path, exposition(metrics, common).encode(errors="replace"), durable=False)
    except RunError as error:
        log.warning("%s", error)


def _braces(labels: Labels) -> str:
    pairs = (f'{name}="{_quoted(value)}"' for name, value in labels.items())
    return "{" + ",".join(pairs) + "}" if labels else ""


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")


def _quoted(text: str) -> str:
    return _escaped(text).replace('"', r"\"")


def _number(value: float) -> str:
    if math.isfinite(value):
        return repr(float(value))
    return "NaN" if math.isnan(value) else "+Inf" if value > 0 else "-Inf"
