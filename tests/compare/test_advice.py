"""The rule of an advice on made-up measurements, and one real probe of a tiny model."""

import json
import shlex
from dataclasses import replace
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from fedsa_lora.cli import EXIT_FAILED, main
from fedsa_lora.client import build
from fedsa_lora.compare.advice import ALONE, SOFT, Evidence, Probe, advise
from fedsa_lora.compare.probe import (
    CANDIDATES,
    HELD_OUT,
    YOURS,
    command,
    probe_folder,
    probe_grid,
)
from fedsa_lora.compare.probed import agreement
from fedsa_lora.config.compose import load, read_config
from fedsa_lora.errors import ConfigError
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.learning.adapters import initial_state
from fedsa_lora.report.tables import evidence_table
from fedsa_lora.server.build import skeleton

NOISE = 0.02  # standard error of every difference below, but between equal accuracies
BOTH, FEDIT = "share A and B, own head", "FedIT (share A and B)"


def evidence(agreement: dict[str, float] | None = None, **means: float) -> Evidence:
    """Candidates with these means; each sways by client in a direction of its own, so that the mean
    difference of any two over eight clients has a standard error of 2 points."""
    sway = NOISE * np.sqrt(7 / 2) * _orthogonal_signs(len(CANDIDATES))
    given = {"alone": ALONE, "a": "share A", "b": "share B", "both": BOTH, "fedit": FEDIT, "soft": SOFT}
    probes = {}
    for row, (key, name) in enumerate(given.items()):
        values = means.get(key, 0.5) + sway[row]
        accuracy = {str(client): float(value) for client, value in enumerate(values)}
        probes[name] = Probe(name, CANDIDATES[name], 0.01, accuracy, 1000.0)
    return Evidence(probes, agreement or {})


def _orthogonal_signs(rows: int) -> np.ndarray:
    """Rows of +-1 over eight clients, each with mean zero and orthogonal to the others."""
    two = np.array([[1, 1], [1, -1]])
    return np.kron(np.kron(two, two), two)[1 : rows + 1]


def chosen(found: Evidence) -> str:
    return advise(found).chosen.name


def test_the_made_up_noise_is_what_it_says():
    lead, noise = evidence(soft=0.8, alone=0.5).lead(SOFT, ALONE)
    assert (lead, noise) == pytest.approx((0.3, NOISE))


def test_where_lower_is_better_the_advice_is_that_of_the_opposite_values():
    loss_like = Measure("perplexity", (1.0, 1e6), higher_is_better=False)
    for means in ({"soft": 0.8}, {"soft": 0.8, "fedit": 0.9}, {"alone": 0.8}, {"a": 0.7, "b": 0.71}):
        straight = evidence({"A": 0.5, "B": 0.1}, **means)
        turned = {
            name: replace(probe, values={client: 10 - value for client, value in probe.values.items()})
            for name, probe in straight.probes.items()
        }
        found = advise(replace(straight, probes=turned, measure=loss_like))
        assert found.chosen.name == chosen(straight)
        told = Console(file=StringIO(), width=200)
        told.print(evidence_table(replace(straight, probes=turned, measure=loss_like), found))
        text = " ".join([*found.reasons, told.file.getvalue()])
        assert "points" not in text
        assert "accuracy" not in text
        assert "perplexity on validation examples" in text


def test_soft_stands_unless_another_is_ahead_by_more_than_the_noise():
    assert chosen(evidence(soft=0.8)) == SOFT
    assert chosen(evidence(soft=0.8, fedit=0.8 + 0.9 * NOISE)) == SOFT
    assert chosen(evidence(soft=0.8, fedit=0.8 + 1.1 * NOISE)) == FEDIT
    assert chosen(evidence(soft=0.8, fedit=0.85, both=0.86)) == BOTH


def test_what_is_not_ahead_of_training_alone_by_more_than_the_noise_is_not_worth_sending():
    assert chosen(evidence(soft=0.5 + 0.9 * NOISE)) == ALONE
    assert chosen(evidence(soft=0.5 + 1.1 * NOISE)) == SOFT
    assert chosen(evidence(soft=0.1, both=0.5 + 0.9 * NOISE)) == ALONE
    assert chosen(evidence(soft=0.4, alone=0.9)) == ALONE


