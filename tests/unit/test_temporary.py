"""Temporary files: what killed processes leave is removed, what living ones write is not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pyllm.temporary import TemporaryFile, remove_leftovers

_WRITER = (
    "import sys, pathlib\n"
    "from pyllm.temporary import TemporaryFile\n"
    "file = TemporaryFile(pathlib.Path(sys.argv[1]))\n"
    "print(file.path.name, flush=True)\n"
    "sys.stdin.read()\n"
)


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _WRITER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as writer:
        try:
            assert writer.stdout is not None
            name = writer.stdout.readline().strip()
            remove_leftovers(tmp_path)
            assert [p.name for p in tmp_path.iterdir()] == [name]
        finally:
            writer.send_signal(signal.SIGKILL)
        writer.wait(60)
    remove_leftovers(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_file_of_this_process_is_not_removed(tmp_path: Path) -> None:
    file = TemporaryFile(tmp_path)
    os.write(file.fileno(), b"whole")
    file.sync()
    remove_leftovers(tmp_path)
    file.place(tmp_path / "target")
    file.remove()
    assert [p.name for p in tmp_path.iterdir()] == ["target"]
    assert (tmp_path / "target").read_bytes() == b"whole"


def test_only_files_of_that_name_are_removed(tmp_path: Path) -> None:
    others = ["model.gguf", "model.gguf.part", ".pyllm-x.gguf", "pyllm-x.part", ".part"]
    for name in [*others, ".pyllm-0123456789abcdef.part"]:
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / ".pyllm-folder.part").mkdir()
    remove_leftovers(tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, ".pyllm-folder.part"])


@pytest.mark.skipif(os.name == "nt", reason="links need rights there")
def test_links_and_pipes_stay(tmp_path: Path) -> None:
    (tmp_path / "precious").write_bytes(b"x")
    (tmp_path / ".pyllm-link.part").symlink_to(tmp_path / "precious")
    os.mkfifo(tmp_path / ".pyllm-pipe.part")
    remove_leftovers(tmp_path)
    assert (tmp_path / "precious").read_bytes() == b"x"
    assert (tmp_path / ".pyllm-link.part").is_symlink()


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    remove_leftovers(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        TemporaryFile(tmp_path / "none")
