"""The report needs nothing else, shows what was recorded, and is inert whatever names the data hold."""

import base64
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from html_page import Page
from numpy.testing import assert_allclose
from synthetic_run import REASON, write_failed_run, write_run

from fedsa_lora import files
from fedsa_lora.binding import PLUGINS
from fedsa_lora.config.compose import load
from fedsa_lora.errors import RunError
from fedsa_lora.exchange.measure import CLASSES
from fedsa_lora.report.account import uploads, what_left
from fedsa_lora.report.figures import draw_all
from fedsa_lora.report.page import render, write_report
from fedsa_lora.report.page_script import SCRIPT
from fedsa_lora.report.recorded_config import own_packages
from fedsa_lora.report.style import DARK
from fedsa_lora.report.wording import verdict
from fedsa_lora.runs.outcomes import client_outcomes
from fedsa_lora.runs.reading import read_run

ACCURACY = CLASSES[0]

EVIL = "<script>alert(1)</script>"
CHARTS = 1  # figures beside those of `draw`: of the loss


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def html(run_dir: Path) -> str:
    return write_report(run_dir).read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(html: str) -> Page:
    return Page(html)


@pytest.fixture(scope="module")
def summary(run_dir: Path) -> dict[str, Any]:
    return json.loads((run_dir / "summary.json").read_text())


def change(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def report_of(run_dir: Path) -> Page:
    return Page(write_report(run_dir).read_text(encoding="utf-8"))


def test_the_report_loads_nothing(html: str, page: Page) -> None:
    assert not [tag for _, tag in page.tags if {"src", "srcset", "xlink:href"} & tag.keys()]
    assert page.all("image")
    assert all((tag["href"] or "").startswith("data:image/png;base64,") for tag in page.all("image"))
    assert {name for name, tag in page.tags if "href" in tag} == {"a", "image", "use"}
    assert not page.all("link")
    assert not re.search(r"@import|url\(", html)
    outward = {tag["href"] for tag in page.all("a") if "://" in (tag["href"] or "")}
    assert outward == {"https://arxiv.org/abs/2410.01463"}


def test_the_only_script_is_ours_and_a_browser_is_told_to_run_no_other(page: Page) -> None:
    assert page.scripts == [SCRIPT]
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
    (policy,) = [tag["content"] or "" for tag in page.all("meta") if "http-equiv" in tag]
    assert "default-src 'none'" in policy
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]


@pytest.mark.usefixtures("undrawn")
def test_a_link_leads_to_a_file_of_the_run_or_a_part_of_the_page(tmp_path: Path) -> None:
    write_run(tmp_path, clients=2, rounds=1)
    (tmp_path / "clients.csv").write_text("client\n")
    page = report_of(tmp_path)
    ids = {tag["id"] for _, tag in page.tags if "id" in tag}
    links = [tag["href"] or "" for tag in page.all("a") if "://" not in (tag["href"] or "")]
    assert {"config.yaml", "summary.json", "clients.csv"} == {link for link in links if link[0] != "#"}
    assert all((tmp_path / link).is_file() for link in links if link[0] != "#")
    assert {link[1:] for link in links if link[0] == "#"} == {"client-0", "client-1"} <= ids


def test_marks_of_a_figure_are_its_own(page: Page) -> None:
    ids = [tag["id"] for _, tag in page.tags if "id" in tag]
    assert len(set(ids)) == len(ids)
    marks = {f"#{name}" for name in ids if not (name or "").startswith("client-")}
    assert {tag["href"] for tag in page.all("use")} == marks


def test_the_report_is_one_well_formed_page_for_every_screen(html: str, page: Page) -> None:
    assert html.startswith("<!doctype html>")
    assert not page.open
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    assert "prefers-color-scheme: dark" in html
    assert '"Segoe UI"' in html  # a style sheet is not text: its quotes must not be escaped
    assert len(page.all("h1")) == 1


def test_tables_scroll_within_themselves(page: Page) -> None:
    scrolling = [tag for tag in page.all("div") if tag.get("class") == "scroll"]
    assert len(scrolling) == len(page.all("table")) == 6 + 10  # measures of ten clients


