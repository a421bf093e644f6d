"""Headers that are sound JSON and not what a client of ours would write: each is rejected or does no harm,
and everything that a run writes can be read at its end."""

import csv
import json
import random
import re
from collections.abc import Callable
from dataclasses import asdict, replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from flwr.common import Code, EvaluateRes, FitRes, Status
from rich.console import Console
from server_side import LAYOUT, OK, Server, some_updates

from fedsa_lora.analysis.frames import load_run
from fedsa_lora.config.compose import load
from fedsa_lora.errors import RunError
from fedsa_lora.exchange import wire
from fedsa_lora.exchange.measure import CLASSES, LARGEST
from fedsa_lora.exchange.reported import TRAINING
from fedsa_lora.report import page as report
from fedsa_lora.report.page_script import SCRIPT
from fedsa_lora.report.table import print_summary
from fedsa_lora.report.watch import view
from fedsa_lora.runs.directory import RunDirectory
from fedsa_lora.runs.outcomes import ClientOutcome, client_outcomes
from fedsa_lora.runs.progress import RunProgress
from fedsa_lora.runs.reading import read_json, read_run
from fedsa_lora.runs.summary import summarise
from fedsa_lora.server.build import skeleton
from fedsa_lora.telemetry.journal import SERVER_LOG, journal
from strategies import Bounds, QFedAvg

SORTS = {  # of runs
    "plain": dict,
    "q-FedAvg": lambda: {"inner": QFedAvg()},
    "class counts": lambda: {"classes": 3},
    "bounds": lambda: {"bounds": Bounds(median_factor=3.0, max_examples=100, max_rejections=None)},
}
HONEST, HOSTILE, ROUNDS = ("0", "1"), 25, 2  # 25 hostile answers to each of four messages
TEXTS = (
    "\ud800", "x\udfff", "<script>alert(1)</script>", "[bold red]x[/nope]", "=cmd|' /C calc'!A0", "@SUM(1)",
    "+1", "-1+2", "\t=1", "\x1b[2J\x1b]0;title\x07", "\u202eevil", "\u2066x", "a\nclient 0: innocent", "\r",
    "9" * 5000, "0" * 64, "é" * 16, "0", "1", "\0", "' OR 1=1", "{{ 7*7 }}", "$\\frac$", "x" * 30_000, "",
    " ", "None", "nan", "../../x", "%s%n", "f" * 16, "f" * 32, "A" * 16, "fit", "evaluate", "\N{BOMB}" * 9,
)  # fmt: skip
NUMBERS = (
    "-0.0", "0", "1", "-1", "1e400", "-1e400", "NaN", "Infinity", "1e150", "1e-320", "0.5", "1.0000001",
    "1" * 4000, "1" + "0" * 150, "1e151", "true", "null", "9223372036854775808", "1000000000", "2",
    "1000000001", "1e-30",
)  # fmt: skip
KEYS = (
    "phase",
    "client",
    "round",
    "bytes_up",
    "accuracy",
    "loss",
    "local_only",
    "seconds",
    "split",
    "=a",
    *TEXTS,
)
ROW = {"round", "client", "examples", "measured", "bytes_up", "bytes_down", "phase"}
PRIVATE = {"private_before", "private_after"}
REFERENCES = {"accuracy_before", "global_accuracy", "majority", "local_only"}
KNOWN = ROW | PRIVATE | REFERENCES | {*TRAINING, *(measure.name for measure in CLASSES)}


Alter = Callable[[wire.UploadHeader], str]


class Raw(str):
    """JSON as it is to be written: numbers that Python has none for, and keys that stand twice."""


def written(value: object) -> str:
    """JSON, with the raw parts as they are."""
    if isinstance(value, Raw):
        return str(value)
    if isinstance(value, dict):
        return "{" + ",".join(f"{json.dumps(k)}:{written(v)}" for k, v in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(written, value)) + "]"
    return json.dumps(value)


def any_value(rng: random.Random) -> object:
    """A value of any type that JSON knows, now and then a large or a deep one."""
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(TEXTS)
    if kind < 0.8:
        return Raw(rng.choice(NUMBERS))
    if kind < 0.82:
        return [Raw(rng.choice(NUMBERS))] * rng.choice((1, 10, 20_000))
    if kind < 0.84:
        return Raw("[" * (depth := rng.choice((3, 150, 900))) + "]" * depth)
    if kind < 0.92:
        return [any_value(rng) for _ in range(rng.randrange(4))]
    return {rng.choice(KEYS): Raw(rng.choice(NUMBERS)) for _ in range(rng.randrange(4))}


