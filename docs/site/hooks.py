"""What mkdocs is told besides mkdocs.yml: pages that lie elsewhere in the repository, and links between them.

Links in all documents are those of the repository, so that they work where its files are shown. On the site a link to
a page becomes the page's, with its title where the words were the file's name, and a link to any other file of the
repository its words alone.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

REPOSITORY = Path(__file__).resolve().parents[2]
ELSEWHERE = {
    "index.md": "README.md",
    "catalog.md": "models/README.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "examples.md": "examples/README.md",
    "security.md": "SECURITY.md",
}
"""Pages of the site whose text is a file outside of docs/."""

_PAGE_OF = {source: page for page, source in ELSEWHERE.items()}
_FENCE = re.compile(r"^( *)(```|~~~)[\s\S]*?^\1\2 *$", re.MULTILINE)
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    from mkdocs.structure.files import File

    for page, source in ELSEWHERE.items():
        files.append(File.generated(config, page, abs_src_path=str(REPOSITORY / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    uri = page.file.src_uri
    if uri == "examples.md":
        markdown += _examples()
    return with_site_links(markdown, uri, dict(_titles(config.nav)))


def with_site_links(markdown: str, uri: str, titles: Mapping[str, str]) -> str:
    """A page's text with links that work on the site. Code blocks stay as they are."""
    out, at = [], 0
    for fence in _FENCE.finditer(markdown):
        out += [_links(markdown[at : fence.start()], uri, titles), fence[0]]
        at = fence.end()
    return "".join([*out, _links(markdown[at:], uri, titles)])


def _titles(nav: Any) -> Iterator[tuple[str, str]]:
    """(page, title) out of mkdocs.yml's `nav`."""
    for item in nav:
        for title, value in item.items():
            if isinstance(value, str):
                yield value, title
            else:
                yield from _titles(value)


def _links(text: str, uri: str, titles: Mapping[str, str]) -> str:
    folder = posixpath.dirname(ELSEWHERE.get(uri, f"docs/{uri}"))

    def link(found: re.Match[str]) -> str:
        words, path, anchor = found[1], found[2], found[3] or ""
        if ":" in path:
            return found[0]
        target = posixpath.normpath(posixpath.join(folder, path))
        if uri == "examples.md" and target.endswith(".py"):
            return f"[{words}](#{_anchor(target)})"
        page = _PAGE_OF.get(target) or (target.removeprefix("docs/") if target.startswith("docs/") else None)
        if page is not None:
            words = titles.get(page, words) if words == path else words
            return f"[{words}]({posixpath.relpath(page, posixpath.dirname(uri) or '.')}{anchor})"
        return words if (REPOSITORY / target).exists() else found[0]

    return _LINK.sub(link, text)


def _examples() -> str:
    """The scripts themselves, a section each."""
    folder = REPOSITORY / "examples"
    sections = []
    for path in sorted(folder.rglob("*.py")):
        name = path.relative_to(folder).as_posix()
        code = path.read_text(encoding="utf-8").rstrip()
        sections.append(f"\n## {name} {{ #{_anchor(f'examples/{name}')} }}\n\n```python\n{code}\n```\n")
    return "".join(sections)


def _anchor(path: str) -> str:
    return re.sub(r"\W+", "-", path.removeprefix("examples/"))
