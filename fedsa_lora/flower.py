"""Federated LoRA in a Flower app of your own, with a torch model and data of your own.

    app = {
        "model": model,  # a function: returns the torch model
        "data": data,  # a function of (partition, partitions): a train set and a test set
        "lora": LoraConfig(r=4, target_modules=["fc1", "fc2"], modules_to_save=["classifier"]),
        "split": "share_a",  # A is shared, B stays (FedSA-LoRA); share_ab, share_b, ffa, ...
        "clients": 4,
        "classes": ["cat", "dog"],
    }
    client = client_app(**app)
    server = server_app(**app)

A ``pyproject.toml`` names the two for ``flwr run``, see ``examples/flower_app`` and docs/extending.md. The
run is one of ours: replies are searched for values of B and the head, and ``runs/RUN-ID`` has its record,
report and exports.
"""

from __future__ import annotations

import json
import logging
import math
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from typing import Any, NamedTuple

from flwr.app import Context, Message, UserConfig
from flwr.clientapp import ClientApp
from flwr.clientapp.typing import ClientAppCallable
from flwr.server import ServerApp, ServerAppComponents

from fedsa_lora.binding import TARGET
from fedsa_lora.client.egress import discreet
from fedsa_lora.client_app import client_fn, each, kept
from fedsa_lora.config.options import CONF
from fedsa_lora.exchange.measure import LARGEST, Measure
from fedsa_lora.exchange.split import SplitPolicy
from fedsa_lora.group import hints_of
from fedsa_lora.learning.lora import settings_of
from fedsa_lora.server_app import server_fn
from fedsa_lora.settings import RunConfig
from fedsa_lora.tasks.named_functions import check_function, name_of

ROUNDS = "num-server-rounds"  # as Flower's own templates call it
log = logging.getLogger("flwr")


def client_app(
    model: Callable[[], Any],
    data: Callable[[Any, int], Any],
    lora: Any,
    split: str | SplitPolicy = "share_a",
    *,
    clients: int,
    classes: Sequence[str] = (),
    loss: Callable[[Any, dict[str, Any]], Any] | None = None,
    evaluate: Callable[[Any, Any], dict[str, float]] | None = None,
    measures: Sequence[Measure] = (),
    settings: Sequence[str] = (),
) -> ClientApp:
    """The ClientApp of a federation; ``server_app`` takes the same arguments.

    Parameters
    ----------
    model : callable
        ``model()`` returns a torch Module. It is called with torch's generator seeded, by clients and server.
    data : callable
        ``data(partition, partitions)`` returns the train set and the test set of a client, or the former
        alone: map-style data sets, or DataLoaders of them, of tuples (inputs ..., label) or dicts.
        ``partition`` is ``partition-id`` of the node config, or its ``client-id`` where it has one.
    lora : peft.LoraConfig
        The layers with an adapter, and ``modules_to_save``, the head, which starts as the model has it.
    split : str or SplitPolicy
        A file of ``conf/split``, or a policy such as ``RoleSplit(A="shared", B="local", head="shared")``.
    clients : int
        The number of partitions, which is that of SuperNodes.
    classes : sequence of str
        Names in the order of the model's outputs; accuracy is measured. Without them it is the loss.
    loss : callable
        ``loss(model, batch)``, the mean loss of a batch; without it cross-entropy. A batch maps names of a
        dict to tensors; inputs of tuples are called "0", "1" and so on, what is to be learned "labels".
    evaluate, measures : callable, sequence of Measure
        ``evaluate(outputs, labels)`` of all held-out examples, arrays (n, ...) and (n,), returns the numbers
        that ``measures`` declares, by name; labels that are no whole numbers are -1. The first is primary.
    settings : sequence of str
        Any others, as ``fedsa-lora run`` takes them: ``"train.lr=0.01"``, ``"codec=int8"``. Keys of
        ``context.run_config`` that are called so come last: ``flwr run . -c "train.lr=0.02"``.

    Raises
    ------
    ConfigError
        For a function without a name. Other faults of the arguments are raised when the app runs, by the
        server first.
    """
    functions = {"model": model, "data": data, "loss": loss, "evaluate": evaluate}
    return _federation("functions", functions, lora, split, clients, classes, measures, settings).client()


