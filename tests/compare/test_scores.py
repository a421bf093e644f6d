"""Figures of a comparison against hand computation, the search for rates, and the file of runs."""

import io
import json
import random
from dataclasses import asdict, replace

import pytest
from rich.console import Console
from rich.progress import Progress

from fedsa_lora.compare.comparison import Comparison
from fedsa_lora.compare.grid import Grid, Run
from fedsa_lora.compare.making import _Line
from fedsa_lora.compare.page import overview, page, table
from fedsa_lora.compare.record import Record
from fedsa_lora.compare.scores import scores
from fedsa_lora.compare.search import Search
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.measure import Measure
from fedsa_lora.report.wording import NOT_MEASURED

GRID = Grid(
    title="Tiny", regimes={"r": "experiment=smoke"}, reference="alone", seeds=[0, 1], rates=[0.1, 0.2],
    methods={"alone": "split=local_only", "share A": "split=share_a", "soft": "split=soft"},
)  # fmt: skip
SEARCHES = {entry.method: Search(entry, (0.1, 0.2), (0, 1)) for entry in GRID.entries()}


def result(accuracy: dict[str, float], validation: float = 0.5, up: float = 300, down: float = 100) -> dict:
    return {
        "accuracy": accuracy, "validation": {"0": validation, "1": validation}, "bytes_up": up,
        "bytes_down": down, "aggregation_error": 0.25, "seconds": 3.0, "majority": {"0": 0.2, "1": 0.4},
        "curve": [
            {"round": 1, "accuracy": 0.6, "bytes": 1e6},
            {"round": 2, "accuracy": sum(accuracy.values()) / len(accuracy), "bytes": 2e6},
        ],
    }  # fmt: skip


@pytest.fixture
def record(tmp_path) -> Record:
    """Alone is best at .1, share A at .2; soft lacks a run."""
    record = Record(tmp_path / "runs.jsonl")
    record.open()
    outcomes = {
        ("alone", 0.1, 0): result({"0": 0.6, "1": 0.8}, 0.7),
        ("alone", 0.2, 0): result({"0": 1, "1": 1}, 0.6),
        ("alone", 0.1, 1): result({"0": 0.7, "1": 0.9}),
        ("share A", 0.1, 0): result({"0": 0, "1": 0}, 0.1),
        ("share A", 0.2, 0): result({"0": 0.5, "1": 1.0}, 0.2),
        ("share A", 0.2, 1): result({"0": 0.9, "1": 1.0}),
        ("soft", 0.1, 0): result({"0": 1.0, "1": 1.0}),
    }  # fmt: skip
    for (method, lr, seed), found in outcomes.items():
        record.add(Run(SEARCHES[method].entry, lr, seed), {"result": found})
    return record


def test_every_figure_by_hand(record):
    best, alone = scores(list(SEARCHES.values()), record, "alone")
    assert (best.method, best.lr, alone.method, alone.lr) == ("share A", 0.2, "alone", 0.1)
    assert best.means == pytest.approx((0.75, 0.95))
    assert best.mean == pytest.approx(0.85)
    assert best.std == pytest.approx(0.2 / 2**0.5)
    assert best.worst == 0.5
    assert best.harmed == 0.25, "client 0 of seed 0, of four"
    assert best.gain == pytest.approx(0.10)
    assert (alone.harmed, alone.gain) == (0.0, 0.0)
    assert (best.bytes_up, best.bytes_down, best.sent) == (300, 100, 2e6)
    assert best.to_target == (2e6, 2e6), "the target is .75, the mean of alone over both seeds"
    assert alone.to_target == (None, 2e6)
    assert (best.seconds, best.aggregation_error) == (3.0, 0.25)
    assert best.behind is None
    assert alone.behind is not None
    assert alone.behind.mean == pytest.approx((-0.1 + 0.2 + 0.2 + 0.1) / 4)
    assert best.level
    assert alone.level, "four pairs are not enough to tell them apart"


