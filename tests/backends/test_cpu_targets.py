"""The whole backend on narrower processors than this one: a process each, with numba's own variables."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

# Formats of all kinds in one small model; what the reference computes is close to what 8-bit activations give. And
# recurrent ops, whose states have rows that no vector divides.
SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from oracle import Shape, assert_close, mixed_tensors, run_both, transformer
from pyllm.jit.target import host
from pyllm.testing import conformance
assert host().isa == {isa!r}, host().isa
model = transformer(Shape(n_layers=2))
assert_close(run_both("cpu", model, tensors=mixed_tensors(model)), 4e-3)
for name, check in conformance.checks("cpu").items():
    if name.startswith(("op-conv-", "op-delta-", "op-linear_attention-odd")):
        check()
"""


@pytest.mark.long
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="names x86 processors")
@pytest.mark.parametrize(("cpu", "isa"), [("generic", "sse2"), ("haswell", "avx2")])
def test_narrower_instruction_sets(cpu: str, isa: str) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p), "NUMBA_CPU_NAME": cpu}
    env.pop("NUMBA_CPU_FEATURES", None)
    script = SCRIPT.format(folder=str(Path(__file__).parent), isa=isa)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=1200, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
