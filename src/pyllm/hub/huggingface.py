"""`hf.co/user/repo[:quant]`: find GGUF files in a Hugging Face repository, with the sizes and hashes kept there.

Asking the hub needs the extra `hub` (huggingface_hub), which also knows the user's token and endpoint; the file itself
is fetched and verified like any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pyllm import env
from pyllm.errors import HubError
from pyllm.hub.catalog import Entry

_NAME = re.compile(r"hf\.co/([\w.-]+)/([\w.-]+?)(?::([\w.-]+))?(?:/([^/\\:]+\.gguf))?", re.ASCII)
_SHARD = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_PREFERRED = ("Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "Q5_K_M", "Q6_K", "Q8_0")
"""Tried in this order where no quant is named."""


def split_name(name: str) -> tuple[str, str | None]:
    """("user/repo", quant or file name, or None). Raises HubError where the name is not of that shape."""
    match = _NAME.fullmatch(name)
    if not match or {match[1], match[2]} & {".", ".."}:
        raise HubError(f"{name!r} is not hf.co/user/repo or hf.co/user/repo:quant")
    return f"{match[1]}/{match[2]}", match[4] or match[3]


def choose(files: Iterable[str], wanted: str | None, repo: str) -> list[str]:
    """The model file among a repository's file names, or the files of one split model in order.

    Raises HubError where none or several fit.
    """
    models: dict[str, list[str]] = {}
    for file in sorted(f for f in files if f.endswith(".gguf") and not Path(f).name.startswith("mmproj")):
        models.setdefault(_SHARD.sub(".gguf", file), []).append(file)
    if not models:
        raise HubError(f"{repo} has no GGUF files")
    if wanted is None and len(models) == 1:
        return next(iter(models.values()))
    for quant in _PREFERRED if wanted is None else (wanted,):
        fitting = [parts for file, parts in models.items() if _is_quant(file, quant)]
        if len(fitting) == 1:
            return fitting[0]
    quants = ", ".join(sorted(Path(file).stem for file in models))
    which = "several models" if wanted is None else f"not exactly one {wanted}"
    raise HubError(f"{repo} has {which}; name one of these after a colon: {quants}")


def _is_quant(file: str, quant: str) -> bool:
    """Whether the file's name ends in the quant's name, or is it."""
    stem = Path(file).stem.lower()
    want = quant.lower().removesuffix(".gguf")
    return stem == want or re.search(rf"(^|[-._]){re.escape(want)}$", stem) is not None


def local_files(name: str, whole: bool = False) -> list[Path]:
    """The files of a model that were fetched before; with `whole`, only if no part of a split model is missing."""
    repo, wanted = split_name(name)
    folder = env.models_dir() / "hf.co" / repo
    here = [p.name.removesuffix(".part") for p in folder.glob("*.gguf*") if p.suffix == ".gguf" or not whole]
    try:
        names = choose(set(here), wanted, repo)
    except HubError:
        return []
    shard = _SHARD.search(names[0])
    if whole and shard and len(names) != int(shard[2]):
        return []
    return [folder / n for n in names]


def find(name: str) -> list[Entry]:
    """Ask the hub for the files of a model. Raises HubError, naming the extra where huggingface_hub is missing."""
    repo, wanted = split_name(name)
    try:
        import huggingface_hub as hf
    except ImportError:
        raise HubError(
            f"{name} needs the package huggingface_hub: `pip install huggingface_hub` (pyllm's extra `hub`)"
        ) from None
    try:
        info = hf.HfApi().model_info(repo, files_metadata=True)
        token = hf.get_token()
    except Exception as error:
        raise HubError(f"Hugging Face does not give {repo}: {_first_line(error)}") from error
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    siblings = {s.rfilename: s for s in info.siblings or []}
    names = choose(siblings, wanted, repo)
    return [_entry(repo, siblings[n], hf.hf_hub_url(repo, n, revision=info.sha), headers) for n in names]


def _entry(repo: str, sibling: Any, url: str, headers: Mapping[str, str]) -> Entry:
    if sibling.lfs is None:
        raise HubError(f"Hugging Face keeps no hash of {sibling.rfilename} in {repo}: it is not a model file")
    file = Path(sibling.rfilename).name
    sources: Sequence[Mapping[str, Any]] = ({"kind": "url", "url": url, "headers": headers},)
    return Entry(f"hf.co/{repo}/{file}", f"hf.co/{repo}/{file}", sibling.lfs.size, sibling.lfs.sha256, tuple(sources))


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
