"""Requests of the strategy of unlearning to each client; no optimizer carries one phase into the next."""

import numpy as np
import pytest
from flwr.common import ndarrays_to_parameters
from flwr.server.strategy import FedAdagrad, FedAdam, FedAvg, FedAvgM, FedProx, FedYogi
from server_side import EVERYONE, LAYOUT, Server, some_updates

from fedsa_lora.errors import RunError
from fedsa_lora.exchange.wire import REQUEST
from fedsa_lora.phases import Asked, Phases
from strategies.unlearning import Unlearning

START = ndarrays_to_parameters([np.arange(LAYOUT.size, dtype=np.float32)])
STRATEGIES = {
    "FedAvg": lambda: FedAvg(**EVERYONE),
    "FedAvgM": lambda: FedAvgM(server_momentum=0.9, initial_parameters=START, **EVERYONE),
    "FedAdagrad": lambda: FedAdagrad(initial_parameters=START, **EVERYONE),
    "FedAdam": lambda: FedAdam(initial_parameters=START, **EVERYONE),
    "FedYogi": lambda: FedYogi(initial_parameters=START, **EVERYONE),
    "FedProx": lambda: FedProx(proximal_mu=0.5, **EVERYONE),
}
PHASES = Phases(learn=2, unlearn=2, recover=1, targets=frozenset({"1"}))


def unlearning(inner, phases=PHASES, **arguments) -> Server:
    server = Server(inner=inner, **arguments)
    names = {proxy.cid: name for name, proxy in server.nodes.items()}
    server.strategy.inner = Unlearning(inner, phases, lambda proxy: names[proxy.cid])
    server.strategy.__init__(
        server.strategy.inner,
        LAYOUT,
        server.start,
        split=server.strategy.split,
        roster=server.strategy.roster,
        evaluation=server.strategy.evaluation,
        recorder=server.notes,
    )
    return server


def words(asked) -> dict[str, str | None]:
    return {client: ins.config.get(REQUEST) for client, ins in asked.items()}


def test_the_phases_follow_each_other():
    assert [PHASES.of(n) for n in range(1, 7)] == ["learn"] * 2 + ["unlearn"] * 2 + ["recover"] * 2
    assert [n for n in range(1, 7) if PHASES.begins(n)] == [3, 5]
    assert Phases(unlearn=1, targets=frozenset({"0"})).of(1) == "unlearn"
    assert not any(Phases().begins(n) for n in range(1, 9))


@pytest.mark.parametrize("name", STRATEGIES)
def test_every_strategy_is_asked_for_its_clients_part_in_each_phase(name):
    server = unlearning(STRATEGIES[name]())
    nobody = dict.fromkeys("012")
    expected = {
        1: nobody,
        3: {"0": Asked.STILL, "1": Asked.FORGET, "2": Asked.STILL},
        5: {**nobody, "1": Asked.RETAIN},
    }
    for round_, asked in expected.items():
        assert words(server.ask(round_)) == asked
    if name == "FedProx":  # what the strategy within says is said as well
        assert all(ins.config["proximal_mu"] == 0.5 for ins in server.ask(3).values())


def test_others_may_train_on_while_targets_unlearn():
    phases = Phases(1, 1, 0, frozenset({"1"}), others="train")
    assert words(unlearning(FedAvg(**EVERYONE), phases).ask(2)) == {"0": None, "1": Asked.FORGET, "2": None}


def test_targets_of_the_retrained_reference_never_see_what_is_to_be_forgotten():
    phases = Phases(targets=frozenset({"1"}), forgotten=True)
    server = unlearning(FedAvg(**EVERYONE), phases)
    for round_ in (1, 4, 9):
        assert words(server.ask(round_)) == {"0": None, "1": Asked.RETAIN, "2": None}


def test_a_target_takes_part_in_unlearning_whether_it_is_sampled_or_not():
    some = FedAvg(fraction_fit=0.34, **EVERYONE)
    server = unlearning(some, Phases(0, 40, 0, frozenset({"1"})))
    asked = [words(server.ask(round_)) for round_ in range(1, 9)]
    assert all(found["1"] == Asked.FORGET for found in asked)
    assert {len(found) for found in asked} == {1, 2}


@pytest.mark.parametrize("name", ["FedAvgM", "FedAdagrad", "FedAdam", "FedYogi"])
def test_a_phase_begins_as_if_the_server_optimizer_had_seen_no_other(name):
    """Whatever was learned before, the first round of unlearning makes the same step from the same values."""

    def step(learned: float) -> np.ndarray:
        server = unlearning(STRATEGIES[name]())
        updates = dict(zip("012", some_updates(), strict=True))
        for round_ in (1, 2):
            server.play(round_, {client: learned * update for client, update in updates.items()})
        before = server.strategy.common.copy()
        server.play(3, updates)
        return server.strategy.common - before

    assert np.allclose(step(1.0), step(-2.0), atol=2e-6)
    assert np.abs(step(1.0)).max() > 1e-4


def test_a_loss_below_0_is_believed_of_a_run_that_unlearns_alone():
    updates = dict(zip("012", some_updates(), strict=True))
    server = unlearning(FedAvg(**EVERYONE))
    server.play(1, updates, report={"loss": -3.0})
    assert [row["loss"] for row in server.notes.clients] == [-3.0] * 3
    with pytest.raises(RunError, match="reports 'loss' of -3"):
        Server().play(1, updates, report={"loss": -3.0})
