"""Make `tests/golden/rules.json` again: what each rule of the server makes of fixed factors.

The inputs are made anew from a seed, so that they stay as they are; `docs/peers.md` has the layout of the
file. Run it only after a change that is meant to change numbers, and say in the commit why they changed.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import Strategy

from fedsa_lora.client.personal import COMMON, START, TRAINED, Received, personal
from fedsa_lora.exchange.arrays import Arrays, Layout, TensorSpec, Vector
from fedsa_lora.exchange.split import Alternate, RoleSplit, SplitPolicy, Turn
from fedsa_lora.store import ClientState
from strategies.rules.abilities import layers
from strategies.rules.flower import Step, rule_for
from strategies.rules.inner import bind_inner
from strategies.rules.updates import Update

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden" / "rules.json"
BOTH = ("A", "B")
SHARE_AB = RoleSplit(A="shared", B="shared", head="shared", allow=BOTH)
SPLITS: dict[str, SplitPolicy] = {
    "share_a": RoleSplit(A="shared", B="local"),
    "share_b": RoleSplit(A="local", B="shared", allow=("B",)),
    "ffa": RoleSplit(A="frozen", B="shared", allow=("B",)),
    "alternate": Alternate(allow=BOTH),
    "fedsvd": Alternate(order=("B",), allow=BOTH),
}
SOFT = RoleSplit(A="shared", B=0.4, head=0.6, allow=BOTH)
# By rule: how much of its clients' differences each round has, where that is not the first round alone.
SEVERAL = {
    "alternate": (1.0, -0.5),
    **dict.fromkeys(("fedavgm", "fedadam", "fedyogi", "fedadagrad"), (1.0, -0.5, 2.0)),
}
SAMPLING = ("_target_", "fraction_fit", "min_fit_clients", "min_available_clients", "min_evaluate_clients")
FRESH = {"flora": ("A",)}  # a draw of ours, which no other implementation has


def inputs() -> dict[str, Any]:
    """Seven clients of rank 2 with a head of three classes, and three of ranks 1, 2 and 3."""
    rng = np.random.default_rng(0)
    examples, losses = (10, 20, 5, 25, 15, 10, 15), (0.9, 1.4, 0.6, 1.1, 2.0, 0.8, 1.2)
    start = _values(rng, {"A": (2, 4), "B": (3, 2), "head": (3, 2)})
    alike = [
        {name: _rounded(start[name] + 0.5 * rng.normal(size=np.shape(start[name]))) for name in start}
        | {"examples": n, "loss": loss, "counts": rng.multinomial(n, (0.6, 0.3, 0.1)).tolist()}
        for n, loss in zip(examples, losses, strict=True)
    ]
    mixed = [
        _values(rng, {"A": (rank, 5), "B": (4, rank)}) | {"examples": n}
        for rank, n in ((1, 20), (2, 50), (3, 30))
    ]
    return {
        "alike": {"start": start, "clients": alike},
        "mixed": {"start": _values(rng, {"A": (3, 5), "B": (4, 3)}), "clients": mixed},
    }


def results(given: dict[str, Any]) -> dict[str, Any]:
    """By rule: the group of ``inputs``, the settings, the scale of each round, and what it then made."""
    found = {split: _of_strategy("fedavg", given, split) for split in SPLITS if split != "fedsvd"}
    for path in sorted((ROOT / "conf" / "strategy").glob("*.yaml")):
        found[path.stem] = _of_strategy(path.stem, given, "fedsvd" if path.stem == "fedsvd" else None)
    for name in ("flora", "flexlora"):
        found[f"{name}, mixed ranks"] = _of_strategy(name, given, group="mixed")
    found["fedavg, counted head"] = _of_strategy("fedavg", given, counted=True)
    found["soft"] = {
        "inputs": "alike",
        "settings": {"B": SOFT.B, "head": SOFT.head},
        "scales": [1.0],
        "rounds": [{"clients": [_plain(model) for model in _soft(given["alike"])]}],
    }
    return found


def _of_strategy(
    name: str,
    given: dict[str, Any],
    split: str | None = None,
    group: str = "alike",
    counted: bool = False,
) -> dict[str, Any]:
    node = yaml.safe_load((ROOT / "conf" / "strategy" / f"{name}.yaml").read_text())
    if "noise_multiplier" in node:  # noise has other bits each time
        node |= {"noise_multiplier": 0.0, "num_sampled_clients": len(given[group]["clients"])}
    policy = SHARE_AB if split is None else SPLITS[split]
    scales = SEVERAL.get(split or name, (1.0,))
    rounds = list(_played(node, policy, given[group], scales, counted))
    hidden = FRESH.get(name, ())
    return {
        "inputs": group,
        "settings": {key: value for key, value in node.items() if key not in (*SAMPLING, "strategy")},
        "scales": list(scales),
        "rounds": [{key: value for key, value in made.items() if key not in hidden} for made in rounds],
    }


def _played(
    node: dict[str, Any], policy: SplitPolicy, group: dict[str, Any], scales: Sequence[float], counted: bool
) -> Iterator[dict[str, Any]]:
    """The values that the server has after each round, and what clients merged into W0, B A, if anything."""
    layout = _layout(group["start"])
    start = vector = layout.pack(_arrays(group["start"]))
    bound = bind_inner(node, "strategy", [])
    if bound is None:
        raise ValueError(f"{node} is no strategy")
    inner = bound.build(initial_parameters=ndarrays_to_parameters([start]), seed=0)
    rule = rule_for(inner, layout)
    for round_, scale in enumerate(scales, 1):
        _configure(inner, vector)
        shared = policy.in_round(layout, round_)
        updates = [
            _update(layout, str(k), client, start, scale, shared, counted)
            for k, client in enumerate(group["clients"])
        ]
        step = rule(round_, vector, updates)
        vector = step.vector
        yield _plain(layout.unpack(vector)) | _merged(step)


def _update(
    layout: Layout,
    name: str,
    client: dict[str, Any],
    start: Vector,
    scale: float,
    shared: frozenset[str],
    counted: bool,
) -> Update:
    """``scale`` times the client's difference from the start, in the tensors that it shares."""
    arrays, rank = _arrays(client), len(client["A"])
    short = rank < layout.specs[0].shape[0]
    if short:
        arrays = _padded(layout, arrays)
    moved = np.float32(scale) * (layout.pack(arrays) - start)
    for spec in layout:
        if spec.name not in shared:
            moved[layout.span(spec.name)] = 0
    counts = tuple(client["counts"]) if counted else ()
    loss = client.get("loss", 0.0)
    return Update(
        name, client["examples"], shared, None, moved, loss, rank=rank if short else None, counts=counts
    )


