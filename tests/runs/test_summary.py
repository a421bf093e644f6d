"""The figures of a summary, by hand, and the proof that it states."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from fedsa_lora.config.compose import load
from fedsa_lora.exchange.measure import CLASSES
from fedsa_lora.report.wording import left_out, of_clients, reached
from fedsa_lora.runs import measures
from fedsa_lora.runs.summary import over_clients, parameter_counts, proof, summarise
from fedsa_lora.server.build import skeleton
from fedsa_lora.settings import RunConfig

CLIENTS = ("0", "1", "2")
EXAMPLES = {"0": 10, "1": 20, "2": 70}
ACCURACY = {"0": 0.5, "1": 0.75, "2": 1.0}
ALONE = {"0": 0.25, "1": 0.8, "2": 0.9}


def write(path: Path, rows: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def fit(round_: int, client: str, **changes) -> dict:
    """A fit that starts from where the same client ended the round before."""
    before, after = (f"{client}-{r}" for r in (round_ - 1, round_))
    row = {"phase": "fit", "round": round_, "client": client, "examples": EXAMPLES[client]}
    row |= {"bytes_up": 1000, "bytes_down": 500, "measured": EXAMPLES[client]}
    return row | {"private_before": before, "private_after": after, "accuracy_before": 0.1 * round_} | changes


def evaluated(round_: int, client: str, **changes) -> dict:
    row = {"phase": "evaluate", "round": round_, "client": client, "examples": EXAMPLES[client]}
    row |= {"measured": EXAMPLES[client]}
    return row | {"accuracy": ACCURACY[client] if round_ == 2 else 0.0, "majority": 0.2, **changes}


def rounds_of(clients=CLIENTS) -> list[dict]:
    return [fit(r, c) for r in (1, 2) for c in clients]


def written_run(folder: Path, *overrides: str, **last) -> RunConfig:
    """A run of two rounds by three clients; ``last`` goes into the last round's evaluations."""
    config = load(["experiment=smoke", "federation.clients=3", *overrides, f"run.dir={folder}"])
    rounds = [{"round": r, "bytes_up": 3000, "bytes_down": 5000 * r, "seconds": 1.5} for r in (1, 2)]
    for row, accuracy in zip(rounds, (0.0, 0.75), strict=True):
        row |= {"accuracy": accuracy, "fit_seconds": 1.25}
    rounds[0]["aggregation_error"], rounds[1]["aggregation_error"] = (
        0.25,
        None,
    )  # the newest that was measured
    extra = {c: {name: values[c] for name, values in last.items()} for c in CLIENTS}
    rows = rounds_of() + [evaluated(1, c, local_only=0.0) for c in CLIENTS]
    write(folder / "rounds.jsonl", rounds)
    write(folder / "clients.jsonl", rows + [evaluated(2, c, **extra[c]) for c in CLIENTS])
    return config


def summary_of(config: RunConfig) -> dict:
    return summarise(config, config.run_dir, skeleton(config))


def test_the_summary_by_hand(tmp_path):
    config = written_run(tmp_path, local_only=ALONE)
    found = summary_of(config)
    assert found["personalised"] == {
        "clients": 3,
        "mean": pytest.approx(0.75),
        "weighted": pytest.approx((0.5 * 10 + 0.75 * 20 + 1.0 * 70) / 100),
        "std": pytest.approx((2 * 0.25**2 / 3) ** 0.5),
        "worst": 0.5,
        "worst_client": "0",
        "worst_tenth": 0.5,
        "deciles": pytest.approx([0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]),
        "jain": pytest.approx(2.25**2 / (3 * (0.25 + 0.5625 + 1))),
        "entropy": pytest.approx(measures.spread(ACCURACY).entropy),
    }
    assert found["local_only"]["mean"] == pytest.approx(0.65)
    assert found["gain_over_local"] == pytest.approx(0.1)
    assert found["gain_over_majority"] == pytest.approx(0.55)
    assert (found["clients_harmed"], found["share_harmed"]) == (1, pytest.approx(1 / 3))
    assert found["before_aggregation"]["mean"] == pytest.approx(0.2)
    assert found["majority"]["weighted"] == pytest.approx(0.2)
    assert found["global"] is None
    assert (found["rounds"], found["clients"], found["seconds"]) == (2, 3, 3.0)
    assert (found["bytes_up"], found["bytes_down"]) == (6000, 15_000)
    assert found["bytes_up_per_client_round"] == 1000
    assert found["split"] == {"A": "shared", "B": "local", "head": "local", "base": "frozen"}
    assert found["codec"] == "dense fp32"
    assert found["aggregation_error"] == 0.25
    assert json.loads(json.dumps(found)) == found