def test_a_sortable_table_has_the_recorded_number_beside_each_text(run_dir: Path, html: str) -> None:
    record = read_run(run_dir)
    rounds = html.split('aria-label="Rounds"')[1].split("</table>")[0]
    keys = ("accuracy", "accuracy_weighted", "accuracy_worst", "accuracy_before", "loss", "fit_clients")
    keys += ("fit_failures", "bytes_up", "bytes_down", "seconds")
    recorded = [row[key] for row in record.rounds for key in keys]
    assert_allclose(numbers_in(rounds), recorded, rtol=1e-5)
    clients = html.split('aria-label="Clients"')[1].split("</table>")[0]
    recorded = []
    for found in client_outcomes(record):
        recorded += [found.personalised, found.local_only, found.gain, found.before, found.majority]
        recorded += [found.train, found.test, found.rounds, found.bytes_up, found.bytes_down]
    assert_allclose(numbers_in(clients), recorded, rtol=1e-5)


def numbers_in(table: str) -> list[float]:
    assert 'class="sortable' in table
    return [float(number) for number in re.findall('data-value="([^"]*)"', table)]


def test_paper_is_white_and_no_wider_than_itself(html: str) -> None:
    sheet = html.split("<style>")[1].split("</style>")[0]
    assert re.findall(r"@media ([^{]*)prefers-color-scheme", sheet) == ["screen and ("] * 2
    for words in re.findall(r"@media ([^{]*)\{", sheet):
        assert words.startswith(("print", "screen"))
    on_paper = "".join(part.split("\n}\n")[0] for part in sheet.split("@media print {")[1:])
    assert ".scroll, pre { overflow: visible; }" in on_paper
    assert not re.search(r"width: *\d+(px|pt|rem)", on_paper)


def test_every_figure_is_embedded_for_every_screen_with_a_text_and_a_caption(page: Page) -> None:
    pictures = [tag for tag in page.all("div") if tag.get("role") == "img"]
    assert len(page.all("figcaption")) == 4 + CHARTS
    assert len(page.all("figure")) == len(pictures) == 4 + CHARTS + 10  # curves of ten clients
    assert all(len(tag["aria-label"] or "") > 30 for tag in pictures)
    drawn = ["wide", "narrow"] * 4 + ["chart wide", "chart narrow"] + ["chart any"] * 10
    assert [tag["class"] for tag in page.all("svg")] == drawn


def test_figures_take_every_colour_from_the_screen(html: str, page: Page) -> None:
    styles = " ".join(tag.get("style") or "" for _, tag in page.tags)
    assert "var(--personalised)" in styles
    assert not re.search(r"#[0-9a-fA-F]{3}", styles)
    night = html.split("prefers-color-scheme: dark")[-1]
    for used in set(re.findall(r"var\(--(\w+)\)", styles)):
        assert f"--{used}: {getattr(DARK, used)};" in night
    counts = [tag["class"] for tag in page.all("image")]
    assert counts == ["dark", "light"] * 4  # cells and scale, wide and narrow


def test_a_report_of_figures_that_are_drawn_draws_them_as_otherwise(run_dir: Path, page: Page) -> None:
    again = Page(write_report(run_dir, figures=draw_all(run_dir)).read_text(encoding="utf-8"))
    assert again.text == page.text
    assert [tag for tag, _ in again.tags] == [tag for tag, _ in page.tags]


def test_a_figure_gives_the_same_characters_again(run_dir: Path, html: str) -> None:
    assert render(read_run(run_dir)) == html


def test_captions_say_only_what_the_figure_shows(page: Page, tmp_path: Path) -> None:
    assert "A triangle and the word" in page.text
    assert "A blank cell is a class" in page.text
    alone = report_of(write_run(tmp_path, clients=1, labels=1, rounds=1)).text
    assert "A triangle and the word" not in alone
    assert "The band runs" not in alone
    assert "Every client holds all 1 class" in alone


@pytest.mark.slow
def test_a_report_stays_small_enough_to_be_mailed(tmp_path: Path) -> None:
    path = write_report(write_run(tmp_path, clients=100, labels=150, rounds=30))
    assert path.stat().st_size < 1_500_000


