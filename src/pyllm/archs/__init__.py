"""Architectures: hyper-parameters and tensors of a GGUF file → a recorded program.

An architecture is a function that makes a `Decoder` from `HParams`, found by the name that files give in
`general.architecture`: in the table `ARCHITECTURES` of a module of `pyllm.archs.families`, or as an entry point of the
group `pyllm.archs` of that name (docs/architectures.md).
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

from pyllm import entry_points
from pyllm.errors import ModelError
from pyllm.program import Program
from pyllm.records import dataclass

if TYPE_CHECKING:
    from pyllm.archs.decoder import Decoder, Features
    from pyllm.archs.hparams import HParams
    from pyllm.gguf.tensor import TensorInfo

    Family = Callable[[HParams], Decoder]

_GROUP = "pyllm.archs"


@dataclass(frozen=True, slots=True)
class Architecture:
    """A model's program, and the sizes that other packages need."""

    name: str
    program: Program
    tensors: Mapping[str, TensorInfo]
    """Tensors of the program: the file's, and views of some of their rows under names of their own."""
    decoder: Decoder
    n_ctx_train: int
    n_vocab: int
    n_embd: int
    n_layers: int
    start: int = 0
    """The token that a decoder begins with, where an encoder reads the prompt."""


def load(
    metadata: Mapping[str, Any],
    tensors: Mapping[str, TensorInfo],
    n_ctx: int | None = None,
    features: Features | None = None,
) -> Architecture:
    """Record a model's program for a context of `n_ctx` positions (None: the trained length).

    `metadata` and `tensors` are those of a GGUF file. `features`: records what a head that guesses further
    tokens reads (`archs.heads`). Raises ModelError: unknown architecture, invalid
    hyper-parameters, tensors that are missing or have other shapes than the hyper-parameters imply.
    """
    name = metadata.get("general.architecture")
    if not isinstance(name, str) or not name:
        raise ModelError("the file names no architecture (general.architecture); it holds no model")
    from pyllm.archs.decoder import write
    from pyllm.archs.hparams import HParams

    hp = HParams(metadata, name, tensors, n_ctx)
    decoder = family(name)(hp)
    program, needed = write(decoder, hp, features)
    return Architecture(
        name,
        program,
        needed,
        decoder,
        hp.n_ctx_train,
        program.n_vocab,
        program.n_embd,
        program.n_layers,
        hp.token("decoder_start_token_id", program.n_vocab),
    )


def names() -> list[str]:
    """Names of the known architectures, as files give them, in alphabetical order."""
    own = (name for module in _modules() for name in _table(module))
    return sorted({*own, *entry_points.of_group(_GROUP)})


def family(name: str) -> Family:
    """The function that makes an architecture's decoder. Raises ModelError where it is unknown."""
    for module in sorted(_modules(), key=lambda module: module[:3] != name[:3]):  # the likely ones first
        if name in _table(module):
            return _table(module)[name]
    if name in (foreign := entry_points.of_group(_GROUP)):
        found: Family = foreign[name].load()
        return found
    raise ModelError(f"architecture {name!r} is unknown; known are {', '.join(names())}")


@cache
def _modules() -> list[str]:
    from pyllm.archs import families

    return [module.name for module in pkgutil.iter_modules(families.__path__)]


def _table(module: str) -> Mapping[str, Family]:
    table: Mapping[str, Family] = importlib.import_module(f"pyllm.archs.families.{module}").ARCHITECTURES
    return table
