"""A mixture of experts around its products: routing, slots by expert, and the weighted sum.

A slot is one token at one of its experts, token * n_used + choice; its values are rows of that number. Products of few
tokens find their matrices by `Routing.chosen`, those of many take slots expert by expert.
"""

from __future__ import annotations

from pyllm.backends.cuda.launch import FEW, Count, Launch, StepArrays, StepShape, View, fill, struct
from pyllm.backends.plan.memory import Buffer
from pyllm.errors import BackendError
from pyllm.program.ops.experts import MixtureOfExperts
from pyllm.records import dataclass

_GATINGS = {"softmax": 0, "sigmoid": 1, "softmax_chosen": 2}
_WARPS, _SORTERS, _COLUMNS = 4, 1024, 256

_ROUTE = struct(
    logits="ptr", choice_bias="ptr", chosen="ptr", weights="ptr", n_slots="ptr", n_tokens="ptr",
    ld="int", n_experts="int", n_used="int", sharing="int", n_groups="int", n_groups_used="int",
    normalize="int", weight_scale="float",
)  # fmt: skip
_SORT = struct(chosen="ptr", offsets="ptr", slots="ptr", n_slots="ptr", n_experts="int")
_WEIGH = struct(y="ptr", weights="ptr", n_slots="ptr", ld="int", width="int")
_COMBINE = struct(
    y="ptr", weights="ptr", residual="ptr", out="ptr", n_tokens="ptr",
    ldy="int", ldr="int", ldo="int", n_used="int", width="int",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Routing:
    """Routing of tokens, in device memory."""

    op: MixtureOfExperts
    count: Count
    """Number of tokens."""
    chosen: Buffer
    """int32 [tokens, n_used]: numbers of experts' matrices, best first."""
    weights: Buffer
    """float32 [tokens, n_used]."""
    n_slots: Buffer
    """int32: tokens * n_used."""
    offsets: Buffer
    """int32 [n_matrices + 1]: where each expert's part of `slots` begins; only in steps of many tokens."""
    slots: Buffer
    """int32 [tokens * n_used]: slots by expert, in any order within one; likewise."""

    @staticmethod
    def room(op: MixtureOfExperts, count: Count, most: int) -> Routing:
        """Allocate buffers for up to `most` tokens."""
        n = 4 * most * op.n_used
        # Launches read the number without listing it as a buffer, so it is never moved.
        n_slots = Buffer(4, keep=True)
        return Routing(op, count, Buffer(n), Buffer(n), n_slots, Buffer(4 * (op.n_matrices + 1)), Buffer(n))

    @property
    def slot_count(self) -> Count:
        """Number of slots."""
        return Count(self.count.member, 0, self.op.n_used, self.n_slots)


def route(arrays: StepArrays, logits: View, choice_bias: Buffer | None, r: Routing) -> list[Launch]:
    """Choose experts by the router's logits; in steps of many tokens also sort slots by expert."""
    op, count = r.op, r.count
    if op.n_groups > 32:
        raise BackendError(f"the CUDA backend chooses from at most 32 groups of experts, not {op.n_groups}")
    choose = Launch(
        "route.cu",
        "route",
        lambda shape: (-(-count.of(shape) // _WARPS), 1, 1),
        32 * _WARPS,
        lambda shape: fill(
            _ROUTE, logits=logits, choice_bias=choice_bias, chosen=r.chosen, weights=r.weights, n_slots=r.n_slots,
            n_tokens=arrays.count(count), ld=logits.ld, n_experts=op.n_experts, n_used=op.n_used,
            sharing=op.sharing, n_groups=op.n_groups, n_groups_used=op.n_groups_used, normalize=int(op.normalize),
            weight_scale=op.weight_scale,
        ),
        "choose experts",
        defines={"GATING": _GATINGS[op.gating], "PER_LANE": -(-op.n_experts // 32)},
        reads=(logits.buffer,),
        writes=(r.chosen, r.weights, r.n_slots),
    )  # fmt: skip
    sort = Launch(
        "experts.cu",
        "sort_slots",
        lambda shape: (1, 1, 1),
        _SORTERS,
        lambda shape: fill(
            _SORT, chosen=r.chosen, offsets=r.offsets, slots=r.slots, n_slots=r.n_slots,
            n_experts=op.n_matrices,
        ),
        "sort slots",
        shared=4 * op.n_matrices,
        when=lambda shape: many(r, shape),
        reads=(r.chosen, r.n_slots),
        writes=(r.offsets, r.slots),
    )  # fmt: skip
    return [choose, sort]


def many(r: Routing, shape: StepShape) -> bool:
    """Whether a step sorts slots and computes products expert by expert."""
    return r.count.of(shape) > FEW


def weigh(y: View, r: Routing, width: int) -> Launch:
    """y [slots, width] times the slots' weights, in place."""
    return Launch(
        "experts.cu",
        "weigh",
        lambda shape: (-(-width // _COLUMNS), r.slot_count.of(shape), 1),
        _COLUMNS,
        lambda shape: fill(_WEIGH, y=y, weights=r.weights, n_slots=r.n_slots, ld=y.ld, width=width),
        "weigh experts",
        reads=(y.buffer, r.weights),
        writes=(y.buffer,),
    )


def combine(arrays: StepArrays, y: View, r: Routing, out: View, residual: View | None = None) -> Launch:
    """out[token] = residual[token] + the weighted sum of y [slots, width] over the token's slots."""
    op, count = r.op, r.count
    width = op.out.width
    return Launch(
        "experts.cu",
        "combine",
        lambda shape: (-(-width // _COLUMNS), count.of(shape), 1),
        _COLUMNS,
        lambda shape: fill(
            _COMBINE, y=y, weights=None if op.weighs_input else r.weights, residual=residual, out=out,
            n_tokens=arrays.count(count), ldy=y.ld, ldr=residual.ld if residual else 0, ldo=out.ld,
            n_used=op.n_used, width=width,
        ),
        "combine experts",
        reads=(y.buffer, r.weights, *((residual.buffer,) if residual else ())),
        writes=(out.buffer,),
    )  # fmt: skip