def _configure(inner: Strategy, vector: Vector) -> None:
    """Note the values of the round, as the ``configure_fit`` of these strategies does."""
    for layer in layers(inner):
        for name, value in (("pre_weights", [vector]), ("current_round_params", [vector])):
            if hasattr(layer, name):
                setattr(layer, name, value)


def _soft(group: dict[str, Any]) -> list[Arrays]:
    """The models from which clients of a soft split begin the second round."""
    layout, start = _layout(group["start"]), _arrays(group["start"])
    node = yaml.safe_load((ROOT / "conf" / "strategy" / "fedavg.yaml").read_text())
    (after,) = _played(node, SHARE_AB, group, (1.0,), counted=False)
    common = Received(Turn(SOFT(layout).shared), layout.pack(_arrays(after)), {})
    models = []
    for client in group["clients"]:
        ended = _arrays(client)
        memory = {
            kind + name: values[name]
            for kind, values in ((START, start), (TRAINED, ended), (COMMON, start))
            for name in SOFT.degrees(layout)
        }
        models.append(personal(SOFT, layout, common, start, ClientState(1, {}, memory)))
    return models


def _layout(start: dict[str, Any]) -> Layout:
    roles = {"A": "A", "B": "B", "head": "head"}
    return Layout(tuple(TensorSpec(name, np.shape(start[name]), roles[name], "layer") for name in start))


def _arrays(values: dict[str, Any]) -> Arrays:
    return {name: np.array(values[name], np.float32) for name in ("A", "B", "head") if name in values}


def _padded(layout: Layout, arrays: Arrays) -> Arrays:
    """Zeros beyond a client's rank, as clients of smaller rank are laid out."""
    padded = {spec.name: np.zeros(spec.shape, np.float32) for spec in layout}
    for name, values in arrays.items():
        padded[name][tuple(slice(size) for size in values.shape)] = values
    return padded


def _merged(step: Step) -> dict[str, Any]:
    if not step.merge:
        return {}
    (factors,) = step.merge.values()
    return {"merged": _rounded(factors.B.astype(float) @ factors.A, 7)}


def _values(rng: np.random.Generator, shapes: dict[str, tuple[int, int]]) -> dict[str, Any]:
    return {name: _rounded(rng.normal(size=shape)) for name, shape in shapes.items()}


def _plain(arrays: Arrays) -> dict[str, Any]:
    return {name: _rounded(values, 7) for name, values in sorted(arrays.items())}


def _rounded(values: Any, digits: int = 2) -> Any:
    return (np.round(np.asarray(values, float), digits) + 0.0).tolist()


def text(given: dict[str, Any], found: dict[str, Any]) -> str:
    """The file, with a line for each group of inputs and each rule."""

    def lines(values: dict[str, Any]) -> str:
        return ",\n".join(f"  {json.dumps(key)}: {json.dumps(value)}" for key, value in values.items())

    return (
        f'{{"made_by": "scripts/make_golden_rules.py",\n "inputs": {{\n{lines(given)}}},\n'
        f' "rules": {{\n{lines(found)}}}}}\n'
    )


def main() -> None:
    given = inputs()
    found = results(given)
    GOLDEN.write_text(text(given, found))
    print(f"{len(found)} rules written to {GOLDEN}")


if __name__ == "__main__":
    main()
