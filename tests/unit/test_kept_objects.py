"""Compiled code on disk: damage is noticed, and what can't be written costs one warning."""

from __future__ import annotations

import errno
import os
import pwd
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from pyllm import env
from pyllm.errors import PyllmWarning
from pyllm.jit import objects
from pyllm.temporary import TemporaryFile

CODE = bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary files, and a process that has not warned yet."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    monkeypatch.setattr(objects, "_warnings", [])
    objects._remove_leftovers.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a warning that is not expected fails the test
        yield folder


def test_what_is_kept_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "folder"
    path = objects.keep(folder, "a.o", CODE)
    assert path == folder / "a.o" == objects.path(folder, "a.o")
    assert objects.find(folder, "a.o") == CODE
    assert objects.find(folder, "b.o") is None
    assert objects.find(tmp_path / "nowhere", "a.o") is None
    assert [p.name for p in folder.iterdir()] == ["a.o"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:1],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: bytes(len(content)),
        lambda content: content[:-100] + bytes(100),
        lambda content: bytes(4096) + content[4096:],
        lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
        lambda content: content + b"\0",
        lambda content: content[256:],
        lambda content: CODE,
    ],
    ids=["empty", "byte", "half", "cut", "zeros", "zero-end", "zero-page", "bit", "longer", "beginning", "unsealed"],
)
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, damage: object) -> None:
    path = objects.keep(tmp_path, "a.o", CODE)
    assert path is not None
    path.write_bytes(damage(path.read_bytes()))  # type: ignore[operator]
    assert objects.find(tmp_path, "a.o") is None
    assert objects.path(tmp_path, "a.o") is None
    objects.keep(tmp_path, "a.o", CODE)
    assert objects.find(tmp_path, "a.o") == CODE


def test_a_folder_that_cannot_be_made_has_a_stand_in(tmp_path: Path, temporary: Path) -> None:
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "kernels"
    with pytest.warns(PyllmWarning, match=r"Not a directory.*set PYLLM_CACHE"):
        path = objects.keep(folder, "a.o", CODE)
    objects.keep(folder, "b.o", CODE)
    assert path is not None
    assert path.is_relative_to(temporary)
    assert objects.find(folder, "a.o") == objects.find(folder, "b.o") == CODE
    assert objects.find(tmp_path / "other", "a.o") is None


def test_a_cache_folder_that_is_a_file_has_a_stand_in(tmp_path: Path) -> None:
    (tmp_path / "kernels").write_text("")
    with pytest.warns(PyllmWarning):
        objects.keep(tmp_path / "kernels", "a.o", CODE)
    assert objects.find(tmp_path / "kernels", "a.o") == CODE


def test_without_any_folder_each_start_compiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "file"))
    with pytest.warns(PyllmWarning, match="each start compiles them again"):
        assert objects.keep(tmp_path / "file", "a.o", CODE) is None
    assert objects.keep(tmp_path / "file", "b.o", CODE) is None
    assert objects.find(tmp_path / "file", "a.o") is None


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(PyllmWarning, match="No space left on device"):
        assert objects.keep(tmp_path / "kernels", "a.o", CODE) is None
    assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_disk_of_a_few_pages(tmp_path: Path) -> None:
    """A real one, where mounting is allowed."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8k", "tmpfs", str(disk)]
    if sys.platform != "linux" or subprocess.run(mount, capture_output=True, timeout=300).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        with pytest.warns(PyllmWarning, match="No space left on device"):
            path = objects.keep(disk / "kernels", "a.o", CODE)
        assert path is not None
        assert not [p for p in disk.rglob("*") if p.is_file()]
        assert objects.find(disk / "kernels", "a.o") == CODE
    finally:
        subprocess.run(["umount", str(disk)], check=True, timeout=300)


def test_leftovers_of_killed_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / ".pyllm-0123.part").write_bytes(b"half")
    being_written = TemporaryFile(tmp_path)
    objects.keep(tmp_path, "a.o", CODE)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == [being_written.path.name, "a.o"]
    being_written.remove()


def test_a_temporary_folder_of_somebody_else_is_not_used(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = env.temporary_dir()
    assert own is not None
    assert own.parent == temporary
    own.chmod(0o777)
    assert env.temporary_dir() is None
    own.chmod(0o700)
    assert env.temporary_dir() == own
    user = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: user + 1)
    own.rename(temporary / f"pyllm-{user + 1}")
    assert env.temporary_dir() is None
    (temporary / f"pyllm-{user + 1}").rename(temporary / "elsewhere")
    (temporary / f"pyllm-{user + 1}").symlink_to("elsewhere")
    assert env.temporary_dir() is None


@pytest.fixture
def no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user without a home and without an entry in the system's list of users."""

    def unknown(user: int) -> None:
        raise KeyError(f"getpwuid(): uid not found: {user}")

    for name in ("HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME", "PYLLM_CACHE", "PYLLM_KERNEL_CACHE", "PYLLM_MODELS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("PYLLM_DATA", raising=False)
    monkeypatch.setattr(pwd, "getpwuid", unknown)


@pytest.mark.usefixtures("no_home")
def test_a_user_without_a_home_has_folders(temporary: Path) -> None:
    for folder in (env.cache_dir(), env.data_dir(), env.kernel_cache_dir(), env.models_dir()):
        assert folder.is_relative_to(temporary)
    with pytest.warns(PyllmWarning, match="there is no cache folder.*set PYLLM_CACHE"):
        objects.keep(env.kernel_cache_dir(), "a.o", CODE)
    assert objects.find(env.kernel_cache_dir(), "a.o") == CODE


@pytest.mark.usefixtures("no_home")
def test_a_home_that_is_not_there_is_no_folder_called_tilde(monkeypatch: pytest.MonkeyPatch, temporary: Path) -> None:
    monkeypatch.setenv("PYLLM_MODELS", "~/models")
    monkeypatch.setenv("PYLLM_CACHE", "~nobody-of-that-name/cache")
    assert env.models_dir().is_relative_to(temporary)
    assert env.user_path("~/model.gguf") == Path("~/model.gguf")


def test_a_home_that_cannot_be_written_is_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "PYLLM_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert env.cache_dir().is_relative_to(tmp_path / "home")
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert not env.cache_dir().is_relative_to(tmp_path / "home")
