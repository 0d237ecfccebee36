"""Child processes start without the current folder: environment, search path and programs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pyllm import env

HERE = os.pathsep.join(["", ".", "bin", "/usr/bin", "../x", "/bin", ""])


@pytest.mark.skipif(os.name == "nt", reason="POSIX paths")
def test_search_paths_keep_their_absolute_entries(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "CPATH", "LIBRARY_PATH"):
        monkeypatch.setenv(name, HERE)
    monkeypatch.setenv("C_INCLUDE_PATH", ".:")
    child = env.for_child()
    for name in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH", "CPATH", "LIBRARY_PATH"):
        assert child[name] == "/usr/bin:/bin"
    assert "C_INCLUDE_PATH" not in child  # an empty one would mean the current folder


def test_what_makes_python_run_something_else_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONBREAKPOINT", "PYTHONHOME", "PYTHONPYCACHEPREFIX"):
        monkeypatch.setenv(name, "x")
    child = env.for_child()
    assert not {"PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONBREAKPOINT", "PYTHONHOME", "PYTHONPYCACHEPREFIX"} & set(child)
    assert child["PYTHONSAFEPATH"] == "1"


def test_what_a_child_needs_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = ("HTTPS_PROXY", "SSL_CERT_FILE", "LC_ALL", "TMPDIR", "SYSTEMROOT", "PIP_INDEX_URL", "HOME", "LD_PRELOAD")
    for name in needed:
        monkeypatch.setenv(name, "some value")
    child = env.for_child(TMPDIR="other")
    assert {child[name] for name in needed} == {"some value", "other"}
    assert os.environ["TMPDIR"] == "some value"


def test_programs_are_found_in_absolute_folders_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "tool.exe" if os.name == "nt" else "tool"
    for folder in ("here", "good", "plain"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_text("#!/bin/sh\n")
        (tmp_path / folder / name).chmod(0o644 if folder == "plain" else 0o755)
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("PATH", os.pathsep.join([".", "", "../good", str(tmp_path / "no")]))
    assert env.find_program("tool") is None
    monkeypatch.setenv("PATH", os.pathsep.join([".", str(tmp_path / "plain"), str(tmp_path / "good")]))
    if os.name != "nt":
        assert env.find_program("other", "tool") == str(tmp_path / "good" / name)
    assert env.find_program("other") is None


@pytest.mark.parametrize(
    ("program", "frozen", "known"),
    [
        (sys.executable, False, True),
        ("", False, False),
        (None, False, False),
        ("python3", False, False),
        (os.path.abspath("/opt/app/app"), False, False),
        (os.path.abspath("/usr/bin/uwsgi"), False, False),
        (sys.executable, True, False),
    ],
)
def test_a_program_that_is_no_python_is_not_started(
    program: str | None, frozen: bool, known: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", program)
    monkeypatch.setattr(sys, "frozen", frozen, raising=False)
    assert (env.python() == [program, "-P"]) is known
    assert (env.python() is None) is not known


def search_path(*arguments: str, cwd: Path, **variables: str) -> list[str]:
    """What a program that is started so hands on to its children."""
    code = "import sys; sys.path.append({!r}); from pyllm import env; print('\\n'.join(env.search_path()))"
    home = str(Path(env.__file__).parents[1])
    environment = {**os.environ, **variables}
    done = subprocess.run(
        [sys.executable, *(a.replace("CODE", code.format(home)) for a in arguments)],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    return done.stdout.splitlines()


def test_the_current_folder_is_handed_on_only_where_it_is_named(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    home = str(Path(env.__file__).parents[1])
    script.write_text(
        f"import sys; sys.path.append({home!r})\nfrom pyllm import env; print('\\n'.join(env.search_path()))"
    )
    here = str(tmp_path)
    (tmp_path / "sub").mkdir()
    for arguments in (["-c", "CODE"], ["-m", "script"], ["script.py"]):
        assert here not in search_path(*arguments, cwd=tmp_path)
        assert here not in search_path(*arguments, cwd=tmp_path, PYTHONPATH=os.pathsep.join([".", ""]))
        assert here in search_path(*arguments, cwd=tmp_path, PYTHONPATH=here)
    assert here not in search_path(str(script), cwd=tmp_path / "sub")
    found = search_path("-c", "CODE", cwd=tmp_path)
    assert os.path.dirname(os.__file__) in found
    assert str(Path(env.__file__).parents[1]) in found


def test_the_folder_that_holds_pyllm_comes_last_where_it_is_the_current_one() -> None:
    home = Path(env.__file__).parents[1]
    code = "import sys; sys.path[:] = [p for p in sys.path if p != {!r}]\n"
    code += "from pyllm import env; print(env.search_path()[-1])"
    done = subprocess.run(
        [sys.executable, "-c", code.format(str(home))],
        cwd=home, capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == str(home)
