"""Config of a resumed run: its own, with the changes that it can bear."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsa_lora.config.compose import load, read_config
from fedsa_lora.config.options import OWN
from fedsa_lora.errors import ConfigError, RunError
from fedsa_lora.group import CHANGEABLE, Group, marked
from fedsa_lora.runs.interrupted import alone, recorded_rounds
from fedsa_lora.runs.reading import APP, REPORT, holds_run, read_json
from fedsa_lora.settings import RunConfig

OF_THE_MOMENT = ("run.dir", "run.resume", "run.allow_changed_data")  # not of the run, wherever it is made
# Of no consequence, or different by nature
_UNTOLD = ("title", "run.dir", "run.resume", "run.allow_changed_data")


def to_resume(
    run_dir: Path, changes: Sequence[str] = (), allow: bool = False, allow_changed_data: bool = False
) -> tuple[RunConfig, list[str]]:
    """The config that resumes a run, and its overrides: those that it has had so far, ``changes``, and
    those of a resumption, which continues with other data where ``allow_changed_data`` says so.

    Raises RunError for a run that is complete, results included, or that another process is at. Raises
    ConfigError with every difference to the config that the run has had so far, unless they are of what can
    change and ``allow`` says that they may.
    """
    before = read_config(run_dir)
    with alone(run_dir):  # until the server of this resumption has it for itself
        pass
    changed_data = f"run.allow_changed_data={str(allow_changed_data).lower()}"
    words = [*_words(run_dir), *changes, "run.resume=true", changed_data]
    config = load(words, default_dir=str(run_dir.resolve()), kept=run_dir.resolve() / APP / OWN)
    lines = list(differences(with_defaults(before, config.resolved), config.resolved))
    fixed = [line for line in lines if not _is_changeable(line.partition(":")[0])]
    if fixed:
        raise ConfigError(
            f"{run_dir} was run with another config; it cannot be resumed with\n"
            + "\n".join(f"  - {line}" for line in fixed)
        )
    if lines and not allow:
        raise ConfigError(
            "these can change with --allow-changes:\n" + "\n".join(f"  - {line}" for line in lines)
        )
    if is_complete(run_dir, last_file(config), config.federation.rounds):
        raise RunError(
            f"{run_dir} is complete: to train longer, add federation.rounds=N --allow-changes with N above "
            f"{before.federation.rounds}"
        )
    return config, words


def is_complete(run_dir: Path, last: str = "status.json", rounds: int = 0) -> bool:
    """True where a run said that it is completed and its results are there as well: the ``last`` file that
    it writes before, as runs of earlier versions said so before their results were written, and as many
    ``rounds``, or those that its config asks for, which were more where a longer run was interrupted."""
    status = run_dir / "status.json"
    if not status.is_file() or read_json(status, ["state"])["state"] != "completed":
        return False
    if holds_run(run_dir):
        rounds = max(rounds, read_config(run_dir).federation.rounds)
    done = max(recorded_rounds(run_dir), default=0)
    return done >= rounds and (run_dir / last).is_file()


def last_file(config: RunConfig) -> str:
    """The file that a run writes last, but for its status."""
    return REPORT if config.run.report else "summary.json"


def to_run_again(words: Sequence[str]) -> str:
    """The command that makes the same run elsewhere: each key once, as it was given last."""
    last = {word.partition("=")[0]: word for word in words}
    return shlex.join(
        ["fedsa-lora", "run", *(word for key, word in last.items() if key not in OF_THE_MOMENT)]
    )


def with_defaults(before: RunConfig, now: Mapping[str, Any]) -> dict[str, Any]:
    """The resolved config of a run, with the keys of groups that there are ``now`` and that it was written
    without, by an earlier version, at their defaults."""
    node = dict(before.resolved)
    for name, group in node.items():
        bound, known = getattr(before, name), now.get(name)
        if isinstance(bound, Group) and isinstance(group, Mapping) and isinstance(known, Mapping):
            new = [key for key in known if key not in group and hasattr(bound, key)]
            node[name] = {**group, **{key: getattr(bound, key) for key in new}}
    return node


def differences(before: Mapping[str, Any], after: Mapping[str, Any], path: str = "") -> Iterator[str]:
    """One line for each key that two resolved configs do not have in common: ``key: old -> new``."""
    for key in sorted(before.keys() | after.keys()):
        name = f"{path}{key}"
        old, new = before.get(key, "not set"), after.get(key, "not set")
        if name in _UNTOLD or old == new:
            continue
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            yield from differences(old, new, f"{name}.")
        else:
            yield f"{name}: {old} -> {new}"


def _is_changeable(key: str) -> bool:
    """True for a key that may change between the rounds of a run, by itself or with its group."""
    parts = key.split(".")
    groups = {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return not groups.isdisjoint(marked(RunConfig, CHANGEABLE))


def _words(run_dir: Path) -> list[str]:
    """The overrides that a run was started or last resumed with."""
    command = read_json(run_dir / "environment.json", ["command"])["command"]
    return shlex.split(str(command))[2:]
