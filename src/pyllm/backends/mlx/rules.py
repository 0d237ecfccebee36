"""The mlx backend's rules: `rule(step, op)` gives an op's value as an expression."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx

from pyllm.backends.rules import Rules

Rule = Callable[..., mx.array]

rule: Rules[Rule] = Rules("pyllm.backends.mlx.ops", "mlx")