def altered(header: wire.UploadHeader, rng: random.Random) -> str:
    """The text of a header after one to three changes of its structure."""
    content = asdict(header)
    report = content["report"]
    for _ in range(rng.randint(1, 3)):
        kind = rng.random()
        if kind < 0.1:  # what a client may claim
            content |= {"examples": rng.choice((1, 10**9)), "measured": rng.choice((1, 10**9))}
            report[rng.choice(sorted(report) or ["loss"])] = Raw(rng.choice(("0", "-0.0", "1", "1e-30")))
            report["loss"] = Raw(rng.choice(("0", "-0.0", "1e150", "1e-320")))
        elif kind < 0.3:
            content[rng.choice(sorted(content))] = any_value(rng)
        elif kind < 0.5:
            report[rng.choice(sorted(report) or ["loss"])] = Raw(rng.choice(NUMBERS))
        elif kind < 0.65:
            report[rng.choice(KEYS)] = any_value(rng)
        elif kind < 0.72:
            content["error"] = rng.choice(TEXTS)
        elif kind < 0.79:
            content["private_before"] = content["private_after"] = rng.choice(TEXTS)
        elif kind < 0.84:
            content[rng.choice(KEYS)] = any_value(rng)
        elif kind < 0.88:
            content.pop(rng.choice(sorted(content)), None)
        elif kind < 0.9:
            report |= {f"n{i}": 1 for i in range(rng.choice((10, 9_000)))}
        else:
            content["examples"] = Raw(rng.choice(NUMBERS))
            content["measured"] = Raw(rng.choice(NUMBERS))
    text = written(content)
    if rng.random() < 0.05:
        text = "{" + f'"round":{rng.choice(NUMBERS)},' + text[1:]
    try:
        json.loads(text)
    except ValueError:  # this one does not pass the parser, and is not counted
        return altered(header, rng)
    return text


def honest(server: Server, client: str, phase: str, round_: int) -> FitRes | EvaluateRes:
    """What a client of ours answers."""
    if phase == "fit":
        counts = (3, 0, 7) if server.strategy.decode.classes else ()
        return server.upload(client, some_updates(9, seed=round_)[int(client) % 9], 10, counts=counts)
    report = {"accuracy": 0.25 + 0.5 * (int(client) % 2), "loss": 0.5, "macro_f1": 0.5, "matthews": 0.1}
    upload = server.upload(client, np.zeros(LAYOUT.size), 10, report=report | {"majority": 0.2})
    return EvaluateRes(OK, 0.5, 10, upload.metrics)


def play(directory: RunDirectory, alter: Alter, hostile: int, sort: str) -> None:
    """A run in which the hostile clients answer every message with an altered header; in each phase the node
    of client 0 and one that nobody knows also fail in words of their own."""
    server = Server(
        clients=len(HONEST) + hostile, every=1, rounds=ROUNDS, recorder=directory, min_results=1e-9,
        **{"bounds": Bounds(max_rejections=None)} | SORTS[sort](),
    )  # fmt: skip
    for round_ in range(1, ROUNDS + 1):
        for phase, ask in (("fit", server.ask), ("evaluate", server.ask_to_evaluate)):
            ask(round_)
            arrived = []
            for client, node in server.nodes.items():
                answer = honest(server, client, phase, round_)
                if client not in HONEST:
                    header = wire.read_header(answer.metrics, wire.UploadHeader)
                    answer = replace(answer, metrics={wire.KEY: wire.deflated(alter(header))})
                arrived.append((node, answer))
            text = TEXTS[round_]
            told = [RuntimeError(text), (server.nodes["0"], replace(answer, status=Status(Code.OK, text)))]
            aggregate = getattr(server.strategy, f"aggregate_{phase}")
            aggregate(round_, arrived, told if hostile else [])
        assert np.isfinite(server.strategy.common).all()


@pytest.fixture(scope="module")
def smoke():
    """The config of a run and its model, read once."""
    config = load(["experiment=smoke"])
    return config, skeleton(config)


def recorded(smoke, folder: Path, alter: Alter, hostile: int = HOSTILE, sort: str = "plain") -> Path:
    """The run directory of such a run, with everything that a run writes at its end."""
    config, model = smoke
    config = replace(config, run=replace(config.run, dir=str(folder)))
    directory = RunDirectory.create(config, "fedsa-lora run experiment=smoke")
    with journal(folder / SERVER_LOG, "server"), directory.recording():
        play(directory, alter, hostile, sort)
        directory.write_summary(summarise(config, folder, model))
    directory.close()
    report.write_report(folder)
    return folder


