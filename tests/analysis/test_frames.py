"""Frames hold what a run wrote, under the true names of classes; similarity is of what clients trained."""

import numpy as np
import pandas as pd
import pytest

from fedsa_lora.analysis.evaluation import evaluate_run
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import FedSAError, RunError
from fedsa_lora.runs import load_run
from fedsa_lora.runs.reading import read_jsonl

KEPT = ("run.keep_trained=true", "run.keep_generations=9", "evaluation.local_only=false")
OWN_WORDS = ("federation.label_meaning=per_client", "head=frozen")


@pytest.fixture(scope="module")
def kept(run_smoke):
    return load_run(run_smoke(*KEPT))


@pytest.fixture(scope="module")
def of_another_seed(run_smoke):
    return load_run(run_smoke(*KEPT, "seed=1"))


@pytest.fixture(scope="module")
def own_words(run_smoke):
    return load_run(run_smoke(*OWN_WORDS))


def test_frames_are_the_rows_of_the_run(smoke_run):
    run = load_run(str(smoke_run))
    for name in ("rounds", "clients"):
        frame, rows = getattr(run, name), read_jsonl(smoke_run / f"{name}.jsonl")
        assert len(frame) == len(rows)
        for key in rows[0]:
            told = frame[key].astype(object).where(frame[key].notna(), None)
            assert told.tolist() == [row.get(key) for row in rows], key
    assert run.config == read_config(smoke_run).resolved
    assert run.summary == run.record.summary


def test_a_loaded_run_is_one_line(smoke_run):
    run = load_run(smoke_run)
    mean = run.summary["personalised"]["mean"]
    assert repr(run) == f"Run({smoke_run}: completed, 3 rounds, 4 clients, accuracy {mean:.3f})"
    assert repr(run.record) == f"RunRecord{repr(run).removeprefix('Run')}"


def test_training_bytes_add_up_to_those_of_the_fits(smoke_run):
    run = load_run(smoke_run)
    fits = run.clients[run.clients["phase"] == "fit"]
    assert run.rounds["training_bytes"].iloc[-1] == (fits["bytes_up"] + fits["bytes_down"]).sum()
    assert run.rounds["training_bytes"].is_monotonic_increasing


def test_outcomes_are_one_row_for_each_client_and_agree_with_the_summary(smoke_run):
    run = load_run(smoke_run)
    found = run.outcomes
    assert list(found.index) == list("0123")
    assert found["personalised"].mean() == pytest.approx(run.summary["personalised"]["mean"])
    assert found["majority"].mean() == pytest.approx(run.summary["majority"]["mean"])
    np.testing.assert_allclose(found["gain"], found["personalised"] - found["local_only"])
    assert found["harmed"].tolist() == (found["gain"] < 0).tolist()
    assert found["harmed"].mean() == run.summary["share_harmed"]
    assert found["union"].isna().all()


def test_what_was_measured_after_the_run_stands_beside_it(own_words):
    found = evaluate_run(own_words.record.directory, union=True, newcomer_steps=1)
    outcomes = load_run(own_words.record.directory).outcomes
    assert outcomes["union"].to_dict() == found["union"]["accuracy"]
    assert outcomes["newcomer"].to_dict() == found["newcomer"]["accuracy"]
    assert outcomes["newcomer_alone"].to_dict() == found["newcomer"]["alone"]
    np.testing.assert_allclose(outcomes["union_gap"], outcomes["personalised"] - outcomes["union"])


@pytest.mark.parametrize("which", ["smoke_run", "own_words"])
def test_predictions_give_the_accuracy_of_each_client_under_true_names(which, request):
    run = request.getfixturevalue(which)
    run = run if which == "own_words" else load_run(run)
    by_client = run.predictions.groupby("client")["correct"].mean()
    pd.testing.assert_series_equal(by_client, run.outcomes["personalised"], check_names=False)
    task, found = run.settings.task, run.predictions
    assert ((found["label"] == found["predicted"]) == found["correct"]).all()
    assert found["probability"].between(1 / 7, 1).all()
    for client in "0123":
        numbers = (task.data.test or task.data.train).labels[task.split.clients[client].test]
        true = [task.labels()[n] for n in numbers]
        assert found[found["client"] == client]["label"].tolist() == true


