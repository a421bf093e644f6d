"""Hooks of MkDocs: pages from outside of ``docs``, and links that work on GitHub and in the site."""

from __future__ import annotations

import logging
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from option_reference import page as options_page
from site_pages import for_site, links, of_notebook, of_source, relative

from fedsa_lora.config.options import groups

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = {"README.md": "index.md", "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
ELSEWHERE = {  # links to folders whose content is a page already
    "notebooks": "notebooks/01_quickstart.md",
    "conf": "options.md",
    **{f"conf/{group}": f"options.md#{group}" for group in groups()},
}
GENERATED = ("api/", "options.md")  # pages that are made of docstrings and comments
IMAGES = (".png", ".svg")
BLOCK = re.compile(r"<pre>(.*?</pre>)", re.DOTALL)
DRAWN = re.compile("[│┃━]|--&gt;")
LOG = logging.getLogger("mkdocs.hooks.site")
origins: dict[str, Path] = {}  # of each page of the build the file that its links are relative to


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that are made of files outside of ``docs``."""
    origins.clear()
    for name, uri in PAGES.items():
        _add(files, config, uri, ROOT / name, (ROOT / name).read_text(encoding="utf-8"))
    files.append(File.generated(config, "options.md", content=options_page()))
    for notebook in sorted((ROOT / "notebooks").glob("*.ipynb")):
        _add(files, config, f"notebooks/{notebook.stem}.md", notebook, of_notebook(notebook))
    for file in files.documentation_pages():
        origins.setdefault(file.src_uri, DOCS / file.src_uri)
    _add_sources(files, config)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its links as the site needs them."""
    uri = page.file.src_uri
    return for_site(markdown, lambda target: relative(_place(target, origins[uri]), uri))


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """The page with its drawings marked, whose lines must not wrap as those of code do, and with a link
    wherever code that it is made of names a page of ``docs``."""

    def linked(found: re.Match[str]) -> str:
        place = files.get_file_from_path(found[1])
        return f'<a href="{place.url_relative_to(page.file)}">{found[0]}</a>' if place else found[0]

    html = BLOCK.sub(
        lambda found: '<pre class="drawn">' + found[1] if DRAWN.search(found[1]) else found[0], html
    )
    if not page.file.src_uri.startswith(GENERATED):
        return html
    return re.sub(r"(?<![\w/])docs/([\w/]+\.md)", linked, html)


def _add_sources(files: Files, config: MkDocsConfig) -> None:
    """A page for each source file or folder that a page links to, and for what these link to in turn. Logs a
    warning, which fails a strict build, for what is not there: MkDocs does not look at links in HTML."""
    waiting = list(files.documentation_pages())
    while waiting:
        page = waiting.pop()
        for target in links(page.content_string):
            uri = _place(target, origins[page.src_uri])
            path = (origins[page.src_uri].parent / target).resolve()
            if not path.exists():
                LOG.warning("%s links to %s, which is not there", page.src_uri, target)
            if not uri.startswith("source/") or files.get_file_from_path(uri) is not None:
                continue
            if path.suffix in IMAGES:
                files.append(File.generated(config, uri, content=path.read_bytes()))
                continue
            text = path.read_text(encoding="utf-8") if path.suffix == ".md" else of_source(path, ROOT)
            waiting.append(_add(files, config, uri, path, text))


def _add(files: Files, config: MkDocsConfig, uri: str, origin: Path, text: str) -> File:
    file = File.generated(config, uri, content=text)
    files.append(file)
    origins[uri] = origin
    return file


def _place(target: str, origin: Path) -> str:
    """The place in the site of what a page links to; the link itself where that is not there."""
    path = (origin.parent / target).resolve()
    if not path.exists():
        return target
    if path.is_relative_to(DOCS):
        return path.relative_to(DOCS).as_posix()
    name = path.relative_to(ROOT).as_posix()
    if name in PAGES or name in ELSEWHERE:
        return PAGES.get(name) or ELSEWHERE[name]
    return f"source/{name}" if path.suffix in (".md", *IMAGES) else f"source/{name}.md"
