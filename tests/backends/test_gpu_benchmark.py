"""The benchmark of a card, on an emulated one: it goes through to the end, and its model computes what it should."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_section_works(tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("the emulator needs g++")
    pytest.importorskip("llvmlite")
    script, out = Path(__file__).parents[2] / "benchmarks" / "gpu.py", tmp_path / "gpu.json"
    done = subprocess.run([sys.executable, str(script), "--toy", "--out", str(out)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    found = json.loads(out.read_text())
    assert max(found["sane"].values()) < 1e-3
    assert found["ceilings"]["B"] > 0
    assert {"tg", "pp8", "tg x2", "tg deep", "pp deep", "profile tg", "profile pp"} <= found["dense"].keys()
    assert all(found["dense"][name]["best"] > 0 for name in ("tg", "pp8", "tg x2", "tg deep"))
    assert sum(found["dense"]["profile tg"].values()) > 0
    assert found["experts"]["devices"] == ["cuda0"]
    assert found["split"]["devices"] == ["cuda0", "cpu"]
