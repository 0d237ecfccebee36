"""Every kernel of a small model, cross-compiled for arm64: what does not run here can at least be compiled and read."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llvmlite")

# A process of its own: helpers that numba has inlined for one target must not be met by another.
SCRIPT = """
import sys
sys.path.insert(0, {folder!r})
from oracle import OPTIONS, Shape, mixed_tensors, transformer
from pyllm.backends.cpu import attention, executable, linear
from pyllm.jit import compiler
from pyllm.backends.cpu.lowering import Lowering
from pyllm.jit.target import Target
from pyllm.jit.threads import Pool

arm = Target("aarch64-unknown-linux-gnu", "neoverse-n1", "")
assert arm.isa == "dotprod"
for module in (linear, attention):
    for name, value in (("host", lambda: arm), ("wide_supported", lambda target: False)):
        if hasattr(module, name):
            setattr(module, name, value)
kernels = [*Pool.KERNELS]
for shape in (Shape(n_layers=2), Shape(n_layers=2, recurrent=True)):
    model = transformer(shape)
    low = Lowering(model.program, mixed_tensors(model), OPTIONS)
    kernels += [*low.table.kernels(), *(p.pack_kernel for p in low.weights.plans)]
for kernel in dict.fromkeys(kernels):
    text = compiler.assembly(kernel, arm)
    print(kernel.symbol, len(text.splitlines()), "sdot" in text, "tbl" in text)
"""


@pytest.mark.long
def test_all_kernels_compile_for_arm64() -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    script = SCRIPT.format(folder=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=1200, env=env)
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) >= 10
    assert all(int(n) > 10 for _, n, _, _ in lines)
    products = {name: (dot, table) for name, _, dot, table in lines if name.startswith("linear_")}
    assert products
    assert all(dot == "True" for dot, _ in products.values())
    assert {"delta_delta_rule_by_row0", "conv_short_conv_taps4"} <= {name for name, *_ in lines}
    assert any("iq4_xs" in name and table == "True" for name, (_, table) in products.items())
