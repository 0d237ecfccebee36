"""Completion in bash of names with a colon, such as smollm2:135m; click does the rest."""

from __future__ import annotations

from typing import Any

from click.shell_completion import BashComplete, add_completion_class


class _Bash(BashComplete):
    """bash splits words at colons: it passes "smollm2", ":", "1", and replaces only the part after the colon."""

    _n_cut = 0
    """Characters of the word that bash does not replace."""

    def get_completion_args(self) -> tuple[list[str], str]:
        words, last = super().get_completion_args()
        if last == ":" and words:
            last = words.pop() + ":"
        elif len(words) > 1 and words[-1] == ":":
            last = words[-2] + ":" + last
            words = words[:-2]
        self._n_cut = last.rfind(":") + 1
        return words, last

    def format_completion(self, item: Any) -> str:
        item.value = item.value[self._n_cut :]
        return super().format_completion(item)


def prepare() -> None:
    """Register the completion; called before click completes."""
    add_completion_class(_Bash)
