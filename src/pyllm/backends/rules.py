"""Rules of a backend: its implementation of each op, in the module of the same name as the op's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Generic, TypeVar

from pyllm.errors import BackendError
from pyllm.program import Op, Program

F = TypeVar("F", bound=Callable[..., Any])


class Rules(Generic[F]):
    """Rules by op class, registered by decorator: `@rule(RMSNorm)` above a function of `package`.norm.

    A module is imported when the first of its ops is looked up, so a backend loads what a program needs.
    """

    def __init__(self, package: str, backend: str) -> None:
        self._package, self._backend = package, backend
        self._rules: dict[type[Op], F] = {}

    def __call__(self, kind: type[Op]) -> Callable[[F], F]:
        """Decorator of the rule of an op class."""

        def register(rule: F) -> F:
            self._rules[kind] = rule
            return rule

        return register

    def find(self, kind: type[Op]) -> F | None:
        """The rule of an op class, None where there is none."""
        if kind not in self._rules:
            module = f"{self._package}.{kind.__module__.rpartition('.')[2]}"
            if find_spec(module) is not None:
                importlib.import_module(module)
        return self._rules.get(kind)

    def of(self, op: Op) -> F:
        """The rule of an op; BackendError where there is none."""
        rule = self.find(type(op))
        if rule is None:
            raise self._refuse([type(op).__name__])
        return rule

    def check(self, program: Program) -> None:
        """Raise BackendError naming every op of the program without a rule."""
        kinds = dict.fromkeys(type(op) for op in program.ops)
        if unknown := sorted(kind.__name__ for kind in kinds if self.find(kind) is None):
            raise self._refuse(unknown)

    def _refuse(self, unknown: list[str]) -> BackendError:
        return BackendError(f"backend {self._backend!r} has no op {', '.join(unknown)}; the reference backend has all")
