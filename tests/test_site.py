"""The site: options as the code has them, and pages that read on GitHub and in the site alike."""

import json
import os
import re
import subprocess
import sys
from dataclasses import fields, is_dataclass
from pathlib import Path

import markdown
import pytest
from option_reference import page
from site_pages import by_kind, for_site, links, of_notebook

from fedsa_lora.config import load
from fedsa_lora.config.options import CONF, content_of, groups
from fedsa_lora.group import held, hints_of
from fedsa_lora.settings import RunConfig

ROOT = Path(__file__).parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


@pytest.fixture(scope="module")
def sections():
    """The rows of each section of the reference, as lists of cells."""
    found = {}
    for section in page().split("\n## ")[1:]:
        title, _, text = section.partition("\n")
        rows = re.findall(r"^\| `(.+)\|$", text, re.MULTILINE)
        found[title] = [[cell.strip().strip("`") for cell in re.split(r"(?<!\\)\|", row)] for row in rows]
    return found


def test_every_field_of_every_group_is_in_the_reference(sections):
    for group, kind in ((name, held(hint)) for name, hint in hints_of(RunConfig).items()):
        if is_dataclass(kind) and group != "strategy":  # whose keys are those of Flower's classes
            keys = {f"{group}.{known.name}" for known in fields(kind)} - {"split.head"}  # which head= sets
            assert keys <= {row[0] for row in sections[group]}


def test_every_key_that_a_config_file_sets_of_its_group_is_in_the_reference(sections):
    for group in set(groups()) & set(hints_of(RunConfig)):
        there = {row[0] for row in sections[group]}
        for path in (CONF / group).rglob("*.yaml"):
            if "@package" not in path.read_text():
                keys = content_of(path).keys() - {"_target_", "defaults"}
                assert {f"{group}.{key}" for key in keys} <= there, path


def test_every_choice_of_every_group_is_in_the_reference_with_a_line(sections):
    for group in groups():
        lines = {row[0]: row[1] for row in sections[group] if len(row) == 2}
        names = {str(p.relative_to(CONF / group).with_suffix("")) for p in (CONF / group).rglob("*.yaml")}
        assert lines.keys() == names
        assert all(lines.values()), group


def test_every_key_has_a_type_a_default_and_a_meaning(sections):
    keys = [row for rows in sections.values() for row in rows if len(row) == 5]
    assert len(keys) > 150
    for name, kind, default, _, meaning in keys:
        assert kind
        assert default
        assert meaning, f"{name}: nothing beside it in conf, nor in a docstring"


def test_the_defaults_are_those_of_a_run_that_chooses_nothing(sections):
    run = load(())
    for group in ("train", "lora", "federation", "bounds", "evaluation", "machine", "run", "head", "model"):
        rows = [row for row in sections[group] if len(row) == 5]
        shown = {key.partition(".")[2]: json.loads(default) for key, _, default, *_ in rows}
        assert shown.items() >= run.resolved[group].items()


def test_every_relative_link_of_a_page_leads_somewhere():
    found = [(page, target) for page in PAGES for target in links(page.read_text(encoding="utf-8"))]
    assert len(found) > 50
    assert [(page.name, target) for page, target in found if not (page.parent / target).exists()] == []


def test_links_are_replaced_and_code_is_not():
    text = '[a](x.md#top) <img src="p.png"> [b](https://x.y/z.md)\n```\n[c](x.md)\n```\n'
    made = for_site(text, lambda target: f"new/{target}")
    assert made.splitlines()[0] == '[a](new/x.md#top) <img src="new/p.png"> [b](https://x.y/z.md)'
    assert "[c](x.md)" in made


def test_a_link_to_a_place_with_an_anchor_keeps_it():
    assert for_site("[a](conf/split)", lambda _: "options.md#split") == "[a](options.md#split)\n"


@pytest.mark.parametrize(
    ("text", "tags"),
    [
        ("Text\n- one\n- two", "<p> <ul> <li> <li>"),
        ("- one\n  more\n- two\n\nText", "<ul> <li> <li> <p>"),
        ("- one\n  1. in it\n  2. too", "<ul> <li> <ol> <li> <li>"),
        ("Text\n| a |\n|---|\n| b |\nText", "<p> <table> <p>"),
        ("Text\n```\n- code\n```\n| a |\n|---|\n| b |", "<p> <pre> <table>"),
        ("||x|| is no table", "<p>"),
    ],
)
def test_blocks_that_github_tells_apart_are_apart_in_the_site(text, tags):
    html = markdown.markdown(for_site(text, str), extensions=["tables", "sane_lists", "fenced_code"])
    assert re.findall(r"<(?:p|ul|ol|li|table|pre)>", html.replace("<li>\n<p>", "<li>\n")) == tags.split()


def test_the_words_of_a_page_stay():
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        assert for_site(text, str).replace("\u00a0", " ").split() == text.split()


def test_a_notebook_keeps_its_cells_and_what_they_put_out():
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        kinds = [kind for kind, _ in by_kind(of_notebook(path))]
        outputs = [output.get("data", {}) for cell in cells for output in cell.get("outputs", [])]
        assert kinds.count("fence") >= sum(cell["cell_type"] == "code" for cell in cells)
        assert of_notebook(path).count("![](data:image/png") == sum("image/png" in data for data in outputs)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(tmp_path):
    # without --quiet, with which warnings do not count
    command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
    command += ["--config-file", "docs/site/mkdocs.yml", "--site-dir", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True, timeout=1800)
    built = sorted(tmp_path.rglob("*.html"))
    assert len(built) > 50
    assert (tmp_path / "search" / "search_index.json").is_file()
    for path in built:
        html = path.read_text(encoding="utf-8")
        assert not re.search(r'<(?:script|img|iframe)[^>]* src="?(?:https?:)?//', html), path
        assert not re.search(r'<link[^>]* rel="?stylesheet"?[^>]* href="?(?:https?:)?//', html), path
        text = re.sub(r"<(pre|code)\b.*?</\1>", "", html[html.find("<article") :], flags=re.DOTALL)
        assert not re.search(r"<p>(?:- |\||```)|\n(?:- |\d+\. |```)|\]\(\S+\)", text), path
