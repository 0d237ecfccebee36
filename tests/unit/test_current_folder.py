"""Every command, with nothing compiled yet, in a folder full of files that are called as what Python and compilers are.

Each of these files leaves a witness when it is run.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import click
import pytest
from convert_folders import write_whole_folder

from pyllm import cli, hub
from pyllm.errors import PyllmError
from pyllm.llm.loading import find_model

PROGRAMS = (
    "g++",
    "c++",
    "clang++",
    "gcc",
    "cc",
    "as",
    "ld",
    "pip",
    "pip3",
    "python",
    "python3",
    "uname",
    "sysctl",
    "bash",
)
COMMANDS: dict[str, list[str]] = {
    "convert": ["{folder}", "{new}/model.gguf"],
    "run": ["-m", "{new}/model.gguf", "-n", "3", "--ctx", "64", "hi"],
    "chat": ["-m", "{new}/model.gguf", "-n", "2", "--ctx", "64"],
    "bench": ["-m", "{new}/model.gguf", "-p", "4", "-n", "2", "-r", "1"],
    "perplexity": ["-m", "{new}/model.gguf", "-f", "{text}", "--ctx", "32", "--chunks", "1"],
    "imatrix": ["-m", "{new}/model.gguf", "-f", "{text}", "--ctx", "32", "--chunks", "1", "-o", "{new}/matrix.gguf"],
    "quantize": ["{new}/model.gguf", "{new}/q8.gguf", "Q8_0"],
    "show": ["{new}/model.gguf"],
    "fit": ["-m", "{new}/model.gguf"],
    "tokenize": ["-m", "{new}/model.gguf", "hi"],
    "embed": ["-m", "{new}/model.gguf", "--ctx", "64", "hi"],
    "rerank": ["-m", "{new}/model.gguf", "--ctx", "64", "-q", "hi", "ho"],
    "split": ["{new}/model.gguf", "{new}/part", "--max-tensors", "6"],
    "merge": ["{new}/part-00001-of-00002.gguf", "{new}/merged.gguf"],
    "doctor": [],
    "list": [],
    "cp": ["smollm2:135m", "mine"],
    "create": ["mine", "-f", "{new}/no-such-file"],
    "serve": ["{new}/model.gguf", "--host", "0.0.0.0"],
    "ps": ["--url", "http://127.0.0.1:9"],
    "stop": ["mine", "--url", "http://127.0.0.1:9"],
    "pull": ["smollm2:135m"],
    "rm": ["smollm2:135m"],
}
"""What each command is called with, in this order."""
FAILING = {"pull", "cp", "create", "serve", "ps", "stop", "rerank"}
"""Commands that fail when called so: there is no index, no Modelfile, no key, no server, no classifier."""


def test_every_command_is_called() -> None:
    assert set(COMMANDS) == set(cli.group.list_commands(click.Context(cli.group)))


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The hostile folder, the folder of witnesses, an empty cache, and what commands are called with."""
    root = tmp_path_factory.mktemp("here")
    found = {name: root / name for name in ("hostile", "witnesses", "cache", "new", "folder", "home", "bin")}
    for folder in found.values():
        folder.mkdir()
    write_whole_folder(found["folder"], "{{ messages[0]['content'] }}")
    found["text"] = root / "text.txt"
    found["text"].write_text("The quick brown fox jumps over the lazy dog. " * 8)
    # As pip writes it.
    found["script"] = found["bin"] / "pyllm"
    found["script"].write_text("import sys\nfrom pyllm.__main__ import main\nsys.exit(main())\n")
    return found


