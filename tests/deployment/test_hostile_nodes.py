"""Registered nodes that take another's name, are not in the registry, or do not answer: real processes."""

import json

import pytest
from processes import WAIT_SECONDS, finish, fits, rows, said, wait_for
from remarks import remarks

from fedsa_lora.deployment.certificates import REGISTRY
from fedsa_lora.report.page import write_report

pytestmark = pytest.mark.faults
SMOKE = ["experiment=smoke", "federation.clients=2", "evaluation.local_only=false", "evaluation.before=false"]


@pytest.mark.case(32)
def test_a_registered_node_that_takes_a_name_is_refused_and_reported_and_the_client_stays(
    federation, tmp_path
):
    federation.superlink()
    for name in ("0", "1", "thief", "stranger"):
        federation.register(name)
    registry = federation.keys / REGISTRY
    known = [line for line in registry.read_text().splitlines() if not line.endswith(" stranger")]
    registry.write_text("\n".join(known))
    for name in ("0", "1"):
        federation.node(name)
    run_dir = tmp_path / "run"
    run = federation.submit(
        "run", *SMOKE, *federation.words, "federation.rounds=999", "evaluation.every=0", f"run.dir={run_dir}"
    )
    wait_for(lambda: rows(run_dir), run)
    federation.node("thief", says="0")
    federation.node("stranger", says="1")

    def refused() -> list[dict]:
        return [row for row in rows(run_dir) if len(remarks(row, "rejected")) == 2]

    wait_for(lambda: len(refused()) >= 3, run)
    run.terminate()
    assert run.wait(WAIT_SECONDS) == 143, said(federation, "submit")

    for row in refused():
        unknown, thief = remarks(row, "rejected")
        if thief.client is None:
            unknown, thief = thief, unknown
        assert thief.client == "thief"
        assert thief.reason.endswith("claims to be 0, but has the key of thief")
        assert unknown.client is None
        assert unknown.reason.endswith("has a key that is not in the registry")
        assert (row["present"], row["asked"], row["fit_clients"]) == (2, 2, 2)
    trained = fits(run_dir)
    assert {client for client, _ in trained} == {"0", "1"}
    for client, round_ in trained:
        if round_ > 1:
            before, after = trained[client, round_ - 1], trained[client, round_]
            assert after["private_before"] == before["private_after"], "it went on from another B"
    for name in ("thief", "stranger"):
        assert not list(federation.store(name).rglob("round-*.safetensors")), "it trained"
    page = write_report(run_dir).read_text()
    assert "but has the key of thief" in page
    assert "has a key that is not in the registry" in page
    assert "Client names were verified" in page


@pytest.mark.case(34)
def test_a_run_starts_without_a_node_that_answers_nothing_and_its_report_names_it(federation, tmp_path):
    """The silent one is a SuperNode that nobody gives processes to: it connects, and answers no message."""
    federation.superlink()
    for name in ("0", "1", "silent"):
        federation.register(name)
    for name in ("0", "1"):
        federation.node(name)
    finish(
        federation, "run", *SMOKE, *federation.words, "federation.rounds=1", f"run.dir={tmp_path / 'warm'}"
    )
    silent = federation.node("silent", "", "--isolation", "process", resident=False)
    wait_for(lambda: "SuperNode ID" in said(federation, "node-silent"), silent)
    run_dir = tmp_path / "run"
    finish(
        federation, "run", *SMOKE, *federation.words, "federation.clients=3", "federation.rounds=3",
        "federation.wait_seconds=60", f"run.dir={run_dir}",
    )  # fmt: skip
    assert json.loads((run_dir / "status.json").read_text())["state"] == "completed"
    for row in rows(run_dir):
        (remark,) = remarks(row)
        assert (remark.client, remark.kind) == ("silent", "lost")
        assert remark.reason.endswith("has not reported its client id: it does not answer")
        assert (row["present"], row["fit_clients"]) == (2, 2)
    assert remark.reason in (run_dir / "report.html").read_text()
