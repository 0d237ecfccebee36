"""The CUDA backend's rules: `rule(lowering, node, op)` adds the launches that compute an op's value."""

from __future__ import annotations

from collections.abc import Callable

from pyllm.backends.rules import Rules

Rule = Callable[..., None]

emit: Rules[Rule] = Rules("pyllm.backends.cuda.ops", "cuda")
