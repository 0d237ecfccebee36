"""The tiny model that most tests of the server use, and the same without a server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from chat_tools import TEMPLATE

import pyllm
from tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose template knows tools and reasoning."""
    return write_tiny_gguf(tmp_path_factory.mktemp("models") / "tiny.gguf", TEMPLATE)


@pytest.fixture(scope="module")
def llm(path: Path) -> Iterator[pyllm.LLM]:
    """The same model, without a server."""
    with pyllm.load(path, backend="reference", kv_dtype="f32", n_ctx=2048) as llm:
        yield llm
