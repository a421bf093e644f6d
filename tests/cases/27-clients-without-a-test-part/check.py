"""Clients with one example train like the others; what cannot be measured is left out of the measurement, and
the table says of how many clients it is."""

import json
from pathlib import Path

from case import fedsa, said

done = fedsa(
    "run", "experiment=smoke", "task=text", "task.dataset=data.csv", "federation.clients=40",
    "federation.rounds=2", "federation.train_examples=null", "partition=dirichlet",
    "federation.partitioner.alpha=1", "federation.partitioner.min_partition_size=1",
    "federation.validation_examples=0", "run.report=false", "run.dir=run",
)  # fmt: skip
assert done.returncode == 0, "the run failed"
rows = [json.loads(line) for line in Path("run/clients.jsonl").read_text().splitlines()]
shares = json.loads(Path("run/partition.json").read_text())["clients"]
summary = json.loads(Path("run/summary.json").read_text())
without = [client for client, share in shares.items() if not share["test"]]
assert len(shares) == 40
assert without, "no client is without a test part: this checks nothing"

for round_ in (1, 2):
    trained = {row["client"] for row in rows if (row["phase"], row["round"]) == ("fit", round_)}
    assert trained == set(shares), f"round {round_}: {sorted(set(shares) - trained)} did not train"
assert summary["failures"] == 0, f"{summary['failures']} failures are counted"
assert summary["excluded_clients"] == []

measured = 40 - len(without)
for model in ("personalised", "before_aggregation", "local_only", "majority"):
    assert summary[model]["clients"] == measured, (model, summary[model]["clients"])
assert sorted(summary["unmeasured"]) == sorted(without), summary["unmeasured"]
assert f"{measured} of 40 clients" in said(done), "the table does not say of how many clients it is"
assert "without test examples took part like the others" in said(done), "the reason is not given"

again = fedsa("evaluate", "run", "--union", "--newcomer-steps", "1")
assert again.returncode == 0, "the clients without a test part end the evaluation"
assert fedsa("export", "run", "--client", without[0]).returncode == 0, "such a client has no model"
