"""Every environment variable that pyllm reads, and the folders that follow. No other module reads the environment."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path

from pyllm.errors import RequestError


def models_dir() -> Path:
    """Folder of downloaded models: `PYLLM_MODELS`, else in the cache folder."""
    return _named("PYLLM_MODELS") or cache_dir() / "models"


def kernel_cache_dir() -> Path:
    """Folder of compiled kernels: `PYLLM_KERNEL_CACHE`, else in the cache folder."""
    return _named("PYLLM_KERNEL_CACHE") or cache_dir() / "kernels"


def cache_dir() -> Path:
    """pyllm's cache folder: `PYLLM_CACHE`, else the platform's place for caches, else one among temporary files."""
    if path := _named("PYLLM_CACHE"):
        return path
    from platformdirs import user_cache_path

    return _usable(user_cache_path)


def data_dir() -> Path:
    """Folder of what the user made (chat history): `PYLLM_DATA`, else the platform's place for application data."""
    if path := _named("PYLLM_DATA"):
        return path
    from platformdirs import user_data_path

    return _usable(user_data_path)


def temporary_dir() -> Path | None:
    """This user's folder of pyllm's files among temporary ones, or None where it cannot be private."""
    import stat
    import tempfile

    try:
        user = os.getuid() if hasattr(os, "getuid") else None
        path = Path(tempfile.gettempdir()).absolute() / ("pyllm" if user is None else f"pyllm-{user}")
        path.mkdir(mode=0o700, exist_ok=True)
        found = path.lstat()
    except OSError:
        return None
    # Kernels are read from here: the folder must not be one that somebody else made.
    own = stat.S_ISDIR(found.st_mode) and (user is None or (found.st_uid == user and not found.st_mode & 0o022))
    return path if own else None


def is_temporary(path: Path) -> bool:
    """Whether a path is in `temporary_dir`."""
    temporary = temporary_dir()
    return temporary is not None and path.is_relative_to(temporary)


def user_path(path: str | os.PathLike[str]) -> Path:
    """A path as a user writes it: `~` is the home folder where there is one."""
    return Path(os.path.expanduser(path))


def _named(variable: str) -> Path | None:
    path = os.environ.get(variable)
    return user_path(path) if path and not os.path.expanduser(path).startswith("~") else None


def _usable(place: Callable[..., Path]) -> Path:
    """The platform's folder, or one among temporary files where there is no home or the folder can't be made."""
    try:
        folder = place("pyllm", appauthor=False)
    except (RuntimeError, OSError, KeyError):
        folder = Path("~")
    if folder.is_absolute():
        existing = next((p for p in (folder, *folder.parents) if os.path.exists(p)), None)
        if existing is not None and (existing == folder or os.access(existing, os.W_OK)):
            return folder
    return temporary_dir() or Path(os.devnull, "pyllm")  # the latter can't be made, either


def n_threads() -> int | None:
    """`PYLLM_THREADS`: number of threads when nothing else names one. Raises RequestError where it is no number."""
    value = os.environ.get("PYLLM_THREADS", "").strip()
    if not value:
        return None
    if not (value.isascii() and value.isdigit() and int(value) > 0):
        raise RequestError(f"the environment variable PYLLM_THREADS must be a number of 1 or more, not {value!r}")
    return int(value)


def completes_for_shell() -> bool:
    """`_PYLLM_COMPLETE`: whether this process is asked for what a shell may complete; click reads the rest."""
    return bool(os.environ.get("_PYLLM_COMPLETE"))


def names_io_encoding() -> bool:
    """`PYTHONIOENCODING`: whether the user chose an encoding for the standard streams."""
    return bool(os.environ.get("PYTHONIOENCODING", "").partition(":")[0])


def cuda_emulator() -> int:
    """`PYLLM_CUDA_EMULATOR`: how many CUDA devices the cuda backend emulates on the processor, for tests; 0: none."""
    value = os.environ.get("PYLLM_CUDA_EMULATOR", "")
    return int(value) if value.isdigit() else 0


def cuda_emulator_stress() -> int:
    """`PYLLM_CUDA_EMULATOR_STRESS`: a seed for emulated devices that reorder and delay work as far as a card may, and
    report misuse of memory (`testing.cuda.stressed`); 0: off."""
    value = os.environ.get("PYLLM_CUDA_EMULATOR_STRESS", "")
    return int(value) if value.isdigit() else 0


def offline() -> bool:
    """`PYLLM_OFFLINE`, or Hugging Face's `HF_HUB_OFFLINE`: nothing may be fetched from the network."""
    values = (os.environ.get(name, "") for name in ("PYLLM_OFFLINE", "HF_HUB_OFFLINE"))
    return any(value.strip().lower() in ("1", "on", "yes", "true") for value in values)


def go_offline() -> Callable[[], None]:
    """Set `PYLLM_OFFLINE`, for this process and those that it starts; the result undoes it."""
    before = os.environ.get("PYLLM_OFFLINE")
    os.environ["PYLLM_OFFLINE"] = "1"

    def undo() -> None:
        if before is None:
            os.environ.pop("PYLLM_OFFLINE", None)
        else:
            os.environ["PYLLM_OFFLINE"] = before

    return undo