def server_app(
    model: Callable[[], Any],
    data: Callable[[Any, int], Any],
    lora: Any,
    split: str | SplitPolicy = "share_a",
    *,
    clients: int,
    classes: Sequence[str] = (),
    loss: Callable[[Any, dict[str, Any]], Any] | None = None,
    evaluate: Callable[[Any, Any], dict[str, float]] | None = None,
    measures: Sequence[Measure] = (),
    settings: Sequence[str] = (),
) -> ServerApp:
    """The ServerApp of a federation, for the same arguments as ``client_app``. It calls ``model`` for names
    and shapes, and in a simulation ``data`` to count examples."""
    functions = {"model": model, "data": data, "loss": loss, "evaluate": evaluate}
    return _federation("functions", functions, lora, split, clients, classes, measures, settings).server()


class Apps(NamedTuple):
    """Both sides of a federation. A module that Flower reads gives each a name by a separate line,
    ``client = apps.client``: Flower looks for such lines before it runs anything."""

    client: ClientApp
    server: ServerApp


def trainer_apps(
    trainer: Callable[[Any, int], Any],
    lora: Any,
    split: str | SplitPolicy = "share_a",
    *,
    clients: int,
    classes: Sequence[str] = (),
    evaluate: Callable[[Any, Any], dict[str, float]] | None = None,
    measures: Sequence[Measure] = (),
    settings: Sequence[str] = (),
) -> Apps:
    """The apps of a federation of Trainers of transformers: ``trainer(partition, partitions)`` returns that
    of a client. Its model, data sets, collator, loss, ``compute_metrics`` and TrainingArguments are used; the
    loop is ours, and a round trains for the steps or epochs of the arguments. What is not called, such as
    callbacks, is logged by the server at its start. The others are arguments of ``client_app``; ``measures``
    without ``evaluate`` declares what ``compute_metrics`` returns."""
    functions = {"trainer": trainer, "evaluate": evaluate}
    federation = _federation("trainer", functions, lora, split, clients, classes, measures, settings)
    return Apps(federation.client(), federation.server())


def _federation(
    task: str,
    functions: Mapping[str, Callable[..., Any] | None],
    lora: Any,
    split: str | SplitPolicy,
    clients: int,
    classes: Sequence[str],
    measures: Sequence[Measure],
    settings: Sequence[str],
) -> _Federation:
    """Of the functions those that are given, by their keys in the config of the task."""
    given = {f"{name}_function": function for name, function in functions.items() if function is not None}
    return _Federation(task, given, lora, split, clients, tuple(classes), tuple(measures), tuple(settings))


