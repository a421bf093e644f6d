"""The smoke run gives the numbers that are recorded; `scripts/make_golden.py` makes them again."""

import json
from pathlib import Path

import pytest
from make_golden import golden_rows

ROOT = Path(__file__).resolve().parents[2]
TOLERANCE = {"loss": 1e-4, "accuracy": 0.07, "accuracy_before": 0.07, "local_only": 0.07}  # 1 of 16 examples


def test_the_smoke_run_gives_the_recorded_numbers(smoke_run):
    recorded = json.loads((ROOT / "tests" / "golden" / "smoke.json").read_text())["rows"]
    found = golden_rows(smoke_run)
    assert len(found) == len(recorded)
    for row, expected in zip(found, recorded, strict=True):
        assert row.keys() == expected.keys()
        for key, value in expected.items():
            if key in TOLERANCE:
                assert row[key] == pytest.approx(value, abs=TOLERANCE[key]), (expected, key)
            else:
                assert row[key] == value, (expected, key)
