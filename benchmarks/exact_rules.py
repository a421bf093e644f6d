"""What the exact LoRA rules cost and what they save: `python benchmarks/exact_rules.py`.

10 clients with factors of rank 8 for 24 layers of 1024 x 1024, all near one common start. Prints a
Markdown table: the time of a rule on the server and the bytes of its broadcast to a client, both as
ratios to the weighted mean of A and B (FedIT) in the same run, and the relative error of the round's
product || sum p_k B_k A_k - what clients then have || / || sum p_k B_k A_k ||, once as the clients are and
once with each client's factors rotated, which leaves its product as it is. For FedSVD the clients have A
in common, so its weighted mean is without error.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedsa_lora.exchange.arrays import Layout, TensorSpec
from strategies.rules.exact import Combined, FactorRule, FedEx, FedRot, FedSVD, FlexLoRA, FLoRA
from strategies.rules.factors import Factors, aggregation_error, stack
from strategies.rules.pairs import pairs

Arrays = Mapping[str, NDArray[np.float32]]
RULES: dict[str, FactorRule] = {
    "FedEx-LoRA": FedEx(),
    "FLoRA": FLoRA(seed=0),
    "FlexLoRA": FlexLoRA(),
    "FedSVD": FedSVD(),
    "FedRot": FedRot(),
}


@dataclass(frozen=True)
class Round:
    layout: Layout
    start: Arrays
    clients: Sequence[Arrays]
    weights: list[float]

    def mean(self) -> Combined:
        """FedIT: the weighted mean of the clients' vectors."""
        vectors = [self.layout.pack(client) for client in self.clients]
        total = np.average(vectors, axis=0, weights=self.weights)
        return Combined(self.layout.unpack(total.astype(np.float32)))

    def apply(self, rule: FactorRule) -> Combined:
        return rule.combine(1, self.layout, self.start, self.clients, self.weights)


def random_round(clients: int, rank: int, layers: int, size: int, *, common_a: bool = False) -> Round:
    """Clients whose A and B moved by half of their length from a common start."""
    rng = np.random.default_rng(0)
    names = [f"layer{i:02}" for i in range(layers)]
    layout = Layout(
        (
            *(TensorSpec(f"{name}.A", (rank, size), "A", name) for name in names),
            *(TensorSpec(f"{name}.B", (size, rank), "B", name) for name in names),
        )
    )

    def draw(scale: float) -> dict[str, NDArray[np.float32]]:
        bound = scale * size**-0.5
        return {s.name: rng.uniform(-bound, bound, s.shape).astype(np.float32) for s in layout}

    start = draw(1.0)
    ended = [{n: start[n] + move for n, move in draw(0.5).items()} for _ in range(clients)]
    if common_a:
        ended = [{n: start[n] if n.endswith("A") else v for n, v in client.items()} for client in ended]
    return Round(layout, start, ended, rng.dirichlet(np.full(clients, 3.0)).tolist())


def rotated(round_: Round) -> Round:
    """The same products, from factors (B Q, Q' A) with a random rotation for each client and layer."""
    rng = np.random.default_rng(1)
    turned = []
    for client in round_.clients:
        arrays = dict(client)
        for pair in pairs(round_.layout).values():
            factors = pair.read(client)
            q = np.linalg.qr(rng.normal(size=(factors.rank, factors.rank)))[0]
            arrays |= pair.write(Factors(q.T @ factors.A, factors.B @ q))
        turned.append(arrays)
    return replace(round_, clients=turned)


def seconds(*works: Callable[[], Any], least: float = 2.0) -> list[float]:
    """The shortest time of each work, all run in turns so that they meet the same machine."""
    times: list[list[float]] = [[] for _ in works]
    while len(times[0]) < 5 or sum(map(sum, times)) < least:
        for work, taken in zip(works, times, strict=True):
            begun = time.perf_counter()
            work()
            taken.append(time.perf_counter() - begun)
    return [min(taken) for taken in times]


def broadcast_bytes(result: Combined) -> int:
    merged = sum(factors.A.nbytes + factors.B.nbytes for factors in result.merge.values())
    return merged + sum(array.nbytes for array in result.common.values())


def error(round_: Round, result: Combined) -> float:
    """The mean over layers of the relative error of what clients have after the round."""
    errors = []
    for layer, pair in pairs(round_.layout).items():
        parts: list[Factors] = [pair.read(result.common)]
        parts += [result.merge[layer]] if layer in result.merge else []
        clients = [pair.read(client) for client in round_.clients]
        errors.append(aggregation_error([(clients, stack(parts, [1.0] * len(parts)))], round_.weights))
    return float(np.mean(errors))


def row(name: str, round_: Round, combine: Callable[[Round], Combined]) -> str:
    result, mean = combine(round_), round_.mean()
    taken, base = seconds(lambda: combine(round_), round_.mean)
    turned = rotated(round_)
    common_a = isinstance(RULES.get(name), FedSVD)
    after = "-" if common_a else f"{error(turned, combine(turned)):.1e}"
    sent = f"{broadcast_bytes(result) / broadcast_bytes(mean):.1f}"
    cells = [name, f"{taken / base:.1f}", f"{taken * 1e3:.0f}", sent, f"{error(round_, result):.1e}", after]
    return f"| {' | '.join(cells)} |"


def table(clients: int, rank: int, layers: int, size: int) -> str:
    own = random_round(clients, rank, layers, size)
    common = random_round(clients, rank, layers, size, common_a=True)
    lines = ["| rule | time | ms | broadcast | error | error, rotated |", "|---|---|---|---|---|---|"]
    lines.append(row("FedIT", own, Round.mean))
    for name, rule in RULES.items():
        round_ = common if isinstance(rule, FedSVD) else own
        lines.append(row(name, round_, partial(Round.apply, rule=rule)))
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=10)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--size", type=int, default=1024)
    print(table(**vars(parser.parse_args())))


if __name__ == "__main__":
    main()
