"""What clients send is released when its round is aggregated: a server's memory grows by one upload of each
client and not by two."""

import gc
import weakref

from fedsa_lora.runs.inprocess import run_in_process
from strategies.fedsa import FedSA


def test_no_upload_of_a_round_is_in_memory_in_the_next(tmp_path, monkeypatch):
    uploads, alive = [], {}
    configure, aggregate = FedSA.configure_fit, FedSA.aggregate_fit

    def asked(strategy, server_round, *rest, **named):
        gc.collect()
        alive[server_round] = sum(upload() is not None for upload in uploads)
        return configure(strategy, server_round, *rest, **named)

    def answered(strategy, server_round, results, failures):
        uploads.extend(weakref.ref(result) for _, result in results)
        return aggregate(strategy, server_round, results, failures)

    monkeypatch.setattr(FedSA, "configure_fit", asked)
    monkeypatch.setattr(FedSA, "aggregate_fit", answered)
    asked_for = ["experiment=smoke", "federation.clients=2", "federation.rounds=3", "run.report=false"]
    run_in_process([*asked_for, f"run.dir={tmp_path / 'run'}"])
    assert len(uploads) == 6
    assert alive == {1: 0, 2: 0, 3: 0}