class Tags(HTMLParser):
    """The tags of a page, and where its images come from."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found, self.images = set[str](), list[str]()
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.found.add(tag)
        self.images += [value for name, value in attrs if name == "src"]


def on_screen(show: Callable[[Console], None]) -> str:
    console = Console(file=StringIO(), width=150, height=60, color_system=None)
    show(console)
    return console.file.getvalue()


def check_page(path: Path) -> None:
    text = (path / "report.html").read_text("utf-8")
    tags = Tags(text.replace(f"<script>{SCRIPT}</script>", "", 1))  # the page's own, as it stands
    assert not tags.found & {"script", "b", "x"}
    assert all(image.startswith("data:image/png;base64,") for image in tags.images)
    assert "\u202e" not in text


def check_screen(path: Path) -> None:
    shown = on_screen(lambda console: console.print(view(RunProgress(path), console)))
    shown += on_screen(lambda console: print_summary(path, console))
    assert all(line.isprintable() for line in shown.split("\n"))


def check_readable(path: Path) -> None:
    """Every file of a run, and every view of it, holds nothing but what we write."""
    for name in ("rounds.jsonl", "clients.jsonl", SERVER_LOG):
        for line in (path / name).read_text("utf-8").splitlines():
            assert len(line) < 60_000
            json.dumps(json.loads(line), allow_nan=False, ensure_ascii=False).encode()
    clients = [json.loads(line) for line in (path / "clients.jsonl").read_text().splitlines()]
    for row in clients:
        assert row.keys() <= KNOWN
        assert re.fullmatch(r"\d+", row["client"])
        assert all(re.fullmatch("[0-9a-f]*", row.get(name, "")) for name in PRIVATE)
        numbers = [value for name, value in row.items() if name not in PRIVATE | {"client", "phase"}]
        assert all(abs(number) <= LARGEST for number in numbers)
    for name in ("rounds.csv", "clients.csv"):
        with open(path / name, newline="", encoding="utf-8") as file:
            table = list(csv.reader(file))
        assert len({len(line) for line in table}) == 1
        assert len(table[0]) < 40
        assert not any(cell.startswith(("=", "@", "+", "\t", "\r")) for line in table for cell in line)
    run = load_run(path)
    assert len(run.clients) == len(clients)
    assert set(HONEST) <= set(run.outcomes.index)
    assert len(run.rounds) == ROUNDS
    check_page(path)
    check_screen(path)
    sample = re.compile(r'fedsa_lora_\w+\{(\w+="[^"\\]*",?)+\} [-+\w.]+')
    lines = (path / "metrics.prom").read_text("utf-8").splitlines()
    assert lines
    assert all(line.startswith(("# HELP ", "# TYPE ")) or sample.fullmatch(line) for line in lines)


def of_the_honest(path: Path) -> list[dict[str, object]]:
    rows = map(json.loads, (path / "clients.jsonl").read_text().splitlines())
    return [row for row in rows if row["client"] in HONEST]


def results_of_the_honest(path: Path) -> list[ClientOutcome]:
    return [outcome for outcome in client_outcomes(read_run(path)) if outcome.client in HONEST]


@pytest.mark.case(35)
@pytest.mark.parametrize("sort", SORTS)
def test_ten_thousand_hostile_headers_are_rejected_or_harmless_and_every_run_can_be_read(
    smoke, tmp_path, monkeypatch, sort, trials
):
    """What is taken of them is a number in its range from the client itself; no row of the others changes. Of
    the ten thousand under make test-faults, make test tries a tenth."""
    monkeypatch.setattr(report, "embedded_figures", lambda *_: [])
    rng, count, taken = random.Random(sort), 0, 0
    alone = recorded(smoke, tmp_path / "alone", lambda header: "", 0, sort)
    expected, results = of_the_honest(alone), results_of_the_honest(alone)

    def alter(header: wire.UploadHeader) -> str:
        nonlocal count
        count += 1
        return altered(header, rng)

    in_a_run = 2 * ROUNDS * HOSTILE
    runs = trials(10_000 // len(SORTS) // in_a_run)
    for run in range(runs):
        path = recorded(smoke, tmp_path / f"{run}", alter, HOSTILE, sort)
        check_readable(path)
        assert of_the_honest(path) == expected
        first, second = results_of_the_honest(path)
        assert [replace(first, failures=0), second] == results
        assert first.failures == 2 * ROUNDS  # those that were told of its node
        taken += len((path / "clients.jsonl").read_text().splitlines()) - len(expected)
    assert count == runs * in_a_run
    assert 2 * runs < taken < 40 * runs  # they are neither all refused, nor do most of them change nothing


def test_a_run_that_hostile_nodes_end_says_so_in_words_that_can_be_read(smoke, tmp_path, monkeypatch):
    rng, path = random.Random(36), tmp_path / "run"
    monkeypatch.setattr(f"{__name__}.HONEST", ())
    with pytest.raises(RunError, match="25 of 25 clients failed in round 1"):
        recorded(smoke, path, lambda header: altered(replace(header, error=rng.choice(TEXTS[:15])), rng))
    assert len(read_json(path / "status.json")["reason"]) < 30_000
    report.write_report(path)
    check_page(path)
    check_screen(path)
