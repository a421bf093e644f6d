"""The results of a run whose rounds are all whole: summary, adapters, figures, report."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.analysis.global_model import has_global, keep_global
from fedsa_lora.config.changes import changes, changes_of, named, with_experiment
from fedsa_lora.config.compose import load, to_yaml
from fedsa_lora.config.options import Options
from fedsa_lora.errors import FedSAError
from fedsa_lora.launch.resuming import to_run_again
from fedsa_lora.learning.adapters import AdapterModel
from fedsa_lora.report.figures import draw_all
from fedsa_lora.report.page import write_report
from fedsa_lora.report.recorded_config import differences
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.interrupted import last_whole_round
from fedsa_lora.runs.reading import read_json
from fedsa_lora.runs.summary import summarise
from fedsa_lora.server.build import skeleton
from fedsa_lora.settings import RunConfig
from fedsa_lora.telemetry.journal import SERVER_LOG, journal

log = logging.getLogger("flwr")
LARGE = 2e9  # bytes of a backbone in float32 that is not copied into each run


def finish(config: RunConfig, directory: RunDirectory, model: AdapterModel) -> None:
    """Write everything that a reader opens first, in place of what an interrupted finish left: the same run
    gives the same files. The ``skeleton`` of the model suffices, but the backbone that the adapters go with
    is read once, and again where what was trained is relative to its weights. There are no adapter folders
    where that backbone is large (``fedsa-lora export`` makes those), or where no stock model computes what
    the run did; and a ``global/`` where all clients hold one model."""
    directory.finishing()
    command = read_json(directory.path / "environment.json").get("command", "")
    summary = summarise(config, directory.path, model)
    summary |= {"changes": changes_of(command)}
    if not config.run.report:
        directory.write_summary(summary)
        return
    directory.write_summary(summary | {"against_experiment": against_experiment(config, command)})
    exporter = Exporter(config, directory, model)
    if reason := _without_adapters(exporter):
        log.info("no adapters/: %s", reason)
    else:
        exporter.export_all()
    directory.check()
    if _has_global(exporter):
        keep_global(exporter)
    directory.check()
    figures = draw_all(directory.path)
    write_report(directory.path, completed=True, figures=figures)


@contextmanager
def to_the_end(directory: RunDirectory) -> Iterator[None]:
    """Records in a run's directory, and in its report where it has one, how the run inside ends;
    another process can have it afterwards."""
    with closing(directory), journal(directory.path / SERVER_LOG, "server"):
        try:
            with directory.recording():
                yield
        except BaseException:
            with suppress(FedSAError):  # of a report that cannot be written: what ended the run matters more
                directory.check()
                if directory.config.run.report:
                    write_report(directory.path)
            raise


def finish_interrupted(config: RunConfig, words: Sequence[str]) -> bool:
    """Finish a run here that was interrupted, or failed, after its last round; no round is made again. False
    where rounds are missing, or the last one has no sound checkpoint: ``words`` then resume the run.

    Raises RunError where another process is at it, or a file cannot be written.
    """
    if last_whole_round(config.run_dir) < config.federation.rounds:
        return False
    directory = RunDirectory.resume(config, to_run_again(words))
    if directory.done < config.federation.rounds:
        directory.close()
        return False
    with to_the_end(directory):
        finish(config, directory, skeleton(config))
    return True


def against_experiment(config: RunConfig, command: str) -> list[tuple[str, str, str]]:
    """The settings in which a run differs from its experiment: key, value there, value here. Empty where its
    command changes nothing, where there is no experiment, or where that cannot be composed as it stands.

    Where the command names none, as of a run from a config file that is nearer to plain groups, it is the
    experiment that the run is called after.
    """
    words = with_experiment(shlex.split(command)[2:])
    changed = changes(words)
    kept = [word for word in words if named(word) not in changed]
    chosen = [word for word in kept if named(word) == "experiment" and word != "experiment=null"]
    if not chosen:
        chosen = [f"experiment={name}" for name in Options.here().experiments_called(config.name)]
    if not changed or not chosen:
        return []
    others = [word for word in kept if named(word) != "experiment"]
    try:
        experiment = load([chosen[-1], *others], default_dir=str(config.run_dir))
    except FedSAError:  # one that needs a word of the command
        return []
    return differences(to_yaml(experiment), to_yaml(config))


def _has_global(exporter: Exporter) -> bool:
    """True where all clients hold one model, which is kept in the run: unless it is large, or the backbone
    that it goes with is on other machines."""
    try:
        if not has_global(exporter):
            return False
        exporter.refuse(adapter=False)
    except FedSAError as error:
        log.info("no global/: %s", error)
        return False
    if exporter.config.federation.superlink is None and _size(exporter.model) <= LARGE:
        return True
    log.info("no global/: it needs the pretrained weights; fedsa-lora export RUN --global writes both")
    return False


def _without_adapters(exporter: Exporter) -> str:
    """The reason why a run has no adapter folders; empty where it has."""
    model = exporter.model
    try:
        exporter.refuse(adapter=True)
    except FedSAError as error:
        return str(error)
    if exporter.config.personalisation.adapts:
        return "each client fine-tunes its model before use; fedsa-lora export RUN --client NAME does so"
    size = _size(model)
    if not model.has_adapters or size > LARGE:
        return f"each needs the pretrained weights ({size / 1e9:.1f} GB); fedsa-lora export RUN --client NAME"
    return ""


def _size(model: AdapterModel) -> float:
    """Bytes of the backbone in float32."""
    return 4.0 * model.counts()["base"]
