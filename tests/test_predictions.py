"""What a model answered stays with its client, and is what its recorded accuracy was counted from."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsa_lora.analysis.reevaluate import reevaluate
from fedsa_lora.config.compose import read_config
from fedsa_lora.errors import StoreError
from fedsa_lora.exchange.witness import matches, private_values
from fedsa_lora.predictions import FILE, Predictions, from_logits, read, write
from fedsa_lora.runs.reading import read_jsonl

NAMES = ("näïve", "b", "c")


def some(count: int = 5) -> Predictions:
    rng = np.random.default_rng(count)
    return from_logits(
        7, NAMES, rng.integers(0, 3, count), (30 * rng.normal(size=(count, 3))).astype(np.float32)
    )


def equal(one: Predictions, two: Predictions) -> bool:
    arrays = [(getattr(p, name) for name in ("labels", "predicted", "probability")) for p in (one, two)]
    same = all(a.dtype == b.dtype and np.array_equal(a, b) for a, b in zip(*arrays, strict=True))
    return same and (one.round, one.names) == (two.round, two.names)


@given(st.integers(1, 20), st.integers(2, 9), st.integers(0, 99))
def test_the_predicted_class_has_the_largest_probability(count, classes, seed):
    logits = 20 * torch.randn(count, classes, generator=torch.Generator().manual_seed(seed))
    found = from_logits(1, NAMES, np.zeros(count, np.int64), logits.numpy())
    probability, predicted = torch.softmax(logits.double(), dim=1).max(dim=1)
    np.testing.assert_array_equal(found.predicted, predicted)
    np.testing.assert_allclose(found.probability, probability, rtol=1e-6)


def test_predictions_come_back_to_the_bit(tmp_path):
    assert read(tmp_path) is None
    for count in (5, 3):
        write(tmp_path, some(count))
        assert equal(read(tmp_path), some(count))
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


def test_a_file_cut_off_is_refused_with_a_remedy(tmp_path):
    path = write(tmp_path, some())
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(StoreError, match="evaluate` writes it again"):
        read(tmp_path)


def test_every_clients_answers_are_those_of_its_last_evaluation(smoke_run):
    task = read_config(smoke_run).task
    evaluations = [row for row in read_jsonl(smoke_run / "clients.jsonl") if row["phase"] == "evaluate"]
    last = {row["client"]: row for row in evaluations}
    for client in "0123":
        found = read(smoke_run / "clients" / client)
        assert (found.labels == found.predicted).mean() == last[client]["accuracy"]
        assert (found.round, found.names) == (last[client]["round"], task.client_labels(client))
        np.testing.assert_array_equal(found.labels, task.load_client(client).test.labels)


def test_no_message_carries_what_was_predicted(smoke_run):
    for client in "0123":
        folder = smoke_run / "clients" / client
        private = private_values([{"probability": read(folder).probability}])
        assert private.size > 3
        messages = [path.read_bytes() for path in (folder / "messages").iterdir()]
        assert [matches(message, private) for message in messages] == [0] * len(messages)


def test_evaluating_again_answers_the_same_and_other_parts_are_not_recorded(smoke_run):
    files = [smoke_run / "clients" / client / FILE for client in "0123"]
    before = [file.read_bytes() for file in files]
    list(reevaluate(smoke_run, "validation"))
    assert [file.read_bytes() for file in files] == before
    for file in files:
        file.unlink()
    list(reevaluate(smoke_run))
    assert [file.read_bytes() for file in files] == before
