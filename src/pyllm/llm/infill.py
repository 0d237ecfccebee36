"""Fill in the middle: a gap between two texts, as a prompt of tokens that mark prefix, suffix and middle.

The order is Qwen2.5-Coder's (arXiv:2409.12186): a repository and its files, then prefix, suffix and the beginning of
the middle. Vocabularies without a token for the middle (Codestral's) have the suffix first, and the prefix last.
"""

from __future__ import annotations

from collections.abc import Sequence

from pyllm.errors import RequestError
from pyllm.records import dataclass
from pyllm.tokenizers import Tokenizer


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file beside the one with the gap."""

    name: str
    text: str


@dataclass(frozen=True, slots=True)
class Infill:
    """A gap to fill, and what is around it."""

    prefix: str
    suffix: str
    begun: str = ""
    """How the middle begins."""
    files: Sequence[SourceFile] = ()
    """The most relevant last."""
    repository: str = ""
    """Its name, for prompts with files."""
    name: str = ""
    """The name of the file with the gap."""
    suffix_first: bool = False
    """Suffix before prefix, as some models were trained."""
    field: str = "suffix"
    """What the caller calls the suffix, for errors."""

    def tokens(self, tokenizer: Tokenizer, most: int | None = None) -> list[int]:
        """The prompt, BOS included where the model wants it.

        With more than `most` tokens, the first of the files are left out, then the beginning of the prefix and the end
        of the suffix, of which each is sure of its share: three quarters and one. Raises RequestError where the model
        has no tokens for it.
        """
        roles = tokenizer.vocab.fim_ids
        if "prefix" not in roles or "suffix" not in roles:
            raise RequestError(
                f"{self.field} needs a model that can fill in a middle, such as qwen2.5-coder; this one's vocabulary "
                "has no tokens for prefix and suffix"
            )
        prefix = tokenizer.encode(self.prefix, add_special=False) if self.prefix else []
        suffix, begun = tokenizer.encode_within(self.suffix), tokenizer.encode_within(self.begun)
        start = [tokenizer.bos_id] if tokenizer.add_bos and tokenizer.bos_id is not None else []
        own = self._heading(tokenizer)
        around = self._around(tokenizer)
        if most is not None:
            room = max(0, most - len(start) - len(own) - len(begun) - 3)
            n_suffix = min(len(suffix), max(room // 4, room - len(prefix)))
            suffix = suffix[:n_suffix]
            prefix = prefix[max(0, len(prefix) - (room - n_suffix)) :]
            around = _last(around, room - len(prefix) - n_suffix)
        before = [*start, *(token for file in around for token in file), *own]
        opening, gap = [roles["prefix"], *prefix], [roles["suffix"], *suffix]
        middle = [roles["middle"]] if "middle" in roles else []
        if self.suffix_first or not middle:
            return [*before, *gap, *opening, *middle, *begun]
        return [*before, *opening, *gap, *middle, *begun]

    def _around(self, tokenizer: Tokenizer) -> list[list[int]]:
        """The repository's name and the files, each as tokens."""
        roles = tokenizer.vocab.fim_ids
        found = []
        if self.files and "repo" in roles:
            found.append([roles["repo"], *tokenizer.encode_within((self.repository or "repository") + "\n")])
        for file in self.files:
            if "file" in roles:
                found.append([roles["file"], *tokenizer.encode_within(f"{file.name}\n{file.text}")])
            else:
                found.append(tokenizer.encode_within(f"\n\n--- {file.name} ---\n\n{file.text}"))
        return found

    def _heading(self, tokenizer: Tokenizer) -> list[int]:
        """What begins the file with the gap."""
        role = tokenizer.vocab.fim_ids.get("file")
        if role is None or not (self.files or self.name):
            return []
        return [role, *tokenizer.encode_within((self.name or "file") + "\n")]


def _last(files: list[list[int]], room: int) -> list[list[int]]:
    """The last files that fit."""
    kept: list[list[int]] = []
    for file in reversed(files):
        room -= len(file)
        if room < 0:
            break
        kept.insert(0, file)
    return kept
