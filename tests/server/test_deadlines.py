"""The deadline of each phase of a run: one for training, one for evaluation, and in the last evaluation one
more for each round that every client then also trains alone."""

import pytest

from fedsa_lora import server_app
from fedsa_lora.runs.inprocess import run_in_process


def deadlines(tmp_path, monkeypatch, *words: str) -> list[tuple[str, int, float | None]]:
    """(phase, round, seconds) of every phase of a run of three rounds."""
    seen = []

    class Noting(server_app.Collection):
        def __init__(self, phase, round_, name_of, *, seconds, **arguments):
            seen.append(("fit" if phase is server_app.FIT else "evaluate", round_, seconds))
            super().__init__(phase, round_, name_of, seconds=seconds, **arguments)

    monkeypatch.setattr(server_app, "Collection", Noting)
    asked = ["experiment=smoke", "federation.clients=2", "federation.rounds=3", "run.report=false", *words]
    run_in_process([*asked, f"run.dir={tmp_path / 'run'}"])
    return seen


@pytest.mark.parametrize(("alone", "last"), [("true", 4 * 500.0), ("false", 500.0)])
def test_the_last_evaluation_has_a_deadline_more_for_each_round_that_clients_train_alone(
    tmp_path, monkeypatch, alone, last
):
    words = ("federation.round_timeout=500", f"evaluation.local_only={alone}")
    seen = deadlines(tmp_path, monkeypatch, *words)
    assert [row for row in seen if row[0] == "fit"] == [("fit", round_, 500.0) for round_ in (1, 2, 3)]
    measured = [row for row in seen if row[0] == "evaluate"]
    assert measured == [("evaluate", 1, 500.0), ("evaluate", 2, 500.0), ("evaluate", 3, last)]
