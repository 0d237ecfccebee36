"""Fixtures: where reference data and real models are; a test that needs what is not there is skipped, and says so."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import HealthCheck, settings

import cuda_devices as devices
from arch_models import ArchModel

_MODELS = {
    "smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "qwen-0.5b": "Qwen2.5-Coder-0.5B-Instruct.Q4_K_M.gguf",
    "qwen-coder": "Qwen2.5-Coder-1.5B-Instruct.Q4_K_M.gguf",
    "minilm": "all-MiniLM-L6-v2",
}
_OPTIONAL = frozenset({"minilm"})
"""Models that tests can be without, whatever is required."""


# The suite passes on a busy machine: no example has a time limit, nor has making it.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_configure(config: pytest.Config) -> None:
    """Let interrupts arrive, here and in child processes, where whoever started the tests ignores them (nohup).

    And have xdist begin with the first files, not with those of most tests: a file of few long ones came last, alone.
    """
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False
    for number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGTERM, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, usual)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--kills", type=int, default=2, help="how often tests that kill processes do so, each (default: 2)"
    )
    parser.addoption(
        "--require-data",
        action="store_true",
        help="tests fail, and are not skipped, where reference data or models are missing",
    )


def _missing(config: pytest.Config, what: str) -> NoReturn:
    if config.getoption("--require-data"):
        pytest.fail(what)
    pytest.skip(what)


@pytest.fixture(scope="session")
def arch_file(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """GGUF file of a tiny model of `golden/archs`, by name."""
    folder = tmp_path_factory.mktemp("archs")

    def find(name: str) -> Path:
        path = folder / f"{name}.gguf"
        return path if path.exists() else ArchModel.load(name).write(path)

    return find


@pytest.fixture(scope="session")
def shared_data(pytestconfig: pytest.Config) -> Path:
    """Reference data (vocabularies, tiny models with logits, WikiText-2), kept beside the checkout."""
    path = Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        _missing(pytestconfig, "reference data (../shared/data) is not here")
    return path


@pytest.fixture(scope="session")
def model_path(pytestconfig: pytest.Config) -> Callable[[str], Path]:
    """Path of a real model by short name, or skip."""

    def find(name: str) -> Path:
        folder = Path(os.environ.get("PYLLM_TEST_MODELS", "~/.cache/pyllm-test-models")).expanduser()
        path = folder / _MODELS[name]
        if not path.exists():
            words = f"{path.name} is not here; set PYLLM_TEST_MODELS to its folder"
            if name in _OPTIONAL:
                pytest.skip(words)
            _missing(pytestconfig, words)
        return path

    return find


@pytest.fixture(scope="module")
def cuda_devices() -> Iterator[None]:
    """A device for the cuda backend: without a card, one that is emulated.

    By file: what ran longer would still be there in tests that the same process goes on to, elsewhere.
    """
    with devices.cuda_devices():
        yield
