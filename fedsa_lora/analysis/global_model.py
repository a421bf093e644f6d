"""Global model of a run: the one that all clients hold, or an approximation of one by a mean."""

from __future__ import annotations

from pathlib import Path

from fedsa_lora.analysis.export import Exporter
from fedsa_lora.analysis.mean_model import mean_model
from fedsa_lora.analysis.model_card import of_everyone, of_mean
from fedsa_lora.analysis.reach import Reach, measured_reach, recorded_reach
from fedsa_lora.client.personal import turn_split
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.arrays import ROLES, Arrays
from fedsa_lora.exchange.split import Turn
from fedsa_lora.report.wording import ROLE_NAMES, listed

GLOBAL, MEAN = "global", "global-mean-b"  # folders in a run


def export_global(exporter: Exporter, folder: Path, merge: bool = False) -> str:
    """Write the model that all clients hold as ``Exporter.write`` does, and measure it where the clients'
    data are. Returns the measure in words. Raises RunError as ``refuse_global`` and ``write`` do."""
    refuse_global(exporter)
    exporter.refuse(exporter.model.has_adapters and not merge)
    tensors = global_tensors(exporter)
    reach = _words(measured_reach(exporter, tensors) or recorded_reach(exporter))
    exporter.write(tensors, of_everyone(exporter.config, exporter.round, reach), folder, merge)
    return reach


def export_mean(exporter: Exporter, folder: Path, merge: bool = False) -> str:
    """Write the mean of the clients' models in place of a global one, and measure it where their data are.
    Returns the measure in words.

    Raises RunError where there is a global model, for a mean that is no approximation of the clients' models,
    and as ``Exporter.write`` does.
    """
    exporter.refuse(exporter.model.has_adapters and not merge)
    run, apart = exporter.directory.path, [*_apart(exporter), *_of_ranks(exporter)]
    if apart:
        raise RunError(
            f"{run} has no mean of its clients' models: {'; '.join(apart)}. {_of_client(exporter)}"
        )
    if not _local(exporter):
        raise RunError(f"{run} has a global model without local parts: leave out --mean-b")
    mean = mean_model(exporter)
    averaged = listed([ROLE_NAMES[role] for role in mean.roles]) or "the local part"
    reach = _words(measured_reach(exporter, mean.tensors))
    exporter.write(mean.tensors, of_mean(exporter.config, averaged, mean.clients, reach), folder, merge)
    return reach


def keep_global(exporter: Exporter) -> None:
    """Write the model that all clients hold into the run, with what they measured it at after the last round;
    whole where an adapter does not carry it."""
    tensors = global_tensors(exporter)
    subject = of_everyone(exporter.config, exporter.round, _words(recorded_reach(exporter)))
    exporter.write(tensors, subject, exporter.directory.path / GLOBAL, merge=bool(exporter.merged))


def global_tensors(exporter: Exporter) -> Arrays:
    """Every tensor of the model that all clients hold, by name: what is shared as it was sent last, what is
    frozen as it started."""
    checkpoint = exporter.checkpoint
    return {**exporter.initial, **checkpoint.layout.unpack(checkpoint.held(None))}


def has_global(exporter: Exporter) -> bool:
    """True where all clients hold the same model."""
    return not _local(exporter) and not _apart(exporter)


def refuse_global(exporter: Exporter) -> None:
    """Raise RunError where clients do not all hold the same model, with the reasons and the possible
    alternatives; and where no stock model computes it."""
    exporter.refuse(adapter=False)
    run, local, apart = exporter.directory.path, _local(exporter), _apart(exporter)
    if not local and not apart:
        return
    ways = _of_client(exporter)
    if not apart and not _of_ranks(exporter):
        ways += (
            f", fedsa-lora export {run} --global --mean-b an approximation of it: the mean of local parts "
            "over clients, with the shared parts"
        )
    raise RunError(f"{run} has no global model: {'; '.join([*local, *apart])}. {ways}")


def _local(exporter: Exporter) -> list[str]:
    """The reasons why clients have their own tensors; empty where all tensors are shared or frozen."""
    split, layout = exporter.config.split, exporter.model.layout
    parts = turn_split(split, layout, Turn(split.in_round(layout, exporter.round)))
    local = parts.local | split.degrees(layout).keys()
    roles = {spec.role for spec in layout if spec.name in local}
    if roles:
        named = listed([ROLE_NAMES[role] for role in ROLES if role in roles])
        return [f"each client has its own version of {named}"]
    if split.adaptive:
        return [f"{type(split).__name__} decides in each round which tensors are shared, the rest is local"]
    return []


def _apart(exporter: Exporter) -> list[str]:
    """The reasons why no one model can stand for those of all clients."""
    found, task = [], exporter.config.task
    if exporter.checkpoint.groups > 1:
        found.append(
            f"its clients are in {exporter.checkpoint.groups} groups, each with its own shared values"
        )
    if other := [c for c in sorted(task.describe().clients) if task.client_labels(c) != task.labels()]:
        found.append(
            f"labels are permuted by client: an output stands for another class for client {other[0]}"
        )
    return found


def _of_ranks(exporter: Exporter) -> list[str]:
    """The reason why factors have no mean over clients."""
    ranks = exporter.config.federation.client_ranks(exporter.config.seed)
    if not ranks:
        return []
    return [f"adapters have different ranks ({listed([str(r) for r in sorted({*ranks.values()})])})"]


def _words(reach: Reach | None) -> str:
    if reach is None:
        return "It was not measured; fedsa-lora export RUN --global measures it where the clients' data are."
    return reach.words()


def _of_client(exporter: Exporter) -> str:
    return f"fedsa-lora export {exporter.directory.path} --client NAME writes a client's model"
