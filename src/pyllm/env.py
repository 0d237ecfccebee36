"""Every environment variable that pyllm reads, and the folders that follow. No other module reads the environment."""

from __future__ import annotations

import os
from pathlib import Path

from pyllm.errors import RequestError


def models_dir() -> Path:
    """Folder of downloaded models: `PYLLM_MODELS`, else the user's cache folder."""
    return Path(os.environ["PYLLM_MODELS"]).expanduser() if os.environ.get("PYLLM_MODELS") else cache_dir() / "models"


def kernel_cache_dir() -> Path:
    """Folder of compiled kernels: `PYLLM_KERNEL_CACHE`, else the user's cache folder."""
    path = os.environ.get("PYLLM_KERNEL_CACHE")
    return Path(path).expanduser() if path else cache_dir() / "kernels"


def cache_dir() -> Path:
    """pyllm's cache folder: `PYLLM_CACHE`, else the platform's place for caches."""
    if path := os.environ.get("PYLLM_CACHE"):
        return Path(path).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("pyllm", appauthor=False)


def data_dir() -> Path:
    """Folder of what the user made (chat history): the platform's place for application data."""
    if path := os.environ.get("PYLLM_DATA"):
        return Path(path).expanduser()
    from platformdirs import user_data_path

    return user_data_path("pyllm", appauthor=False)


def n_threads() -> int | None:
    """`PYLLM_THREADS`: number of threads when nothing else names one. Raises RequestError where it is no number."""
    value = os.environ.get("PYLLM_THREADS", "").strip()
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise RequestError(f"the environment variable PYLLM_THREADS must be a number of 1 or more, not {value!r}")
    return int(value)


def names_io_encoding() -> bool:
    """`PYTHONIOENCODING`: whether the user chose an encoding for the standard streams."""
    return bool(os.environ.get("PYTHONIOENCODING", "").partition(":")[0])


def cuda_emulator() -> int:
    """`PYLLM_CUDA_EMULATOR`: how many CUDA devices the cuda backend emulates on the processor, for tests; 0: none."""
    value = os.environ.get("PYLLM_CUDA_EMULATOR", "")
    return int(value) if value.isdigit() else 0


def cuda_emulator_stress() -> int:
    """`PYLLM_CUDA_EMULATOR_STRESS`: a seed by which emulated devices run everything in another order and as late as a
    card may, and report what a card would not forgive (`backends.cuda.stressed`); 0: not so."""
    value = os.environ.get("PYLLM_CUDA_EMULATOR_STRESS", "")
    return int(value) if value.isdigit() else 0


def ca_bundle() -> str | None:
    """Certificates, a file or a folder, that pip trusts where its settings name none (`REQUESTS_CA_BUNDLE`)."""
    return os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or None


def for_child(**changes: str) -> dict[str, str]:
    """This process's environment with some changes, for a process that it starts."""
    return {**os.environ, **changes}


def settings() -> dict[str, str]:
    """Those of pyllm's variables that are set."""
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith(("PYLLM_", "NUMBA_CPU_"))}


def cpu_target() -> tuple[str | None, str | None]:
    """CPU name and feature string to compile for instead of the host's.

    Reads numba's own variables, `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES`, so that one setting restricts both.
    """
    return os.environ.get("NUMBA_CPU_NAME") or None, os.environ.get("NUMBA_CPU_FEATURES")
