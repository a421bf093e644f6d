"""The rules beside the formulas of other public code: `python benchmarks/peers.py`, ten seconds.

Prints the rows of the tables in docs/peers.md, which names the code. Flower is run as it is installed; of the
others the formula in their source is computed, on random adapters: three clients, a layer of 48 x 48, rank 8,
scale s = 2, weights p = (.2, .3, .5). Errors are relative Frobenius norms, of the change to the weight where
nothing else is said. `tests/strategies/test_peers.py` compares with PEFT and looks for each row in the docs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from flwr.common import Code, FitRes, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.server.strategy.aggregate import aggregate_krum
from numpy.typing import NDArray

from fedsa_lora.exchange.arrays import Layout, TensorSpec
from strategies.rules.exact import FactorRule, FedEx, FlexLoRA, FLoRA
from strategies.rules.inner import bind_inner

Matrix = NDArray[np.float64]
ROOT = Path(__file__).resolve().parent.parent
SIZE, RANK, SCALE = 48, 8, 2.0
WEIGHTS = [0.2, 0.3, 0.5]
ROUNDS, VALUES, DRAWS = 10, 1000, 200


@dataclass(frozen=True)
class Client:
    """The factors that a client ended its round with: A (r, d_in) and B (d_out, r)."""

    A: Matrix
    B: Matrix


def random_clients() -> list[Client]:
    rng = np.random.default_rng(0)
    shapes = (RANK, SIZE), (SIZE, RANK)
    return [Client(*(rng.normal(size=shape).astype(np.float32) for shape in shapes)) for _ in WEIGHTS]


def relative(found: Matrix, expected: Matrix) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def mean_product(clients: list[Client]) -> Matrix:
    """sum p_k B_k A_k, what an exact rule makes of them."""
    products = (client.B.astype(np.float64) @ client.A for client in clients)
    return sum(p * product for p, product in zip(WEIGHTS, products, strict=True))


def largest(product: Matrix, rank: int) -> Matrix:
    """The best approximation of a matrix by its first components."""
    u, s, vt = np.linalg.svd(product)
    return u[:, :rank] * s[:rank] @ vt[:rank]


def ours(rule: FactorRule, clients: list[Client]) -> Matrix:
    """What a rule of this project adds to W0 / s: the product of the new factors and what is merged."""
    specs = TensorSpec("A", (RANK, SIZE), "A", "x"), TensorSpec("B", (SIZE, RANK), "B", "x")
    start = {spec.name: np.zeros(spec.shape, np.float32) for spec in specs}
    made = rule.combine(1, Layout(specs), start, [vars(client) for client in clients], WEIGHTS)
    total = made.common["B"].astype(np.float64) @ made.common["A"]
    for factors in made.merge.values():
        total = total + factors.B.astype(np.float64) @ factors.A
    return total


# --- formulas of code that no package brings ---------------------------------------------------------


def of_formulas() -> Iterator[tuple[str, float]]:
    clients = random_clients()
    exact = mean_product(clients)
    a, b = (np.average([getattr(client, x) for client in clients], axis=0, weights=WEIGHTS) for x in "AB")
    residual, best = exact - b @ a, largest(exact, RANK)
    u, s, vt = np.linalg.svd(SCALE * exact)
    rooted = u[:, :RANK] * np.sqrt(s[:RANK]) @ vt[:RANK] / SCALE
    stack = sum(client.B.astype(np.float64) @ client.A for client in clients)
    yield "FedEx-LoRA, ours", relative(ours(FedEx(), clients), exact)
    yield "FedEx-LoRA, residual transposed: the residual", relative(residual.T, residual)
    yield "FedEx-LoRA, residual transposed: the change", relative(b @ a + residual.T, exact)
    yield "FedEx-LoRA, residual without s", relative(SCALE * b @ a + residual, SCALE * exact)
    yield "FedIT, p_0 times client 0 alone: A", relative(WEIGHTS[0] * clients[0].A, a)
    yield "FLoRA, ours", relative(ours(FLoRA(seed=0), clients), exact)
    yield "FLoRA, stacked without weights", relative(stack, exact)
    yield (
        "FLoRA, stacked without weights, at the scale alpha / sum r_k",
        relative(stack / len(clients), exact),
    )
    yield "FLoRA, stacked without s", relative(exact, SCALE * exact)
    yield "FlexLoRA, ours", relative(ours(FlexLoRA(), clients), best)
    yield "FlexLoRA, root of S on one factor alone", relative(rooted, best)


def unlike_flower(nearest: int, clients: int, malicious: int) -> int:
    """The draws in which Krum with so many neighbours chooses another client than Flower's."""
    differ = 0
    for draw in range(DRAWS):
        vectors = np.random.default_rng([clients, malicious, draw]).normal(size=(clients, 40))
        (flower,) = aggregate_krum([([vector], 1) for vector in vectors], malicious, 0)
        apart = np.sort(((vectors[:, None] - vectors) ** 2).sum(axis=-1), axis=1)
        differ += not np.array_equal(vectors[apart[:, 1 : nearest + 1].sum(axis=1).argmin()], flower)
    return differ


