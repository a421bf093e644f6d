"""The map of the house: what docs/architecture.md names is there. And the words of docstrings and pages."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text()
QUOTED = re.findall(r"`([^`]+)`", PAGE)
PLACES = sorted(
    {text for text in QUOTED if re.fullmatch(r"(fedsa_lora|strategies|tests|conf)(/[\w./]+)?", text)}
)
VAGUE = re.compile(  # say reports, records, resumes, continues, bit-identical, own or common values
    r"\b(?:(?:broken|breaks?|broke) off|what is common|(?:go|goes|going|went|gone) on|same bits"
    r"|of (?:its|their|one's) own|(?:is|are|was|were|be|been|being|not)(?: \w+)? told(?! apart)"
    r"|(?:tells?|telling)(?!(?: \w+)? apart))\b",
    re.IGNORECASE,
)
NAMES = sorted({text for text in QUOTED if re.fullmatch(r"[\w/]+\.py: [\w.]+", text)})


def defined(tree: ast.Module) -> set[str]:
    """The classes and functions of a file, and the methods as Class.method."""
    found = set()
    for node in tree.body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


def in_one_line(text: str) -> str:
    """A source or page without line breaks, marks of comments and seams of strings."""
    return re.sub(r"\s+", " ", re.sub(r"\n\s*#", " ", re.sub(r'"\s+f?"', "", text)))


@pytest.mark.parametrize("place", PLACES)
def test_every_place_on_the_map_is_there(place):
    assert (ROOT / place).exists()


@pytest.mark.parametrize("name", NAMES)
def test_every_name_on_the_map_is_defined_where_it_says(name):
    path, _, what = name.partition(": ")
    assert what in defined(ast.parse((ROOT / path).read_text()))


def test_every_room_is_on_the_map():
    rooms = [
        path.parent
        for package in ("fedsa_lora", "strategies")
        for path in (ROOT / package).rglob("__init__.py")
    ]
    assert {str(room.relative_to(ROOT)) for room in rooms} - {"fedsa_lora"} <= set(PLACES)
    assert len(NAMES) > 25


def test_a_docstring_opens_with_a_verb_or_a_noun():
    questions = ("What ", "Who ", "Whose ", "Which ", "Whether ", "How ", "Where ", "When ", "Why ")
    questions += ("Whatever ", "However ", "If ")
    found = []
    for package in ("fedsa_lora", "strategies"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                    text = ast.get_docstring(node) or ""
                    found += [f"{path.name}: {text[:60]}"] if text.startswith(questions) else []
    assert found == []


@pytest.mark.parametrize("place", ["fedsa_lora", "strategies", "docs", "README.md", "CHANGELOG.md"])
def test_texts_have_plain_words(place):
    path = ROOT / place
    files = sorted(path.rglob("*.py" if place in ("fedsa_lora", "strategies") else "*.md")) or [path]
    found = []
    for file in files:
        text = in_one_line(file.read_text())
        found += [f"{file.name}: {text[max(0, m.start() - 30) : m.end() + 30]}" for m in VAGUE.finditer(text)]
    assert found == []
