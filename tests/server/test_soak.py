"""A minute of the load of benchmarks/server_soak.py: nothing is lost, nothing is left over."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tiny_gguf import write_tiny_gguf

GROWTH = ("--growth", "0.05")
"""In half a minute the heap has not settled, and the system may drop mapped files and read them again: between 1 and
3 % were seen. What leaks shows in the script's own half hour, whose bound is 2 %."""
SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "server_soak.py"


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signals of POSIX")
@pytest.mark.parametrize("max_loaded", [1, 2])
def test_a_server_under_load_loses_nothing_and_leaves_nothing(max_loaded: int, tmp_path: Path) -> None:
    models = [write_tiny_gguf(tmp_path / f"tiny{i}.gguf", name=f"tiny{i}", embed_scale=1.0 + i) for i in range(2)]
    named = [part for model in models for part in ("-m", str(model))]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *named, "--minutes", "0.5", "--max-loaded", str(max_loaded), *GROWTH],
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert min(found["requests"][how] for how in ("whole", "stream", "slow", "left", "bad")) > 10, found
    assert found["requests"]["killed processes"] > 2, found
