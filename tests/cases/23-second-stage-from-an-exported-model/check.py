"""An exported model is a start: its tokenizer lies beside it, its head of the same classes is kept."""

import json
from pathlib import Path

from case import SMOKE, TRAINED, fedsa, said
from tiny import SMALL, save, texts, wordpiece
from transformers import RobertaConfig, RobertaForMaskedLM

texts()
config = RobertaConfig(vocab_size=30522, max_position_embeddings=514, pad_token_id=0, **SMALL)
save(RobertaForMaskedLM, config, wordpiece())
first = (
    *SMOKE,
    "task.dataset=data.csv",
    "model=roberta_base",
    "run.report=false",
    "evaluation.local_only=false",
)
assert fedsa("run", *first, *TRAINED, "model.path=model").returncode == 0
assert fedsa("export", "run", "--client", "0", "--merge", "--to", "out").returncode == 0
plan = fedsa("run", "--dry-run", *first, "model.path=out")
assert plan.returncode == 0
assert "initialised from the checkpoint: classifier" in said(plan)
# with next to no learning the second stage answers as the exported model does
for head in ("local", "frozen"):
    second = (
        *first,
        "model.path=out",
        "train.lr=1e-12",
        "train.head_lr=1e-12",
        f"head={head}",
        "federation.rounds=1",
    )
    assert fedsa("run", *second, f"run.dir=second-{head}").returncode == 0
    rows = {}
    for run in ("run", f"second-{head}"):
        lines = [json.loads(line) for line in Path(run, "clients.jsonl").read_text().splitlines()]
        rows[run] = [r for r in lines if r["phase"] == "evaluate" and r["client"] == "0"][-1]
    assert abs(rows["run"]["loss"] - rows[f"second-{head}"]["loss"]) < 1e-4, rows
