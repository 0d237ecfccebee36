"""Scans of selective state spaces: cases."""

from __future__ import annotations

from pyllm.program import Value
from pyllm.program.ops.linear import Linear
from pyllm.program.ops.ssm import SSMScan1, SSMScan2
from pyllm.testing.models import Builder, Record


def _linear(b: Builder, x: Value, name: str, rows: int) -> Value:
    return b(Linear(x=x, weight=b.t(name, rows, x.width)))


def _scan_1(width: int, state_dim: int) -> Record:
    def record(b: Builder, x: Value) -> Value:
        value, dt, into, out = (
            _linear(b, x, name, rows)
            for name, rows in (("x", width), ("dt", width), ("b", state_dim), ("c", state_dim))
        )
        a, d = b.t("ssm_a", width, state_dim), b.t("d", width)
        return b(SSMScan1(x=value, dt=dt, b=into, c=out, a=a, d=d))

    return record


def _scan_2(
    n_heads: int, head_dim: int, state_dim: int, *, n_groups: int = 1, bias: bool = True, columns: bool = False
) -> Record:
    """`columns`: weights of heads are matrices of one column, as in files."""

    def record(b: Builder, x: Value) -> Value:
        inner = n_groups * state_dim
        value, dt, into, out = (
            _linear(b, x, name, rows)
            for name, rows in (("x", n_heads * head_dim), ("dt", n_heads), ("b", inner), ("c", inner))
        )
        shape = (n_heads, 1) if columns else (n_heads,)
        return b(SSMScan2(
            x=value, dt=dt, b=into, c=out, a=b.t("ssm_a", *shape), d=b.t("d", *shape),
            dt_bias=b.t("dt.bias", n_heads) if bias else None, n_groups=n_groups,
        ))  # fmt: skip

    return record


CASES: dict[str, Record] = {
    "mamba1": _scan_1(96, 16),
    "mamba1_odd": _scan_1(37, 5),
    "mamba2": _scan_2(4, 64, 128, columns=True),
    "mamba2_groups": _scan_2(8, 32, 16, n_groups=2),
    "mamba2_wide": _scan_2(2, 128, 64, bias=False),
    "mamba2_odd": _scan_2(3, 20, 24, n_groups=3),
}
