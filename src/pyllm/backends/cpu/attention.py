"""Rotary positions, KV cache and attention on the CPU: layout of the cache, kernels, scratch, arguments.

Between the linear layers and attention a layer takes two ops: `store` (norm and rotate queries in place, norm and
rotate keys into the cache, values into the cache) and `attend`. The table of rotations is one op a step for each
distinct `RopeTable`.
"""

from __future__ import annotations

from pyllm.backends.cpu.arguments import rope as arguments
from pyllm.backends.cpu.arguments.attention import Attend
from pyllm.backends.cpu.arguments.kv import Store
from pyllm.backends.cpu.kernels import kernel
from pyllm.backends.cpu.kernels.attention_scratch import MAX_PARTS, Scratch, tile_rows
from pyllm.backends.cpu.linear import wide_supported
from pyllm.config import KVDtype
from pyllm.errors import BackendError
from pyllm.jit.arguments import Address, Rows
from pyllm.jit.compiler import Kernel
from pyllm.jit.target import host
from pyllm.program import KVSpec
from pyllm.program.ops.attention import REACHES, Attention
from pyllm.program.ops.rope import Rope
from pyllm.records import dataclass


def _up(n: int, multiple: int) -> int:
    return (n + multiple - 1) // multiple * multiple


@dataclass(frozen=True, slots=True)
class KVLayout:
    """One layer's cache: [pages][kv heads][keys | values], float16 or float32.

    `kernels/kv.py` describes a page; dimensions of keys are padded to 16, of values to 32. Each layer's cache is one
    such block, anywhere; fresh memory must be zero.
    """

    spec: KVSpec
    page_size: int
    dtype: KVDtype

    @property
    def item_bytes(self) -> int:
        return 2 if self.dtype == "f16" else 4

    @property
    def key_bytes(self) -> int:
        """Bytes of one head's keys in a page."""
        return self.page_size * _up(self.spec.head_dim, 16) * self.item_bytes

    @property
    def head_bytes(self) -> int:
        """Bytes of one head in a page, keys and values."""
        return self.key_bytes + self.page_size * _up(self.spec.v_head_dim, 32) * self.item_bytes

    @property
    def page_bytes(self) -> int:
        """Bytes of one page in this layer; a multiple of 64."""
        return self.spec.n_kv_heads * self.head_bytes


@dataclass(frozen=True, slots=True)
class RopeTable:
    """Cosines and sines of every token of a step; layers with equal parameters share a table."""

    inv_freq: tuple[float, ...]
    mscale: float
    interleaved: bool

    @classmethod
    def of(cls, op: Rope) -> RopeTable:
        return cls(op.inv_freq, op.mscale, op.interleaved)

    @property
    def half(self) -> int:
        return len(self.inv_freq)

    @property
    def kernel(self) -> Kernel:
        return kernel("rope", "table", interleaved=int(self.interleaved))

    @property
    def row_bytes(self) -> int:
        """Bytes of one token's row; the table has max_tokens rows."""
        return 8 * _up(self.half * (2 if self.interleaved else 1), 16)

    def args(self, inv_freq: Address, table: Rows) -> arguments.Table:
        """Arguments of `kernel`. `inv_freq`: address of the frequencies as float32."""
        return arguments.Table(inv_freq=inv_freq, half=self.half, mscale=self.mscale, table=table)


@dataclass(frozen=True, slots=True)
class HeadNorm:
    """RMS norm of each head before rotation. `weight`: address of its float32 weights; `stride`: bytes from one head's
    weights to the next's, 0: shared."""

    weight: Address | None
    eps: float
    stride: int = 0


NO_NORM = HeadNorm(None, -1.0)

ROTATE = kernel("rope", "rotate")
"""Norm and rotation of a value outside attention."""


