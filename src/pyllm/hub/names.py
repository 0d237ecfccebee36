"""Names of models on Hugging Face: `hf.co/user/repo[:quant]`, `hf.co/user/repo/file.gguf`, and the file that they
mean."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from pyllm.errors import HubError

PREFIX = "hf.co/"
_NAME = re.compile(r"hf\.co/([\w.-]+)/([\w.-]+?)(?::([\w.-]+)|/((?:[\w. -]+/)*[\w. -]+\.gguf))?", re.ASCII | re.I)
_WEB = re.compile(r"(?:https?://)?(?:www\.)?(?:hf\.co|huggingface\.co)/", re.I)
_VIEW = re.compile(r"(hf\.co/[^/]+/[^/]+)/(?:resolve|blob|tree)/[^/]+")
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$", re.I)
_QUANT = re.compile(r"(?:^|[-._])((?:I?Q\d|TQ\d|BF16|F16|F32|MXFP4|NVFP4)\w*)$", re.I)
_PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q5_K_M", "Q6_K", "Q8_0", "MXFP4")
"""Tried in this order where no quant is named."""


def canonical(name: str) -> str | None:
    """The name in the form `hf.co/…`, also from a link; None for any other name."""
    start = _WEB.match(name)
    if not start:
        return None
    return _VIEW.sub(r"\1", PREFIX + name[start.end() :].partition("?")[0].rstrip("/"))


def split_name(name: str) -> tuple[str, str | None]:
    """("user/repo", quant or file name, or None). Raises HubError where the name is not of that shape."""
    match = _NAME.fullmatch(name)
    parts = [match[1], match[2], *(match[4] or "").split("/")] if match else [".."]
    if not match or any(part.strip(". ") == "" for part in parts[:2]) or {".", ".."} & set(parts):
        raise HubError(f"{name!r} is not hf.co/user/repo, hf.co/user/repo:quant or hf.co/user/repo/file.gguf")
    return f"{match[1]}/{match[2]}", match[4] or match[3]


def choose(files: Iterable[str], wanted: Sequence[str | None], repo: str) -> list[str]:
    """The model file among a repository's file names, or the files of one split model in order.

    `wanted`: file names and quants, the first match counts; None: the default quants. Raises HubError where no file or
    several match.
    """
    models: dict[str, list[str]] = {}
    for file in sorted(f for f in files if is_model(f)):
        models.setdefault(_SHARD.sub(".gguf", file), []).append(file)
    if not models:
        raise HubError(f"{repo} has no GGUF files")
    for want in wanted:
        if want is None and len(models) == 1:
            return next(iter(models.values()))
        for quant in _PREFERRED if want is None else (want,):
            fitting = [parts for file, parts in models.items() if _is_quant(file, quant)]
            if len(fitting) == 1:
                return fitting[0]
    quants = ", ".join(sorted(PurePosixPath(file).stem for file in models))
    named = [w for w in wanted if w is not None]
    which = f"not exactly one {named[0]}" if named else "several models"
    raise HubError(f"{repo} has {which}; name one of these after a colon: {quants}")


def is_model(file: str) -> bool:
    """Whether a repository's file may be a model; image encoders and importance matrices are not."""
    name = PurePosixPath(file).name.lower()
    return name.endswith(".gguf") and "mmproj" not in name and "imatrix" not in name


def is_whole(files: Sequence[str]) -> bool:
    """Whether no part of a split model is missing."""
    shard = _SHARD.search(files[0])
    return shard is None or len(files) == int(shard[2])


def parts(first: Path) -> list[Path]:
    """The files of a model whose first this is, in order; the file alone where it is no part."""
    shard = _SHARD.search(first.name)
    if shard is None or int(shard[1]) != 1:
        return [first]
    start, end = first.name[: shard.start(1)], first.name[shard.end(1) :]
    return [first.with_name(f"{start}{number:05}{end}") for number in range(1, int(shard[2]) + 1)]


def model_name(repo: str, file: str) -> str:
    """The name of a file, or of the model that it is a part of."""
    return f"{PREFIX}{repo}/{_SHARD.sub('.gguf', file)}"


def quant(file: str) -> str:
    """The quant at the end of a file's name, or ""."""
    match = _QUANT.search(PurePosixPath(_SHARD.sub(".gguf", file)).stem)
    return match[1].upper() if match else ""


def _is_quant(file: str, wanted: str) -> bool:
    """Whether a file's path or name is the wanted one, or ends in the wanted quant."""
    stem = PurePosixPath(file).stem.lower()
    want = _SHARD.sub(".gguf", wanted).lower()
    if "/" in want:
        return file.lower() == want
    want = want.removesuffix(".gguf")
    return stem == want or re.search(rf"(^|[-._]){re.escape(want)}$", stem) is not None