def write_hostile_files(places: dict[str, Path], but_not: set[str]) -> None:
    """Fill the folder: a module for every name that could be imported, programs, files that programs look for."""
    shutil.rmtree(places["hostile"])  # with compiled modules of an earlier test
    places["hostile"].mkdir()
    modules = {"sitecustomize", "usercustomize", "yaml", *sys.stdlib_module_names, *packages_distributions()}
    for name in modules - but_not:
        witness = str(places["witnesses"] / f"{name}.py")
        (places["hostile"] / f"{name}.py").write_text(f"open({witness!r}, 'w').close()\n")
    for name in PROGRAMS:
        program = places["hostile"] / name
        program.write_text(f"#!/bin/sh\n: > '{places['witnesses'] / name}'\n")
        program.chmod(0o755)
    (places["hostile"] / ".env").write_text("PYLLM_THREADS=7177\nPYLLM_MODELS=/nowhere\n")
    (places["hostile"] / ".numba_config.yaml").write_text("disable_jit: 1\n")
    (places["hostile"] / "pip.conf").write_text("[global]\nindex-url = http://127.0.0.1:9/hostile\n")
    (places["hostile"] / "pyvenv.cfg").write_text("home = /nowhere\n")


def call(start: list[str], command: str, arguments: list[str], places: dict[str, Path]) -> str:
    """Run a command in the hostile folder; gives its output."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("PYLLM_", "PIP_", "PYTHON"))}
    variables |= {
        "PATH": os.pathsep.join([".", "", os.environ["PATH"]]),
        "PYLLM_CACHE": str(places["cache"]),
        "PYLLM_DATA": str(places["home"]),
        "HOME": str(places["home"]),
        "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
        "PIP_RETRIES": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    done = subprocess.run(
        [sys.executable, *start, command, *(a.format(**places) for a in arguments)],
        cwd=places["hostile"], env=variables, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert (done.returncode == 0) == (command not in FAILING), f"{command}: {done.stdout}{done.stderr}"
    assert "Traceback" not in done.stderr
    return done.stdout


@pytest.mark.skipif(os.name == "nt", reason="such a name cannot be given to a file")
def test_a_known_name_is_no_file_of_the_current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYLLM_MODELS", str(tmp_path / "models"))
    monkeypatch.setenv("PYLLM_OFFLINE", "1")
    name = hub.default_name()
    (tmp_path / name).write_bytes(b"another model")
    with pytest.raises(PyllmError, match="offline"):
        hub.resolve(name)
    with pytest.raises(PyllmError, match="offline"):
        find_model(name)
    assert find_model(f"./{name}") == Path(name)


def witnesses(places: dict[str, Path]) -> list[str]:
    """Names of the files that were run; forgotten when asked for."""
    found = sorted(places["witnesses"].iterdir())
    for path in found:
        path.unlink()
    return [path.name for path in found]


@pytest.mark.skipif(os.name == "nt", reason="POSIX programs")
def test_the_files_are_run_by_who_looks_there(places: dict[str, Path]) -> None:
    write_hostile_files(places, but_not=set())
    subprocess.run([sys.executable, "-c", "import zipapp, numba"], cwd=places["hostile"], timeout=300, check=True)
    subprocess.run(["/bin/sh", "-c", "g++"], cwd=places["hostile"], env={"PATH": ":/bin"}, timeout=300, check=True)
    assert {"zipapp.py", "numba.py", "g++"} <= set(witnesses(places))


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX programs")
def test_nothing_of_the_current_folder_runs(places: dict[str, Path]) -> None:
    write_hostile_files(places, but_not=set())
    outputs = {name: call([str(places["script"])], name, arguments, places) for name, arguments in COMMANDS.items()}
    assert witnesses(places) == []
    assert list(places["cache"].rglob("*.o")), "no kernel was compiled"
    assert "7177" not in outputs["doctor"]
    assert "/nowhere" not in outputs["doctor"]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="POSIX programs")
def test_with_dash_m_only_python_itself_looks_there(places: dict[str, Path]) -> None:
    """Python puts the current folder first before it looks for pyllm: what it needs for that is beyond our reach."""
    (places["new"] / "shows.py").write_text("import sys; print(*sys.modules)")
    shown = subprocess.run(
        [sys.executable, "-m", "shows"], cwd=places["new"], capture_output=True, text=True, timeout=300, check=True
    )
    write_hostile_files(places, but_not={"pyllm", *shown.stdout.split()})
    for name in ("convert", "run", "doctor"):
        call(["-m", "pyllm"], name, COMMANDS[name], {**places, "new": places["bin"]})
    assert witnesses(places) == []
