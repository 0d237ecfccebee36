"""Every environment variable that pyllm reads, and the folders that follow from them. No other module reads the environment."""

from __future__ import annotations

import os
from pathlib import Path


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
    """`PYLLM_THREADS`: number of threads when nothing else names one."""
    value = os.environ.get("PYLLM_THREADS", "")
    return int(value) if value.isdigit() and int(value) > 0 else None


def cpu_target() -> tuple[str | None, str | None]:
    """CPU name and feature string to compile for instead of the host's.

    Reads numba's own variables, `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES`, so that one setting restricts both.
    """
    return os.environ.get("NUMBA_CPU_NAME") or None, os.environ.get("NUMBA_CPU_FEATURES")
