"""Figures say what they show: titles, units, readable ticks, and marks that do not rely on colour."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from matplotlib import pyplot
from matplotlib.figure import Figure
from PIL import Image
from synthetic_run import write_failed_run, write_run

from fedsa_lora.report.figures import bytes_by_round, classes_by_client, draw, draw_all, measure_by_round
from fedsa_lora.report.style import DARK, LIGHT, spread
from fedsa_lora.runs.outcomes import client_outcomes
from fedsa_lora.runs.reading import read_run

NAMES = {"accuracy_by_round", "clients_before_and_after", "classes_by_client", "bytes_by_round"}
UNITS = {
    "accuracy_by_round": ("round", "(%)"),
    "clients_before_and_after": ("(%)", "client"),
    "classes_by_client": ("client", "class"),
    "bytes_by_round": ("round", "(MB)"),
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def large_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("large"), clients=100, labels=150, rounds=3)


def tick_names(figure: Figure, which: str) -> list[str]:
    figure.draw_without_rendering()
    return [text.get_text() for text in getattr(figure.axes[0], which).get_ticklabels()]


def words(figure: Figure) -> str:
    axes = figure.axes[0]
    texts = [*axes.texts, *(text for legend in figure.legends for text in legend.get_texts())]
    return "\n".join(text.get_text() for text in texts)


@pytest.mark.parametrize("style", [LIGHT, DARK, replace(LIGHT, narrow=True)])
def test_every_figure_has_a_title_and_axes_with_units(run_dir: Path, style) -> None:
    figures = draw(read_run(run_dir), style)
    assert figures.keys() == NAMES
    for name, figure in figures.items():
        axes = figure.axes[0]
        assert figure.get_suptitle()
        assert UNITS[name][0] in axes.get_xlabel()
        assert UNITS[name][1] in axes.get_ylabel()


def test_nothing_global_is_touched(run_dir: Path) -> None:
    draw(read_run(run_dir))
    assert pyplot.get_fignums() == []


def test_references_are_labelled_with_their_values(run_dir: Path) -> None:
    record = read_run(run_dir)
    text = words(measure_by_round(record.rounds, record.clients, record.summary, record.primary))
    assert f"alone\n{record.summary['local_only']['mean']:.1%}" in text
    assert f"majority class\n{record.summary['majority']['mean']:.1%}" in text
    assert f"mean of clients\n{record.rounds[-1]['accuracy']:.1%}" in text


def test_a_harmed_client_is_named_in_words_and_by_shape(run_dir: Path) -> None:
    record = read_run(run_dir)
    harmed = [outcome.client for outcome in client_outcomes(record) if outcome.harmed]
    figure = draw(record)["clients_before_and_after"]
    marked = [name for name in tick_names(figure, "yaxis") if "harmed ▼" in name]
    assert harmed
    assert [name.removeprefix("harmed ▼ ") for name in marked] == harmed
    assert "harmed: worse than alone" in words(figure)


def test_clients_are_sorted_by_gain_with_the_largest_on_top(run_dir: Path) -> None:
    record = read_run(run_dir)
    gains = {outcome.client: outcome.gain for outcome in client_outcomes(record)}
    rows = tick_names(draw(record)["clients_before_and_after"], "yaxis")
    drawn = [gains[name.removeprefix("harmed ▼ ")] for name in rows]
    assert drawn == sorted(drawn)


def test_ticks_are_thinned_when_there_are_many(large_run: Path) -> None:
    figure = classes_by_client(read_run(large_run).partition)
    assert len(tick_names(figure, "xaxis")) <= 34
    assert len(tick_names(figure, "yaxis")) <= 75


def test_labels_do_not_overlap_when_there_are_many(large_run: Path) -> None:
    for name, figure in draw(read_run(large_run)).items():
        figure.draw_without_rendering()
        boxes = [text.get_window_extent() for text in figure.axes[0].yaxis.get_ticklabels()]
        ordered = sorted(boxes, key=lambda box: box.y0)
        gaps = [above.y0 - below.y1 for below, above in pairwise(ordered)]
        assert min(gaps) > -2, name  # pixels; a box is a little taller than its letters


def test_a_class_name_is_never_read_as_mathematics(tmp_path: Path) -> None:
    record = read_run(write_run(tmp_path, labels=("costs $5 or $6", r"$\frac{1}$", "plain"), rounds=2))
    assert "costs" in tick_names(classes_by_client(record.partition), "yaxis")[0]
    draw_all(tmp_path)


def test_bytes_are_cumulative_with_what_fedit_would_send(run_dir: Path) -> None:
    record = read_run(run_dir)
    up, down, fedit = bytes_by_round(record.rounds, record.summary).axes[0].get_lines()
    assert up.get_ydata()[-1] == record.summary["bytes_up"]
    assert down.get_ydata()[-1] == record.summary["bytes_down"]
    assert fedit.get_ydata()[-1] == 295_400 * 10 * 12
    assert fedit.get_linestyle() == "--"


def test_draw_all_writes_a_png_of_each_figure(run_dir: Path) -> None:
    assert draw_all(run_dir).keys() == NAMES
    for name in NAMES:
        with Image.open(run_dir / "figures" / f"{name}.png") as image:
            assert round(image.info["dpi"][0]) == 150
            assert image.width == 960


def test_a_run_with_one_client_and_one_round_is_drawn(tmp_path: Path) -> None:
    assert draw_all(write_run(tmp_path, clients=1, labels=5, rounds=1)).keys() == NAMES


def test_a_run_that_recorded_nothing_has_no_figures(tmp_path: Path) -> None:
    assert draw_all(write_failed_run(tmp_path)) == {}


def test_a_run_without_references_is_drawn_without_them(tmp_path: Path) -> None:
    write_run(tmp_path, rounds=2)
    (tmp_path / "summary.json").unlink()
    rows = [json.loads(line) for line in (tmp_path / "clients.jsonl").read_text().splitlines()]
    for row in rows:
        row.pop("local_only", None)
    (tmp_path / "clients.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    figures = draw(read_run(tmp_path))
    assert figures.keys() == NAMES
    assert "alone" not in words(figures["accuracy_by_round"])
    assert "alone" not in words(figures["clients_before_and_after"])


def test_spread_keeps_order_and_distance() -> None:
    placed = spread([0.5, 0.51, 0.9, 0.505], 0.1)
    assert sorted(range(4), key=placed.__getitem__) == [0, 3, 1, 2]
    ordered = sorted(placed)
    assert all(b - a >= 0.1 - 1e-9 for a, b in pairwise(ordered))
