"""What is made of a run that ended well: summary, adapters, figures, report."""

from __future__ import annotations

from fedsa_lora import assemble
from fedsa_lora.changes import changes_of
from fedsa_lora.runs.export import Exporter
from fedsa_lora.runs.figures import draw_all
from fedsa_lora.runs.reading import read_json
from fedsa_lora.runs.report import write_report
from fedsa_lora.runs.rundir import RunDirectory
from fedsa_lora.runs.summary import summarise
from fedsa_lora.settings import RunConfig


def finish(config: RunConfig, directory: RunDirectory) -> None:
    """Write everything that a reader opens first. Names and shapes suffice: no backbone is read, so
    there are no adapter folders where that is needed; ``fedsa-lora export`` makes them. Nor are there any
    of a personalisation that no adapter holds."""
    model = assemble.skeleton(config)
    command = read_json(directory.path / "environment.json").get("command", "")
    summary = summarise(config, directory.path, model)
    directory.write_summary(summary | {"changes": changes_of(command)})
    if not config.run.report:
        return
    exporter = Exporter(config, directory, model)
    unfit = exporter.merged or model.relative or config.personalisation.mixes
    for client in [] if unfit else exporter.clients():
        exporter.export(client, directory.path / "adapters" / client)
    draw_all(directory.path)
    write_report(directory.path)