def settings() -> dict[str, str]:
    """Those of pyllm's variables that are set."""
    return {k: v for k, v in sorted(os.environ.items()) if k.startswith(("PYLLM_", "NUMBA_CPU_"))}


def cpu_target() -> tuple[str | None, str | None]:
    """CPU name and feature string to compile for instead of the host's.

    Reads numba's own variables, `NUMBA_CPU_NAME` and `NUMBA_CPU_FEATURES`, so that one setting restricts both.
    """
    return os.environ.get("NUMBA_CPU_NAME") or None, os.environ.get("NUMBA_CPU_FEATURES")


# Child processes. Their environment, search path and program come from here: a file in the current folder, which may
# have come with a download, is not run.

_PATH_LISTS = (
    "PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH",
    "CPATH", "C_INCLUDE_PATH", "CPLUS_INCLUDE_PATH", "LIBRARY_PATH", "COMPILER_PATH",
)  # fmt: skip
"""Variables that are lists of folders; a relative or empty entry stands for the current folder."""
_FOLDERS = ("PYTHONHOME", "PYTHONUSERBASE", "PYTHONPYCACHEPREFIX", "GCC_EXEC_PREFIX")
"""Variables that name a folder with code."""
_INTERACTIVE = ("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONBREAKPOINT", "PYTHONVERBOSE", "PYTHONPROFILEIMPORTTIME")
"""Variables that make Python run another file, stay open or write to its output."""


def for_child(**changes: str) -> dict[str, str]:
    """The environment for a child process: this process's, with `changes`, without what stands for the current folder.

    Lists of folders keep their absolute entries. Proxies, certificates, locale and the temporary folder stay.
    """
    child = {name: value for name, value in os.environ.items() if name not in _INTERACTIVE}
    for name in _PATH_LISTS:
        if name in child:
            child[name] = os.pathsep.join(_absolute(child[name]))
    # The second one is for Windows: programs are not looked up in the current folder.
    child |= {"PYTHONSAFEPATH": "1", "NoDefaultCurrentDirectoryInExePath": "1", **changes}
    empty = [name for name in _PATH_LISTS if not child.get(name)]
    relative = [name for name in _FOLDERS if not os.path.isabs(child.get(name, ""))]
    return {name: value for name, value in child.items() if name not in empty and name not in relative}


def open_missing_descriptors() -> None:
    """Open the null device where standard input, output or error are closed, as services may be started.

    Else the next file or socket that is opened gets the number, and a child process would write its errors into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            with contextlib.suppress(OSError):  # a system without a null device
                found = os.open(os.devnull, os.O_RDWR)
                if found != number:
                    os.dup2(found, number)
                    os.close(found)
                os.set_inheritable(number, True)


def python() -> list[str] | None:
    """The first words of a command that runs this Python without the current folder in its search path.

    None: this program is frozen or embeds Python, so no program is known that could be started.
    """
    program = sys.executable or ""
    name = os.path.basename(program).lower()
    if getattr(sys, "frozen", False) or not os.path.isabs(program) or not name.startswith(("python", "pypy")):
        return None
    return [program, "-P"]


def find_program(*names: str) -> str | None:
    """Path of the first of these programs that is in an absolute folder of `PATH`, or None."""
    endings = (".exe",) if sys.platform == "win32" else ("",)
    for name in names:
        for folder in _absolute(os.environ.get("PATH", os.defpath)):
            for ending in endings:
                path = os.path.join(folder, name + ending)
                if os.path.isfile(path) and os.access(path, os.X_OK):
                    return path
    return None


def search_path() -> list[str]:
    """`sys.path` for a child: without the current folder and the folder of the script that is run.

    Both stay where `PYTHONPATH` names them by absolute paths. The folder that holds pyllm is the last where it is not
    in the list otherwise.
    """
    named = {os.path.normcase(path) for path in _absolute(os.environ.get("PYTHONPATH", ""))}
    dropped = {os.path.normcase(folder) for folder in (_current_folder(), _script_folder()) if folder} - named
    path = [p for p in sys.path if isinstance(p, str) and os.path.isabs(p) and os.path.normcase(p) not in dropped]
    home = str(Path(__file__).resolve().parents[1])
    return path if home in path else [*path, home]


def leave_current_folder() -> None:
    """Make this process look for modules and programs as its children do. For the command line, not for a library."""
    sys.path[:] = search_path()
    child = for_child()
    for name in (*_PATH_LISTS, *_FOLDERS):
        if name not in child:
            os.environ.pop(name, None)
        elif os.environ[name] != child[name]:
            os.environ[name] = child[name]


def _absolute(paths: str) -> list[str]:
    return [path for path in paths.split(os.pathsep) if os.path.isabs(path)]


def _current_folder() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # it was deleted
        return None


def _script_folder() -> str | None:
    """The folder of the script that Python was started with; `python -m` has none."""
    main = sys.modules.get("__main__")
    script = getattr(main, "__file__", None)
    return os.path.dirname(os.path.abspath(script)) if script and getattr(main, "__spec__", None) is None else None