def test_each_round_and_each_client_of_a_figure_can_be_read(page: Page) -> None:
    bands = [tag for name, tag in page.tags if name in ("g", "rect") and tag.get("class") == "value"]
    # both layouts: accuracy, clients, classes, bytes and loss; a curve of each client
    assert len(bands) == 2 * (12 + 10 + 10 + 12 + 12) + 10 * 12
    assert len(page.all("title")) == 1 + len(bands)
    assert "client 9: federated" in page.text
    assert "; harmed" in page.text


def test_every_client_is_shown(page: Page, html: str) -> None:
    for client in range(10):
        assert f'<th scope="row"><a href="#client-{client}">{client}</a></th>' in html
    assert "10 clients, by id" in page.text


def test_the_numbers_are_those_of_the_summary(page: Page, summary: dict[str, Any]) -> None:
    assert "Better together than alone? On average, but not for the worst client." in page.text
    for model in ("personalised", "local_only", "majority"):
        figures = summary[model]
        expected = f"{figures['mean']:.1%} {figures['weighted']:.1%} {figures['worst']:.1%}"
        assert f"{expected} (client {figures['worst_client']})" in page.text
    assert f"{summary['before_aggregation']['mean']:.1%}" in page.text
    assert f"{100 * summary['gain_over_local']:+.1f} points" in page.text
    assert f"Clients harmed {summary['clients_harmed']} of 10" in re.sub(r"\s+", " ", page.text)
    for words in ("17.7 MB up and 35.5 MB down", "2 min 14 s", "148 kB", "295 kB: 2.0 times"):
        assert words in page.text


def test_uploads_are_compared_with_the_full_model(page: Page) -> None:
    text = re.sub(r"\s+", " ", page.text)
    assert "The full model 90,863,644 0.0% A and B 295,400 99.7% A 147,944 99.8% This run, as sent" in text


@pytest.mark.parametrize(("head", "extra"), [("local", 0), ("frozen", 0), ("shared", 4 * 1_290)])
def test_uploads_are_counted_from_the_parameters_of_the_run(head: str, extra: int) -> None:
    summary = {
        "parameters": {"base": 809_856, "A": 18_432, "B": 12_288, "head": 1_290},
        "split": {"A": "shared", "B": "local", "head": head, "base": "frozen"},
        "bytes_up_share_ab": 4 * 30_720 + extra,
        "bytes_up_per_client_round": 74_100.5,
    }
    sizes = [3_244_584, 122_880 + extra, 73_728 + extra, 74_100.5]
    assert list(uploads(summary).values()) == sizes
    assert ("A, B and the head" in uploads(summary)) == (head == "shared")
    without_adapters = {**summary, "parameters": {"base": 809_856, "A": 0, "B": 0, "head": 1_290}}
    assert uploads(without_adapters) == uploads({}) == {}


def test_the_report_says_what_left_the_clients_and_what_that_does_not_prove(page: Page) -> None:
    assert "Only the A matrices, 36,864 of 22,789,639 parameters (0.16%)" in page.text
    assert "The B matrices stayed on each client" in page.text
    assert "240 messages (35.5 MB) searched, each for up to 110,592 private values; 0 found" in page.text
    assert "not a privacy guarantee" in page.text


def test_a_leak_a_break_and_equal_clients_are_warned_of(summary: dict[str, Any]) -> None:
    proof = {"messages": 20, "bytes_searched": 10, "private_values": 7, "matches": 2, "chain_breaks": 3}
    text = " ".join(what_left({**summary, "proof": {**proof, "distinct_b": False}}))
    assert "Warning: 2 private values found in 20 messages" in text
    assert "Warning: 3 times a client did not continue from its own state" in text
    assert "Warning: at least two clients ended with the same B" in text
    assert "Checked:" not in text


def test_a_report_of_split_learning_does_not_say_that_a_alone_left(summary: dict[str, Any]) -> None:
    text = " ".join(what_left({**summary, "step_bytes": {"h1": 9}}))
    assert "Only the A" not in text
    assert "can reconstruct the texts" in text


