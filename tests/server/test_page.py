"""The files of the chat page: their headers, and what their sources may not hold."""

from __future__ import annotations

import re
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import httpx2
import pytest

import pyllm.server
from server_rig import Rig, running
from tiny_gguf import write_tiny_gguf

PAGE = Path(pyllm.server.__file__).parent / "page"
BROWSER = {"accept": "text/html,application/xhtml+xml,*/*;q=0.8"}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with running(write_tiny_gguf(tmp_path_factory.mktemp("page") / "tiny.gguf"), api_keys=("secret",)) as rig:
        yield rig


def test_browsers_get_the_page_and_others_ollamas_words(rig: Rig) -> None:
    page = httpx2.get(rig.url + "/", headers=BROWSER)
    assert page.status_code == 200
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.text == (PAGE / "index.html").read_text(encoding="utf-8")
    assert httpx2.get(rig.url + "/").text == "Ollama is running"
    assert page.headers["vary"] == "accept"


def test_headers_of_every_file(rig: Rig) -> None:
    answers = [httpx2.get(rig.url + "/", headers=BROWSER)]
    answers += [httpx2.get(f"{rig.url}/page/{file.name}") for file in sorted(PAGE.iterdir())]
    for answer in answers:
        assert answer.status_code == 200
        policy = dict(part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == policy["form-action"] == policy["frame-ancestors"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["base-uri"] == "'none'"
        assert policy["img-src"] == "'self' data:"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "same-origin"


def test_a_known_file_is_not_sent_again(rig: Rig) -> None:
    url = rig.url + "/page/app.js"
    first = httpx2.get(url)
    assert first.headers["content-type"] == "text/javascript; charset=utf-8"
    again = httpx2.get(url, headers={"if-none-match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert httpx2.get(url, headers={"if-none-match": '"other"'}).content == first.content


@pytest.mark.parametrize("name", ["none.js", "..%2fapp.py", "%2e%2e%2fapi.py", "__init__.py", "%00"])
def test_nothing_else_is_served(rig: Rig, name: str) -> None:
    assert httpx2.get(f"{rig.url}/page/{name}").status_code == 404


def test_a_server_without_the_page(tmp_path: Path) -> None:
    with running(write_tiny_gguf(tmp_path / "tiny.gguf"), page=False) as rig:
        assert httpx2.get(rig.url + "/", headers=BROWSER).text == "Ollama is running"
        assert httpx2.get(rig.url + "/page/app.js").status_code == 404


class _Tags(HTMLParser):
    """What a page names and what it has inline."""

    def __init__(self) -> None:
        super().__init__()
        self.named: list[str] = []
        self.ids: list[str] = []
        self.inline: list[str] = []
        self._within = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._within = tag
        given = dict(attrs)
        self.inline += [f"{tag} {name}" for name in given if name.startswith("on") or name == "style"]
        self.ids += [given["id"] or ""] if "id" in given else []
        if tag in ("script", "link", "img"):
            self.named.append(given.get("src") or given.get("href") or "")

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def handle_data(self, data: str) -> None:
        if self._within in ("script", "style") and data.strip():
            self.inline.append(data)


def test_everything_named_is_there_and_nothing_is_inline() -> None:
    tags = _Tags()
    tags.feed((PAGE / "index.html").read_text(encoding="utf-8"))
    assert tags.inline == []
    assert len(tags.named) >= 4
    assert all((PAGE.parent / name).is_file() for name in tags.named), tags.named
    assert len(set(tags.ids)) == len(tags.ids)
    found = {Path(name).name for name in tags.named}
    waiting = [name for name in found if name.endswith(".js")]
    while waiting:
        source = (PAGE / waiting.pop()).read_text(encoding="utf-8")
        imports = re.findall(r'^(?:import|export) [^;]*?from "\./([\w.]+)";', source, re.M)
        waiting += [name for name in imports if name not in found]
        found |= set(imports)
        asked = set(re.findall(r'(?:find|getElementById)\("([\w-]+)"\)', source))
        assert asked <= set(tags.ids), asked - set(tags.ids)
    # What no import reaches would be dead; what one names is there.
    assert found == {file.name for file in PAGE.iterdir()} - {"index.html"}


def test_sources_make_no_html_and_run_no_text() -> None:
    words = (
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser|srcdoc|javascript:\S"
    )
    for file in PAGE.glob("*.js"):
        source = file.read_text(encoding="utf-8")
        assert not re.search(words, source), file.name
        assert not re.search(r"""setTimeout\(\s*["'`]""", source), file.name
    assert not re.search(r"@import|url\(", "".join(file.read_text(encoding="utf-8") for file in PAGE.glob("*.css")))


def test_a_wheel_has_the_files(tmp_path: Path) -> None:
    wheel = pytest.importorskip("hatchling.builders.wheel", reason="hatchling is not installed")
    builder = wheel.WheelBuilder(str(Path(__file__).parents[2]))
    (made,) = builder.build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(made) as archive:
        inside = {Path(name).name for name in archive.namelist() if name.startswith("pyllm/server/page/")}
    assert inside == {file.name for file in PAGE.iterdir()}
