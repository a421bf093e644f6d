"""A first look at a run, before what trains is loaded, which takes seconds: its places, and its split."""

from __future__ import annotations

from functools import partial

from fedsa_lora.binding import attempt, raise_errors
from fedsa_lora.errors import FedSAError
from fedsa_lora.runs.place import refuse_unusable, refuse_used
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.divided import DividedTask
from fedsa_lora.tasks.model_settings import resolve
from strategies.plans.plan import check_plan


def first_look(config: RunConfig) -> None:
    """Refuse a directory that holds a run or cannot be written, data or a model that are not where the config
    says, and a split that nobody carries out; whether they can be used is for the plan to find out.

    Raises the one FedSAError, or a ConfigError that lists all.
    """
    faults: list[FedSAError] = []
    if not config.run.resume:
        # a deployment writes on the SuperLink's machine
        refuse = refuse_unusable if config.federation.superlink is None else refuse_used
        attempt(lambda: refuse(config.run_dir), faults)
    if isinstance(config.task, DividedTask):
        attempt(config.task.places, faults)
    model = config.model
    for path in dict.fromkeys(path for path in (model.path, model.tokenizer) if path):
        attempt(partial(resolve, path), faults)
    attempt(lambda: check_plan(config.split), faults)
    raise_errors(faults)
