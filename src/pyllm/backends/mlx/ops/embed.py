"""Rows of a table, which the host decodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import mlx.core as mx

from pyllm.backends.mlx.rules import rule
from pyllm.program.ops.embed import Embed

if TYPE_CHECKING:
    from pyllm.backends.mlx.lowering import Step


@rule(Embed)
def _embed(s: Step, op: Embed) -> mx.array:
    return s.inputs[f"table.{op.out.id}"]