def test_between_a_and_b_the_clients_agreement_decides_within_the_noise_alone():
    close = {"soft": 0.6, "a": 0.70, "b": 0.70 + 0.5 * NOISE}
    assert chosen(evidence({"A": 0.3, "B": 0.1}, **close)) == "share A"
    assert chosen(evidence({"A": 0.1, "B": 0.3}, **close)) == "share B"
    clear = {"soft": 0.6, "a": 0.70, "b": 0.70 + 1.5 * NOISE}
    assert chosen(evidence({"A": 0.3, "B": 0.1}, **clear)) == "share B"
    one = {"soft": 0.68, "a": 0.68, "b": 0.68 + 1.5 * NOISE}
    assert chosen(evidence({"A": 0.3, "B": 0.1}, **one)) == "share B", "share A is not ahead of soft"


def test_reasons_tell_lead_noise_harm_agreement_and_what_is_as_good():
    said = " ".join(advise(evidence({"A": 0.25, "B": 0.5}, soft=0.8, both=0.79)).reasons)
    assert "soft gains +30.0 points over training alone, with a noise of 2.0; 0% of the clients" in said
    assert "change A with a mean pairwise cosine of 0.25, B with 0.50: they agree more on B." in said
    assert f"Not better than these by more than the noise: {BOTH}." in said
    alone = " ".join(advise(evidence(soft=0.51)).reasons)
    assert "No candidate is clearly better than training alone: soft gains +1.0 points" in alone


@pytest.mark.parametrize("clients", [1, 2])
def test_one_client_is_never_enough_to_send_anything(clients):
    probes = {
        name: Probe(name, words, 0.01, {str(c): 0.5 + 0.1 * (name == SOFT) for c in range(clients)}, 0.0)
        for name, words in CANDIDATES.items()
    }
    assert chosen(Evidence(probes, {})) == (ALONE if clients == 1 else SOFT)


def test_candidates_share_the_users_words_head_and_rate():
    grid = probe_grid(["experiment=smoke", "head=frozen", "train.lr=0.02"], rounds=2)
    assert grid.rates == [0.02]
    entries = {entry.method: entry.words for entry in grid.entries()}
    assert FEDIT not in entries, "with one head for all it is the same as with own heads"
    assert entries[SOFT] == (
        "experiment=smoke", "train.lr=0.02", "split=soft", "head=frozen", "federation.rounds=2",
    )  # fmt: skip
    free = probe_grid(["experiment=smoke"], rounds=50)
    assert {entry.method for entry in free.entries()} == set(CANDIDATES)
    assert free.entries()[0].words[-1] == "federation.rounds=3", "no more than the run itself"
    whole = [word for entry in probe_grid(["experiment=smoke"]).entries() for word in entry.words]
    assert not any(word.startswith("federation.rounds") for word in whole), "as many as the run itself"
    assert len(free.rates) > 1


def test_examples_are_held_out_where_the_words_set_none_aside():
    grid = probe_grid(["experiment=smoke", "federation.validation_examples=0"], rounds=2)
    assert load(grid.regimes[YOURS]).federation.validation_examples == HELD_OUT


@pytest.mark.parametrize("word", ["split=share_a", "split.B=0.2"])
def test_words_that_choose_a_split_are_refused(word, capsys):
    with pytest.raises(ConfigError, match="advise chooses the split: leave out"):
        probe_grid(["experiment=smoke", word], rounds=2)
    assert main(["advise", "experiment=smoke", word]) == EXIT_FAILED


def test_agreement_is_the_mean_cosine_of_what_clients_changed_alone(run_smoke):
    run = run_smoke("split=local_only", "head=local", "federation.rounds=2", "federation.clients=3")
    config = read_config(run)
    layout = skeleton(config).layout
    initial = initial_state(layout, config.seed)
    states = [build.store(config, str(client)).load().tensors for client in range(3)]
    measured = agreement(run)
    assert measured.keys() == {"A", "B"}
    for role, found in measured.items():
        cosines = []
        for spec in layout:
            if spec.role != role:
                continue
            moved = [(state[spec.name] - initial[spec.name]).ravel().astype(float) for state in states]
            cosines += [
                moved[i] @ moved[j] / np.linalg.norm(moved[i]) / np.linalg.norm(moved[j])
                for i, j in ((0, 1), (0, 2), (1, 2))
            ]
        assert found == pytest.approx(np.mean(cosines), abs=1e-9)
    assert agreement(run_smoke("split=share_a", "federation.rounds=2", "federation.clients=3")) == {}