# --- server optimizers -------------------------------------------------------------------------------


def differences(size: float) -> list[Matrix]:
    """The clients' mean difference in each round, of this standard deviation: one half of its variance is a
    direction that lasts, the other is new in each round."""
    rng = np.random.default_rng(0)
    lasting = rng.normal(size=VALUES)
    return [size * (lasting + rng.normal(size=VALUES)) / 2**0.5 for _ in range(ROUNDS)]


def settings(name: str) -> dict[str, Any]:
    """The config of a server optimizer, conf/strategy."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "conf" / "strategy" / f"{name}.yaml").read_text())
    return found


def steps_of_paper(name: str, deltas: list[Matrix]) -> list[Matrix]:
    """The steps of algorithm 2 of arXiv:2003.00295: v begins at tau^2, and nothing is corrected for bias."""
    options = settings(name)
    beta_1, beta_2, tau = options.get("beta_1", 0.0), options.get("beta_2", 0.0), options["tau"]
    m, v, steps = np.zeros_like(deltas[0]), np.full_like(deltas[0], tau**2), []
    for delta in deltas:
        m = beta_1 * m + (1 - beta_1) * delta
        if name == "fedadagrad":
            v = v + delta**2
        elif name == "fedadam":
            v = beta_2 * v + (1 - beta_2) * delta**2
        else:
            v = v - (1 - beta_2) * delta**2 * np.sign(v - delta**2)
        steps.append(options["eta"] * m / (np.sqrt(v) + tau))
    return steps


def steps_of_flower(name: str, deltas: list[Matrix], begin: float | None = None) -> list[Matrix]:
    """The steps of Flower's strategy as the config makes it; ``begin`` is what v begins at instead of 0."""
    values, steps = np.zeros_like(deltas[0]), []
    bound = bind_inner(settings(name), "strategy", [])
    assert bound is not None
    strategy: Any = bound.build(initial_parameters=ndarrays_to_parameters([values]))
    if begin is not None:
        strategy.v_t = [np.full_like(values, begin)]
    for round_, delta in enumerate(deltas, 1):
        result = FitRes(Status(Code.OK, ""), ndarrays_to_parameters([values + delta]), 1, {})
        parameters, _ = strategy.aggregate_fit(round_, [(None, result)], [])
        (after,) = parameters_to_ndarrays(parameters)
        steps.append(after - values)
        values = after
    return steps


def correction(name: str, round_: int) -> float:
    """The factor by which Flower multiplies the step of FedAdam, for bias, in a round; 1 of the others."""
    if name != "fedadam":
        return 1.0
    options = settings(name)
    exponent = round_ + 1
    return float((1 - options["beta_2"] ** exponent) ** 0.5 / (1 - options["beta_1"] ** exponent))


def of_server_optimizers() -> Iterator[tuple[str, list[float]]]:
    yield "the factor of `fedadam`", [correction("fedadam", round_) for round_ in range(1, ROUNDS + 1)]
    for name in ("fedadam", "fedyogi", "fedadagrad"):
        for size in (0.01, 0.1):
            deltas = differences(size)
            pairs = zip(steps_of_flower(name, deltas), steps_of_paper(name, deltas), strict=True)
            yield f"`{name}`, differences of {size:g}", [relative(*pair) for pair in pairs]


def shown(error: float) -> str:
    """Two digits, or that it is rounding of float32."""
    return "below 1e-5" if error < 1e-5 else f"{error:.2g}".removeprefix("0")


def report() -> Iterator[str]:
    """The lines of docs/peers.md, of which a test looks for each."""
    for what, error in of_formulas():
        yield f"| {what} | {shown(error)} |"
    for n, f in ((7, 1), (7, 2), (10, 3)):
        differ = [unlike_flower(nearest, n, f) for nearest in (n - f - 2, n - f - 1)]
        yield f"| n = {n}, f = {f} | " + " | ".join(f"{draws} of {DRAWS}" for draws in differ) + " |"
    for name, errors in of_server_optimizers():
        yield f"| {name} | " + " | ".join(shown(errors[round_ - 1]) for round_ in (1, 2, 5, 10)) + " |"


if __name__ == "__main__":
    print("\n".join(report()))