@dataclass(frozen=True)
class _Federation:
    """Both sides' arguments; ``task`` is the file of ``conf/task`` whose keys name the ``functions``. Flower
    may send it to other processes, which are then given the functions by it."""

    task: str
    functions: Mapping[str, Callable[..., Any]]
    lora: Any
    split: str | SplitPolicy
    clients: int
    classes: tuple[str, ...]
    measures: tuple[Measure, ...]
    settings: tuple[str, ...]

    def __post_init__(self) -> None:
        for key, function in self.functions.items():
            check_function(key.removesuffix("_function"), function)

    def client(self) -> ClientApp:
        def configured(message: Message, context: Context, call_next: ClientAppCallable) -> Message:
            return call_next(message, self._configured(context))

        return ClientApp(client_fn=client_fn, mods=[discreet, configured, each, kept])

    def server(self) -> ServerApp:
        def configured(context: Context) -> ServerAppComponents:
            if (lent := self._lent()) is not None:
                for line in lent.left_out:
                    log.warning("the Trainer: %s", line)
            return server_fn(self._configured(context))

        return ServerApp(server_fn=configured)

    def _configured(self, context: Context) -> Context:
        """The context with the run config that our own apps take."""
        words = [*self._words(), *self.settings, *_of_run_config(context.run_config)]
        return replace(context, run_config={"overrides": shlex.join(words)})

    def _words(self) -> Iterator[str]:
        """The overrides that say what a run is."""
        lent = self._lent()
        adapters, head = settings_of(self.lora)
        named = {key: name_of(function) for key, function in self.functions.items()}
        yield from (f"task={self.task}", "model=own", f"federation.clients={self.clients}")
        measured = [_declared(measure) for measure in (self.measures if lent is None else lent.measures)]
        yield from _assigned("task", {**named, "head": head, "classes": self.classes, "measured": measured})
        yield from _assigned("lora", adapters)
        yield from _of_split(self.split)
        if lent is not None:
            yield from _assigned("train", lent.settings)

    def _lent(self) -> _Lent | None:
        """Returns what a Trainer has for the run, where there is one."""
        if (trainer := self.functions.get("trainer_function")) is None:
            return None
        return _lent(trainer, self.clients, self.measures, "evaluate_function" in self.functions)


class _Lent(NamedTuple):
    """Settings and measures that a Trainer has for a run, and what it has that no run uses, a line each."""

    settings: dict[str, Any]
    measures: tuple[Measure, ...]
    left_out: list[str]


@cache
def _lent(trainer: Callable[..., Any], clients: int, measures: tuple[Measure, ...], evaluates: bool) -> _Lent:
    """Makes a Trainer, once in a process, and returns what it has for the run."""
    # loads the Trainer of transformers, which an app of functions has no use for
    from fedsa_lora.learning.trainer_arguments import left_out, settings_of_trainer
    from fedsa_lora.tasks.trainers import made_by, measures_of

    made = made_by(trainer, 0, clients)
    found, reason = measures_of(made, measures, evaluates)
    uncalled = [f"its compute_metrics is not called: {reason}"] if reason else []
    return _Lent(settings_of_trainer(made), found, [*left_out(made), *uncalled])


def _of_split(split: str | SplitPolicy) -> Iterator[str]:
    if isinstance(split, str):
        yield f"split={split}"
        return
    kind = type(split)
    values = {known.name: getattr(split, known.name) for known in fields(split) if known.name != "head"}
    yield f"split={_text({TARGET: f'{kind.__module__}.{kind.__qualname__}'} | values)}"
    if isinstance(split.head, str):
        yield f"head={split.head}"
    else:
        yield from ("head=soft", f"head.degree={split.head}")


def _assigned(group: str, values: Mapping[str, Any]) -> Iterator[str]:
    return (f"{group}.{key}={_text(value)}" for key, value in values.items())


def _declared(measure: Measure) -> dict[str, Any]:
    """A measure in a config, which has no infinite numbers: the largest stand for them in its range."""
    ends = [math.copysign(LARGEST, end) if end in (math.inf, -math.inf) else end for end in measure.range]
    return asdict(measure) | {"range": ends}


def _text(value: Any) -> str:
    """A value in Hydra's syntax."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_text(part)}" for key, part in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(_text, value)) + "]"
    if isinstance(value, str):
        escaped = value.replace('"', '\\"')
        return f'"{escaped}"'
    return json.dumps(value)


def _of_run_config(run_config: UserConfig) -> Iterator[str]:
    """The settings among what the app's own pyproject.toml and ``flwr run -c`` say."""
    for key, value in run_config.items():
        name = "federation.rounds" if key == ROUNDS else key
        group = name.partition(".")[0]
        if group in hints_of(RunConfig) or (CONF / group).is_dir():
            yield f"{name}={value if isinstance(value, str) else json.dumps(value)}"
