"""Model files on Hugging Face, through huggingface_hub: its cache, which other programs share, its tokens and endpoint.

`source["repo"]` is "user/repo"; `source["file"]`, if given, a file or quant in it. If the repository has another file
name, the entry's quant decides. Size and hash come from the hub when a file is fetched. Files are in the cache's folder
`blobs`, named by their hash.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from pyllm import env
from pyllm.config import Progress
from pyllm.errors import HubError
from pyllm.hub import disk, names
from pyllm.hub.catalog import Entry
from pyllm.hub.disk import Report
from pyllm.hub.sources import Source
from pyllm.records import dataclass

_TIMEOUT = 30.0
_VARIABLE = "HF_HOME"
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class _File:
    """A file as the hub describes it."""

    repo: str
    path: str
    size: int
    sha256: str
    revision: str

    @property
    def name(self) -> str:
        return f"{names.PREFIX}{self.repo}/{self.path}"


def here(entry: Entry, source: Source) -> list[Path]:
    """See `pyllm.hub.sources`."""
    for snapshot in _snapshots(_repo_folder(source["repo"])):
        files = _models_in(snapshot)
        try:
            chosen = names.choose(files, _wanted(entry, source), source["repo"])
        except HubError:
            continue
        if names.is_whole(chosen):
            return [files[name] for name in chosen]
    return []


def cached() -> Iterator[tuple[str, list[Path]]]:
    """All models of the cache, also those fetched by other programs: names, and files in order."""
    for folder in sorted(_cache().glob("models--*--*")):
        repo = folder.name.removeprefix("models--").replace("--", "/", 1)
        seen = set()
        for snapshot in _snapshots(folder):
            parts: dict[str, list[str]] = {}
            files = _models_in(snapshot)
            for file in sorted(files):
                parts.setdefault(names.model_name(repo, file), []).append(file)
            for name, model in parts.items():
                if name not in seen and names.is_whole(model):
                    seen.add(name)
                    yield name, [files[file] for file in model]


def fetch(entry: Entry, source: Source, progress: Progress | None) -> list[Path]:
    """See `pyllm.hub.sources`. Waits for another process that fetches the same."""
    with _hub(source["repo"]):
        files = _ask(entry, source)
    if entry.sha256 is not None and [f.sha256 for f in files] != [entry.sha256]:
        raise HubError(f"{files[0].name} is another file than the one that pyllm knows by the name {entry.name}")
    with disk.stored_in(_cache(), _VARIABLE), _hub(source["repo"]):
        return [_get(file, progress) for file in files]


def intact(entry: Entry, source: Source, progress: Progress | None) -> bool:
    """See `pyllm.hub.sources`. Without links in the cache, the hub is asked for the hashes."""
    files = here(entry, source)
    expected = [_hash_by_link(path) for path in files]
    if None in expected:
        if env.offline():
            return True
        with _hub(source["repo"]):
            known = {Path(f.path).name: f.sha256 for f in _ask(entry, source)}
        expected = [known.get(path.name) for path in files]
    for path, sha256 in zip(files, expected, strict=True):
        told = disk.report(progress, "checking", path.name, path.stat().st_size)
        if disk.sha256(path, told) != sha256:
            return False
    return True


def remove(entry: Entry, source: Source) -> list[Path]:
    """See `pyllm.hub.sources`. What other files of the cache share stays."""
    from huggingface_hub import scan_cache_dir

    folder = _repo_folder(source["repo"])
    if not folder.is_dir():
        return []
    with disk.stored_in(_cache(), _VARIABLE):
        scan = scan_cache_dir(_cache())
        chosen = []
        for repo in scan.repos:
            if (repo.repo_type, repo.repo_id) != ("model", source["repo"]):
                continue
            for revision in repo.revisions:
                files = {f.file_path.relative_to(revision.snapshot_path).as_posix(): f for f in revision.files}
                try:
                    chosen += [files[n] for n in names.choose(files, _wanted(entry, source), source["repo"])]
                except HubError:
                    continue
        scan.delete_files(*chosen).execute()
        return [f.file_path for f in chosen] + _remove_unfinished(folder)


def _remove_unfinished(folder: Path) -> list[Path]:
    """Delete a repository's unfinished downloads, except those that are under way."""
    from filelock import FileLock, Timeout

    removed = []
    for path in sorted((folder / "blobs").glob("*.incomplete")):
        try:
            with FileLock(_lock_path(folder, path.name.partition(".")[0]), timeout=0):
                path.unlink()
        except Timeout:
            continue
        removed.append(path)
    return removed


def _ask(entry: Entry, source: Source) -> list[_File]:
    """A model's files as described by the hub."""
    import huggingface_hub

    repo = source["repo"]
    info = huggingface_hub.HfApi().model_info(repo, files_metadata=True, timeout=_TIMEOUT)
    siblings = {s.rfilename: s for s in info.siblings or []}
    files = []
    for path in names.choose(siblings, _wanted(entry, source), repo):
        lfs = siblings[path].lfs
        if lfs is None or not lfs.size or not _HASH.fullmatch(lfs.sha256) or not info.sha:
            raise HubError(f"Hugging Face keeps no hash of {path} in {repo}: it is not a model file")
        files.append(_File(repo, path, lfs.size, lfs.sha256, info.sha))
    return files


