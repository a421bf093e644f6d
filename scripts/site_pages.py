"""Pages of the site made of what lies elsewhere in the repository: notebooks, source files, folders.

Markdown here is written as GitHub reads it; ``for_site`` makes it what MkDocs reads.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

LINK = re.compile(r'(?P<before>\]\(|\b(?:src|href)=")(?P<target>[^)"\s#:]+)(?P<anchor>#[^)"\s]*)?(?P<after>[)"])')
FENCE = re.compile(r" *(```|~~~)")
LIST_OR_TABLE = re.compile(r"([-*] |\d+\. |\|)")
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".cff": "yaml", ".json": "json"}
LARGEST = 60_000  # characters of a file that a page shows
SHOWN = ("text/html", "image/png", "text/plain")  # of the forms of an output, the first that it has


def outside_of_code(markdown: str) -> Iterator[tuple[bool, str]]:
    """The lines, each with whether it is text and not in a block of code."""
    fence = ""
    for line in markdown.splitlines():
        mark = FENCE.match(line)
        if fence:
            yield False, line
            if mark and mark[1] == fence:
                fence = ""
        else:
            yield not mark, line
            if mark:
                fence = mark[1]


def links(markdown: str) -> Iterator[str]:
    """The relative links of a page, without anchors."""
    for is_text, line in outside_of_code(markdown):
        if is_text:
            yield from (found["target"] for found in LINK.finditer(line))


def for_site(markdown: str, resolve: Callable[[str], str]) -> str:
    """The page with each relative link replaced by what ``resolve`` makes of it, and with the blank line that
    MkDocs needs between a paragraph and a list or a table."""

    def replaced(found: re.Match[str]) -> str:
        target, own, anchor = resolve(found["target"]).partition("#")
        return found["before"] + target + (found["anchor"] or own + anchor) + found["after"]

    lines: list[str] = []
    before = ""  # the line before, where a paragraph may end
    for is_text, line in outside_of_code(markdown):
        if is_text and before and LIST_OR_TABLE.match(line) and not re.match(r"\s|[-*] |\d+\. |\|", before):
            lines.append("")
        lines.append(LINK.sub(replaced, line) if is_text else line)
        before = line.rstrip() if is_text else ""
    return "\n".join(lines) + "\n"


def of_notebook(path: Path) -> str:
    """A notebook as Markdown, with what its cells have put out."""
    parts: list[str] = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(source)
        else:
            parts += [f"```python\n{source}\n```", *map(_output, cell["outputs"])]
    return "\n\n".join(filter(None, parts)) + "\n"


def _output(output: dict[str, Any]) -> str:
    forms = output.get("data", {"text/plain": output.get("text", "")})
    form = next(form for form in SHOWN if form in forms)
    content = "".join(forms[form]).strip()
    if form == "image/png":
        return f"![](data:image/png;base64,{''.join(content.split())})"
    if form == "text/html":
        return re.sub(r"<style.*?</style>\s*", "", content, flags=re.DOTALL)
    return f"```text\n{content}\n```" if content else ""


def of_source(path: Path, root: Path) -> str:
    """A file, or the files of a folder, as a page. What is not text, or long, is named alone."""
    title = f"# {path.relative_to(root)}\n"
    if path.is_file():
        return f"{title}\n{_shown(path)}"
    parts = [title]
    for file in sorted(path.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            parts.append(f"## {file.relative_to(path)}\n\n{_shown(file)}")
    return "\n".join(parts)


def _shown(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return f"{path.stat().st_size:,} bytes.\n"
    if len(text) > LARGEST:
        return f"{len(text):,} characters.\n"
    return f"````{LANGUAGES.get(path.suffix, 'text')}\n{text.rstrip()}\n````\n"


def relative(target: str, page: str) -> str:
    """The link from one page to another, by their places in the site."""
    place, _, anchor = target.partition("#")
    return posixpath.relpath(place, posixpath.dirname(page) or ".") + (f"#{anchor}" if anchor else "")
