"""What is made of a run that ended well: summary, adapters, figures, report."""

from __future__ import annotations

import logging

from fedsa_lora import assemble
from fedsa_lora.changes import changes_of
from fedsa_lora.errors import FedSAError
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.runs.export import Exporter
from fedsa_lora.runs.figures import draw_all
from fedsa_lora.runs.reading import read_json
from fedsa_lora.runs.report import write_report
from fedsa_lora.runs.rundir import RunDirectory
from fedsa_lora.runs.summary import summarise
from fedsa_lora.settings import RunConfig

log = logging.getLogger("flwr")
LARGE = 2e9  # bytes of a backbone in float32 that is not copied into each run


def finish(config: RunConfig, directory: RunDirectory) -> None:
    """Write everything that a reader opens first. Names and shapes suffice but for the backbone that the
    adapters go with, which is read once. There are no adapter folders where that backbone is large, where
    what was trained is relative to its weights (``fedsa-lora export`` makes those), or where no stock model
    computes what the run did."""
    model = assemble.skeleton(config)
    command = read_json(directory.path / "environment.json").get("command", "")
    summary = summarise(config, directory.path, model)
    directory.write_summary(summary | {"changes": changes_of(command)})
    if not config.run.report:
        return
    if reason := _without_adapters(config, directory, model):
        log.info("no adapters/: %s", reason)
    else:
        Exporter(config, directory, model).export_all()
    draw_all(directory.path)
    write_report(directory.path)


def _without_adapters(config: RunConfig, directory: RunDirectory, model: AdapterModel) -> str:
    """Why a run has no adapter folders; nothing where it has."""
    try:
        Exporter(config, directory, model).refuse(adapter=True)
    except FedSAError as error:
        return str(error)
    if config.personalisation.adapts:
        return "each client trains its model on before it is used; fedsa-lora export RUN --client NAME does"
    size = 4 * model.counts()["base"]
    if model.relative or not model.has_adapters or size > LARGE:
        return f"each needs the pretrained weights ({size / 1e9:.1f} GB); fedsa-lora export RUN --client NAME"
    return ""
