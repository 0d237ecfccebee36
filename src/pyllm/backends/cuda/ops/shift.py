"""The tokens before."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pyllm.backends.cuda.recurrent import Scan, by_number
from pyllm.backends.cuda.rules import emit
from pyllm.program.ops.shift import TokenShift

if TYPE_CHECKING:
    from pyllm.backends.cuda.lowering import Lowering, Node


@emit(TokenShift)
def token_shift(low: Lowering, node: Node, op: TokenShift) -> None:
    scan = Scan("shift.cu", "token_shift", "shift of tokens", {"x": op.x}, defines={"WIDTH": op.x.width})
    by_number(low, node, op, scan)
