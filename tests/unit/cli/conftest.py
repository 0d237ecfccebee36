"""Fixtures for the command line: a small model, and a way to run commands without a new process."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from command import Done, Run
from huggingface_hub import constants

from pyllm import cli
from tiny_gguf import write_tiny_gguf


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_gguf(tmp_path_factory.mktemp("model") / "tiny.gguf"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Runs a command in this process, with bytes as standard input; gives exit code and output."""
    monkeypatch.setenv("PYLLM_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PYLLM_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in ("PYLLM_OFFLINE", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)

    def call(*arguments: str, stdin: bytes = b"") -> Done:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        with pytest.raises(SystemExit) as left:
            cli.main(list(arguments))
        return Done(int(left.value.code or 0), *capsys.readouterr())

    return call