def test_clients_that_share_everything_are_not_warned_of_for_being_equal(summary: dict[str, Any]) -> None:
    def said(**split: str) -> str:
        same = {"chain_breaks": 0, "distinct_b": False}
        return " ".join(what_left({**summary, "split": {"base": "frozen", **split}, "proof": same}))

    assert "the same" not in said(A="shared", B="shared", head="shared")
    assert "clients ended with the same head" in said(A="shared", B="shared", head="local")


@pytest.mark.parametrize(
    ("gain", "interval", "worst", "answer"),
    [
        (0.05, [0.01, 0.09], 0.6, "Yes"),
        (0.004, [0.001, 0.007], 0.6, "Yes"),
        (0.05, [0.01, 0.09], 0.4, "On average, but not for the worst client"),
        (-0.05, [-0.09, -0.01], 0.4, "No"),
        (0.05, [-0.01, 0.11], 0.6, "Not significantly different"),
        (-0.05, [-0.1, 0.0], 0.4, "Not significantly different"),
        (0.05, None, 0.6, "Not known"),
        (None, None, 0.6, "Not measured"),
    ],
)
def test_the_answer_follows_the_interval(
    gain: float | None, interval: list[float] | None, worst: float, answer: str
) -> None:
    alone = {"mean": 0.7, "worst": 0.5}
    ours = {"mean": 0.7 + (gain or 0), "worst": worst}
    summary = {"personalised": ours, "local_only": alone, "gain_over_local": gain}
    assert verdict({**summary, "gain_interval": interval, "clients_compared": 5}, ACCURACY).answer == answer


def test_the_verdict_tells_the_interval_and_of_how_many_clients_it_is() -> None:
    known = {"personalised": {"mean": 0.75}, "local_only": {"mean": 0.7}, "gain_over_local": 0.05}
    sentence = verdict({**known, "gain_interval": [-0.01, 0.11], "clients_compared": 5}, ACCURACY).sentence
    assert "+5.0 points (95% interval over 5 clients: \N{MINUS SIGN}1.0 to +11.0 points)." in sentence
    sentence = verdict({**known, "gain_interval": None, "clients_compared": 1}, ACCURACY).sentence
    assert "+5.0 points (1 client: too few for an interval)." in sentence
    assert "without an interval" in verdict(known, ACCURACY).sentence