def rotate_args(
    *, x: Rows, y: Rows, n_heads: int, head_dim: int, rope: RopeTable | None, table: Rows | None = None,
    norm: HeadNorm = NO_NORM,
) -> arguments.Rotate:  # fmt: skip
    """Arguments of `ROTATE`: y = rope(norm(x)), without those that are None. y may be x."""
    return arguments.Rotate(
        x=x, y=y, n_heads=n_heads, head_dim=head_dim, table=table, half=rope.half if rope else 0,
        interleaved=int(rope.interleaved) if rope else 0, weight=norm.weight, weight_stride=norm.stride, eps=norm.eps,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class AttentionPlan:
    """Kernels and memory of one attention op.

    It needs `scratch_bytes` for each thread, of any content, and `shared_bytes` once, zero at first; both aligned to 64
    bytes. All ops of an executable share them, as large as the largest op needs.
    """

    op: Attention
    layout: KVLayout
    max_generated: int
    """Most generated tokens of a step."""
    wide: bool
    """Whether tiles of many rows (prefill) are computed in bfloat16 on AMX, see `kernels/attention_wide.py`."""

    @property
    def group(self) -> int:
        """Query heads per kv head."""
        return self.op.n_heads // self.op.n_kv_heads

    @property
    def width(self) -> int:
        """Rounded-up head size that the kernel is compiled for."""
        n = max(self.layout.spec.head_dim, self.layout.spec.v_head_dim)
        return 128 if n <= 128 else _up(n, 512)

    @property
    def store_kernel(self) -> Kernel:
        return kernel("kv", "store", kv=self.layout.dtype)

    @property
    def kernel(self) -> Kernel:
        if self.wide:
            return kernel("attention", "attend_wide", width=self.width)
        return kernel("attention", "attend", kv=self.layout.dtype, width=self.width)

    @property
    def _rows(self) -> int:
        return tile_rows(self.group, self.wide)

    @property
    def scratch_bytes(self) -> int:
        """Bytes of scratch of one thread, for any of the kernels."""
        store = 16 * (4 * _up(self.layout.spec.head_dim, 16) + 64) + 1024
        return _up(max(Scratch(self.width, self.wide).n_bytes(self._rows), store), 64)

    @property
    def n_tickets(self) -> int:
        return self.max_generated * self.layout.spec.n_kv_heads

    @property
    def tickets_bytes(self) -> int:
        """Bytes of the tickets at the start of the shared buffer; parts follow."""
        return _up(8 * self.n_tickets, 64)

    @property
    def shared_bytes(self) -> int:
        """Bytes of the shared buffer."""
        return self.tickets_bytes + self.n_tickets * MAX_PARTS * self.group * Scratch(self.width, self.wide).ld

    def store_args(
        self, *, q: Rows, k: Rows | None, v: Rows | None, cache: Address, rope: RopeTable | None = None,
        table: Rows | None = None, q_norm: HeadNorm = NO_NORM, k_norm: HeadNorm = NO_NORM, scratch: Rows,
    ) -> Store:  # fmt: skip
        """Arguments of `store_kernel`: q = rope(norm(q)) in place, rope(norm(k)) and v into this layer's cache. q, k
        and v may be columns of one buffer. Without rope and norms q is left as it is."""
        return Store(
            q=q, k=k, v=v, cache=cache, **self._shape(), table=table, half=rope.half if rope else 0,
            interleaved=int(rope.interleaved) if rope else 0, q_weight=q_norm.weight, q_weight_stride=q_norm.stride,
            q_eps=q_norm.eps, k_weight=k_norm.weight, k_weight_stride=k_norm.stride, k_eps=k_norm.eps, scratch=scratch,
        )  # fmt: skip

    def args(
        self, *, q: Rows, y: Rows, cache: Address, slopes: Address | None = None, biases: Rows | None = None,
        far: int = 0, sinks: Address | None = None, scratch: Rows, parts: Address, tickets: Address,
    ) -> Attend:  # fmt: skip
        """Arguments of `kernel`. `slopes`, `sinks`: float32 [n_heads]; `biases`: [n_heads, 2 far + 1], with each end
        16 times more; tickets and parts are in the shared buffer."""
        return Attend(
            q=q, y=y, cache=cache, **self._shape(), scale=self.op.scale, window=self.op.window,
            reach=REACHES.index(self.op.reach), softcap=self.op.softcap, slopes=slopes, biases=biases, far=far,
            sinks=sinks, scratch=scratch, cap_rows=self._rows, parts=parts, tickets=tickets,
        )  # fmt: skip

    def _shape(self) -> dict[str, int]:
        spec, a = self.layout.spec, self.layout
        return {
            "page_bytes": a.page_bytes, "page_size": a.page_size, "n_kv": spec.n_kv_heads, "group": self.group,
            "head_dim": spec.head_dim, "v_head_dim": spec.v_head_dim, "head_bytes": a.head_bytes,
            "key_bytes": a.key_bytes,
        }  # fmt: skip


def plan(
    op: Attention, *, page_size: int, dtype: KVDtype, max_generated: int, wide: bool | None = None
) -> AttentionPlan:
    """Plan an attention op for steps of at most `max_generated` generated tokens.

    `wide` None: use AMX where the processor has it; never with a float32 cache, which is chosen for precision. Raises
    BackendError for unsupported shapes.
    """
    if page_size % 16:
        raise BackendError(f"the CPU backend needs pages of a multiple of 16 positions, not {page_size}")
    if op.head_dim % 2:
        raise BackendError(f"the CPU backend needs heads of an even number of columns, not {op.head_dim}")
    wide = dtype == "f16" and (wide_supported(host()) if wide is None else wide)
    spec = KVSpec(op.n_kv_heads, op.head_dim, op.v_head_dim, op.window)
    return AttentionPlan(op, KVLayout(spec, page_size, dtype), max_generated, wide)
