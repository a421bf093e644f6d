"""Whole runs whose clients are trained and measured over flat tokens, beside the same runs without."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from test_methods import BRIEF, everything, rows

from fedsa_lora.client.workbench import Workbench
from fedsa_lora.learning.cohort import Cohort

SGD = ("train=sgd", "train.lr=0.05", "train.steps=3", "train.batch_size=4", "evaluation.before=true")


@pytest.mark.parametrize(
    "words",
    [
        ("split=importance", "personalisation=ditto"),
        pytest.param(("split=share_ab", "head=shared", "codec=topk"), marks=pytest.mark.slow),
        pytest.param(("split=soft", "head=soft", "strategy=fedprox"), marks=pytest.mark.slow),
    ],
    ids=lambda words: words[0],
)
def test_a_run_is_the_same_up_to_rounding(run_smoke, monkeypatch, words):
    alone = run_smoke(*BRIEF, *SGD, *words)
    monkeypatch.setattr(Workbench, "trainer", property(lambda bench: Cohort(bench.model, bench.task, 4)))
    flat = run_smoke(*BRIEF, *SGD, *words)
    found, expected = everything(flat), everything(alone)
    for owner, tensors in expected.items():
        assert found[owner].keys() == tensors.keys()
        for name, array in tensors.items():
            assert_allclose(found[owner][name], array, rtol=0, atol=5e-5, err_msg=f"{owner} {name}")
    for one, other in zip(rows(alone, "clients"), rows(flat, "clients"), strict=True):
        assert one.keys() == other.keys()
        assert np.isclose(one.get("loss", 0), other.get("loss", 0), atol=5e-5)
        assert one.get("upload_bytes") == other.get("upload_bytes")