def test_what_differs_alike_for_many_clients_is_told_apart_and_what_does_not_is_not(tmp_path):
    record, brief = Record(tmp_path / "runs.jsonl"), [Search(e, (0.1,), (0, 1)) for e in GRID.entries()]
    record.open()
    for search in brief:
        for run in search.at(0.1):
            # soft is 1e-4 below, level with or above share A, by turns; alone is always behind
            gain = {"alone": 0.0, "share A": 0.05, "soft": 0.0499}[run.entry.method]
            sway = 1e-4 * (run.entry.method == "soft")
            accuracy = {str(c): 0.4 + c / 40 + gain + (c % 3) * sway for c in range(10)}
            record.add(run, {"result": result(accuracy)})
    found = {score.method: score.level for score in scores(brief, record, "alone")}
    assert found == {"share A": True, "soft": True, "alone": False}


def test_neither_the_order_of_methods_nor_that_of_lines_changes_a_figure(record, tmp_path):
    expected = scores(list(SEARCHES.values()), record, "alone")
    lines = record.path.read_text().splitlines()
    random.Random(3).shuffle(lines)
    (tmp_path / "other.jsonl").write_text("\n".join(lines) + "\n")
    assert scores(list(SEARCHES.values())[::-1], Record(tmp_path / "other.jsonl"), "alone") == expected


def test_a_search_asks_for_its_rates_then_for_the_best_on_every_seed(tmp_path):
    record, search = Record(tmp_path / "runs.jsonl"), SEARCHES["soft"]
    record.open()
    asked = []
    while needed := search.needed(record):
        asked.append([(run.lr, run.seed) for run in needed])
        for run in needed:
            record.add(run, {"result": result({"0": 0.5}, validation=run.lr)})
        assert search.settled(record) == sum(map(len, asked))
    assert asked == [[(0.1, 0), (0.2, 0)], [(0.2, 1)]]
    assert search.length == search.settled(record) == 3


def searched(record: Record, search: Search, validation: dict[float, dict[str, float]]) -> list[list[float]]:
    """The rates of the search that are asked for at a time, each with such a validation part."""
    record.open()
    asked = []
    while search.best(record) is None:
        asked.append([run.lr for run in search.needed(record)])
        for run in search.needed(record):
            record.add(run, {"result": {**result({"0": 0.5}), "validation": validation[run.lr]}})
    return asked


THREE = Search(SEARCHES["soft"].entry, (0.2, 0.1, 0.4), (0, 1))
FALLING = {0.1: {"0": 0.8, "1": 0.7}, 0.2: {"0": 0.6, "1": 0.5}, 0.4: {"0": 0.9, "1": 0.9}}
UNCLEAR = {0.1: {"0": 0.8, "1": 0.7}, 0.2: {"0": 0.6, "1": 0.7}, 0.4: {"0": 0.9, "1": 0.9}}


def test_rates_greater_than_one_that_is_clearly_behind_are_left_out(tmp_path):
    record = Record(tmp_path / "runs.jsonl")
    assert searched(record, THREE, FALLING) == [[0.1, 0.2]]
    assert THREE.best(record) == 0.1
    [last] = THREE.needed(record)
    assert (last.lr, last.seed) == (0.1, 1)
    record.add(last, {"result": result({"0": 0.5})})
    assert THREE.settled(record) == THREE.length


def test_a_rate_that_is_behind_within_the_noise_ends_no_search(tmp_path):
    record = Record(tmp_path / "runs.jsonl")
    assert searched(record, THREE, UNCLEAR) == [[0.1, 0.2], [0.4]]
    assert THREE.best(record) == 0.4


def test_lower_is_better_where_the_measure_says_so(tmp_path):
    record = Record(tmp_path / "runs.jsonl")
    record.open()
    perplexity = asdict(Measure("perplexity", (1.0, 1e9), higher_is_better=False))
    for run in THREE.needed(record):
        values = {"0": 10 * run.lr, "1": 10 * run.lr}
        found = {**result({"0": 0}), "measure": perplexity, "perplexity": values, "validation": values}
        del found["accuracy"]
        record.add(run, {"result": found})
    assert (THREE.best(record), [run.seed for run in THREE.needed(record)]) == (0.1, [1])


