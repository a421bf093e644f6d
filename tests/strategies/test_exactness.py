"""How far the mean of the factors is from the mean of their products, as rounds record it."""

import numpy as np
import pytest
from server_side import SHARE_A, Server, some_updates

from fedsa_lora.exchange.adaptive import Importance
from fedsa_lora.exchange.arrays import Layout, TensorSpec
from fedsa_lora.exchange.selection import TopK
from fedsa_lora.exchange.split import Alternate, RoleSplit
from strategies import AdaptiveFedSA, FedSA, FedSVD
from strategies.rules.exactness import Frozen

A = tuple(TensorSpec(f"{layer}.lora_A.weight", (2, 6), "A", layer) for layer in "xy")
B = tuple(TensorSpec(f"{layer}.lora_B.weight", (5, 2), "B", layer) for layer in "xy")
HEAD = TensorSpec("classifier.weight", (3, 5), "head", "classifier")
BOTH, NOTHING = Layout((*A, *B, HEAD)), Frozen(Layout(()), {})
EXAMPLES = (5, 20, 75)
SHARE_AB = RoleSplit(A="shared", B="shared", head="shared", allow=("A", "B"))
FFA = RoleSplit(A="frozen", B="shared", head="shared", allow=("B",))
ALTERNATE = Alternate(allow=("A", "B"), head="shared")


def errors(layout: Layout, split, frozen, clients: int = 3, rounds: int = 1, kind=FedSA, **arguments):
    """What a few rounds record, and the vectors before and after each with what the clients sent."""
    start = some_updates(1, layout.size, 7)[0]
    server = Server(layout, clients, kind, split=split, frozen=frozen, start=start, **arguments)
    history = []
    for round_ in range(1, rounds + 1):
        before = server.strategy.common
        server.ask(round_)
        shared = layout.select(server.strategy.round.asked["0"].shared)
        sent = [u * (abs(u) > 0.3) for u in some_updates(clients, shared.size, round_)]
        told = {"scores": (1.0, 2.0, 3.0, 4.0)} if kind is AdaptiveFedSA else {}
        results = zip(map(str, range(clients)), sent, EXAMPLES, strict=False)
        server.take({c: server.upload(c, u, n, **told) for c, u, n in results}, round_=round_)
        history.append((before, server.strategy.common, sent))
    return [row["aggregation_error"] for row in server.notes.rounds], history


def product(arrays, layer: str) -> np.ndarray:
    return arrays[f"{layer}.lora_B.weight"].astype(float) @ arrays[f"{layer}.lora_A.weight"]


@pytest.mark.parametrize("codec", [None, TopK(ratio=0.9)], ids=["dense", "sparse"])
def test_it_is_the_distance_of_the_products_by_hand(codec):
    (found,), ((before, after, sent),) = errors(BOTH, SHARE_AB, NOTHING, codec=codec)
    split = np.array(EXAMPLES) / 100
    ended, mean = [BOTH.unpack(before + u) for u in sent], BOTH.unpack(after)
    exact = {
        layer: sum(p * product(one, layer) for p, one in zip(split, ended, strict=True)) for layer in "xy"
    }
    apart = sum(np.square(exact[layer] - product(mean, layer)).sum() for layer in "xy")
    size = sum(np.square(exact[layer]).sum() for layer in "xy")
    assert found == pytest.approx(np.sqrt(apart / size), rel=1e-5)
    assert found > 0.01


def frozen_a() -> Frozen:
    layout = Layout(A)
    return Frozen(layout, layout.unpack(some_updates(1, layout.size, 9)[0]))


@pytest.mark.parametrize(
    ("layout", "split", "frozen", "inner"),
    [
        (Layout((*B, HEAD)), FFA, frozen_a(), None),
        (BOTH, ALTERNATE, NOTHING, None),
        (BOTH, Alternate(allow=("A", "B"), order=("B",), head="shared"), NOTHING, FedSVD()),
    ],
    ids=["ffa", "alternate", "fedsvd"],
)
def test_where_one_factor_is_common_the_mean_is_exact(layout, split, frozen, inner):
    found, _ = errors(layout, split, frozen, rounds=4, inner=inner)
    assert max(found) < 1e-6


def test_of_one_client_the_mean_is_exact():
    found, _ = errors(BOTH, SHARE_AB, NOTHING, clients=1, rounds=2)
    assert max(found) < 1e-6


@pytest.mark.parametrize(
    ("layout", "split", "frozen", "kind"),
    [
        (Layout(A), SHARE_A, NOTHING, FedSA),
        (Layout((*B, HEAD)), FFA, None, FedSA),
        (BOTH, RoleSplit(A="shared", B=0.5, head="shared", allow=("A", "B")), NOTHING, FedSA),
        (BOTH, Importance(allow=("A", "B"), pool=("A", "B"), ema=0.0), NOTHING, AdaptiveFedSA),
        (Layout((HEAD,)), RoleSplit(A="local", B="local", head="shared"), NOTHING, FedSA),
    ],
    ids=["B is local", "A is not known", "B is local by degree", "some are local this round", "no factors"],
)
def test_it_is_none_where_the_server_does_not_know_both_factors_of_each_client(layout, split, frozen, kind):
    found, _ = errors(layout, split, frozen, rounds=2, kind=kind)
    assert found[-1] is None
    assert (found[0] is None) == (kind is FedSA), "while all are shared, it is known"