@pytest.mark.slow
def test_a_real_probe_ends_in_a_command_that_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=smoke", "federation.clients=2", "head=frozen", "train.lr=0.02"]
    assert main(["advise", *words, "--rounds", "1", "--processes", "1"]) == 0
    said = capsys.readouterr().out
    for name in ("local only", "share A", "share B", "soft", "majority class", "ran 1 of 3 rounds"):
        assert name in said
    for fact in ("2 with ", "IidPartitioner", "the same for all", "1 of 3"):
        assert fact in said.split("accuracy on validation examples")[0], "before anything runs"
    [folder] = (tmp_path / "runs").iterdir()
    before = (folder / "runs.jsonl").read_bytes()
    assert main(["advise", *words, "--rounds", "1", "--processes", "1", "--json"]) == 0
    assert (folder / "runs.jsonl").read_bytes() == before, "nothing is made again"
    found = json.loads(capsys.readouterr().out)
    assert len(found["candidates"]) == 5, "with a frozen head two of the six are the same"
    assert (found["folder"], found["chosen"] is None) == (f"runs/{folder.name}", found["command"] is None)
    if found["command"]:  # a random model need not beat the most frequent class
        assert main([*shlex.split(found["command"])[1:], "--dry-run"]) == 0


def test_what_does_not_beat_the_most_frequent_class_is_never_recommended():
    often = {str(client): 0.7 for client in range(8)}
    assert chosen(replace(evidence(soft=0.8), majority=often)) == SOFT
    below = advise(replace(evidence(soft=0.69, a=0.5), majority=often))
    assert below.chosen is None
    assert "None of these beats always predicting the most frequent class" in " ".join(below.reasons)
    assert "train longer" in " ".join(below.reasons)
    close = replace(evidence(alone=0.695, soft=0.695 + 0.9 * NOISE, fedit=0.6), majority=often)
    assert chosen(close) == SOFT, "local only, which is below the majority, is not taken"
    assert "No better than always predicting the most frequent class: local only" in advise(close).reasons[0]


def test_from_fewer_rounds_than_the_runs_local_only_is_not_concluded():
    apart = evidence(alone=0.6, soft=0.55, a=0.54)
    assert chosen(apart) == ALONE
    short = replace(apart, looked=3, rounds=12)
    assert chosen(short) == SOFT
    assert (
        advise(short).reasons[0].startswith("This probe ran 3 of 12 rounds: too few to recommend local only")
    )
    assert chosen(replace(apart, looked=12, rounds=12)) == ALONE


def test_the_command_names_each_key_once_and_survives_a_shell(tmp_path):
    data = tmp_path / "my tickets.csv"
    data.write_text("text,label\n" + "hello,a\ngood bye,b\n" * 300)
    words = ["experiment=smoke", "task=text", f'task.dataset="{data}"', "head=frozen", "train.lr=0.02"]
    words += ["federation.validation_examples=0", "seed=1", "seed=2"]
    grid = probe_grid(words)
    said = shlex.split(command(grid, Probe(SOFT, "split=soft head=frozen", 0.02, {"0": 0.5}, 1.0)))
    assert said[:2] == ["fedsa-lora", "run"]
    keys = [word.partition("=")[0] for word in said[2:]]
    assert len(set(keys)) == len(keys)
    config = load(said[2:])
    assert (config.task.dataset, config.seed, config.train.lr) == (str(data), 2, 0.02)
    assert (config.head.policy, config.federation.validation_examples) == ("frozen", HELD_OUT)


def test_a_folder_of_probes_is_of_the_words_and_the_data(tmp_path):
    data = tmp_path / "rows.csv"
    data.write_text("text,label\n" + "hello,a\ngood bye,b\n" * 300)
    words = ["experiment=smoke", "task=text", f"task.dataset={data}"]
    first = probe_folder(probe_grid(words))
    assert probe_folder(probe_grid(words)) == first
    assert probe_folder(probe_grid([*words, "seed=1"])) != first
    data.write_text("text,label\n" + "hello,a\ngood bye,b\n" * 301)
    assert probe_folder(probe_grid(words)) != first
