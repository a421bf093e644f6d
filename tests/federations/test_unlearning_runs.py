"""Whole runs that learn, unlearn and recover: each client does what it is asked for, and nothing else."""

import json

import numpy as np
import pytest
from test_methods import checkpoint, rows, states
from test_resume import assert_same_run, broken

from fedsa_lora.analysis import relearning
from fedsa_lora.analysis.unlearning import Views, evaluate_unlearning
from fedsa_lora.client.personal import PHASE
from fedsa_lora.config.compose import load
from fedsa_lora.errors import ConfigError, ModelError, RunError, TrainingError
from fedsa_lora.learning.unlearners import NPO
from fedsa_lora.report.forgotten import unlearning_lines
from fedsa_lora.report.page import render
from fedsa_lora.runs.inprocess import run_in_process
from fedsa_lora.runs.reading import UNLEARNING, read_run
from fedsa_lora.tasks.tofu import FORGET

FEW = (
    "forget_split=forget01", "retain_split=forget05", "holdout_split=holdout01",
    "task.beside=null", "task.utility=null", "federation.clients=3", "train.steps=2", "train.batch_size=8",
    "run.keep_generations=9",
    "evaluation.every=9", "evaluation.before=false", "lora.dropout=0", "run.report=false",
)  # fmt: skip
PHASED = ("unlearning.learn=2", "unlearning.unlearn=2", "unlearning.recover=1", "federation.rounds=5")
SHORT = (*PHASED, "unlearning.steps=2")
BASE = ("experiment=unlearn/authors", *FEW)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run is made once for the same words."""
    made = {}

    def of(*words):
        if words not in made:
            made[words] = tmp_path_factory.mktemp("run") / "run"
            run_in_process([*BASE, *words, f"run.dir={made[words]}"])
        return made[words]

    return of


@pytest.fixture(scope="module")
def npo(run):
    return run("unlearning=npo", *SHORT)


def fits(path) -> dict[tuple[int, str], dict]:
    return {(row["round"], row["client"]): row for row in rows(path, "clients") if row["phase"] == "fit"}


def test_in_a_round_of_unlearning_the_target_trains_and_the_others_stay_as_they_are(npo):
    found = fits(npo)
    for round_ in (3, 4):
        assert found[round_, "0"]["steps"] == 2
        assert rows(npo)[round_ - 1]["loss"] == pytest.approx(found[round_, "0"]["loss"])
        for client in "12":
            row = found[round_, client]
            assert row["steps"] == 0
            assert row["private_before"] == row["private_after"]
    assert all(found[round_, client]["steps"] == 2 for round_ in (1, 2, 5) for client in "012")


def test_what_is_read_off_the_model_when_a_phase_begins_is_kept_for_the_phase_and_no_longer(npo):
    from fedsa_lora.client import build
    from fedsa_lora.config.compose import read_config

    store = build.store(read_config(npo), "0")
    kept, reference = {}, f"{PHASE}NPO-2/reference"
    for round_ in range(1, 6):
        memory = store.load(round_).memory
        kept[round_] = {name: array for name, array in memory.items() if name.startswith(PHASE)}
    assert [sorted(kept[round_]) for round_ in kept] == [
        [],
        [],
        [reference],
        [reference],
        [],
    ]
    assert np.array_equal(kept[3][reference], kept[4][reference])


@pytest.mark.sampled(3)
@pytest.mark.parametrize("round_", [3, 4, 5])
def test_a_run_that_is_resumed_in_any_phase_has_the_bits_of_one_that_was_not_interrupted(
    npo, tmp_path, monkeypatch, round_
):
    asked = [*BASE, "unlearning=npo", *SHORT, f"run.dir={tmp_path / 'run'}"]
    broken(monkeypatch, asked, "aggregate_fit", round_)
    run_in_process([*asked, "run.resume=true"])
    assert_same_run(tmp_path / "run", npo)


@pytest.mark.slow
def test_the_retrained_reference_does_not_depend_on_what_is_to_be_forgotten(run):
    words = ("unlearning=retrain", "federation.rounds=2")
    one, two = run(*words), run(*words, "forget_split=holdout01")
    assert all(np.array_equal(a, checkpoint(two).tensors[n]) for n, a in checkpoint(one).tensors.items())
    for client, state in states(one).items():
        assert all(np.array_equal(a, states(two)[client].tensors[n]) for n, a in state.tensors.items())


@pytest.mark.slow
def test_a_target_that_drops_its_b_starts_again_from_the_common_one_and_a_stays(run):
    path = run("unlearning=drop_b", "unlearning.learn=2", "unlearning.recover=0", "federation.rounds=3")
    assert all(
        np.array_equal(a, checkpoint(path, 2).tensors[n]) for n, a in checkpoint(path, 3).tensors.items()
    )
    assert not any(array.any() for array in states(path)["0"].tensors.values())
    assert any(array.any() for array in states(path)["1"].tensors.values())
    assert json.loads((path / "summary.json").read_text())["proof"]["chain_breaks"] == 0


@pytest.mark.slow
def test_b_alone_can_unlearn_and_a_stays(run):
    words = (
        "unlearning=grad_diff",
        "unlearning.only_local=true",
        "unlearning.recover=0",
        "unlearning.unlearn=1",
    )
    path = run(*words, "unlearning.learn=2", "federation.rounds=3", "unlearning.steps=2")
    before, after = checkpoint(path, 2).tensors, checkpoint(path, 3).tensors
    assert all(np.abs(array - after[name]).max() < 1e-6 for name, array in before.items())
    assert fits(path)[3, "0"]["private_before"] != fits(path)[3, "0"]["private_after"]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["grad_ascent", "simnpo", "dpo", "rmu"])
def test_every_method_runs_in_every_phase(run, method):
    path = run(f"unlearning={method}", *SHORT)
    assert [row["fit_clients"] for row in rows(path)] == [3] * 5


def test_what_was_forgotten_is_measured_in_three_views(npo, monkeypatch):
    monkeypatch.setattr(relearning, "STEPS", (1, 2))
    found = evaluate_unlearning(npo)
    assert json.loads((npo / UNLEARNING).read_text()) == found
    assert set(found["others"]) == {"1", "2"}
    assert found["facts"] == {"forget": 4, "retain": 20}
    assert set(found["shared"]) == {"without_b", "mean_b"}
    target = found["targets"]["0"]
    for facts in ("forget", "retain"):
        assert target[facts]["probability"] <= np.exp(-target[facts]["nll"]) + 0.5
        assert 0 <= target[facts]["rouge_l_recall"] <= 1
    assert all([*by_steps] == ["1", "2"] for by_steps in found["relearning"].values())
    page = render(read_run(npo))
    assert "<h2>Unlearning</h2>" in page
    assert all(title in page for title, _ in unlearning_lines(found))
    with pytest.raises(RunError, match="not a reference"):
        evaluate_unlearning(npo, npo)


def test_either_half_of_the_facts_is_relearned_in_turn(npo, monkeypatch):
    from fedsa_lora.client import build
    from fedsa_lora.client.model import ClientModel
    from fedsa_lora.config.compose import read_config

    monkeypatch.setattr(relearning, "STEPS", (2, 8))
    views = Views(npo, read_config(npo))
    served = ClientModel("0", views.bench, build.store(views.config, "0"))
    facts = views.task.load_client("0").train
    facts = facts.at(np.flatnonzero(facts.labels == FORGET))
    found = relearning.relearned(served, facts, views.shared, {})
    swapped = facts.at(np.arange(len(facts)) ^ 1)  # neighbours, so that the halves are each other's
    assert len(facts) % 2 == 0
    assert relearning.relearned(served, swapped, views.shared, {}) == found
    assert found["8"]["seen"] < min(found["8"]["unseen"], found["2"]["seen"])


def test_a_round_of_unlearning_without_its_target_ends_the_run_which_can_be_resumed(
    run, tmp_path, monkeypatch
):
    asked = [*BASE, "unlearning=npo", *SHORT, f"run.dir={tmp_path / 'run'}", "federation.min_results=0.5"]
    with monkeypatch.context() as patch:

        def fails(self, request):
            raise TrainingError("out of memory")
            yield

        patch.setattr(NPO, "forget", fails)
        with pytest.raises(RunError, match=r"is incomplete without the answer of \['0'\]"):
            run_in_process(asked)
    run_in_process([*asked, "run.resume=true"])
    assert [row["fit_clients"] for row in rows(tmp_path / "run")] == [3] * 5


def test_facts_are_counted_once_in_the_mean_of_those_that_are_kept(npo):
    found = fits(npo)
    assert [found[round_, "0"]["examples"] for round_ in (2, 3, 5)] == [11, 11, 7]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("unlearning=npo", "federation.rounds=9"), "federation.rounds=6"),
        (("unlearning=drop_b", "split=share_ab"), "the target has no local B"),
        (("unlearning=npo", "personalisation=finetune"), "personalisation=none"),
        (("unlearning=npo", "strategy=krum"), "does not take the mean"),
        (("unlearning=npo", "codec=topk"), "sends later"),
        (("unlearning=npo", "unlearning.targets=[7]"), "7"),
        (("unlearning=npo", "task.targets=[1]"), "expected the same clients"),
        (("unlearning=npo", "unlearning.targets=[0,0]"), "each client once"),
        (("unlearning=npo", "unlearning.only_local=true", "split=share_ab"), "all that is trained is shared"),
    ],
)
def test_what_does_not_go_together_is_refused_with_a_way_out(words, told):
    with pytest.raises(ConfigError, match=told):
        load(["experiment=unlearn/authors", *words])


def test_a_block_that_the_model_has_not_is_refused_before_anything_runs(tmp_path):
    with pytest.raises(ModelError, match="the model has 5 blocks"):
        run_in_process([*BASE, "unlearning=rmu", "unlearning.layer=5", f"run.dir={tmp_path / 'run'}"])


def test_a_task_that_does_not_know_what_is_to_be_forgotten_is_refused():
    with pytest.raises(ConfigError, match="defines what to forget"):
        load(["unlearning=npo"])


def test_the_words_of_the_document_are_taken_and_its_name_must_be_given():
    words = ["experiment=unlearn/tofu/default", "forget_split=forget05", "retain_split=retain95"]
    config = load([*words, "task_name=fed_lora_unlearn"])
    assert (config.name, config.task.forget_split, config.task.retain_split) == (
        "fed_lora_unlearn",
        "forget05",
        "retain95",
    )
    with pytest.raises(ConfigError, match=r"(?s)task_name: missing.*train.lrr: no such key"):
        load([*words, "train.lrr=1"])
    with pytest.raises(ConfigError, match="forget_split: no such key"):
        load(["forget_split=forget05"])