def test_every_rate_is_tried_where_the_grid_says_so_and_counts_wherever_it_is_recorded(tmp_path):
    record = Record(tmp_path / "runs.jsonl")
    every = replace(GRID, rates=[0.2, 0.1, 0.4], every_rate=True, methods={"alone": "split=local_only"})
    comparison = Comparison.to_run(every, "every", tmp_path)
    [search] = comparison.searches
    assert searched(record, search, FALLING) == [[0.1, 0.2, 0.4]]
    assert search.best(record) == replace(search, every_rate=False).best(record) == 0.4


def test_a_rate_that_fails_is_not_chosen_and_a_method_that_fails_is_not_shown(tmp_path):
    record, search = Record(tmp_path / "runs.jsonl"), SEARCHES["soft"]
    record.open()
    first, second = search.needed(record)
    record.add(second, {"error": "TrainingError: not finite"})
    record.add(first, {"result": result({"0": 0.5})})
    assert search.best(record) == 0.1
    [last] = search.needed(record)
    record.add(last, {"error": "RunError: disk full"})
    assert search.needed(record) == []
    assert search.failed(record) == [(second, "TrainingError: not finite"), (last, "RunError: disk full")]
    assert scores([search], record, "alone") == []


def test_a_method_of_which_all_rates_fail_is_settled(tmp_path):
    record, search = Record(tmp_path / "runs.jsonl"), SEARCHES["soft"]
    record.open()
    for run in search.needed(record):
        record.add(run, {"error": "no"})
    assert (search.best(record), search.needed(record)) == (None, [])
    assert search.settled(record) == search.length


def test_a_broken_last_line_is_dropped_and_failures_are_tried_again(record):
    whole = record.path.read_text()
    run = Run(SEARCHES["soft"].entry, 0.2, 0)
    record.add(run, {"error": "no"})
    record.path.write_text(record.path.read_text() + '{"cell": "r", "metho')
    again = Record(record.path)
    assert again.error(run) == "no"
    again.open()
    assert not again.settled(run)
    again.add(run, {"result": result({"0": 0.5})})
    lines = record.path.read_text().splitlines()
    assert lines[:-2] == whole.splitlines()
    assert [json.loads(line).get("error") for line in lines[-2:]] == ["no", None]
    last = Record(record.path)
    assert last.result(run) is not None
    assert last.error(run) is None


def test_a_broken_line_amid_others_is_refused(record):
    record.path.write_text("{\n" + record.path.read_text())
    with pytest.raises(RunError, match="line 1: not valid JSON"):
        Record(record.path)


def test_the_tables_show_complete_methods_and_say_what_is_missing_and_what_failed(record):
    record.add(Run(SEARCHES["soft"].entry, 0.2, 0), {"error": "TrainingError: the loss\nis not finite"})
    comparison = Comparison.recorded(GRID, record.path.parent)
    assert not comparison.write()
    page = (record.path.parent / "table.md").read_text()
    assert "**Not complete: 1 runs are missing." in page
    assert "- r, soft, lr 0.2, seed 0: TrainingError: the loss is not finite\n" in page
    ours = "0.2 | 0.850 ± 0.141 | 0.500 | 25% | +10.0 |  | 0.30 / 0.10 | 1.5 / 0.50 | 2.0, 2.0 | 3 | 2.5e-01"
    assert f"| **share A** | {ours} |" in page
    assert "| **alone** | 0.1 | 0.750 ± 0.071 | 0.600 | 0% | +0.0 | 10.0 [-12.5, 32.5] p 0.38 |" in page
    floor = "Predicting each client's most frequent class: 0.300."
    assert f"Target: 0.750, the mean of alone. {floor}" in page
    rows = (record.path.parent / "table.csv").read_text().splitlines()
    assert [row.split(",")[:5] for row in rows[:2]] == [
        ["regime", "method", "lr", "seeds", "mean"], ["r", "share A", "0.2", "2", "0.85"],
    ]  # fmt: skip
    assert len(rows) == 3
    assert (record.path.parent / "r.png").read_bytes().startswith(b"\x89PNG")
    record.add(Run(SEARCHES["soft"].entry, 0.1, 1), {"result": result({"0": 0.1, "1": 0.1})})
    comparison = Comparison.recorded(GRID, record.path.parent)
    assert not comparison.write(), "one failed"
    assert "Not complete" not in (record.path.parent / "table.md").read_text()


