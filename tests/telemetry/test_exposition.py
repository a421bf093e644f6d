"""The text for Prometheus: what is written is read back by the grammar of its format."""

import math
import os
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fedsa_lora import files
from fedsa_lora.exchange.measure import CLASSES
from fedsa_lora.runs.metrics import RunMetrics
from fedsa_lora.runs.outcomes import FAILURES
from fedsa_lora.runs.reading import read_jsonl
from fedsa_lora.telemetry.exposition import METRICS, PREFIX, Metric, exposition, publish

NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*"
SAMPLE = re.compile(rf"({NAME})(?:{{(.*)}})? (\S+)")
PAIR = re.compile(r'([a-zA-Z_][a-zA-Z0-9_]*)="((?:[^"\\\n]|\\[\\"n])*)"(?:,|$)')
UNESCAPED = {r"\\": "\\", r"\"": '"', r"\n": "\n"}


def parse(text: str) -> dict[str, dict]:
    """Families by name, as the text format 0.0.4 has them; a sample is (labels, value)."""
    assert text == "" or text.endswith("\n")
    families: dict[str, dict] = {}
    for line in text.split("\n")[:-1]:
        if line.startswith("# HELP "):
            name, meaning = line.removeprefix("# HELP ").split(" ", 1)
            assert name not in families
            families[name] = {"help": meaning, "samples": {}}
        elif line.startswith("# TYPE "):
            name, kind = line.removeprefix("# TYPE ").split(" ")
            assert name == list(families)[-1]
            families[name]["type"] = kind
        else:
            name, labels, value = SAMPLE.fullmatch(line).groups()
            assert name == list(families)[-1], "the samples of a family stand together"
            pairs = PAIR.findall(labels or "")
            assert sum(len(f'{k}="{v}"') for k, v in pairs) + max(0, len(pairs) - 1) == len(labels or "")
            plain = {k: re.sub(r'\\[\\"n]', lambda found: UNESCAPED[found[0]], v) for k, v in pairs}
            key = tuple(sorted(plain.items()))
            assert key not in families[name]["samples"], "a sample is given once"
            families[name]["samples"][key] = float(value)
    return families


@given(st.text(), st.text(), st.floats() | st.integers(-(10**9), 10**9))
def test_any_label_and_value_is_read_back(label, common, value):
    text = exposition([Metric("x", "gauge", "One.", [({"kind": label}, value)])], {"run": common})
    ((labels, found),) = parse(text)[PREFIX + "x"]["samples"].items()
    assert dict(labels) == {"kind": label, "run": common}
    assert found == value or (math.isnan(found) and math.isnan(value))


def test_a_label_that_cannot_be_written_does_not_keep_the_file_from_being_written(tmp_path):
    publish(tmp_path / METRICS, [Metric("x", "gauge", "One.", [({}, 1)])], {"run": "\ud800"})
    assert f'{PREFIX}x{{run="?"}} 1.0' in (tmp_path / METRICS).read_text("utf-8")


def test_help_is_one_line_and_what_is_not_known_is_left_out():
    metrics = [
        Metric("a_total", "counter", "Two\nlines and \\.", [({}, 1)]),
        Metric("b", "gauge", "None.", [({}, None)]),
    ]
    assert exposition(metrics, {}).splitlines() == [
        f"# HELP {PREFIX}a_total Two\\nlines and \\\\.",
        f"# TYPE {PREFIX}a_total counter",
        f"{PREFIX}a_total 1.0",
    ]


def test_a_file_that_cannot_be_written_is_no_error_and_the_old_one_stays(tmp_path, monkeypatch):
    publish(tmp_path / METRICS, [Metric("a", "gauge", "A.", [({}, 1)])], {})
    before = (tmp_path / METRICS).read_text()
    monkeypatch.setattr(files.os, "replace", lambda *_: (_ for _ in ()).throw(OSError(28, "no space")))
    publish(tmp_path / METRICS, [Metric("a", "gauge", "A.", [({}, 2)])], {})
    assert (tmp_path / METRICS).read_text() == before
    assert os.listdir(tmp_path) == [METRICS]


def value(families, name, **labels):
    samples = families[PREFIX + name]["samples"].items()
    (found,) = [v for k, v in samples if labels.items() <= dict(k).items()]
    return found


def test_the_metrics_of_a_run_are_those_of_its_rows(smoke_run):
    families = parse((smoke_run / METRICS).read_text())
    rows = read_jsonl(smoke_run / "rounds.jsonl")
    assert value(families, "rounds_total") == value(families, "rounds_planned") == len(rows) == 3
    for way in ("up", "down"):
        assert value(families, "traffic_bytes_total", direction=way) == sum(
            row[f"bytes_{way}"] for row in rows
        )
    for over, key in {"mean": "accuracy", "worst": "accuracy_worst"}.items():
        assert value(families, "accuracy_ratio", over=over) == rows[-1][key]
    states = {
        state: value(families, "run_state", state=state) for state in ("running", "completed", "failed")
    }
    assert states == {"running": 0, "completed": 1, "failed": 0}
    assert value(families, "rounds_seconds_total") == pytest.approx(sum(row["seconds"] for row in rows))


def test_names_have_units_and_counters_end_in_total(smoke_run):
    files = [smoke_run / METRICS, *(smoke_run / "clients").glob(f"*/{METRICS}")]
    assert len(files) == 5
    for path in files:
        for name, family in parse(path.read_text()).items():
            assert name.startswith(PREFIX)
            assert (family["type"] == "counter") == name.endswith("_total")
            assert family["help"].endswith(".")


def test_a_client_tells_its_last_answer(smoke_run):
    families = parse((smoke_run / "clients" / "2" / METRICS).read_text())
    last = [r for r in read_jsonl(smoke_run / "clients.jsonl") if r["client"] == "2"][-1]
    assert value(families, "client_round", client="2") == last["round"] == 3
    assert value(families, "client_examples", phase="evaluate") == last["examples"]
    assert value(families, "client_failed") == 0


def test_failures_are_told_by_kind(tmp_path):
    kinds = ["error", "rejected", "lost", "lost", "clipped"]
    told = [{"client": "3", "kind": kind, "reason": "..."} for kind in kinds]
    metrics = RunMetrics(
        tmp_path, 5, CLASSES[0], [{"round": 1, "remarks": told}, {"round": 2, "skipped": True}]
    )
    metrics.publish("running")
    families = parse((tmp_path / METRICS).read_text())
    assert {kind: value(families, "failures_total", kind=kind) for kind in FAILURES} == {
        "error": 1, "rejected": 1, "lost": 2
    }  # fmt: skip
    assert value(families, "rounds_total") == 2
    assert PREFIX + "accuracy_ratio" not in families
