"""Who was not there, in words."""

import json

import pytest
from synthetic_run import write_run

from fedsa_lora.report.account import absences, naming, rounds_of
from fedsa_lora.report.page import render
from fedsa_lora.runs.outcomes import client_outcomes
from fedsa_lora.runs.reading import read_run


@pytest.mark.parametrize(
    ("numbers", "words"),
    [([3], "round 3"), ([1, 2], "rounds 1 to 2"), ([1, 2, 3, 7, 9, 10], "rounds 1 to 3, 7 and 9 to 10")],
)
def test_rounds_are_told_as_spans(numbers, words):
    assert rounds_of(numbers) == words


def lost(client):
    return {"client": client, "kind": "lost", "reason": "gone"}


def test_nothing_is_told_of_a_run_in_which_everybody_was_there():
    rounds = [{"round": n, "present": 4, "excluded": [], "skipped": False} for n in (1, 2)]
    assert absences(rounds, 4) == absences([{"round": 1}], 4) == []


@pytest.mark.case(32)
def test_how_far_names_can_be_trusted_is_told_of_deployed_runs():
    assert naming({"superlink": None}) == naming({}) == []
    (claimed,), (bound,) = naming({"superlink": "a:1"}), naming({"superlink": "a:1", "registry": "/keys"})
    assert "were not verified" in claimed
    assert "verified by the keys" in bound


@pytest.mark.slow
def test_a_report_is_written_of_a_config_that_was_cut_off(tmp_path):
    folder = write_run(tmp_path / "run")
    for text in ("federation: [", "federation: 7", "- a", "federation: {superlink: 'hub:1'}"):
        (folder / "config.yaml").write_text(text)
        assert ("were not verified" in render(read_run(folder))) == ("hub" in text)


@pytest.mark.usefixtures("undrawn")
def test_the_report_tells_who_failed_who_was_left_out_and_what_was_skipped(tmp_path):
    folder = write_run(tmp_path / "run")
    path = folder / "rounds.jsonl"
    told = [json.loads(line) for line in path.read_text().splitlines()]
    told[1] |= {"remarks": [lost("1"), lost("10")], "skipped": True}
    told[2] |= {"remarks": [lost("1")], "present": 9}
    told[3] |= {"excluded": ["1"]}
    path.write_text("".join(json.dumps(row) + "\n" for row in told))
    record = read_run(folder)
    failed = {outcome.client: outcome.failures for outcome in client_outcomes(record)}
    assert (failed["1"], failed["0"]) == (2, 0)
    page = render(record)
    assert "<td>lost</td><td>2, 3</td>" in page
    assert "with shared values unchanged: round 2." in page
    assert "Client 1 was excluded from round 4: it kept failing." in page
    assert "In round 3, 9 of 10 clients were connected." in page
    assert '<th scope="row">2 (skipped)</th>' in page
