"""Model files at a URL. A download that breaks continues where it stopped, in this run or a later one."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

from pyllm.errors import HubError
from pyllm.hub.sources import Report

if TYPE_CHECKING:
    import httpx

_ATTEMPTS = 5
"""Failures in a row, without a byte in between, until we give up."""
_PAUSE = 0.5
"""Seconds before the second attempt; doubles after each."""


def fetch(source: Mapping[str, Any], part: IO[bytes], size: int, report: Report) -> None:
    """See `pyllm.hub.sources`. Keys: url, and optionally headers, and other arguments for httpx.Client in `client`.

    Proxies and certificates are those of the environment, where `client` names no others.
    """
    import httpx

    url = source["url"]
    failures = 0
    etag: str | None = None
    more = source.get("client", {})
    with httpx.Client(follow_redirects=True, timeout=30.0, headers=source.get("headers"), **more) as client:
        while (have := part.tell()) < size:
            cause: Exception | None = None
            try:
                etag = _stream(client, url, part, size, report, etag)
            except httpx.TransportError as error:
                cause = error
            failures = 0 if part.tell() > have else failures + 1
            if failures >= _ATTEMPTS:
                raise HubError(f"{_host(url)} cannot be reached: {cause or 'it sends nothing'}") from cause
            if part.tell() < size:
                time.sleep(_PAUSE * 2**failures)


def _stream(client: httpx.Client, url: str, part: IO[bytes], size: int, report: Report, etag: str | None) -> str | None:
    """One request for what is missing. Gives the ETag, so that the next one continues the same version only."""
    have = part.tell()
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if etag and not etag.startswith("W/"):
            headers["If-Range"] = etag
    with client.stream("GET", url, headers=headers) as response:
        if response.status_code == 416 and have:
            _restart(part)
            return None
        if response.status_code not in (200, 206):
            raise HubError(f"{_host(url)} answered {response.status_code} {response.reason_phrase} for {url}")
        if response.status_code == 200:
            _restart(part)
        elif not response.headers.get("content-range", "").startswith(f"bytes {have}-"):
            raise HubError(f"{_host(url)} sends another range than asked for")
        total = _total(response)
        if total is not None and total != size:
            raise HubError(f"{url} has {total} bytes instead of {size}")
        for chunk in response.iter_bytes():
            if part.tell() + len(chunk) > size:
                raise HubError(f"{url} sends more than the expected {size} bytes")
            part.write(chunk)
            report(part.tell())
        part.flush()
        tag: str | None = response.headers.get("etag")
        return tag


def _restart(part: IO[bytes]) -> None:
    part.seek(0)
    part.truncate()


def _total(response: httpx.Response) -> int | None:
    """Bytes of the whole file, as the response tells."""
    if response.status_code == 206:
        total = response.headers.get("content-range", "").rpartition("/")[2]
    else:
        total = response.headers.get("content-length", "")
    return int(total) if total.isdigit() else None


def _host(url: str) -> str:
    import httpx

    return httpx.URL(url).host
