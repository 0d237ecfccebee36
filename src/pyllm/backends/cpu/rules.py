"""The CPU backend's rules: `rule(lowering, node, op)` adds the entries that compute an op's value to the table."""

from __future__ import annotations

from collections.abc import Callable

from pyllm.backends.rules import Rules

Rule = Callable[..., None]

emit: Rules[Rule] = Rules("pyllm.backends.cpu.ops", "cpu")
