"""Selective state spaces: the scans of Mamba 1 (arXiv:2312.00752) and Mamba 2 (arXiv:2405.21060)."""

from __future__ import annotations

from pyllm.errors import ModelError
from pyllm.program.op import Recurrent, Shapes
from pyllm.program.values import SlotSpec, Value, Weight
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class SSMScan1(Recurrent):
    """Mamba 1: each channel c has a state of its own, S[:, c], and decays of its own:

    step = softplus(dt);  S[n, c] <- exp(step[c] * a[c, n]) * S[n, c] + b[n] * step[c] * x[c];
    out[c] = sum over n of c[n] * S[n, c] + d[c] * x[c].

    x, dt [tokens, width], dt with its bias; b, c [tokens, state_dim]; weights a [width, state_dim], below 0, d [width].
    State: S, [state_dim, width].
    """

    x: Value
    dt: Value
    b: Value
    c: Value
    a: Weight
    d: Weight

    @property
    def state_dim(self) -> int:
        """Numbers in the state of a channel."""
        return self.b.width

    def slot(self, shapes: Shapes) -> SlotSpec:
        return SlotSpec((self.state_dim, self.x.width))

    def infer(self, shapes: Shapes) -> int:
        width, n = self.x.width, self.state_dim
        if (self.dt.width, self.c.width) != (width, n):
            raise ModelError(
                f"steps, inputs and outputs of {self.dt.width}, {n} and {self.c.width} columns do not make a scan "
                f"of {width} channels"
            )
        shapes.require(self.a, (width, n))
        shapes.require(self.d, (width,))
        shapes.every_token("a scan needs every token", self.x, self.dt, self.b, self.c)
        return width


@dataclass(frozen=True, slots=True, kw_only=True)
class SSMScan2(Recurrent):
    """Mamba 2: heads of several columns, each with one decay:

    step = softplus(dt + dt_bias);  S <- exp(step * a) * S + outer(b, step * x);  out = S.T c + d * x.

    x [tokens, n_heads * head_dim], dt [tokens, n_heads], b, c [tokens, n_groups * state_dim]: head h reads group
    h * n_groups // n_heads. Weights a, below 0, and d, dt_bias (None: 0) [n_heads], or [n_heads, 1].
    State: S of each head, [n_heads, state_dim, head_dim].
    """

    x: Value
    dt: Value
    b: Value
    c: Value
    a: Weight
    d: Weight
    dt_bias: Weight | None = None
    n_groups: int = 1

    @property
    def n_heads(self) -> int:
        return self.dt.width

    @property
    def head_dim(self) -> int:
        """Columns of a head."""
        return self.x.width // self.n_heads

    @property
    def state_dim(self) -> int:
        """Rows of a head's state."""
        return self.b.width // self.n_groups

    def group(self, head: int) -> int:
        """The group whose b and c a head reads."""
        return head * self.n_groups // self.n_heads

    def slot(self, shapes: Shapes) -> SlotSpec:
        n, groups = self.n_heads, self.n_groups
        if groups < 1 or n % groups or self.x.width % n or self.b.width % groups or self.b.width != self.c.width:
            raise ModelError(
                f"columns, inputs and outputs of {self.x.width}, {self.b.width} and {self.c.width} columns do not "
                f"make {n} heads of {groups} groups"
            )
        return SlotSpec((n, self.state_dim, self.head_dim))

    def infer(self, shapes: Shapes) -> int:
        self.slot(shapes)
        n = self.n_heads
        for weight in (self.a, self.d, self.dt_bias):
            shapes.require(weight, (n,), (n, 1))
        shapes.every_token("a scan needs every token", self.x, self.dt, self.b, self.c)
        return self.x.width
