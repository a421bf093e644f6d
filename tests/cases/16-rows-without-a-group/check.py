"""Rows without a group belong to no client: an error, as for texts and labels."""

import csv
import json
from pathlib import Path

import pandas as pd
import pytest
from case import SMOKE, fedsa, said

from fedsa_lora.config import load
from fedsa_lora.errors import DataError

GROUPED = (*SMOKE, "task.group=client", "partition=natural")
EXPECTED = "column 'client': row 3 (and 52 more) has no value; fill it in or remove the row"

with open("data.csv", newline="") as file:
    rows = list(csv.DictReader(file))
given = [{key: value or None for key, value in row.items()} for row in rows]
Path("data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in given))
pd.DataFrame(given).to_parquet("data.parquet")
Path("blanks.csv").write_text(Path("data.csv").read_text().replace(",\n", ",  \n"))

done = fedsa("run", "--dry-run", *GROUPED, "task.dataset=data.csv")
assert done.returncode == 1, "rows without a client became one"
assert "DataError" in said(done)
assert EXPECTED in said(done)
for name in ("data.jsonl", "data.parquet", "blanks.csv"):
    with pytest.raises(DataError) as caught:
        load([*GROUPED, f"task.dataset={name}"]).task.describe()
    assert EXPECTED in str(caught.value), caught.value
    assert name in str(caught.value), caught.value

whole = "".join(line for line in Path("data.csv").read_text().splitlines(True) if not line.endswith(",\n"))
Path("whole.csv").write_text(whole)
shares = load([*GROUPED, "task.dataset=whole.csv", "federation.clients=2"]).task.describe().clients
assert len(shares) == 2, "without those rows there is nothing to refuse"
