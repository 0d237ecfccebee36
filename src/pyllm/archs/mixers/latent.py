"""Multi-head latent attention (arXiv:2405.04434): keys and values of all heads are products of one row of a token."""

from __future__ import annotations

import math
from typing import Any, Self

from pyllm.archs.graph import Graph
from pyllm.archs.hparams import HParams
from pyllm.archs.mixers.attention import PositionFactors
from pyllm.archs.rope import Rope, Scaling
from pyllm.errors import ModelError
from pyllm.program import Value, Weight
from pyllm.program.ops.attention import Attention
from pyllm.program.ops.gate import GatedActivation
from pyllm.program.ops.linear import HeadLinear
from pyllm.program.ops.rope import Rope as Rotate
from pyllm.program.ops.select import JoinHeads
from pyllm.records import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LatentAttention:
    """attn_output(attention of queries, and of keys and values out of latent rows).

    A token's row is the norm of `rank` columns of attn_kv_a_mqa, and `n_rot` columns that all heads share, rotated. A
    head's key is attn_k_b times the former, and the latter; its value is attn_v_b times the former. Where the file has
    these matrices by head (`absorbed`), they multiply queries and outputs instead, and rows are all that is stored: one
    KV head, whose values are the norms. Else the keys and values of all heads, out of attn_kv_b, are.
    """

    n_heads: int
    head_dim: int
    """Columns of a head's queries, of which the last `n_rot` are rotated."""
    v_head_dim: int
    rank: int
    n_rot: int
    absorbed: bool
    scale: float
    """Factor of the scores."""
    rope: Rope | None
    """None: no positions."""
    window: int = 0
    k_norm: bool = False
    """Norm of the columns that heads share, before rotation, `attn_k_norm`."""
    gate: str | None = None
    """As `Attention.gate`."""
    scaled: bool = True
    """The file's scale applies to the output."""
    q_scale: PositionFactors | None = None
    """Factors of queries by position."""

    @classmethod
    def read(
        cls, hp: HParams, il: int, rope: Rope | None, *, window: int = 0, factor: float = 1.0, **options: Any
    ) -> Self:
        """The mixer of layer `il`, with the file's sizes, those of layers with a window if it has one. `factor`: of
        scores, beside that by the size of heads."""
        kind = "_swa" if window else ""
        lengths = [hp.integer(f"attention.{what}_length_mla{kind}", 0) for what in ("key", "value")]
        head_dim, v_head_dim = lengths if all(lengths) else hp.head_dims(window > 0)
        n_rot = rope.n_rot if rope else hp.integer("rope.dimension_count")
        if not hp.n_heads[il]:
            raise ModelError(f"{hp.arch}.attention.head_count is 0 in layer {il}")
        if n_rot >= head_dim:
            raise ModelError(f"heads of {hp.arch} share {n_rot} columns of {head_dim}; some must be their own")
        return cls(
            n_heads=hp.n_heads[il],
            head_dim=head_dim,
            v_head_dim=v_head_dim,
            rank=hp.integer(f"attention.kv_lora_rank{kind}"),
            n_rot=n_rot,
            absorbed=all(lengths) and hp.has(f"blk.{il}.attn_k_b.weight"),
            scale=factor / math.sqrt(head_dim),
            rope=rope,
            window=window,
            **options,
        )

    def __call__(self, g: Graph, blk: str, x: Value) -> Value:
        n, n_rot = self.n_heads, self.n_rot
        q, q_rot = self._queries(g, blk, x)
        row = g.linear(x, f"{blk}attn_kv_a_mqa", self.rank + n_rot, scaled=False)
        latent, k_rot = g.split(row, self.rank, n_rot)
        latent = g.norm(latent, f"{blk}attn_kv_a_norm")
        k_rot = self._rotated(g, g.norm(k_rot, f"{blk}attn_k_norm" if self.k_norm else None))
        if self.absorbed:
            q = self._by_head(g, q, f"{blk}attn_k_b.weight", self.rank)
            k, v = g.rec(JoinHeads(a=latent, b=k_rot, n_heads=1)), latent
        else:
            sizes = self.head_dim - n_rot, self.v_head_dim
            k, v = g.linears(latent, f"{blk}attn_kv_b", sizes, n, scaled=False)
            k = g.rec(JoinHeads(a=k, b=k_rot, n_heads=n, shared=True))
        q = g.rec(JoinHeads(a=q, b=self._rotated(g, q_rot), n_heads=n))
        y = g.rec(
            Attention(
                q=self.q_scale(g, q) if self.q_scale else q,
                k=k,
                v=v,
                n_heads=n,
                n_kv_heads=1 if self.absorbed else n,
                head_dim=q.width // n,
                v_head_dim=self.rank if self.absorbed else self.v_head_dim,
                scale=self.scale,
                window=self.window,
            )
        )
        if self.absorbed:
            y = self._by_head(g, y, f"{blk}attn_v_b.weight", self.v_head_dim)
        if self.gate:
            width = y.width if g.rec.shape(f"{blk}attn_gate.weight") == (y.width, x.width) else n
            gate = g.linear(x, f"{blk}attn_gate", width, scaled=False)
            y = g.rec(GatedActivation(gate=gate, up=y, act=self.gate))
        return g.linear(y, f"{blk}attn_output", g.hp.n_embd, scaled=self.scaled, bias=None)

    def _queries(self, g: Graph, blk: str, x: Value) -> tuple[Value, Value]:
        """The columns of all heads that are not rotated, and those that are to be; out of two matrices with a norm
        between them, or of one."""
        stem, n_rot = f"{blk}attn_q", self.n_rot
        if g.rec.has(f"{stem}_a.weight"):
            x = g.norm(g.linear(x, f"{stem}_a", g.rec.shape(f"{stem}_a.weight")[0], scaled=False), f"{stem}_a_norm")
            stem = f"{stem}_b"
        q, rotated = g.linears(x, stem, (self.head_dim - n_rot, n_rot), self.n_heads, scaled=False)
        return q, rotated

    def _by_head(self, g: Graph, x: Value, name: str, rows: int) -> Value:
        g.rec.require(name, *self._shapes(rows, x.width // self.n_heads))
        return g.rec(HeadLinear(x=x, weight=Weight(name), n_heads=self.n_heads))

    def _shapes(self, rows: int, columns: int) -> list[tuple[int, ...]]:
        """Files leave out the axis of heads where there is one."""
        return [(self.n_heads, rows, columns)] + [(rows, columns)] * (self.n_heads == 1)

    def _rotated(self, g: Graph, x: Value) -> Value:
        if self.rope is None:
            return x
        r = self.rope
        return g.rec(Rotate(x=x, head_dim=r.n_rot, inv_freq=r.inv_freq, mscale=r.mscale, interleaved=r.interleaved))


def yarn(hp: HParams, *, compensated: bool = False) -> tuple[Rope, float]:
    """Rotation, and factor of the scores, by YaRN as DeepSeek has it: with a multiplier of the logarithm, scores grow,
    and cos and sin shrink or, if `compensated`, stay."""
    scaling = Scaling.read(hp, hp.n_ctx_train)
    multiplier = 10 * scaling.log_multiplier  # files have a tenth
    of_rotation = 1.0 if compensated and multiplier else multiplier
    rope = Rope.read(hp, interleaved=True, factors=False, log_multiplier=of_rotation)
    grown = 0.1 * math.log(scaling.factor)
    own = rope.mscale if scaling.kind == "yarn" else scaling.attn_factor * (1 + grown)
    return rope, (own * (1 + multiplier * grown)) ** 2