def test_a_column_for_an_attack_is_there_where_there_was_one(tmp_path):
    record, brief = Record(tmp_path / "runs.jsonl"), [Search(e, (0.1,), (0, 1)) for e in GRID.entries()]
    record.open()
    for search in brief:
        for run in search.at(0.1):
            found = result({"0": 0.5, "1": 0.5})
            if run.entry.method == "soft":
                found["attack_success"] = 0.25 + 0.5 * run.seed
            record.add(run, {"result": found})
    told = table(scores(brief, record, "alone")).splitlines()
    assert told[0].endswith("| error | attack |")
    cells = {line.split(" | ")[0].strip("| *"): line.strip(" |").split(" | ")[-1] for line in told[2:]}
    assert cells == {"soft": "50.0%", "alone": NOT_MEASURED, "share A": NOT_MEASURED}
    assert "attack" not in table(scores(brief[:2], record, "alone"))


def test_all_regimes_are_side_by_side_the_least_behind_first_and_equals_under_each_name(tmp_path):
    grid = Grid(
        title="Two", regimes={"r": "seed=1", "s": "seed=2"}, reference="alone", seeds=[0, 1], rates=[0.1],
        methods={
            "alone": "split=local_only head=local", "own head": "split=share_ab head=local",
            "shared head": "split=share_ab head=shared", "partly": "split=share_b head=local",
        },
        fixed={"s": "head=frozen"}, further={"r": {"of r alone": "split=soft head=local"}},
    )  # fmt: skip
    accuracy = {
        "r": {"alone": 0.5, "own head": 0.8, "shared head": 0.6, "partly": 0.9, "of r alone": 0.9},
        "s": {"alone": 0.7, "own head": 0.6},
    }
    record, searches = Record(tmp_path / "runs.jsonl"), [Search(e, (0.1,), (0, 1)) for e in grid.entries()]
    record.open()
    for search in searches:
        if (found := accuracy[search.entry.regime].get(search.entry.method)) is not None:
            for run in search.at(0.1):
                record.add(run, {"result": result({str(c): found for c in range(10)})})
    by_regime = {r: scores([s for s in searches if s.entry.regime == r], record, "alone") for r in "rs"}
    same = "shared head is the same here as own head, and was run once."
    before, after = page(grid, by_regime, [], [], 0).split("## s\n")
    assert same in after
    assert same not in before
    _, _, told = overview(grid, by_regime)
    assert [line.strip("| ").split(" | ") for line in told.splitlines()[2:]] == [
        ["own head", "0.800 ± 0.000", "0.600 ± 0.000", "10.0", "10.0", "50%"],
        ["shared head", "0.600 ± 0.000", "0.600 ± 0.000", "20.0", "30.0", "50%"],
        ["alone", "0.500 ± 0.000", "**0.700 ± 0.000**", "20.0", "40.0", "0%"],
        ["most frequent class", "0.300", "0.300"],
    ]
    assert overview(grid, {"r": by_regime["r"], "s": []}) == [], "one regime has its own table"


@pytest.mark.parametrize(("name", "said"), [("accuracy", "62.5%"), ("perplexity", "0.625")])
def test_a_line_of_progress_has_the_measure_in_its_own_format(tmp_path, name, said):
    record = Record(tmp_path / "runs.jsonl")
    record.open()
    run = Run(SEARCHES["alone"].entry, 0.1, 0)
    found = result({"0": 0.5, "1": 0.75})
    if name == "perplexity":
        found["measure"] = asdict(Measure("perplexity", (1.0, 1e9), higher_is_better=False))
        found[name] = found.pop("accuracy")
    record.add(run, {"result": found})
    log = io.StringIO()
    progress = Progress(console=Console(file=log), disable=True)
    _Line(progress, [SEARCHES["alone"]], record).update(run)
    assert log.getvalue() == f"r, alone, lr 0.1, seed 0: {said}\n"
