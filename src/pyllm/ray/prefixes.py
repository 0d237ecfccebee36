"""Beginnings of prompts as hashes of blocks, and which replica has read which."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Hashable, Mapping
from hashlib import blake2b
from typing import Any

import msgspec

BLOCK = 128
"""Bytes of a prompt that a hash stands for, with all before them."""
_MOST_BLOCKS = 512
"""Of a prompt; what comes later does not count."""
_FIELDS = ("model", "context", "system", "instructions", "tools", "messages", "input", "prompt")
"""Fields of bodies, in the order in which a prompt has them."""

_UNSTABLE = "x-anthropic-billing-header:"
"""What Claude Code puts before a system's words. It differs from request to request, and no model reads it."""

_encode = msgspec.json.Encoder(enc_hook=str).encode

Blocks = tuple[bytes, ...]


def blocks_of(fields: Mapping[str, Any]) -> Blocks:
    """The blocks that a request's prompt begins with: prompts that begin alike have their first blocks in common.

    What is left out of a block, at the end of a prompt, and a template's own words make no difference here.
    """
    text = bytearray()
    for name in _FIELDS:
        if found := fields.get(name):
            text += _encode(_stable(found) if name == "system" and isinstance(found, list) else found)
        if len(text) >= BLOCK * _MOST_BLOCKS:
            break
    blocks, before = [], b""
    for start in range(0, min(len(text), BLOCK * _MOST_BLOCKS) - BLOCK + 1, BLOCK):
        before = blake2b(before + text[start : start + BLOCK], digest_size=12).digest()
        blocks.append(before)
    return tuple(blocks)


def _stable(system: list[Any]) -> list[Any]:
    return [part for part in system if not (isinstance(part, dict) and str(part.get("text")).startswith(_UNSTABLE))]


class Prefixes:
    """The blocks that replicas have read, as far as they are remembered."""

    def __init__(self, most: int = 1 << 16) -> None:
        """`most`: blocks of a replica that are remembered; those used longest ago are forgotten first."""
        self._most = most
        self._read: dict[Hashable, OrderedDict[bytes, None]] = {}

    def note(self, replica: Hashable, blocks: Blocks) -> None:
        """A replica reads a prompt."""
        read = self._read.setdefault(replica, OrderedDict())
        # The first block is used last, for it is what others are found by.
        for block in reversed(blocks):
            read[block] = None
            read.move_to_end(block)
        while len(read) > self._most:
            read.popitem(last=False)

    def n_known(self, replica: Hashable, blocks: Blocks) -> int:
        """How many of a prompt's first blocks a replica has read."""
        read = self._read.get(replica, OrderedDict())
        return next((n for n, block in enumerate(blocks) if block not in read), len(blocks))

    def n_read(self, replica: Hashable) -> int:
        """Blocks that a replica has read."""
        return len(self._read.get(replica, ()))

    def keep(self, replicas: Collection[Hashable]) -> None:
        """Forget all other replicas."""
        self._read = {replica: read for replica, read in self._read.items() if replica in replicas}
