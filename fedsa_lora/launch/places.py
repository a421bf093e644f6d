"""Places that a run names: a first look, before what trains is loaded, which takes seconds."""

from __future__ import annotations

from functools import partial

from fedsa_lora.binding import attempt, raise_errors
from fedsa_lora.errors import FedSAError
from fedsa_lora.runs.place import refuse_used
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.divided import DividedTask
from fedsa_lora.tasks.model_settings import resolve


def check_places(config: RunConfig) -> None:
    """Refuse a directory that holds a run, and data or a model that are not where the config says; whether
    they can be used is for the plan to find out.

    Raises the one FedSAError, or a ConfigError that lists all.
    """
    faults: list[FedSAError] = []
    if not config.run.resume:
        attempt(lambda: refuse_used(config.run_dir), faults)
    if isinstance(config.task, DividedTask):
        attempt(config.task.places, faults)
    model = config.model
    for path in dict.fromkeys(path for path in (model.path, model.tokenizer) if path):
        attempt(partial(resolve, path), faults)
    raise_errors(faults)
