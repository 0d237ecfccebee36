"""The documentation site builds without a warning, has everything that it should, and loads nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest

import hooks
import pyllm

ROOT = Path(__file__).parents[2]

LOADING = {"script": "src", "img": "src", "iframe": "src", "source": "src", "link": "href", "object": "data"}
"""Attributes whose address a browser fetches by itself."""


class Page(HTMLParser):
    """Addresses and anchors of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        if tag in LOADING and LOADING[tag] in values:
            self.loads.append(values[LOADING[tag]])
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        self.anchors |= {values[name] for name in ("id", "name") if name in values}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("mkdocs", reason="the site is built with pyllm's extra `docs`")
    pytest.importorskip("mkdocstrings", reason="the site is built with pyllm's extra `docs`")
    pytest.importorskip("material", reason="the site is built with pyllm's extra `docs`")
    out = tmp_path_factory.mktemp("site")
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "-f", "docs/site/mkdocs.yml", "-d", str(out)]
    # No proxy answers: a build that needed the network would fail.
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    done = subprocess.run(build, cwd=ROOT, env=os.environ | nowhere, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


def test_every_document_is_a_page(site: Path) -> None:
    built = {path.relative_to(site).with_suffix(".md").as_posix() for path in site.rglob("*.html")} - {"404.md"}
    documents = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert built == documents | set(hooks.ELSEWHERE)


def test_everything_that_pyllm_promises_is_in_the_reference(site: Path, pages: dict[Path, Page]) -> None:
    anchors = pages[site / "reference" / "api.html"].anchors
    missing = [name for name in pyllm.__all__ if name != "__version__" and f"pyllm.{name}" not in anchors]
    assert not missing
    assert "pyllm.LLM.chat" in anchors


def test_pages_load_nothing_from_elsewhere(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for address in page.loads:
            parts = urlsplit(address)
            assert not parts.scheme, f"{path.name} loads {address}"
            assert not parts.netloc, f"{path.name} loads {address}"
            if path.name != "404.html":  # whose addresses begin at the root
                assert (path.parent / unquote(parts.path)).exists(), f"{path.name} loads {address}"
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert not re.search(r"url\([\"']?(https?:)?//|@import", text), f"{style.name} loads something"


def test_links_of_the_site_lead_to_its_pages(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        if path.name == "404.html":
            continue
        for link in page.links:
            parts = urlsplit(link)
            if parts.scheme:
                continue
            target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            target = target / "index.html" if target.is_dir() else target
            assert target.is_relative_to(site.resolve())
            assert target.exists(), f"{path.name} links to {link}"
            if parts.fragment and target in pages:
                assert unquote(parts.fragment) in pages[target].anchors, f"{path.name} links to {link}"


@pytest.mark.parametrize(
    ("uri", "text", "expected"),
    [
        ("index.md", "[a](docs/gpu.md#what)", "[a](gpu.md#what)"),
        ("index.md", "[a](models/README.md)", "[a](catalog.md)"),
        ("gpu.md", "[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
        ("reference/api.md", "[a](../gpu.md)", "[a](../gpu.md)"),
        ("gpu.md", "[a](../pyproject.toml)", "a"),
        ("gpu.md", "[quantize.md](quantize.md)", "[Quantizing](quantize.md)"),
        ("gpu.md", "[a](nowhere.md)", "[a](nowhere.md)"),
        ("gpu.md", "[a](https://example.org/x) ![a](recipes.svg)", "[a](https://example.org/x) ![a](recipes.svg)"),
        (
            "gpu.md",
            "```python\n[a](../README.md)\n```\n[a](../README.md)",
            "```python\n[a](../README.md)\n```\n[a](index.md)",
        ),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(uri: str, text: str, expected: str) -> None:
    assert hooks.with_site_links(text, uri, {"quantize.md": "Quantizing"}) == expected


def test_descriptions_of_arguments_become_lists() -> None:
    pytest.importorskip("griffe", reason="the site is built with pyllm's extra `docs`")
    import griffe_pyllm

    text = "Load.\n\n`a`: one\nand more.\n`b`, `c`: two.\n\n`x` is a name.\nIt stays a paragraph."
    assert griffe_pyllm.with_lists(text) == (
        "Load.\n\n- `a`: one\n  and more.\n- `b`, `c`: two.\n\n`x` is a name.\nIt stays a paragraph."
    )