def test_without_a_reference_there_is_no_gain(tmp_path):
    found = summary_of(written_run(tmp_path))
    nothing = [
        found[k] for k in ("local_only", "gain_over_local", "clients_harmed", "share_harmed", "target")
    ]
    assert nothing == [None] * 5
    assert found["gain_over_majority"] == pytest.approx(0.55)


def test_before_aggregation_is_weighted_by_the_test_examples_as_all_else(tmp_path):
    config = written_run(tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "clients.jsonl").read_text().splitlines()]
    before = {"0": 0.0, "1": 0.5, "2": 1.0}
    fits = [
        row | {"examples": 1, "accuracy_before": before[row["client"]]} if row["phase"] == "fit" else row
        for row in rows
    ]
    write(tmp_path / "clients.jsonl", fits)
    found = summary_of(config)["before_aggregation"]
    assert found["mean"] == pytest.approx(0.5)
    assert found["weighted"] == pytest.approx((0.5 * 20 + 1.0 * 70) / 100)


def test_the_gain_has_the_paired_interval_of_the_clients_that_have_both(tmp_path):
    found = summary_of(written_run(tmp_path, local_only=ALONE))
    gains = [ACCURACY[client] - ALONE[client] for client in CLIENTS]
    assert found["gain_interval"] == pytest.approx(
        stats.t.interval(0.95, 2, np.mean(gains), stats.sem(gains))
    )
    assert found["clients_compared"] == 3
    assert summary_of(written_run(tmp_path))["gain_interval"] is None


def test_who_could_not_be_measured_is_in_no_mean_and_is_named(tmp_path):
    config = written_run(tmp_path, local_only=ALONE)
    rows = [json.loads(line) for line in (tmp_path / "clients.jsonl").read_text().splitlines()]
    measured = ("accuracy", "majority", "local_only", "accuracy_before")
    lone = [
        {k: v for k, v in row.items() if k not in measured} | {"measured": 0} if row["client"] == "1" else row
        for row in rows
    ]
    write(
        tmp_path / "clients.jsonl",
        [row for row in lone if (row["phase"], row["client"]) != ("evaluate", "2")],
    )
    found = summary_of(config)
    assert (found["clients"], found["measured"], found["unmeasured"], found["part"]) == (3, 1, ["1"], "test")
    assert found["personalised"]["clients"] == found["local_only"]["clients"] == 1
    assert found["before_aggregation"]["clients"] == 2
    assert (found["gain_over_local"], found["gain_interval"], found["clients_compared"]) == (0.25, None, 1)
    assert left_out(found) == [
        "1 client without test examples took part like the others and could not be measured: 1.",
        "1 client did not answer the last evaluation.",
    ]
    assert of_clients(found) == ", 1 of 3 clients"
    assert [row.model for row in reached(found, CLASSES[0])][:2] == [
        "federated, personalised",
        "federated, before aggregation (2 clients)",
    ]


def test_a_target_is_reached_with_what_training_took_until_then(tmp_path):
    # 0.65 is first reached in round 2; 3 clients send 1000 up and are sent 500 in each round
    found = summary_of(written_run(tmp_path, local_only=ALONE))["target"]
    assert found == {"accuracy": pytest.approx(0.65), "rounds": 2, "bytes": 2 * 3 * 1500, "seconds": 2.5}


def test_a_target_that_was_never_reached_took_nothing(tmp_path):
    found = summary_of(written_run(tmp_path, local_only=dict.fromkeys(CLIENTS, 0.9)))["target"]
    assert found == {"accuracy": pytest.approx(0.9), "rounds": None, "bytes": None, "seconds": None}


def test_a_global_model_is_summed_up_where_there_is_one(tmp_path):
    found = summary_of(written_run(tmp_path, "head=shared", global_accuracy=ALONE))
    assert found["global"]["worst"] == 0.25


