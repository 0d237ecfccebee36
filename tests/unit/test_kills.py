"""Killed at a random moment, a start and a quantization damage nothing: a few of the kills of benchmarks/kill.py."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "kill.py"


@pytest.mark.long
@pytest.mark.skipif(sys.platform == "win32", reason="kills by signals of POSIX")
@pytest.mark.parametrize("case", ["start", "quantize"])
def test_a_killed_process_leaves_nothing_damaged(case: str) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPT), case, "--times", "3"], capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.match(rf"{case}: 3 kills, \d before the end; .* wrong: 0\n", done.stdout)
