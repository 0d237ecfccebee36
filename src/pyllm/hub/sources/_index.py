"""Asks the package index where a wheel lies, with the user's own pip settings, so that its download can be continued.

Only what is simple is done here: an index (PEP 503 or PEP 691) that gives hashes, reached as pip's settings for index,
certificates and proxy say. For all else (keyrings, local folders) there is no answer, and pip itself has to fetch.
"""

from __future__ import annotations

import os
import re
import ssl
import subprocess
from ast import literal_eval
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

from pyllm import env

if TYPE_CHECKING:
    import httpx

_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.1"
_DEFAULT = "https://pypi.org/simple"
_TIMEOUT = 15.0
_BEYOND_US = ("no-index", "client-cert", "trusted-host", "keyring-provider")
"""Settings that only pip knows how to follow."""


@dataclass(frozen=True, slots=True)
class Link:
    """A wheel on an index, and how to connect to it."""

    url: str
    size: int
    """Bytes."""
    sha256: str
    client: Mapping[str, Any]
    """Arguments for httpx.Client."""


def settings(pip: Sequence[str] | None) -> dict[str, str] | None:
    """pip's settings for `pip download`, or None where only pip can follow them. Without pip there are none."""
    if pip is None:
        return {}
    command = [*pip, "config", "list", "--disable-pip-version-check"]
    found: dict[str, dict[str, str]] = {"global": {}, "download": {}, ":env:": {}}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", timeout=60, check=True,
            env=env.for_child(),
        )  # fmt: skip
        for line in done.stdout.splitlines():
            match = re.fullmatch(r"(global|download|:env:)\.([\w-]+)=(.*)", line)
            if match:
                found[match[1]][match[2]] = str(literal_eval(match[3]))
    except (OSError, subprocess.SubprocessError, ValueError, SyntaxError):
        return None
    merged = found["global"] | found["download"] | found[":env:"]
    return None if any(key in merged for key in _BEYOND_US) else merged


def find(requirement: str, settings: Mapping[str, str]) -> Link | None:
    """The wheel of a requirement `name==version`, or None where no index tells size and hash of one."""
    import httpx

    name, _, version = requirement.partition("==")
    project = re.sub(r"[-_.]+", "-", name).lower()
    prefix = f"{project.replace('-', '_')}-{version}-"
    try:
        client = _client(settings)
        with httpx.Client(**client, timeout=_TIMEOUT, follow_redirects=True) as http:
            for index in _indexes(settings):
                page = f"{index.rstrip('/')}/{project}/"
                response = http.get(page, headers={"Accept": _ACCEPT})
                if response.status_code != 200:
                    continue
                for file in _files(response):
                    if file["filename"].lower().startswith(prefix) and file["filename"].endswith("-none-any.whl"):
                        url = urljoin(str(response.url), file["url"])
                        return Link(url, file.get("size") or _size(http, url), file["hashes"]["sha256"], client)
    except (httpx.HTTPError, httpx.InvalidURL, OSError, ValueError, KeyError, TypeError):
        return None
    return None


def _files(response: httpx.Response) -> list[dict[str, Any]]:
    """A project's files as PEP 691 describes them, whichever way the index tells."""
    if "json" in response.headers.get("content-type", ""):
        files: list[dict[str, Any]] = response.json()["files"]
        return files
    parser = _Anchors()
    parser.feed(response.text)
    return [
        {"filename": unquote(urlsplit(url).path.rpartition("/")[2]), "url": url, "hashes": {"sha256": fragment[7:]}}
        for url, fragment in map(urldefrag, parser.targets)
        if fragment.startswith("sha256=")
    ]


class _Anchors(HTMLParser):
    """Collects what a page links to."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.targets += [value for name, value in attrs if tag == "a" and name == "href" and value]


def _size(http: httpx.Client, url: str) -> int:
    """Bytes behind a URL. Raises KeyError where the server does not tell."""
    response = http.head(url, headers={"Accept-Encoding": "identity"})
    response.raise_for_status()
    return int(response.headers["content-length"])


def _indexes(settings: Mapping[str, str]) -> Iterator[str]:
    for index in [settings.get("index-url", _DEFAULT), *settings.get("extra-index-url", "").split()]:
        if urlsplit(index).scheme in ("http", "https"):
            yield index


def _client(settings: Mapping[str, str]) -> dict[str, Any]:
    """What httpx needs to connect as pip would; proxies in the environment it finds by itself."""
    options: dict[str, Any] = {}
    certificates = settings.get("cert") or env.ca_bundle()
    if certificates:
        folder = os.path.isdir(certificates)
        options["verify"] = ssl.create_default_context(
            cafile=None if folder else certificates, capath=certificates if folder else None
        )
    if proxy := settings.get("proxy"):
        options["proxy"] = proxy
    return options