def _get(file: _File, progress: Progress | None) -> Path:
    """Fetch a file into the cache, under its name."""
    from huggingface_hub import hf_hub_download

    folder = _repo_folder(file.repo)
    blob = folder / "blobs" / file.sha256
    waiting, downloading, checking = (
        disk.report(progress, verb, file.name, file.size)
        for verb in ("waiting for another download of", "downloading", "checking")
    )
    plain = file.size <= _largest_request()
    if plain:
        with disk.locked(_lock_path(folder, file.sha256), lambda: waiting(0)):
            if not blob.exists():
                _download(file, blob, downloading, checking)
    # Makes the link by which the blob is found, and notes the revision.
    path = Path(hf_hub_download(file.repo, file.path))
    if _hash_by_link(path) not in (file.sha256, None):
        raise HubError(f"{file.name} was changed while it was fetched; try again")
    if not plain and disk.sha256(path, checking) != file.sha256:
        blob.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
        raise HubError(f"what was downloaded as {file.name} does not match its SHA-256 and was deleted")
    if plain and not path.is_symlink():
        blob.unlink(missing_ok=True)  # where links are not possible, it is a second copy
    return path


def _download(file: _File, blob: Path, downloading: Report, checking: Report) -> None:
    """Fetch a blob, continuing a partial download, which `hf_hub_download` itself does not."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    def append(part: BinaryIO) -> None:
        have = part.tell()
        disk.check_room(blob.parent, file.size - have, _VARIABLE)
        http_get(
            hf_hub_url(file.repo, file.path, revision=file.revision),
            part,
            resume_size=have,
            headers={**build_hf_headers(library_name="pyllm"), "Accept-Encoding": "identity"},
            expected_size=file.size,
            tqdm_class=_bar(downloading),
        )

    blob.parent.mkdir(parents=True, exist_ok=True)
    disk.grow(blob.with_name(f"{blob.name}.incomplete"), blob, file.sha256, file.size, append, checking)


def _largest_request() -> int:
    """Bytes of the largest file that the hub serves by one request; larger ones are fetched in another way."""
    from huggingface_hub import constants

    return constants.MAX_HTTP_DOWNLOAD_SIZE


def _bar(told: Report) -> type[Any]:
    """A progress class with the interface of tqdm's bars, for huggingface_hub."""

    class Bar:
        def __init__(self, *_: Any, initial: int = 0, **__: Any) -> None:
            self.n = initial

        def __enter__(self) -> Bar:
            return self

        def __exit__(self, *_: object) -> None:
            pass

        def update(self, n: int = 1) -> None:
            self.n += n
            told(self.n)

        def close(self) -> None:
            pass

    return Bar


@contextmanager
def _hub(repo: str) -> Iterator[None]:
    """Turns errors of the hub and the network into HubErrors; disk errors pass."""
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it logs every attempt; the last error suffices
    try:
        yield
    except HubError:
        raise
    except Exception as error:
        reason = _reason(error, repo)
        if reason is None:
            raise
        raise HubError(reason) from error
    finally:
        logger.setLevel(level)


def _reason(error: BaseException, repo: str) -> str | None:
    """The reason of a hub or network error, in a sentence; None for other errors."""
    from huggingface_hub import constants, errors

    host = constants.ENDPOINT.partition("://")[2]
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo} is open only to those who accepted its terms: do so at {constants.ENDPOINT}/{repo}, "
            "then log in with `hf auth login` or set HF_TOKEN"
        )
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.RepositoryNotFoundError) or status in (401, 403):
        return (
            f"{host} shows no {repo}: the name is wrong, or the repository is private, or the token is not valid; "
            "log in with `hf auth login` or set HF_TOKEN"
        )
    if status is not None:
        return f"{host} answered {status} for {repo}; try again later"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return f"{repo} is not asked for: HF_HUB_OFFLINE is set"
    if isinstance(error, errors.HFValidationError):
        return f"{repo} is no name of a repository: {_line(error)}"
    packages = {cls.__module__.partition(".")[0] for cls in type(error).__mro__}
    if packages & {"httpx", "httpx2"} or (isinstance(error, OSError) and error.errno is None):
        return f"{host} cannot be reached ({_line(error)}); check the network, or use a model that `pyllm list` shows"
    return None


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _wanted(entry: Entry, source: Source) -> list[str | None]:
    return [w for w in (source.get("file"), entry.format) if w] or [None]


def _cache() -> Path:
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def _repo_folder(repo: str) -> Path:
    return _cache() / f"models--{repo.replace('/', '--')}"


def _lock_path(folder: Path, sha256: str) -> Path:
    """The lock file with which huggingface_hub itself serializes downloads of a blob."""
    return folder.parent / ".locks" / folder.name / f"{sha256}.lock"


def _snapshots(folder: Path) -> list[Path]:
    """The folders of a repository's revisions: that of the branch main first, then the newest first."""
    try:
        main = (folder / "refs" / "main").read_text().strip()
    except OSError:
        main = ""
    found = [path for path in (folder / "snapshots").glob("*") if path.is_dir()]
    return sorted(found, key=lambda path: (path.name == main, path.stat().st_mtime), reverse=True)


def _models_in(snapshot: Path) -> dict[str, Path]:
    """The local model files of a revision, by their paths in the repository."""
    files = {path.relative_to(snapshot).as_posix(): path for path in snapshot.rglob("*") if path.is_file()}
    return {name: path for name, path in files.items() if names.is_model(name)}


def _hash_by_link(path: Path) -> str | None:
    """A cached file's hash: the name of the blob that it links to."""
    try:
        blob = Path(os.readlink(path)).name
    except OSError:
        return None
    return blob if _HASH.fullmatch(blob) else None
