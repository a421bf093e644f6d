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

LINK = re.compile(
    r'(?P<before>\]\(|\b(?:src|href)=")(?P<target>[^)"\s#:]+)(?P<anchor>#[^)"\s]*)?(?P<after>[)"])'
)
CODE = ("fence", "code")
FENCE = re.compile(r" *(```|~~~)")
BEGINS = re.compile(r" *(?:(?P<list>[-*] |\d+\. )|(?P<table>\|(?!\|)))")
INDENT = re.compile(r"^ {2,3}(?=\S)")  # of what belongs to an item, where MkDocs asks for four
LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".cff": "yaml", ".json": "json"}
LARGEST = 60_000  # characters of a file that a page shows
SHOWN = ("text/html", "image/png", "text/plain")  # of the forms of an output, the first that it has


def by_kind(markdown: str) -> Iterator[tuple[str, str]]:
    """The lines with their kinds: ``fence`` where a block of code begins, ``code``, ``table``, ``list`` where
    an item begins, ``text`` or ``blank``."""
    fence = ""
    for line in markdown.splitlines():
        mark = FENCE.match(line)
        if fence:
            yield "code", line
            if mark and mark[1] == fence:
                fence = ""
        elif mark:
            yield "fence", line
            fence = mark[1]
        else:
            begins = BEGINS.match(line)
            plain = "text" if line.strip() else "blank"
            yield str(begins.lastgroup) if begins else plain, line


def links(markdown: str) -> Iterator[str]:
    """The relative links of a page, without anchors."""
    for kind, line in by_kind(markdown):
        if kind not in CODE:
            yield from (found["target"] for found in LINK.finditer(line))


def for_site(markdown: str, resolve: Callable[[str], str]) -> str:
    """The page with each relative link replaced by what ``resolve`` makes of it, and with the blank lines and
    the indentation that MkDocs asks for around lists, tables and code."""

    def replaced(found: re.Match[str]) -> str:
        target, own, anchor = resolve(found["target"]).partition("#")
        return found["before"] + target + (found["anchor"] or own + anchor) + found["after"]

    lines: list[str] = []
    last, before = "blank", ""
    for kind, line in by_kind(markdown):
        if kind not in CODE:
            line = INDENT.sub("    ", LINK.sub(replaced, line))
        if kind == "table":
            line = line.replace(" ± ", "\u00a0±\u00a0")  # one value, on one line
        if _parted(last, kind, nested=_indent(line) >= _indent(before)):
            lines.append("")
        lines.append(line)
        last, before = kind, line
    return "\n".join(lines) + "\n"


def _parted(last: str, kind: str, nested: bool) -> bool:
    """True where a blank line belongs between lines of two kinds. An item that ends the text of the one
    before needs none, and would stand apart with one."""
    if last == kind or "blank" in (last, kind):
        return False
    return kind in ("table", "fence") or last in ("table", "code") or (kind == "list" and nested)


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


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
        bare = re.sub(r"<style.*?</style>\s*", "", content, flags=re.DOTALL)
        return re.sub("<table[^>]*>", "<table>", bare)
    return f"```text\n{content}\n```" if content else ""


def of_source(path: Path, root: Path) -> str:
    """A file, or the files of a folder, as a page. What is not text, or long, is named alone."""
    title = f"# `{path.relative_to(root)}`\n"
    if path.is_file():
        return f"{title}\n{_shown(path)}"
    parts = [title]
    for file in sorted(path.rglob("*")):
        if file.is_file() and "__pycache__" not in file.parts:
            parts.append(f"## `{file.relative_to(path)}`\n\n{_shown(file)}")
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