def test_a_confusion_counts_every_example_once(own_words):
    whole, found = own_words.confusion(), own_words.predictions
    assert whole.to_numpy().sum() == len(found)
    assert np.trace(whole) / len(found) == pytest.approx(own_words.summary["personalised"]["weighted"])
    pd.testing.assert_frame_equal(whole, sum(own_words.confusion(client) for client in "0123"))
    held = found["label"].value_counts()
    assert whole.sum(axis=1)[held.index].tolist() == held.tolist()
    with pytest.raises(RunError, match="no predictions of client '9'"):
        own_words.confusion("9")


def test_without_the_folders_of_the_clients_there_are_no_predictions(run_smoke, tmp_path):
    run = run_smoke("federation.rounds=1", "evaluation.local_only=false")
    (run / "clients").rename(tmp_path / "elsewhere")
    found = load_run(run).predictions
    assert len(found) == 0
    assert "correct" in found.columns


def test_each_round_and_factor_of_each_layer_is_compared(kept):
    found = kept.similarity()
    assert sorted(found["round"].unique()) == [1, 2, 3]
    assert len(found) == 3 * 4 * 2
    assert found["chance"].unique() == pytest.approx([8 / 32])
    assert found["cosine"].between(-1, 1).all()
    assert found["overlap"].between(0, 1 + 1e-9).all()
    of_b = found[found["factor"] == "B"]
    np.testing.assert_allclose(of_b["cosine"], of_b["cosine_learned"])  # B starts at zero


def test_clients_that_start_from_one_a_stay_close_to_it_and_those_of_another_seed_do_not(
    kept, of_another_seed
):
    same, control = (
        frame[frame["factor"] == "A"] for frame in (kept.similarity(), kept.similarity(of_another_seed))
    )
    assert (same["cosine"] > 0.5).all()
    assert control["cosine"].abs().max() < 0.2
    assert (same["cosine_learned"] < same["cosine"]).all()
    assert len(control) == len(same)


def test_pairs_of_a_run_with_itself_are_its_own_and_each_client_with_itself(kept):
    within, squared = kept.similarity(), kept.similarity(kept)
    for measure in ("cosine", "cosine_learned", "overlap"):
        np.testing.assert_allclose(squared[measure], (4 + 12 * within[measure]) / 16, atol=1e-6)


def test_what_is_shared_and_was_not_kept_cannot_be_compared(smoke_run):
    with pytest.raises(
        RunError, match=r"has no record of its locally trained .*lora_A.* run\.keep_trained=true"
    ):
        load_run(smoke_run).similarity()


def test_what_is_local_needs_no_keeping(run_smoke):
    run = load_run(run_smoke("split=local_only", "federation.rounds=1", "evaluation.local_only=false"))
    assert set(run.similarity()["factor"]) == {"A", "B"}


def test_what_nobody_trains_is_not_compared_and_vectors_span_no_space(run_smoke, kept):
    brief = ("federation.rounds=1", "evaluation.local_only=false", "run.keep_trained=true")
    assert set(load_run(run_smoke("split=ffa", *brief)).similarity()["factor"]) == {"B"}
    vectors = load_run(run_smoke("lora=vera", *brief))
    assert vectors.similarity()["overlap"].isna().all()
    assert vectors.similarity()["cosine"].notna().any()
    with pytest.raises(RunError, match="differ in names or shapes"):
        vectors.similarity(kept)


def test_a_directory_that_is_no_run_is_named(tmp_path):
    with pytest.raises(FedSAError, match="nowhere"):
        load_run(tmp_path / "nowhere")