@pytest.mark.sampled(4)
@pytest.mark.parametrize("head", ["local", "shared", "frozen", "soft"])
@pytest.mark.parametrize("split", ["share_a", "share_ab", "soft", "alternate", "local_only"])
def test_what_both_factors_would_have_cost_is_told_whatever_was_shared(tmp_path, split, head):
    found = summary_of(written_run(tmp_path, f"split={split}", f"head={head}"))
    counts = found["parameters"]
    heads = counts["head"] if head in ("shared", "soft") else 0
    assert found["bytes_up_share_ab"] == 4 * (counts["A"] + counts["B"] + heads)
    assert counts["A"] == counts["B"] > 0


def test_parameters_by_role_are_those_of_the_model(tmp_path):
    config = load(["experiment=smoke", "head=shared"])
    counts = parameter_counts(config, skeleton(config))
    assert counts["A"] == counts["B"] == 2 * 2 * 8 * 32
    assert counts["head"] == 7 * 32 + 7
    assert counts["shared"] == counts["A"] + counts["head"]


@settings(max_examples=60, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.floats(0, 1), st.integers(1, 99)), min_size=1),
    st.randoms(),
)
def test_over_clients_is_bounded_by_its_worst_and_blind_to_order(values, random):
    rows = [{"client": c, "accuracy": a, "measured": n} for c, (a, n) in values.items()]
    found = over_clients(rows, "accuracy")
    accuracies = [a for a, _ in values.values()]
    assert found["worst"] == min(accuracies) == values[found["worst_client"]][0]
    for key in ("mean", "weighted"):
        assert found["worst"] - 1e-9 <= found[key] <= max(accuracies) + 1e-9
    assert found["mean"] == pytest.approx(sum(accuracies) / len(accuracies))
    random.shuffle(rows)
    shuffled = over_clients(rows, "accuracy")
    assert shuffled["mean"] == pytest.approx(found["mean"])
    assert shuffled["weighted"] == pytest.approx(found["weighted"])


def test_rows_without_the_value_do_not_count():
    rows = [{"client": "0", "measured": 1, "accuracy": 1.0}, {"client": "1", "measured": 9, "accuracy": None}]
    assert over_clients(rows, "accuracy")["weighted"] == 1.0
    assert over_clients(rows, "local_only") is None
    assert over_clients([], "accuracy") is None


def test_an_unbroken_chain_of_private_states_is_one(tmp_path):
    found = proof(tmp_path, rounds_of()[::-1])
    assert found["chain_breaks"] == 0
    assert found["distinct_b"] is True


@pytest.mark.parametrize("start", ["1-1", "", "0-0"])
def test_a_fit_from_anothers_or_an_older_state_breaks_the_chain(tmp_path, start):
    fits = [
        fit(2, "0", private_before=start) if (r["round"], r["client"]) == (2, "0") else r for r in rounds_of()
    ]
    assert proof(tmp_path, fits)["chain_breaks"] == 1


def test_a_round_without_a_client_does_not_break_its_chain(tmp_path):
    fits = [fit(1, "0"), fit(1, "1"), fit(2, "1"), fit(3, "0", private_before="0-1"), fit(3, "1")]
    assert proof(tmp_path, fits)["chain_breaks"] == 0


def test_two_clients_that_end_with_the_same_private_state_are_not_distinct(tmp_path):
    fits = [*rounds_of(), fit(3, "0", private_after="same"), fit(3, "1", private_after="same")]
    assert proof(tmp_path, fits)["distinct_b"] is False
    assert proof(tmp_path, [*fits, fit(4, "1", private_before="same")])["distinct_b"] is True


def test_the_searches_of_all_clients_are_added_up(tmp_path):
    def search(private: int, matches: int) -> dict:
        return {"bytes": 100, "private_values": private, "matches": matches}

    write(tmp_path / "0" / "egress.jsonl", [search(5, 0), search(9, 2)])
    write(tmp_path / "1" / "egress.jsonl", [search(7, 1)])
    found = proof(tmp_path, rounds_of())
    assert (found["messages"], found["bytes_searched"]) == (3, 300)
    assert (found["private_values"], found["matches"]) == (9, 3)
    nothing = proof(tmp_path / "elsewhere", rounds_of())
    assert (nothing["messages"], nothing["private_values"], nothing["matches"]) == (0, 0, 0)
