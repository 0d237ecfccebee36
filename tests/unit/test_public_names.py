"""The public names of `pyllm`, and that importing it costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import pyllm
from pyllm import config, errors

NAMES = """
    LLM AsyncCompletionStream AsyncEventStream AsyncLLM BackendError CacheError ChatTemplate ClosedError
    Completion CompletionStream ContextFullError EventStream FormatError GGUFError GGUFFile HubError ModelError
    OutOfMemoryError PyllmError PyllmWarning QueueFullError RecipeOptions RequestError
    SamplingParams TemplateError
    TokenLogprob Tokenizer TokenizerError Usage __version__ load load_tokenizer open_gguf quantize
"""


def test_public_names_are_these() -> None:
    assert sorted(pyllm.__all__) == sorted(NAMES.split())
    assert dir(pyllm) == sorted(NAMES.split())


@pytest.mark.parametrize("name", NAMES.split())
def test_each_name_resolves(name: str) -> None:
    assert getattr(pyllm, name) is not None


def test_names_come_from_their_homes() -> None:
    assert pyllm.SamplingParams is config.SamplingParams
    assert pyllm.GGUFError is errors.GGUFError


def test_every_error_is_public_and_of_one_tree() -> None:
    defined = {n for n, v in vars(errors).items() if isinstance(v, type) and issubclass(v, Exception)}
    assert defined <= set(pyllm.__all__)
    assert all(issubclass(getattr(pyllm, name), pyllm.PyllmError) for name in defined - {"PyllmWarning"})


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        pyllm.lod  # noqa: B018


def test_import_is_light() -> None:
    code = "import sys, pyllm; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert "pyllm" in loaded
    assert not {"numpy", "numba", "llvmlite", "jinja2", "click", "rich", "tokenizers", "gguf"} & set(loaded)