@pytest.mark.usefixtures("undrawn")
def test_clients_that_could_not_be_measured_are_told_with_the_reason(tmp_path: Path) -> None:
    write_run(tmp_path, clients=3, rounds=2)
    rows = [json.loads(line) for line in (tmp_path / "clients.jsonl").read_text().splitlines()]
    for row in rows:
        if (row["phase"], row["client"]) == ("evaluate", "1"):
            row.update(examples=0, measured=0)
            del row["accuracy"]
    (tmp_path / "clients.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    change(tmp_path / "summary.json", measured=2, unmeasured=["1"], clients_compared=2)
    page = report_of(tmp_path)
    assert "Model, 2 of 3 clients" in page.text
    assert (
        "1 client without test examples took part like the others and could not be measured: 1." in page.text
    )
    assert "no test examples" in page.text
    assert "never evaluated" not in page.text


def test_a_split_that_shares_nothing_claims_nothing() -> None:
    summary = {"split": {"A": "local", "B": "local", "head": "local", "base": "frozen"}}
    assert verdict(summary, ACCURACY).answer == "Nothing was shared"
    assert what_left(summary) == ["Nothing: this split shares no part of the model."]


def test_a_model_without_a_head_does_not_claim_to_keep_it(summary: dict[str, Any]) -> None:
    parameters, split = summary["parameters"], {**summary["split"], "head": "local"}
    with_head = what_left({**summary, "split": split})
    without = what_left({**summary, "split": split, "parameters": parameters | {"head": 0}})
    assert "The B matrices and the classification head stayed on each client." in with_head
    assert "The B matrices stayed on each client." in without


def test_a_split_that_shares_b_does_not_claim_to_keep_it() -> None:
    split = {"A": "shared", "B": "shared", "head": "shared", "base": "frozen"}
    left = what_left({"split": split, "clients": 10, "proof": None})
    assert left[0] == "The A matrices, the B matrices and the classification head."
    assert not any("stayed" in line or "Checked" in line for line in left)


def test_failures_and_notes_are_told_with_their_reason(page: Page) -> None:
    assert f"3 error 5 {REASON}" in page.text
    assert "fewer than 20" in page.text
    assert "1 failure, see Answers that failed" in page.text


@pytest.mark.usefixtures("undrawn")
def test_rejected_and_clipped_answers_are_listed_by_client_with_rounds_and_reason(tmp_path: Path) -> None:
    write_run(tmp_path, clients=3, rounds=3)
    late, long = "answers round 1, this is round 2", "sent an update of norm 9, and the bound is 3"
    found = []
    for row in map(json.loads, (tmp_path / "rounds.jsonl").read_text().splitlines()):
        told = [{"client": None, "kind": "lost", "reason": "a node failed: gone"}]
        if row["round"] > 1:
            told.append({"client": "2", "kind": "rejected", "reason": late})
        if row["round"] == 3:
            told.append({"client": "1", "kind": "clipped", "reason": f"{long} {EVIL}"})
        found.append(row | {"remarks": told})
    (tmp_path / "rounds.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found))
    page = report_of(tmp_path)
    assert "Answers that failed" in page.text
    assert f"2 rejected 2, 3 {late}" in page.text
    assert f"1 clipped 3 {long} {EVIL}" in page.text
    assert "unknown lost 1, 2, 3 a node failed: gone" in page.text


@pytest.mark.usefixtures("undrawn")
def test_a_run_whose_answers_were_all_taken_has_no_such_list(tmp_path: Path) -> None:
    write_run(tmp_path, clients=3, rounds=3)
    assert "Answers that failed" not in report_of(tmp_path).text


def test_config_environment_and_commands_are_shown(page: Page, run_dir: Path) -> None:
    assert "experiment: quickstart" in page.text
    assert "1.41.0" in page.text
    assert "fedsa-lora run seed=0" in page.text
    assert f"fedsa-lora run {run_dir.name}/config.yaml" in page.text


@pytest.mark.usefixtures("undrawn")
def test_what_a_run_changed_is_shown_with_the_value_of_the_experiment(tmp_path: Path) -> None:
    write_run(tmp_path, clients=1, rounds=1)
    change(tmp_path / "environment.json", command="fedsa-lora run split=share_ab")
    assert "Changed To split share_ab" in report_of(tmp_path).text
    against = [["split.B", "local", "shared"], ["note", "", EVIL]]
    change(tmp_path / "summary.json", against_experiment=against)
    page = report_of(tmp_path)
    row = f"split.B local shared note – {EVIL}"  # noqa: RUF001
    assert f"Changed In the experiment In this run {row}" in page.text
    assert page.scripts == [SCRIPT]


@pytest.mark.usefixtures("undrawn")
def test_changes_that_would_push_the_result_off_the_screen_are_folded(tmp_path: Path) -> None:
    write_run(tmp_path, clients=1, rounds=1)
    for count, folded in ((6, False), (7, True)):
        words = " ".join(f"lora.k{n}={n}" for n in range(count))
        change(tmp_path / "environment.json", command=f"fedsa-lora run {words}")
        page = report_of(tmp_path)
        assert f"lora.k{count - 1} {count - 1}" in page.text
        assert (f"{count} settings changed by the command" in page.text) == folded


@pytest.mark.usefixtures("undrawn")
def test_commands_of_a_run_of_own_code_allow_its_packages(tmp_path: Path) -> None:
    write_run(tmp_path, clients=1, rounds=1)
    assert PLUGINS not in report_of(tmp_path).text
    config = {
        "task": {"_target_": "fedsa_lora.tasks.functions.FunctionsTask", "model_function": "my_app.app:net"},
        "codec": {"stages": [{"_target_": "codecs_of_mine.Stage"}]},
    }
    (tmp_path / "config.yaml").write_text(json.dumps(config))
    text = report_of(tmp_path).text
    assert text.count(f"{PLUGINS}=codecs_of_mine,my_app fedsa-lora run") == 2


def test_classes_that_every_config_may_name_are_nobodys_own():
    node = load(["experiment=smoke", "strategy=fedadam", "partition=dirichlet"]).resolved
    assert own_packages(node) == set()


@pytest.mark.usefixtures("undrawn")
def test_remarks_on_clients_have_a_column_only_where_there_are_some(tmp_path: Path) -> None:
    write_run(tmp_path, clients=2, rounds=1)
    assert "Remarks" not in report_of(tmp_path).text
    write_run(tmp_path, clients=4, rounds=5)
    assert "Down Remarks" in report_of(tmp_path).text


def test_names_from_data_are_inert(tmp_path: Path) -> None:
    write_run(tmp_path, clients=2, labels=(EVIL, 'b\x1b\x00" style="fill: #0072b2"'), rounds=1)
    (tmp_path / "config.yaml").write_text(f"note: '{EVIL}'\n")
    evil = dict.fromkeys(("name", "title", "description"), EVIL)
    change(tmp_path / "summary.json", **evil)
    change(tmp_path / "environment.json", command=EVIL, device='"><img src=x onerror=alert(1)>')
    partition = json.loads((tmp_path / "partition.json").read_text())
    shares = {EVIL: partition["clients"]["0"]}
    change(tmp_path / "partition.json", notes=[EVIL], clients=shares)
    failed = {"round": 3, "remarks": [{"client": EVIL, "kind": "error", "reason": EVIL}]}
    with (tmp_path / "rounds.jsonl").open("a") as file:
        file.write(json.dumps(failed) + "\n")
    page = report_of(tmp_path)
    assert page.scripts == [SCRIPT]
    assert not [tag for _, tag in page.tags if any(name.startswith("on") for name in tag)]
    assert page.text.count(EVIL) >= 9
    # on the axis of the wide figure (what fits a narrow one is cut), and in the values of both
    assert page.text.count('b " style="fill: #0072b2"') == 3


def test_a_run_that_failed_before_its_first_round_says_why(tmp_path: Path) -> None:
    write_failed_run(tmp_path, f"DataError: no data at {EVIL}")
    change(tmp_path / "status.json", title="my_app.app:Network, 4 clients")
    page = report_of(tmp_path)
    assert "my_app.app:Network, 4 clients · fedsa-lora report" in page.text
    assert "This run failed" in page.text
    assert f"DataError: no data at {EVIL}" in page.text
    assert "It recorded no round" in page.text
    assert not page.all("figure")
    assert page.scripts == [SCRIPT]


def test_a_run_that_failed_midway_shows_what_it_recorded(tmp_path: Path) -> None:
    write_run(tmp_path, rounds=4)
    (tmp_path / "summary.json").unlink()
    change(tmp_path / "status.json", state="failed", reason="RunError: out of memory")
    page = report_of(tmp_path)
    assert "RunError: out of memory" in page.text
    assert "Below is what it recorded: 4 rounds" in page.text
    assert len(page.all("figcaption")) == 4 + CHARTS
    assert "Better together" not in page.text


@pytest.mark.usefixtures("undrawn")
def test_a_client_that_was_never_evaluated_is_shown_as_such(tmp_path: Path) -> None:
    write_run(tmp_path, clients=1, rounds=1)
    partition = json.loads((tmp_path / "partition.json").read_text())
    partition["clients"]["lonely"] = partition["clients"]["0"]
    change(tmp_path / "partition.json", **partition)
    page = report_of(tmp_path)
    assert "2 clients, by id" in page.text
    assert "lonely" in page.text
    assert "never evaluated" in page.text


def test_a_run_with_one_client_makes_no_claim_about_several(summary: dict[str, Any]) -> None:
    assert "no two clients" in " ".join(what_left(summary))
    assert "no two clients" not in " ".join(what_left({**summary, "clients": 1}))


def test_a_report_that_cannot_be_written_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_failed_run(tmp_path)
    first = write_report(tmp_path).read_bytes()
    before = sorted(tmp_path.iterdir())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)
    with pytest.raises(RunError, match=r"report\.html cannot be written: No space left on device"):
        write_report(tmp_path)
    assert (tmp_path / "report.html").read_bytes() == first
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize("name", ["config.yaml", "status.json"])
def test_a_directory_that_is_no_run_is_named(tmp_path: Path, name: str) -> None:
    write_failed_run(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(RunError, match=re.escape(name)):
        write_report(tmp_path)
